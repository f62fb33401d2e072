"""What the commands are called, which flags each takes, and their help. Imports nothing slow."""

import argparse
import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import cdm_jax
from cdm_jax.errors import UserError, nearest

PROGRAM = "cdm-jax"
SCREEN = 92  # columns of the help


def _folder(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder is needed, got nothing")
    return pathlib.Path(text)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, 1 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' should be a number") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag `--name=value`.

    Attributes:
      name: without dashes; also the keyword argument of the command's function.
      text: what it is for.
      value: stands for the value in the help.
      default: where it is not given; None: there is no default, or the text says which.
      kind: from the text given to the value.
      required: whether the command cannot do without.
    """

    name: str
    text: str
    value: str = "FOLDER"
    default: Any = None
    kind: Callable[[str], Any] = _folder
    required: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command as its help presents it.

    Attributes:
      summary: one line.
      text: what it does and needs.
      flags: all that it takes.
      examples: arguments of two calls.
      overrides: whether config values can be overridden by `--config.<key>=<value>`.
    """

    summary: str
    text: str
    flags: tuple[Flag, ...]
    examples: tuple[str, str]
    overrides: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A parsed command line.

    Attributes:
      command: its name.
      options: value of every flag that the command takes, by name.
      overrides: `--config.<key>=<value>`, as given.
    """

    command: str
    options: dict[str, Any]
    overrides: tuple[str, ...]


PROCESSES = (
    Flag(
        name="coordinator_address",
        text="address of the first",
        value="HOST:PORT",
        default="",
        kind=str,
    ),
    Flag(name="num_processes", text="how many", value="N", default=0, kind=int),
    Flag(
        name="process_id",
        text="which one this is, from 0",
        value="K",
        default=-1,
        kind=int,
    ),
)
CONFIG = Flag(
    name="config",
    text="config file and stage, such as configs/brats.py:cdm",
    value="FILE:STAGE",
    default="configs/phantom.py:cdm",
    kind=str,
)
SAVED_CONFIG = Flag(
    name="config",
    text="config file and stage; default: the config that the run was trained with",
    value="FILE:STAGE",
    kind=str,
)
WORKDIR = Flag(name="workdir", text="folder of the run; default runs/<dataset of the config>")

COMMANDS = {
    "train": Command(
        summary="train a stage, or all stages of a system, and score it",
        text="""
            Trains the stage after the colon (mrm, mdn, cunet, m1, ...), or all stages of a system
            (cdm, all, ...; configs/common.py lists them) and then scores it on the test patients.
            The same command continues an interrupted run. Needs a config and patients:
            configs/phantom.py simulates its own, the others need --config.data.root=<folder>.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "train --config=configs/phantom.py:cdm,smoke --workdir=runs/smoke",
            "train --config=configs/brats.py:cdm --config.data.root=/data/BraTS2023",
        ),
    ),
    "evaluate": Command(
        summary="score a run's systems on its test patients",
        text="""
            Writes a JSON record for each test patient to <workdir>/evaluation and prints the
            tables. Needs a run with trained systems.
            """,
        flags=(SAVED_CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "evaluate --workdir=runs/brats",
            "evaluate --config=configs/brats.py:cdm --workdir=runs/brats "
            "--config.data.root=/data/BraTS2023",
        ),
    ),
    "calibrate": Command(
        summary="make intervals for synthesize, on a run's validation patients",
        text="""
            Conformal risk control over the validation patients; synthesize with as many samples
            then writes the lower and upper ends of an interval for each voxel. Needs a run with a
            trained system whose samples differ: the stage of --config, cunet by default.
            """,
        flags=(
            SAVED_CONFIG,
            WORKDIR,
            Flag(
                name="samples",
                text="samples of each patient, as many as synthesize will draw",
                value="N",
                default=8,
                kind=_at_least_one,
            ),
            Flag(
                name="level",
                text="nominal coverage of the brain, between 0 and 1",
                value="SHARE",
                default=0.9,
                kind=_number,
            ),
            *PROCESSES,
        ),
        examples=(
            "calibrate --workdir=runs/brats",
            "calibrate --workdir=runs/brats --samples=16 --level=0.8",
        ),
    ),
    "synthesize": Command(
        summary="make the missing modalities of one patient or a cohort, as NIfTI",
        text="""
            Writes each target modality on the grid of the input, with a JSON sidecar and an
            overview; with several samples their mean, their deviation and, after calibrate with
            as many samples, the ends of an interval. What is done already is left alone. Needs a
            trained system, and of each patient the source modalities: skull-stripped, on one grid,
            named as in BraTS or UPenn-GBM (or by the patterns that the system was trained with).
            """,
        flags=(
            Flag(
                name="workdir",
                text="folder of the run, of which CDM's cunet is taken, or of one of its systems, "
                "such as runs/brats/m1",
                required=True,
            ),
            Flag(name="input", text="one patient's folder, or a folder of many", required=True),
            Flag(name="output", text="a folder for each patient is made in it", required=True),
            Flag(
                name="samples",
                text="samples of each patient",
                value="N",
                default=1,
                kind=_at_least_one,
            ),
            *PROCESSES,
        ),
        examples=(
            "synthesize --workdir=runs/brats --input=patient --output=synthetic --samples=8",
            "synthesize --workdir=runs/brats/m1 --input=cohort --output=synthetic_m1",
        ),
        overrides=False,
    ),
    "score": Command(
        summary="score anybody's synthetic images against the real ones",
        text="""
            Prints and writes tables and a record for each patient, under every convention. Needs
            no model. Files are matched by the names of BraTS and UPenn-GBM, any others by equal
            paths below the two folders.
            """,
        flags=(
            Flag(name="input", text="folder of the synthetic images", required=True),
            Flag(name="truth", text="folder of the real patients", required=True),
            Flag(name="output", text="where the records go; default <input>/scores"),
        ),
        examples=(
            "score --input=synthetic --truth=patient",
            "score --input=synthetic --truth=/data/BraTS2023 --output=scores",
        ),
        overrides=False,
    ),
    "report": Command(
        summary="write a run's pages: tables, curves, pictures, a viewer",
        text="""
            Writes <workdir>/report/index.html, to be opened from disk. Needs a run that has been
            evaluated.
            """,
        flags=(
            SAVED_CONFIG,
            WORKDIR,
            Flag(
                name="patients",
                text="unseen patients to show in pictures",
                value="N",
                default=3,
                kind=_at_least_one,
            ),
            *PROCESSES,
        ),
        examples=("report --workdir=runs/brats", "report --workdir=runs/brats --patients=10"),
    ),
    "prepare": Command(
        summary="find, split and cache the patients, and train nothing",
        text="""
            Writes <workdir>/split.json and <workdir>/cache, which train then finds. Needs a config
            and patients, as train does.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "prepare --config=configs/brats.py:cdm --config.data.root=/data/BraTS2023",
            "prepare --config=configs/brats.py:cdm,size=128 --config.data.root=/data/BraTS2023 "
            "--workdir=runs/brats128",
        ),
    ),
    "phantom": Command(
        summary="simulate patients and write them as NIfTI",
        text="""
            Writes them to <workdir>/patients, or to --config.data.root. Needs a config with a
            section phantom.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "phantom --workdir=runs/phantom",
            "phantom --config=configs/phantom.py:cdm,smoke --config.data.root=simulated",
        ),
    ),
}


