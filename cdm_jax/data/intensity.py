"""The intensity rule: one linear scale per subject and modality, never per slice.

A modality is shifted so that its background is 0, divided by the 99.5th percentile of its brain
voxels and clipped to [0, 1].  A scale per slice would tell the network how bright the target is.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.errors import UserError

PERCENTILE = 99.5
RESIDUE = 1e-4  # of the largest value; 16-bit images have no value but 0 below it

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """The linear map between a modality's own values and [0, 1].

    Attributes:
        offset: the value of the background, which becomes 0.
        scale: what lies above the background by this much becomes 1; positive.
    """

    offset: float
    scale: float

    def apply(self, volume: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Returns the volume in [0, 1], float32; what lies outside is clipped."""
        scaled = (volume - np.float32(self.offset)) / np.float32(self.scale)
        return np.clip(scaled, 0, 1).astype(np.float32, copy=False)

    def undo(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Returns values of [0, 1] in the modality's own units, float32 (clipping stays)."""
        unscaled = values * np.float32(self.scale) + np.float32(self.offset)
        return unscaled.astype(np.float32, copy=False)


def measure(volume: Float[np.ndarray, "z y x"], name: str = "the volume") -> Intensity:
    """Measures the intensity rule's offset and scale on one whole volume.

    Args:
        volume: the values as stored in the file.
        name: what to call the volume in messages.

    Raises:
        UserError: the volume has no brain, or none that is brighter than the background.
    """
    offset, scale = brightness(volume)
    if not scale > 0:
        raise UserError(
            f"{name}: nothing is brighter than the background ({offset:g}), but a brain is needed: "
            "replace this file or leave the subject out"
        )
    if offset != 0:
        logger.warning("%s: the background is %g, not 0 (scaled before?): shifted", name, offset)
    elif (negative := int(np.count_nonzero(volume < 0))) > 0:
        logger.info("%s: %d voxels below the background are set to 0", name, negative)
    return Intensity(offset=offset, scale=scale)


def brightness(volume: Float[np.ndarray, "z y x"]) -> tuple[float, float]:
    """Returns the background's value, and how far above it the brain reaches; 0 of no brain."""
    offset = background(volume)
    brain = volume[volume != offset]
    return offset, float(np.percentile(brain, PERCENTILE)) - offset if brain.size else 0.0


def brain_mask(volumes: Mapping[str, Float[np.ndarray, "z y x"]]) -> Bool[np.ndarray, "z y x"]:
    """Returns the union of the non-background voxels of the given (input) modalities."""
    return np.any([volume != background(volume) for volume in volumes.values()], axis=0)


def background(volume: Float[np.ndarray, "z y x"]) -> float:
    """Returns the value that most voxels on the four sides of the slices share, or else 0."""
    border = _border(volume)
    # A value that more than half of the voxels share is their median.
    value = float(np.median(border))
    return value if np.mean(border == value) > 0.5 else 0.0


def has_background(volume: Float[np.ndarray, "z y x"]) -> bool:
    """Returns whether most voxels on the four sides of the slices share one value."""
    border = _border(volume)
    return bool(np.mean(border == np.median(border)) > 0.5)


def without_residue(volume: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
    """Returns the volume with the residue of a resampling around the brain set to 0.

    Splines leave values that are not 0 but far below any tissue. Only where all four sides of the
    slices have nothing else, these are the background: a brain's own low values stay.
    """
    limit = RESIDUE * float(np.abs(volume).max())
    if has_background(volume) or np.abs(_border(volume)).max() > limit:
        return volume
    return np.where(np.abs(volume) > limit, volume, np.float32(0))


def _border(volume: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "voxel"]:
    """Returns the voxels on the four sides of the slices."""
    rows, columns = volume[:, [0, -1], :], volume[:, :, [0, -1]]
    return np.concatenate([rows.ravel(), columns.ravel()])
