"""Seals: hashes of finished checkpoints, by which a truncated or altered one is known.

`seals.json` in a stage's folder names each checkpoint's folder and the hash of its files. One that
is not named (its run was killed before it was sealed) is taken as it is.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from cdm_jax.files import read_json, write_json

FILE = "seals.json"
ASIDE = "damaged"
T = TypeVar("T")


def seal(checkpoint: pathlib.Path) -> None:
    """Notes what a finished checkpoint, `<stage>/<kind>/<step>`, consists of."""
    stage, noted = checkpoint.parents[1], _noted(checkpoint)
    there = {name: known for name, known in noted.items() if (stage / name).is_dir()}
    write_json(stage / FILE, there | {_name(checkpoint): _digest(checkpoint)})


def unseal(checkpoint: pathlib.Path) -> None:
    """Forgets a checkpoint that is about to be written."""
    noted = _noted(checkpoint)
    if noted.pop(_name(checkpoint), None):
        write_json(checkpoint.parents[1] / FILE, noted)


def is_intact(checkpoint: pathlib.Path) -> bool:
    """Whether its files are those that were sealed, if it was."""
    stated = _noted(checkpoint).get(_name(checkpoint))
    return stated is None or stated == _digest(checkpoint)


def set_aside(checkpoint: pathlib.Path) -> pathlib.Path:
    """Moves a damaged checkpoint to where nobody looks for one; nothing is deleted."""
    folder = checkpoint.parents[1] / ASIDE
    folder.mkdir(exist_ok=True)
    name = f"{checkpoint.parent.name}-{checkpoint.name}"
    taken = len(list(folder.glob(f"{name}*")))
    place = folder / (f"{name}-{taken}" if taken else name)
    os.replace(checkpoint, place)
    unseal(checkpoint)
    return place


def _name(checkpoint: pathlib.Path) -> str:
    return f"{checkpoint.parent.name}/{checkpoint.name}"


def _noted(checkpoint: pathlib.Path) -> dict[str, str]:
    path = checkpoint.parents[1] / FILE
    content = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def while_unchanged(read: Callable[[pathlib.Path], T]) -> Callable[[pathlib.Path], T]:
    """Keeps what is read of a checkpoint's folder while its files keep their sizes and times.

    A command asks for the same few checkpoints again and again.
    """
    kept = functools.lru_cache(maxsize=64)(lambda folder, _: read(folder))
    return functools.wraps(read)(lambda folder: kept(folder, _state(folder)))


def _state(folder: pathlib.Path) -> tuple[tuple[pathlib.Path, int, int], ...]:
    """Path, bytes and time of the last change in nanoseconds of each file."""
    stats = [(path, path.stat()) for path in _files(folder)]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@while_unchanged
def _digest(folder: pathlib.Path) -> str:
    total = hashlib.sha256()
    for path in _files(folder):
        total.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
