"""The reference pages that are made from the code: the command line, the configs, the API.

`conf.py` calls `write_pages` before every build, so that nothing here is copied by hand.
"""

import io
import pathlib
import pkgutil
from contextlib import redirect_stderr, redirect_stdout

import config_reference

import cdm_jax
from cdm_jax import main as command_line
from cdm_jax.data.findings import KINDS
from cdm_jax.usage import COMMANDS

CORE = "core"
ROOMS = {
    CORE: "The package",
    "data": "Data: NIfTI, splits, cache, batches",
    "diffusion": "Diffusion: schedules, forward process, DDIM",
    "methods": "Methods: CDM and the systems it is compared with",
    "metrics": "Metrics, conventions and statistics over patients",
    "nn": "Network blocks that several systems share",
    "phantom": "The phantom: simulated patients",
    "report": "Reports: tables, figures, pages, model cards",
}


def write_pages(docs: pathlib.Path) -> None:
    """Writes `generated/*.md`, which pages include, and the pages `reference/api/*.md`."""
    _write(docs / "generated/command_line.md", help_pages())
    _write(docs / "generated/configs.md", config_reference.page())
    _write(docs / "generated/findings.md", findings())
    _write(docs / "generated/table2.md", result(docs, "phantom_upenn/table2.md"))
    _write(docs / "generated/segmenter.md", result(docs, "phantom/segmenter.md"))
    _write(docs / "generated/enhancement.md", result(docs, "phantom/enhancement.md"))
    for room, text in api_pages().items():
        _write(docs / f"reference/api/{room}.md", text)


def findings() -> str:
    """A table of all that `doctor` can find."""
    lines = ["| code | severity | what it is | what to do |", "| --- | --- | --- | --- |"]
    lines += [f"| `{code}` | {' | '.join(kind)} |" for code, kind in KINDS.items()]
    return "\n".join(lines) + "\n"


def result(docs: pathlib.Path, name: str) -> str:
    """What is drawn from a record, where that is committed."""
    page = docs / "results" / name
    return page.read_text() if page.exists() else "Its record is not there yet.\n"


def _write(path: pathlib.Path, text: str) -> None:
    """Leaves a file that is as it should be untouched: Sphinx reads only what has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def help_pages() -> str:
    """What `--help` prints for the whole and for each command."""
    parts = [_block(_help())]
    for name in COMMANDS:
        parts += [f"## {name}", _block(_help(name))]
    return "\n\n".join(parts) + "\n"


def _help(*command: str) -> str:
    """The text that a user sees.

    Raises:
      RuntimeError: the command line answers with an error.
    """
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        code = command_line.main(["cdm-jax", *command, "--help"])
    if code:
        raise RuntimeError(f"{' '.join(command)} --help failed: {output.getvalue()}")
    return output.getvalue().strip()


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def api_pages() -> dict[str, str]:
    """A page for each folder of the package, and one for the modules at its top."""
    found: dict[str, list[str]] = {CORE: ["cdm_jax"]}
    for module in pkgutil.walk_packages(cdm_jax.__path__, "cdm_jax."):
        room = module.name.split(".")[1]
        is_room = module.ispkg or module.name.count(".") > 1
        found.setdefault(room if is_room else CORE, []).append(module.name)
    return {
        room: "\n\n".join([f"# {ROOMS.get(room, room)}", *map(_module, names)]) + "\n"
        for room, names in found.items()
    }


def _module(name: str) -> str:
    return f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```"
