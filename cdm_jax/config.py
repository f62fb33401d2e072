"""Configs: loaded by path with values overridden on the command line, written as JSON, compared."""

import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cdm_jax.errors import UserError, nearest

# Options that former versions had, with the value that is left of each.
REMOVED = {
    "condition_decoder": False,
    "fusion": "add",
    "sampled_share": 0.5,
    "foreground_only": False,
    "mask_fill": "token",
    "normalization": "zscore",
    "joint": True,
    "pool": 1,
    "identity": True,
    "flip_equivariance": False,
    "geometry": "rotation",
}


def load_config(argument: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file and stage, with overrides.

    Args:
      argument: `configs/brats.py:cunet,size=128` calls that file's `get_config("cunet,size=128")`.
      overrides: `--config.<key>=<value>`, or flag and value one after the other; each value has
        the type of the one that it replaces.

    Raises:
      UserError: no such file, a stage that it does not know, or an override that does not fit.
    """
    name, _, stage = argument.partition(":")
    module = _load_file(pathlib.Path(name))
    try:
        config = module.get_config(*([stage] if stage else []))
    except ValueError as error:  # how a config file refuses its argument
        raise UserError(str(error)) from error
    return _override(config, overrides)


def _load_file(path: pathlib.Path) -> ModuleType:
    """Runs a config file, whose imports are found from the folder above its package."""
    if not path.is_file():
        others = (
            file for file in path.parent.glob("*.py") if "def get_config(" in file.read_text()
        )
        hint = nearest(str(path), map(str, others))
        raise UserError(f"there is no config file {path}{hint}: give --config=<file>.py:<stage>")
    root = path.absolute().parent
    while (root / "__init__.py").exists():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.append(str(root))
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: give --config=<file>.py:<stage>")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: give a file of configs/")
    return module


def _override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config, locked, with these values replaced."""
    for override in overrides:
        if override.startswith("-"):
            _check_key(config, override.partition("=")[0].partition(".")[2])
    values = flags.FlagValues()
    argv = ["", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        _, *others = values(argv)
    # Nothing but the user's own text is interpreted here, and this is how absl and ml_collections
    # refuse it.
    except (flags.Error, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if others:
        raise UserError(f"unexpected '{others[0]}' among the overrides of the config")
    return values.config


def _check_key(config: ConfigDict, key: str) -> None:
    """Refuses a dotted key that the config does not have, with the nearest that it has."""
    section, path = config, ""
    for name in key.partition("[")[0].split("."):
        if not isinstance(section, ConfigDict):
            raise UserError(f"config{path} is a value and has nothing below it: got config.{key}")
        if name not in section:
            known = sorted(section.keys())
            hint = nearest(name, known) or f": config{path} has {', '.join(known)}"
            raise UserError(f"the config has no key {key}{hint}")
        section, path = section[name], f"{path}.{name}"


def plain(config: Any) -> Any:
    """A config as JSON types; `to_config` turns it back."""
    if isinstance(config, ConfigDict):
        return {key: plain(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def to_config(tree: Any) -> Any:
    """The config that `plain` wrote down; lists become tuples again."""
    if isinstance(tree, dict):
        return ConfigDict({key: to_config(value) for key, value in tree.items()})
    return tuple(tree) if isinstance(tree, list) else tree


def differences(ours: ConfigDict, saved: ConfigDict, sections: Sequence[str]) -> list[str]:
    """Keys of these sections whose values differ, as "key: saved -> ours".

    A setting that the version that saved did not have does not differ where it is off here, and one
    of `REMOVED` does not where it had the value that is left.
    """
    found = []
    for section in sections:
        new, old = _flat(plain(ours[section]), section), _flat(plain(saved[section]), section)
        left = {f"{section}.{name}": value for name, value in REMOVED.items()}
        new = {key: value for key, value in left.items() if key in old} | new
        found += [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted(new.keys() | old.keys())
            if new.get(key) != old.get(key) and (key in old or new[key])
        ]
    return found


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}").items()}
