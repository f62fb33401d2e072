"""The command line.

  python -m cdm_jax.main [train] --config=configs/brats.py:mdn --workdir=runs/brats
  python -m cdm_jax.main evaluate --workdir=runs/brats
  python -m cdm_jax.main calibrate --workdir=runs/brats --samples=8 [--level=0.9]
  python -m cdm_jax.main synthesize --workdir=runs/brats --input=<patients> --output=<folder>
  python -m cdm_jax.main score --input=<synthetic images> --truth=<real patients> [--output=...]
  python -m cdm_jax.main report --workdir=runs/brats [--patients=3]
  python -m cdm_jax.main prepare|phantom --config=... --workdir=...

Any config value can be overridden: --config.data.root=<folder>.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

from cdm_jax import commands, parallel
from cdm_jax.errors import UserError
from cdm_jax.writer import console

COMMANDS: dict[str, Callable[[commands.Request], None]] = {
    "train": commands.train,
    "evaluate": commands.evaluate,
    "calibrate": commands.calibrate,
    "synthesize": commands.synthesize,
    "score": commands.score,
    "report": commands.report,
    "prepare": commands.prepare,
    "phantom": commands.phantom,
}
DEFAULT_CONFIG = "configs/phantom.py:cdm"


def _define(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of one call, apart from absl's global ones, so that calls do not mix."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file and stage", flag_values=values, sys_argv=list(argv)
    )
    for name, text in (
        ("workdir", "folder of the run; default runs/<dataset>"),
        ("input", "synthesize: a patient's folder, or one of many; score: synthetic images"),
        ("output", "synthesize: where the NIfTI go; score: where the records go"),
        ("truth", "score: the real patients' folder"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    samples = "synthesize, calibrate: samples a patient; default 1, to calibrate 8"
    flags.DEFINE_integer("samples", None, samples, lower_bound=1, flag_values=values)
    flags.DEFINE_float("level", 0.9, "calibrate: nominal coverage", flag_values=values)
    flags.DEFINE_integer(
        "patients", 3, "report: patients to show", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "coordinator_address", "", "several processes: host:port of the first", flag_values=values
    )
    flags.DEFINE_integer("num_processes", 0, "several processes: how many", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "several processes: which, from 0", flag_values=values)
    return values


def _parse(argv: Sequence[str]) -> tuple[str, flags.FlagValues]:
    """The command's name and the flags."""
    values = _define(argv)
    name, *rest = values(argv)[1:] or ["train"]
    if name not in COMMANDS or rest:
        given = " ".join([name, *rest])
        raise UserError(f"unknown command '{given}': allowed are {', '.join(COMMANDS)}")
    if values["config"].using_default_value and name in ("train", "prepare", "phantom"):
        return _parse([*argv, f"--config={DEFAULT_CONFIG}"])
    return name, values


def _request(arguments: Sequence[str], name: str, values: flags.FlagValues) -> commands.Request:
    """What the command is asked to do."""
    # A config file that could not be loaded says so when it is first looked into: here.
    dataset = None if values.config is None else values.config.data.name
    if values.workdir is None and dataset is None and name != "score":
        raise UserError(f"{name} needs --workdir=<folder of a trained run> or --config")
    workdir = values.workdir or f"runs/{dataset}"
    return commands.Request(
        arguments=arguments,
        config=values.config,
        workdir=pathlib.Path(workdir),
        input=pathlib.Path(values.input) if values.input else None,
        output=pathlib.Path(values.output) if values.output else None,
        samples=values.samples or (8 if name == "calibrate" else 1),
        level=values.level,
        truth=pathlib.Path(values.truth) if values.truth else None,
        patients=values.patients,
    )


def main(argv: Sequence[str]) -> int:
    """Runs one command; what the user can mend is said in one line."""
    logging.set_verbosity(logging.WARNING)
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
    try:
        name, values = _parse(argv)
        request = _request(argv[1:], name, values)
        parallel.start(values.coordinator_address, values.num_processes, values.process_id)
    except (UserError, flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    console.quiet = not parallel.is_first()
    try:
        with parallel.end_together():
            COMMANDS[name](request)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        advice = "give a folder that exists or can be made, may be written to and has space left"
        print(f"error: {error}: {advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
