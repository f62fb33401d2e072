"""A cohort prepared into the cache, on all cores, after a look at the disk."""

import contextlib
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import track

from cdm_jax import workers
from cdm_jax.data.cache import (
    PreparedSubject,
    cache_path,
    load_prepared,
    write_prepared,
)
from cdm_jax.data.headers import refuse_unusable
from cdm_jax.data.nifti import read_geometry
from cdm_jax.data.prepare import PrepareSettings, files_of, prepare_subject
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError

# Part of all rows of all slices that is stored: 0.51 and 0.54 of two patients of BraTS.
STORED = 0.55
GB = 1e9


def prepare(
    subjects: Sequence[Subject], settings: PrepareSettings, folder: Path, *, num_workers: int = 0
) -> list[PreparedSubject]:
    """Returns the subjects from the cache in `folder`, preparing those that are not yet there.

    As many are prepared side by side as `num_workers` says, each by a process; 0: one a core; 1: in
    this process. The folder is made if need be.

    Raises:
        UserError: headers show that some subjects cannot be prepared, or there is no room for them
            (nothing has been prepared then); or some cannot be for what their voxels are (all the
            others have been).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for subject in subjects:
        with contextlib.suppress(OSError, ValueError):  # missing, incomplete or cut short
            found[subject.subject_id] = load_prepared(subject, settings, folder)
    missing = [subject for subject in subjects if subject.subject_id not in found]
    if missing:
        _prepare_missing(missing, settings, folder, num_workers or workers.cores())
    return [found.get(s.subject_id) or load_prepared(s, settings, folder) for s in subjects]


def _prepare_missing(
    missing: Sequence[Subject], settings: PrepareSettings, folder: Path, num_workers: int
) -> None:
    """Prepares these subjects; whatever fails of some is said when the others are done."""
    number = min(num_workers, len(missing))
    refuse_unusable({subject.subject_id: files_of(subject, settings) for subject in missing})
    room = check_room(missing, settings, folder)
    get_console().print(f"preparing {room}, {number} at a time", soft_wrap=True)
    build = functools.partial(_build, settings=settings, folder=folder)
    with workers.pool(number) as pool:
        outcomes = pool.map(build, missing)
        failures = [m for m in track(outcomes, "Preparing subjects", total=len(missing)) if m]
    if failures:
        raise UserError(
            f"{len(failures)} of {len(missing)} subjects cannot be prepared (the others are "
            f"done): {'; '.join(failures[:3])}{'; ...' if len(failures) > 3 else ''}"
        )


def check_room(subjects: Sequence[Subject], settings: PrepareSettings, folder: Path) -> str:
    """Says about how much the cache of these subjects will take, by headers, and how much is free.

    Raises:
        UserError: there is less free than needed.
    """
    needed = cache_bytes(subjects, settings)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"preparing {len(subjects)} subjects takes about {needed / GB:.1f} GB, and {folder} "
            f"has {free / GB:.1f} GB free: make room, or give a folder on another disk, "
            "--config.data.cache=<folder>, or a smaller --config.data.size"
        )
    return (
        f"{len(subjects)} subjects: about {needed / GB:.1f} GB in {folder}, where "
        f"{free / GB:.1f} GB are free"
    )


def cache_bytes(subjects: Sequence[Subject], settings: Any) -> float:
    """About how much the cache of these subjects takes, by their headers.

    Args:
        subjects: Found in a folder.
        settings: Has `sources`, `targets` and `size`: `PrepareSettings`, or a config's `data`.
    """
    modalities = len(settings.sources) + len(settings.targets)
    each = STORED * settings.size**2 * modalities * 2  # bytes a slice
    firsts = (next(iter(subject.images.values())) for subject in subjects)  # any may be missing
    return sum(map(_height, firsts)) * each


def _height(path: Path) -> int:
    """Slices of a volume; none of a file that cannot be read, which is named when it is due."""
    try:
        return read_geometry(path).shape[0]
    except UserError:
        return 0


def _build(subject: Subject, settings: PrepareSettings, folder: Path) -> str | None:
    """Prepares a subject into the cache; returns what is wrong with it, if anything."""
    name = subject.subject_id
    try:
        write_prepared(prepare_subject(subject, settings), cache_path(subject, settings, folder))
    except UserError as error:
        return str(error) if name in str(error) else f"{name}: {error}"
    except MemoryError:
        return f"{name}: memory ran out; set --config.data.num_workers to fewer"
    except Exception as error:
        error.add_note(f"while {name} was prepared")
        raise
    return None