class _Parser(argparse.ArgumentParser):
    """Refuses by raising, instead of printing the usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`")


def parse(arguments: Sequence[str]) -> Call | str:
    """The call that is asked for, or the text to print where that is all that is asked for.

    Flags without a command train.

    Args:
      arguments: without the program's name.

    Raises:
      UserError: an unknown command or flag, a bad value, or a flag that is missing.
    """
    name, others = _split(arguments)
    if name is not None and name not in COMMANDS:
        raise UserError(
            f"unknown command '{name}'{nearest(name, COMMANDS)}: allowed are {', '.join(COMMANDS)}"
        )
    if "--help" in others or "-h" in others:
        return _parser(name).format_help() if name else overview()
    if "--version" in others:
        return f"{PROGRAM} {cdm_jax.__version__}"
    name = name or "train"
    parser = _parser(name)
    options, unknown = parser.parse_known_args(others)
    _check_unknown(name, unknown)
    _check_required(name, vars(options))
    return Call(command=name, options=vars(options), overrides=tuple(unknown))


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command, which is the first word that is no flag and no flag's value; and the rest."""
    for place, (before, word) in enumerate(zip(["", *arguments], arguments, strict=False)):
        if not word.startswith("-") and ("=" in before or not before.startswith("-")):
            return word, [*arguments[:place], *arguments[place + 1 :]]
    return None, list(arguments)


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command's flags, which also writes its help."""
    command = COMMANDS[name]
    examples = "".join(f"\n  {PROGRAM} {example}" for example in command.examples)
    overrides = "\nAny value of the config can be overridden: --config.<key>=<value>.\n"
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} [flags]",
        description=f"{command.summary}\n\n{textwrap.dedent(command.text).strip()}",
        epilog=f"{overrides if command.overrides else ''}\nexamples:{examples}",
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=SCREEN),
        allow_abbrev=False,
        add_help=False,
    )
    own = parser.add_argument_group("flags")
    shared = parser.add_argument_group("flags of a run on several processes")
    for flag in command.flags:
        text = flag.text + ("; required" if flag.required else "")
        if flag.default and flag not in PROCESSES:
            text += f"; default {flag.default}"
        group = shared if flag in PROCESSES else own
        group.add_argument(
            f"--{flag.name}", metavar=flag.value, type=flag.kind, default=flag.default, help=text
        )
    return parser


