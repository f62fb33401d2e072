"""The prepared cache: each subject's slices at the model's size, ready to be memory-mapped.

A subject becomes two files: `<subject>-<hash>.npy`, its slices, and `<subject>-<hash>.json`, what
is known of them.  The hash covers the input files' names, sizes and times of change, the settings
and the format, but no folder: a new patient or a moved data set rebuilds nothing.  The json file is
written last and marks the pair as complete; a `.partial` file is what a killed run left behind.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, UInt16
from rich.progress import track

from cdm_jax.data.intensity import Intensity
from cdm_jax.data.native import NativeImages, read_native
from cdm_jax.data.resample import to_frame
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError

FORMAT = 1  # Raise it when a change here makes the same input give another cache.
FULL_SCALE = 65535  # The stored value of 1.0.


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the content of a prepared subject.

    Attributes:
        sources: the input modalities.
        targets: the modalities to synthesize; none where any of the sources may be missing, and be
            what is to be synthesized.
        size: rows and columns of a slice in the model's frame.
        minimum_brain: a slice is trained on if brain covers at least this part of its square.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    size: int
    minimum_brain: float

    def __post_init__(self) -> None:
        names = self.sources + self.targets
        if not self.sources or len(set(names)) < len(names):
            raise UserError(
                f"sources {self.sources} and targets {self.targets}: at least one source is "
                "needed, and no modality may be named twice"
            )


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a subject's slices.

    Attributes:
        subject_id: the subject (one scan).
        patient_id: the patient, who may have several scans.
        sources: the input modalities, the first channels of the slices.
        targets: the target modalities, the channels after them; empty if the subject lacks any,
            and where any of the sources may be missing (their channels are 0 then).
        native_shape: the volume's (z, y, x) before slices were left out and resized.
        slice_indices: the z index of each stored slice: every slice with any brain in the sources.
        training: the positions, among the stored slices, of those to train on.
        intensities: each stored modality's way to [0, 1] and back.
    """

    subject_id: str
    patient_id: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    native_shape: tuple[int, int, int]
    slice_indices: tuple[int, ...]
    training: tuple[int, ...]
    intensities: Mapping[str, Intensity]


@dataclass(frozen=True, kw_only=True)
class Prepared(Description):
    """A prepared subject in memory: its slices, 65535 = 1.0, and their description."""

    slices: UInt16[np.ndarray, "slice size size modality"]


@dataclass(frozen=True, kw_only=True)
class PreparedSubject(Description):
    """A prepared subject in the cache: as `Prepared`, with the slices left on disk."""

    path: Path

    @functools.cached_property
    def layout(self) -> tuple[tuple[int, ...], int]:
        """Shape of the slices and where they begin in the file.

        Read once: NumPy parses a file's header as Python, which threads of Python 3.11 cannot do
        at the same time ("AST constructor recursion depth mismatch").
        """
        mapped = np.load(self.path, mmap_mode="r")
        return mapped.shape, mapped.offset

    @property
    def slices(self) -> UInt16[np.ndarray, "slice size size modality"]:
        """The slices, memory-mapped, 65535 = 1.0.

        Mapped anew each time: a map that is kept holds a file open, of which a process may have
        fewer than a data set has subjects, and would be copied to worker processes.
        """
        shape, offset = self.layout
        return np.memmap(self.path, np.uint16, mode="r", offset=offset, shape=shape)

    def view(self, sources: tuple[str, ...], targets: tuple[str, ...]) -> "SubjectView":
        """The subject as one of a fixed task, with these of its modalities."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {"sources": sources, "targets": targets, "stored": self.sources + self.targets}
        return SubjectView(**fields | changed)

    def read_slice(self, position: int, out: UInt16[np.ndarray, "size size modality"]) -> None:
        """Reads one stored slice into `out`, while other threads run.

        Mapped memory, as `slices` returns it, takes a page fault for every few kilobytes, and
        threads that map and unmap wait for each other.

        Raises:
            UserError: the file ends before the slice does.
        """
        _, offset = self.layout
        with open(self.path, "rb") as file:
            file.seek(offset + position * out.nbytes)
            if file.readinto(out.data) != out.nbytes:
                raise UserError(f"{self.path} is cut short: remove it and prepare the data again")


@dataclass(frozen=True, kw_only=True)
class SubjectView(PreparedSubject):
    """A prepared subject of whose modalities some are sources and some targets.

    Attributes:
        stored: the modalities of the file, in its order.
    """

    stored: tuple[str, ...]

    @property
    def slices(self) -> UInt16[np.ndarray, "slice size size modality"]:
        """A copy of the slices: the sources, then the targets."""
        chosen = [self.stored.index(name) for name in self.sources + self.targets]
        return super().slices[..., chosen]


def prepare_subject(subject: Subject, settings: PrepareSettings) -> Prepared:
    """Reads and prepares one subject, in memory; targets are left out if it lacks any of them.

    Raises:
        UserError: a source is missing, a file is unreadable, or the files' grids differ.
    """
    files = tuple(_files(subject, settings))
    native = read_native(subject, [name for name in settings.sources if name in files], files)
    return prepare_images(native, settings, subject.subject_id, subject.patient_id)


def prepare_images(
    native: NativeImages, settings: PrepareSettings, subject_id: str, patient_id: str
) -> Prepared:
    """Prepares a subject's images.

    Args:
        native: the sources', then the targets' in the settings' order if any.
        settings: what decides the content.
        subject_id: the subject.
        patient_id: the patient.
    """
    brain = native.brain
    coverage = brain.sum(axis=(1, 2)) / max(brain.shape[1:]) ** 2
    kept = np.flatnonzero(coverage)
    targets = tuple(name for name in native.images if name not in settings.sources)
    none = np.zeros((len(kept), settings.size, settings.size), np.uint16)
    channels = [
        quantize(to_frame(native.images[name][kept], settings.size))
        if name in native.images
        else none
        for name in settings.sources + targets
    ]
    return Prepared(
        subject_id=subject_id,
        patient_id=patient_id,
        sources=settings.sources,
        targets=targets,
        native_shape=brain.shape,
        slice_indices=tuple(kept.tolist()),
        training=tuple(np.flatnonzero(coverage[kept] >= settings.minimum_brain).tolist()),
        intensities=native.intensities,
        slices=np.stack(channels, axis=-1),
    )


def quantize(values: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Returns values, clipped to [0, 1], as 16-bit integers: 65535 = 1.0."""
    return np.rint(np.clip(values, 0, 1) * FULL_SCALE).astype(np.uint16)


