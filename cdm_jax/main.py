"""The command line: `cdm-jax <command> [flags]`, or `python -m cdm_jax.main <command> [flags]`.

  python -m cdm_jax.main --config=configs/brats.py:mdn [--workdir=...] [--config.<key>=<value>]

trains. `cdm-jax --help` lists the commands; `cdm_jax/usage.py` says what each takes, and
`cdm_jax/commands.py` what it does.
"""

import os
import pathlib
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cdm_jax import arguments, workers
from cdm_jax.errors import UserError
from cdm_jax.files import hear_full_disks
from cdm_jax.usage import PROCESSES

STOPPED = 130  # what shells call a program that Ctrl-C has ended
NO_ROOM = "give a folder that exists or can be made, may be written to and has space left"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; what the user can mend is said in one line.

    `argv` begins with the program's name, as `sys.argv` does, which is taken by default.

    Returns:
      The exit status: 0; 1 where the command failed; 2 where it was not understood; 130 where it
      was stopped by Ctrl-C. A training that was asked to stop leaves by SystemExit, with 75, when
      it has saved. Nothing at all is not understood either: a script that lost its
      arguments should not seem to have worked.
    """
    if argv is None:  # this is the program, and no call of it
        workers.hear_one_interrupt()
        hear_full_disks()
    given = list(sys.argv if argv is None else argv)[1:]
    if not given:
        print(arguments.overview(), file=sys.stderr)
        return 2
    try:
        call = arguments.parse(given)
        if isinstance(call, str):
            _print(call)
            return 0
        options = _options(call)
    except (UserError, OSError) as error:
        return _refuse(error, 2)
    try:
        return _run(call.command, options, given)
    except KeyboardInterrupt:
        return _refuse("stopped: the same command goes on with what is not done", STOPPED)


def _print(text: str) -> None:
    """Prints for a reader who may leave before the end, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _options(call: arguments.Call) -> dict[str, Any]:
    """The keyword arguments of the command, with the config loaded and the workdir known."""
    options = dict(call.options)
    if "config" not in options:
        return options
    # Here and not above, as below: help does not need it.
    from cdm_jax.config import load_config

    if options["config"] is not None:
        options["config"] = load_config(options["config"], call.overrides)
        default = pathlib.Path("runs", options["config"].data.name)
        options |= {"workdir": options["workdir"] or default} if "workdir" in options else {}
    elif call.overrides:
        raise UserError(f"{call.overrides[0]} overrides a config: give --config=<file>:<stage> too")
    elif options.get("workdir", "") is None:
        raise UserError(f"{call.command} needs --workdir=<folder of a trained run> or --config")
    return options


def _run(command: str, options: dict[str, Any], given: Sequence[str]) -> int:
    """Runs a command in this process and, where there are several, beside the others."""
    # Here and not above: JAX takes seconds to import.
    from absl import flags, logging

    from cdm_jax import commands, parallel
    from cdm_jax.files import FULL_TOLD, is_full, is_news
    from cdm_jax.run import MissingStageError
    from cdm_jax.writer import console

    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(is_news)
    warnings.filterwarnings("ignore", "Error writing persistent compilation.*No space left")
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
    processes = [options.pop(flag.name, flag.default) for flag in PROCESSES]
    try:
        parallel.start(*processes)
    except UserError as error:
        return _refuse(error, 2)
    console.quiet = not parallel.is_first()
    try:
        with parallel.exit_on_peer_failure():
            getattr(commands, command)(**options)
    except MissingStageError as error:
        return _refuse(f"{error}, by {_same_command(given, error.stage)}", 1)
    except UserError as error:
        return _refuse(error, 1)
    except Exception as error:
        if is_full(error):
            FULL_TOLD.set()
            return _refuse(_full_disk(options), 1)
        if isinstance(error, OSError):
            return _refuse(f"{error}: {NO_ROOM}", 1)
        raise
    return 0


def _full_disk(options: dict[str, Any]) -> str:
    """Which disk is full, and what is kept: every writer writes beside and renames."""
    folder = options.get("output") or options.get("workdir") or options.get("input")
    return (
        f"no space is left on the disk of {folder}: what was finished before is kept there, such "
        "as checkpoints and patients; free some space, or give a folder on another disk, and give "
        "the same command again: it goes on"
    )


def _refuse(reason: object, status: int) -> int:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    return status


def _same_command(given: Sequence[str], stage: str) -> str:
    """The command line that was given, for another stage of its config and no pipeline."""
    changed = [
        re.sub(r"(?<=\.py)(:[^,]*)?(?=,|$)", f":{stage}", argument)
        if before == "--config" or argument.startswith("--config=")
        else argument
        for before, argument in zip(["", *given], given, strict=False)
        if not argument.startswith("--config.pipeline=")
    ]
    return shlex.join(["python", "-m", "cdm_jax.main", *changed])


if __name__ == "__main__":
    sys.exit(main())