def overview() -> str:
    """The help of the whole program, on one screen."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in COMMANDS.items())
    return f"""\
{PROGRAM} {cdm_jax.__version__}: synthesizes the MRI modalities that a brain examination lacks.
For research. Synthetic images are not for clinical use.

usage: {PROGRAM} <command> [flags]     the same as python -m cdm_jax.main <command> [flags]

commands ({PROGRAM} <command> --help shows what each needs, its flags and examples):
{commands}

Flags without a command train. Any value of a config can be overridden: --config.<key>=<value>.

examples:
  {PROGRAM} train --config=configs/phantom.py:cdm --workdir=runs/phantom
  {PROGRAM} synthesize --workdir=runs/phantom --input=patient --output=synthetic --samples=8
"""


def _check_required(name: str, options: dict[str, Any]) -> None:
    required = [flag for flag in COMMANDS[name].flags if flag.required]
    if any(not options[flag.name] for flag in required):
        needed = " ".join(f"--{flag.name}=<{flag.value.lower()}>" for flag in required)
        raise UserError(f"{name} needs {needed}: see `{PROGRAM} {name} --help`")


def _check_unknown(name: str, words: Sequence[str]) -> None:
    """Lets only overrides of config values pass."""
    for before, word in zip(["", *words], words, strict=False):
        if _is_override(word) and COMMANDS[name].overrides:
            continue
        if not word.startswith("-"):
            if _is_override(before) and "=" not in before:
                continue
            raise UserError(f"unexpected '{word}' after {name}: see `{PROGRAM} {name} --help`")
        flag = word.partition("=")[0]
        known = [f"--{flag.name}" for flag in COMMANDS[name].flags]
        takers = [c for c, other in COMMANDS.items() if flag[2:] in {f.name for f in other.flags}]
        hint = f" (it belongs to {', '.join(takers)})" if takers else nearest(flag, known)
        raise UserError(f"{name} takes no flag {flag}{hint}: allowed are {', '.join(known)}")


def _is_override(word: str) -> bool:
    return word.startswith(("--config.", "--noconfig.", "-config."))
