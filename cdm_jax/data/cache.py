"""The prepared cache: each subject's slices on disk, read one by one while a network trains.

A subject becomes two files: `<subject>-<hash>.npy`, its slices, and `<subject>-<hash>.json`, what
is known of them. The hash covers the input files' names, sizes and times of change, the settings
and the format, but no folder: a new patient or a moved data set rebuilds nothing. The json file is
written last and marks the pair as complete; a `.partial` file is what a killed run left behind.

Of each slice the rows above and below the head, which are all 0, are left out. On two patients of
BraTS that is 40 to 42 % of the bytes; whole rows are read straight into their place in a batch,
where a box that is narrower too would have to be copied there.
"""

import functools
import hashlib
import itertools
import json
import tokenize
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16

from cdm_jax.data.intensity import Intensity
from cdm_jax.data.prepare import Description, Prepared, PrepareSettings, files_of
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.files import digest
from cdm_jax.workers import whole_file

FORMAT = 4  # Raise it when a change makes the same input give another cache.

# What a damaged description and NumPy's parser of a damaged header raise, beside ValueError.
_DAMAGED = (AttributeError, EOFError, KeyError, SyntaxError, TypeError, tokenize.TokenError)

Rows = tuple[tuple[int, int], ...]
"""Of each slice, the first row that is stored and the row after the last one."""


