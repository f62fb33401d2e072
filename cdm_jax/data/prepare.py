"""A subject prepared: its slices at the model's size by the intensity rule, in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt16

from cdm_jax.data.intensity import Intensity
from cdm_jax.data.labels import depth_to_frame, read_segmentation, tumor_depth
from cdm_jax.data.layouts import SEGMENTATION
from cdm_jax.data.native import NativeImages, read_native
from cdm_jax.data.resample import from_frame, to_frame
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError

FULL_SCALE = 65535  # The stored value of 1.0.


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the content of a prepared subject.

    Attributes:
        sources: the input modalities.
        targets: the modalities to synthesize; none where any of the sources may be missing, and be
            what is to be synthesized; or "segmentation", which is stored as `labels` say.
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

    @property
    def images(self) -> tuple[str, ...]:
        """The modalities among sources and targets, without a segmentation."""
        return tuple(name for name in self.sources + self.targets if name != SEGMENTATION)


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
        intensities: each stored modality's way to [0, 1] and back; a segmentation has none.
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


def prepare_subject(subject: Subject, settings: PrepareSettings) -> Prepared:
    """Reads and prepares one subject, in memory; targets are left out if it lacks any of them.

    Raises:
        UserError: a source is missing, a file is unreadable, the files' grids differ, or a
            segmentation to store has other labels than BraTS.
    """
    files = files_of(subject, settings)
    images = [name for name in settings.images if name in files]
    native = read_native(subject, [name for name in settings.sources if name in files], images)
    if SEGMENTATION in files:
        depth = tumor_depth(read_segmentation(subject))
        native = replace(native, images={**native.images, SEGMENTATION: depth})
    return prepare_images(native, settings, subject.subject_id, subject.patient_id)


def prepare_images(
    native: NativeImages, settings: PrepareSettings, subject_id: str, patient_id: str
) -> Prepared:
    """Prepares a subject's images: the sources, then the targets in the settings' order if any."""
    brain = native.brain
    coverage = brain.sum(axis=(1, 2)) / max(brain.shape[1:]) ** 2
    kept = np.flatnonzero(coverage)
    targets = tuple(name for name in native.images if name not in settings.sources)
    names = settings.sources + targets
    slices = np.zeros((len(kept), settings.size, settings.size, len(names)), np.uint16)
    for channel, name in enumerate(names):
        if name in native.images:
            frame = depth_to_frame if name == SEGMENTATION else to_frame
            slices[..., channel] = quantize(frame(native.images[name][kept], settings.size))
    return Prepared(
        subject_id=subject_id,
        patient_id=patient_id,
        sources=settings.sources,
        targets=targets,
        native_shape=brain.shape,
        slice_indices=tuple(kept.tolist()),
        training=tuple(np.flatnonzero(coverage[kept] >= settings.minimum_brain).tolist()),
        intensities=native.intensities,
        slices=slices,
    )


def quantize(values: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Returns values, clipped to [0, 1], as 16-bit integers: 65535 = 1.0."""
    return np.rint(np.clip(values, 0, 1) * FULL_SCALE).astype(np.uint16)


def to_native(
    description: Description,
    slices: Float[np.ndarray, "slice size size"],
    brain: Bool[np.ndarray, "z y x"],
) -> Float[np.ndarray, "z y x"]:
    """Undoes the frame: each slice back on the native grid, zero outside the brain.

    Args:
        description: of the prepared subject: native shape and which slices were kept.
        slices: one modality in the model's frame, in [0, 1].
        brain: of the source modalities on the native grid.
    """
    volume = np.zeros(description.native_shape, np.float32)
    volume[list(description.slice_indices)] = from_frame(slices, description.native_shape[1:])
    return np.clip(volume, 0, 1) * brain


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


def files_of(subject: Subject, settings: PrepareSettings) -> dict[str, Path]:
    """Returns the files to prepare by modality: the sources', then the targets' if all exist."""
    files = dict(subject.images)
    if subject.segmentation is not None:
        files[SEGMENTATION] = subject.segmentation
    found = [name for name in settings.sources if name in files]
    missing = [name for name in settings.sources if name not in found]
    if missing and (settings.targets or not found):
        raise UserError(
            f"{subject.subject_id} has no {', '.join(missing)}, only "
            f"{', '.join(sorted(subject.images))}: add the files or leave the subject out"
        )
    if all(name in files for name in settings.targets):
        found += settings.targets
    return {name: files[name] for name in found}
