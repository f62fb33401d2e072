"""A subject on the grid of its files: images by the intensity rule, and the brain."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.checks import doubts
from cdm_jax.data.formats import Image, PathLike, name_of
from cdm_jax.data.grids import read_on_one_grid
from cdm_jax.data.intensity import Intensity, brain_mask, measure, without_residue
from cdm_jax.data.nifti import read_voxel_size
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import about

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NativeImages:
    """Images of one subject on their own grid.

    Attributes:
        images: each modality in [0, 1].
        intensities: each modality's way to [0, 1] and back.
        brain: the union of the input modalities' voxels that are not background.
        notes: what the user should know of the images, one line each.
    """

    images: Mapping[str, Float[np.ndarray, "z y x"]]
    intensities: Mapping[str, Intensity]
    brain: Bool[np.ndarray, "z y x"]
    notes: tuple[str, ...] = ()


def scale_volumes(
    volumes: Mapping[str, Float[np.ndarray, "z y x"]],
    inputs: Sequence[str],
    name: str,
    voxel_size: tuple[float, float, float] | None = None,
    files: Mapping[str, PathLike | Image] | None = None,
) -> NativeImages:
    """Applies the intensity rule to modalities on one grid, as `read_volume` returns them.

    Args:
        volumes: by modality.
        inputs: the modalities that say where the brain is.
        name: what to call the subject in messages.
        voxel_size: along (z, y, x) in mm, where it is known.
        files: where each volume comes from, for messages, where it is known.

    Raises:
        UserError: a volume has no brain.
    """
    volumes = {modality: without_residue(volume) for modality, volume in volumes.items()}
    called = {modality: f"{name} {modality}" for modality in volumes}
    for modality, file in (files or {}).items():
        called[modality] += f": {name_of(file)}"
    intensities = {modality: measure(v, called[modality]) for modality, v in volumes.items()}
    return NativeImages(
        images={modality: intensities[modality].apply(v) for modality, v in volumes.items()},
        intensities=intensities,
        brain=brain_mask({modality: volumes[modality] for modality in inputs}),
        notes=doubts(volumes, voxel_size),
    )


def read_native(
    subject: Subject, inputs: Sequence[str], modalities: Sequence[str] | None = None
) -> NativeImages:
    """Reads a subject's images; what looks wrong in them is logged.

    Args:
        subject: where its files are.
        inputs: the modalities that say where the brain is.
        modalities: which to read, the inputs among them; all of its images where None.

    Raises:
        UserError: a file is unreadable, has no brain, or the files' grids differ.
    """
    names = subject.images if modalities is None else modalities
    files = {modality: subject.images[modality] for modality in names}
    with about(subject.subject_id):
        found = read_on_one_grid(files)
    size = read_voxel_size(found.reference)
    native = scale_volumes(found.volumes, inputs, subject.subject_id, size, files)
    for note in found.notes + native.notes:
        _logger.warning("%s: %s", subject.subject_id, note)
    return dataclasses.replace(native, notes=found.notes + native.notes)