@dataclass(frozen=True, kw_only=True)
class PreparedSubject(Description):
    """A prepared subject in the cache: as `Prepared`, with the slices left on disk.

    Attributes:
        size: rows and columns of a slice.
        rows: those that are stored of each slice; all others are 0.
        checks: of each slice, the CRC-32 of its stored rows.
        path: file of the stored rows, one slice's after the other's.
    """

    size: int
    rows: Rows
    checks: tuple[int, ...]
    path: Path

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and modalities of a slice."""
        return self.size, self.size, len(self.sources) + len(self.targets)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where in the file, in bytes, the rows of each slice begin, and where the last ones end.

        Read once: NumPy parses a file's header as Python, which threads of Python 3.11 cannot do
        at the same time ("AST constructor recursion depth mismatch").

        Raises:
            ValueError: the file is no array, is cut short or is not of these rows.
        """
        mapped = np.load(self.path, mmap_mode="r")
        counts = [bottom - top for top, bottom in self.rows]
        if mapped.shape != (sum(counts), *self.shape[1:]):
            raise ValueError(f"{self.path} holds an array {mapped.shape}")
        starts = itertools.accumulate(counts, initial=0)
        return tuple(mapped.offset + start * mapped.strides[0] for start in starts)

    @property
    def slices(self) -> UInt16[np.ndarray, "slice size size modality"]:
        """All slices in order, 65535 = 1.0, read anew each time."""
        return self.read_slices(range(len(self.rows)))

    def read_slices(
        self, positions: Sequence[int] | np.ndarray
    ) -> UInt16[np.ndarray, "slice size size modality"]:
        """The stored slices at these positions, 65535 = 1.0."""
        slices = np.empty((len(positions), *self.shape), np.uint16)
        for out, position in zip(slices, positions, strict=True):
            self.read_slice(int(position), out)
        return slices

    def read_slice(self, position: int, out: UInt16[np.ndarray, "size size modality"]) -> None:
        """Reads one stored slice into `out`, while other threads run.

        Mapped memory takes a page fault for every few kilobytes, and threads that map and unmap
        wait for each other.

        Raises:
            UserError: the file ends before the slice does, or holds other values than were written.
        """
        top, bottom = self.rows[position]
        out[:top] = 0
        out[bottom:] = 0
        stored = out[top:bottom]
        with open(self.path, "rb") as file:
            file.seek(self.offsets[position])
            if file.readinto(stored.data) != stored.nbytes:
                raise UserError(f"{self.path} is cut short: remove it and prepare the data again")
        if zlib.crc32(stored.data) != self.checks[position]:
            raise UserError(f"{self.path} is damaged: remove it and prepare the data again")

    def view(self, sources: tuple[str, ...], targets: tuple[str, ...]) -> "SubjectView":
        """The subject as one of a fixed task, with these of its modalities."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return SubjectView(**own | {"sources": sources, "targets": targets, "whole": self})


@dataclass(frozen=True, kw_only=True)
class SubjectView(PreparedSubject):
    """A prepared subject of whose modalities some are sources and some targets.

    Attributes:
        whole: with all that is stored.
    """

    whole: PreparedSubject

    def read_slices(
        self, positions: Sequence[int] | np.ndarray
    ) -> UInt16[np.ndarray, "slice size size modality"]:
        """The sources and then the targets of the slices at these positions, 65535 = 1.0."""
        stored = self.whole.sources + self.whole.targets
        chosen = [stored.index(name) for name in self.sources + self.targets]
        return self.whole.read_slices(positions)[..., chosen]


def write_prepared(prepared: Prepared, path: Path) -> PreparedSubject:
    """Writes a prepared subject; returns it as it is read back.

    Its slices go to `path`; the description goes beside it, as `.json`, and last.
    """
    rows = shown_rows(prepared.slices)
    parts = [image[top:bottom] for image, (top, bottom) in zip(prepared.slices, rows, strict=True)]
    content = {field.name: getattr(prepared, field.name) for field in fields(Description)}
    checks = tuple(zlib.crc32(np.ascontiguousarray(part).data) for part in parts)
    content |= {"size": prepared.slices.shape[1], "rows": rows, "checks": checks}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, np.concatenate(parts))
    with whole_file(path.with_suffix(".json")) as partial:
        text = json.dumps(content | {"sha256": digest(content)}, default=asdict)
        partial.write_text(text)
    return PreparedSubject(**content, path=path)


def shown_rows(slices: UInt16[np.ndarray, "slice size size modality"]) -> Rows:
    """Of each slice, the rows from the first to the last that is not all 0; (0, 0) of none."""
    shown = np.any(slices, axis=(2, 3))
    tops, lasts = shown.argmax(axis=1), shown.shape[1] - shown[:, ::-1].argmax(axis=1)
    ends = np.where(np.any(shown, axis=1), lasts, 0)
    return tuple(zip(tops.tolist(), ends.tolist(), strict=True))


def cache_path(subject: Subject, settings: PrepareSettings, folder: Path) -> Path:
    """Where the subject's slices lie; the description lies beside them, as `.json`."""
    stats = [(name, path.name, path.stat()) for name, path in files_of(subject, settings).items()]
    files = [(name, file, stat.st_size, stat.st_mtime_ns) for name, file, stat in stats]
    key = json.dumps([FORMAT, files, asdict(settings)])
    return folder / f"{subject.subject_id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def load_prepared(subject: Subject, settings: PrepareSettings, folder: Path) -> PreparedSubject:
    """The subject from the cache.

    Raises:
        OSError, ValueError: it is missing, incomplete, cut short or damaged.
        UserError: the subject lacks a source.
    """
    path = cache_path(subject, settings, folder)
    try:
        content = json.loads(path.with_suffix(".json").read_text())
        if content.pop("sha256") != digest(content):
            raise ValueError(f"{path.with_suffix('.json')} was changed: delete it")
        # JSON has lists for tuples.
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        values |= {
            "subject_id": subject.subject_id,
            "patient_id": subject.patient_id,
            "intensities": {name: Intensity(**own) for name, own in content["intensities"].items()},
            "rows": tuple((top, bottom) for top, bottom in content["rows"]),
        }
        loaded = PreparedSubject(**values, path=path)
        _ = loaded.offsets  # fails where the slices are missing or cut short
    except _DAMAGED as error:
        raise ValueError(f"{path} or the JSON file beside it is damaged: delete both") from error
    return loaded
