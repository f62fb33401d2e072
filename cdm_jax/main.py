"""The command line.

  python -m cdm_jax.main [train] --config=configs/brats.py:mdn --workdir=runs/brats
  python -m cdm_jax.main evaluate --workdir=runs/brats
  python -m cdm_jax.main synthesize --workdir=runs/brats --input=<patients> --output=<folder>
  python -m cdm_jax.main prepare|phantom --config=... --workdir=...

Any config value can be overridden: --config.data.root=<folder>.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

from cdm_jax import commands
from cdm_jax.errors import UserError

COMMANDS: dict[str, Callable[[commands.Request], None]] = {
    "train": commands.train,
    "evaluate": commands.evaluate,
    "synthesize": commands.synthesize,
    "prepare": commands.prepare,
    "phantom": commands.phantom,
}
DEFAULT_CONFIG = "configs/phantom.py:cdm"

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file and stage")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default runs/<dataset>")
_INPUT = flags.DEFINE_string("input", None, "synthesize: a patient's folder, or one of many")
_OUTPUT = flags.DEFINE_string("output", None, "synthesize: where the NIfTI go")
_SAMPLES = flags.DEFINE_integer("samples", 1, "synthesize: samples to draw", lower_bound=1)


def _request(argv: Sequence[str]) -> tuple[str, commands.Request]:
    """Parses the command line into a command's name and what it is asked to do."""
    asks_config = any(argument.startswith("--config") for argument in argv)
    name = next((a for a in argv[1:] if not a.startswith("-")), "train")
    if not asks_config and name in ("train", "prepare", "phantom"):
        argv = [*argv, f"--config={DEFAULT_CONFIG}"]
    rest = flags.FLAGS(argv)[1:]
    if name not in COMMANDS or len(rest) > 1:
        raise UserError(f"unknown command '{' '.join(rest)}': allowed are {', '.join(COMMANDS)}")
    workdir = _WORKDIR.value
    if workdir is None:
        if _CONFIG.value is None:
            raise UserError(f"{name} needs --workdir=<folder of a trained run> or --config")
        workdir = f"runs/{_CONFIG.value.data.name}"
    return name, commands.Request(
        config=_CONFIG.value,
        workdir=pathlib.Path(workdir),
        input=pathlib.Path(_INPUT.value) if _INPUT.value else None,
        output=pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None,
        samples=_SAMPLES.value,
    )


def main(argv: Sequence[str]) -> int:
    """Runs one command; what the user can mend is said in one line."""
    logging.set_verbosity(logging.WARNING)
    try:
        name, request = _request(argv)
    except (UserError, flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    try:
        COMMANDS[name](request)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