def prepare(
    subjects: Sequence[Subject], settings: PrepareSettings, folder: Path, *, num_workers: int = 0
) -> list[PreparedSubject]:
    """Returns the subjects from the cache in `folder`, preparing those that are not yet there.

    Args:
        subjects: the subjects, in the order wanted.
        settings: what decides the content.
        folder: where the cache is; made if need be.
        num_workers: processes that prepare subjects side by side; 0: this process does it.

    Raises:
        UserError: some subjects cannot be prepared; all the others have been.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [subject for subject in subjects if not _is_cached(subject, settings, folder)]
    build = functools.partial(_build, settings=settings, folder=folder)
    outcomes = track(
        _map(build, missing, num_workers),
        "Preparing subjects",
        total=len(missing),
        disable=not missing,
    )
    failures = [message for message in outcomes if message]
    if failures:
        raise UserError(
            f"{len(failures)} of {len(subjects)} subjects cannot be prepared (the others are "
            f"done): {'; '.join(failures[:3])}{'; ...' if len(failures) > 3 else ''}"
        )
    return [_load(subject, settings, folder) for subject in subjects]


def median_scales(prepared: Sequence[Description]) -> dict[str, float]:
    """Returns each modality's median scale over the subjects.

    The scale of a synthesized target is unknown; taken over the training subjects, this is the
    reference by which it is written: the median of their 99.5th percentiles, above background.
    """
    scales: dict[str, list[float]] = {}
    for subject in prepared:
        for modality, intensity in subject.intensities.items():
            scales.setdefault(modality, []).append(intensity.scale)
    return {modality: float(np.median(values)) for modality, values in scales.items()}


def _files(subject: Subject, settings: PrepareSettings) -> dict[str, Path]:
    """Returns the files to prepare by modality: the sources', then the targets' if all exist."""
    missing = [name for name in settings.sources if name not in subject.images]
    if not settings.targets and len(missing) < len(settings.sources):
        return {name: subject.images[name] for name in settings.sources if name not in missing}
    if missing:
        raise UserError(
            f"{subject.subject_id} has no {', '.join(missing)}, only "
            f"{', '.join(sorted(subject.images))}: add the files or leave the subject out"
        )
    complete = all(name in subject.images for name in settings.targets)
    names = settings.sources + (settings.targets if complete else ())
    return {name: subject.images[name] for name in names}


def _cache_path(subject: Subject, settings: PrepareSettings, folder: Path) -> Path:
    """Returns where the subject's slices lie; its description lies beside, as .json."""
    stats = [(name, path.name, path.stat()) for name, path in _files(subject, settings).items()]
    files = [(name, file, stat.st_size, stat.st_mtime_ns) for name, file, stat in stats]
    key = json.dumps([FORMAT, files, dataclasses.asdict(settings)])
    return folder / f"{subject.subject_id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def _map(
    build: Callable[[Subject], str | None], subjects: Sequence[Subject], num_workers: int
) -> Iterator[str | None]:
    if num_workers == 0 or not subjects:
        yield from map(build, subjects)
        return
    # Not forked: JAX may have started threads in this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        yield from executor.map(build, subjects)


def _build(subject: Subject, settings: PrepareSettings, folder: Path) -> str | None:
    """Prepares a subject into the cache; returns what is wrong with it, if anything."""
    try:
        prepared = prepare_subject(subject, settings)
    except UserError as error:
        return str(error)
    names = (field.name for field in dataclasses.fields(Description))
    content = {name: getattr(prepared, name) for name in names}
    text = json.dumps(content, default=dataclasses.asdict, indent=1)
    path = _cache_path(subject, settings, folder)
    _write(path, lambda file: np.save(file, prepared.slices))
    _write(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    return None


def _write(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that others see complete or not at all, also when several write it at once."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            save(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_cached(subject: Subject, settings: PrepareSettings, folder: Path) -> bool:
    """Returns whether the subject is in the cache, complete and not cut short."""
    try:
        _ = _load(subject, settings, folder).slices
    except (OSError, ValueError):
        return False
    return True


def _load(subject: Subject, settings: PrepareSettings, folder: Path) -> PreparedSubject:
    path = _cache_path(subject, settings, folder)
    content = json.loads(path.with_suffix(".json").read_text())
    return PreparedSubject(
        subject_id=subject.subject_id,
        patient_id=subject.patient_id,
        sources=tuple(content["sources"]),
        targets=tuple(content["targets"]),
        native_shape=tuple(content["native_shape"]),
        slice_indices=tuple(content["slice_indices"]),
        training=tuple(content["training"]),
        intensities={name: Intensity(**values) for name, values in content["intensities"].items()},
        path=path,
    )
