"""A command line parsed: which command, which flags; or the help that was asked for.

Imports nothing slow.
"""

import argparse
import functools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import cdm_jax
from cdm_jax.errors import UserError, nearest
from cdm_jax.usage import COMMANDS, PROCESSES

PROGRAM = "cdm-jax"
SCREEN = 92  # columns of the help


class Call(NamedTuple):
    """A command, the value of each of its flags, and `--config.<key>=<value>` as given."""

    command: str
    options: dict[str, Any]
    overrides: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    """Refuses by raising, instead of printing the usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`")


def parse(arguments: Sequence[str]) -> Call | str:
    """The call that is asked for, or the text to print where that is all that is asked for.

    Flags without a command train. The arguments do not begin with the program's name.

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
        if flag.kind is bool:
            group.add_argument(f"--{flag.name}", action="store_true", help=text)
            continue
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
