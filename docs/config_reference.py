"""Every config value with its default and its meaning, read from `configs/` and the code.

A value's meaning is the comment beside it in `configs/`, or else what the docstring of the method's
classes says of the attribute of the same name.
"""

import ast
import dataclasses
import html
import importlib
import inspect
import io
import pathlib
import re
import tokenize
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

import configs
from cdm_jax.phantom import PhantomSettings
from configs import baselines, brats, phantom
from configs.common import SYSTEMS

STAGES = (*SYSTEMS["all"], "segmenter")
PARTS = {"train": "training", "optimizer": "optimizer"}  # of every stage, and who makes them
SHARED = "The defaults of `cunet`; what other stages have instead stands in their own tables."
HEAD = "| value | default | small | meaning |\n| --- | --- | --- | --- |"

Meanings = dict[str, str]


def page() -> str:
    """Markdown: a table for what all stages share, and one for each stage."""
    full, small = brats.get_config("all"), phantom.get_config("all")
    shared = [name for name in full if name not in STAGES]
    groups = [name for name in shared if isinstance(full[name], ConfigDict)]
    scalars = {name: full[name] for name in shared if name not in groups}
    meanings = _comments("base")
    parts = ["## Top level", _table("", scalars, small, meanings)]
    for name in groups:
        inside = _below(name, meanings) or _comments(f"_{name}")
        parts += [f"## {name}", _table(f"{name}.", full[name], small[name], inside)]
    listed = _listed(PhantomSettings)
    parts += ["## phantom", _table("phantom.", small.phantom, small.phantom, listed)]
    for part, maker in PARTS.items():
        parts += [f"## &lt;stage&gt;.{part}", SHARED]
        values = full.cunet[part], small.cunet[part]
        parts.append(_table(f"<stage>.{part}.", *values, _comments(maker)))
    for stage in STAGES:
        parts += _stage(stage, full, small)
    return "\n\n".join(parts) + "\n"


def undocumented() -> list[str]:
    """The values that the page has no meaning for."""
    rows = (line.split(" | ") for line in page().splitlines() if line.startswith("| `"))
    return [cells[0].strip("| ") for cells in rows if not cells[-1].strip("| ")]


def _stage(stage: str, full: ConfigDict, small: ConfigDict) -> Iterator[str]:
    """A stage's own values, and where its length and optimizer differ from those of `cunet`."""
    section = full[stage]
    yield f"## {stage}"
    own = {name: value for name, value in section.items() if name not in PARTS}
    meanings = _attributes(section.method) | _comments(_makers(stage))
    meanings["method"] = "module below `cdm_jax.methods` that makes the stage"
    yield _table(f"{stage}.", own, small[stage], meanings)
    for part, maker in PARTS.items():
        changed = {
            name: value for name, value in section[part].items() if value != full.cunet[part][name]
        }
        if changed and stage != "cunet":
            yield _table(f"{stage}.{part}.", changed, small[stage][part], _comments(maker))


def _makers(stage: str) -> str:
    """The functions of `configs/` that make a stage's section, as a pattern."""
    if stage in baselines.SECTIONS:
        return f"{stage}|_resvit|_unet"
    if stage in ("mrm", "segmenter"):
        return stage
    return "mdn" if stage.startswith("mdn") else "cunet"


def _table(
    prefix: str, values: Mapping[str, Any], small: Mapping[str, Any], meanings: Meanings
) -> str:
    rows = [HEAD]
    for name, value in values.items():
        other = small.get(name, value)
        changed = f"`{_shown(other)}`" if _shown(other) != _shown(value) else ""
        meaning = html.escape(meanings.get(name, ""), quote=False).replace("|", "\\|").rstrip(".")
        rows.append(f"| `{prefix}{name}` | `{_shown(value)}` | {changed} | {meaning} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    """A value as it is typed after `=` on the command line; empty texts as quotes."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return '""' if value == "" else str(value).replace("|", "\\|")


def _below(group: str, meanings: Meanings) -> Meanings:
    start = f"{group}."
    return {k.removeprefix(start): text for k, text in meanings.items() if k.startswith(start)}


def _comments(functions: str) -> Meanings:
    """Key to comment, of the keys in these functions of all config files; "a.b" in nested dicts."""
    found: Meanings = {}
    for path in sorted(pathlib.Path(configs.__file__).parent.glob("*.py")):
        source = path.read_text()
        beside = _beside(source)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(functions, node.name):
                keys = ((name, beside.get(line, "")) for name, line in _keys(node))
                found |= {name: text for name, text in keys if text}
    return found


def _beside(source: str) -> dict[int, str]:
    """Line to its comment: at its end, or alone on the line above."""
    lines, found = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            alone = not lines[row - 1][:column].strip()
            found[row + alone] = token.string.lstrip("# ")
    return found


def _keys(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Names of dict entries and keyword arguments below a node, and their lines."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield f"{prefix}{key.value}", key.lineno
                yield from _keys(value, f"{prefix}{key.value}.")
        return
    if isinstance(node, ast.keyword) and node.arg:
        yield f"{prefix}{node.arg}", node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _keys(child, prefix)


def _attributes(method: str) -> Meanings:
    """What the docstrings of a method's classes say of their attributes.

    Those of the stage's own class count most, then those of its module, then those it imports, then
    those that the modules of inherited classes import.
    """
    module = importlib.import_module(f"cdm_jax.methods.{method}")
    classes = _classes(module)
    inherited = {ancestor.__module__ for one in classes for ancestor in one.__mro__}
    for name in sorted(inherited - {module.__name__}):
        if name.startswith("cdm_jax.methods"):
            classes = _classes(importlib.import_module(name)) + classes
    classes.sort(key=lambda c: (c.__module__ == module.__name__, dataclasses.is_dataclass(c)))
    found: Meanings = {}
    for one in classes:
        found |= _listed(one)
    return found


def _classes(module: types.ModuleType) -> list[type]:
    """The classes of this package that are found in a module."""
    found = (value for value in vars(module).values() if inspect.isclass(value))
    return [value for value in found if value.__module__.startswith("cdm_jax")]


def _listed(one: type) -> Meanings:
    """The section "Attributes" of the docstrings of a class and of those that it inherits."""
    found: Meanings = {}
    for ancestor in reversed(one.__mro__):
        text = inspect.cleandoc(ancestor.__doc__ or "")
        if ancestor.__module__.startswith("cdm_jax") and "Attributes:\n" in text:
            body = text.split("Attributes:\n", 1)[1].split("\n\n")[0]
            entries = re.split(r"\n(?=\s{2,4}\w+: )", f"\n{body}")
            pairs = (entry.strip().partition(": ") for entry in entries if ": " in entry)
            found |= {name: " ".join(meaning.split()) for name, _, meaning in pairs}
    return found
