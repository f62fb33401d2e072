"""Dice and HD95 of a segmented region, as BraTS' published evaluation computes them.

The program of BraTS 2023 (github.com/rachitsaluja/BraTS-2023-Metrics, its "Legacy" columns, which
score a region as a whole and not lesion by lesion) takes distances from DeepMind's
`surface-distance`: surfaces run between voxels, and each of their elements counts by its area. This
restates it. MedPy and MONAI take the outermost voxels as the surface, all alike, and give others.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

from cdm_jax.errors import UserError
from cdm_jax.metrics.regions import bounding_box

PERCENT = 95
# Where one of two masks is empty, in mm: what the program of 2023 writes for infinity. Up to 2021
# it was 373.13, the diagonal of the frame of 240 x 240 x 155 mm.
MISSED_MM = 374.0

# Area, in faces of a voxel, of the surface that marching cubes lay through eight voxels (2x2x2). It
# follows from those that are fewer, the ones inside or the ones outside: their number, how many
# pairs of them share a face, and with how many one of them shares one at most.
_CORNER, _WEDGE, _HALF = math.sqrt(3) / 8, math.sqrt(2) / 2, 0.5
_AREAS: dict[tuple[int, ...], float] = {
    (0, 0, 0): 0.0,
    (1, 0, 0): _CORNER,
    (2, 0, 0): 2 * _CORNER,
    (2, 1, 1): _WEDGE,
    (3, 0, 0): 3 * _CORNER,
    (3, 1, 1): _WEDGE + _CORNER,
    (3, 2, 2): _HALF + 3 * _CORNER,
    (4, 0, 0): 4 * _CORNER,
    (4, 2, 1): 2 * _WEDGE,
    (4, 2, 2): _HALF + 4 * _CORNER,
    (4, 3, 2): _WEDGE + 4 * _CORNER,
    (4, 3, 3): 6 * _CORNER,
    (4, 4, 2): 2 * _HALF,
}


def dice(prediction: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]) -> float:
    """Twice the common voxels over all of both masks; 1 where both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def hd95(
    prediction: Bool[np.ndarray, "z y x"],
    truth: Bool[np.ndarray, "z y x"],
    voxel_size: tuple[float, float, float],
) -> float:
    """The distance within which 95 % of each mask's surface lies from the other's surface.

    The larger of the two directions counts. Elements of a surface count by their area, which is
    taken as that of cubic voxels, as all of BraTS are; of other voxels the program scales it.

    Args:
        prediction: a region.
        truth: the same region as it should be.
        voxel_size: along (z, y, x) in mm.

    Returns:
        Millimeters: 0 where both masks are empty, `MISSED_MM` where one of them is.

    Raises:
        UserError: a size that is not positive.
    """
    if not min(voxel_size) > 0:
        raise UserError(f"voxel size {voxel_size} mm is not positive: give the sides of a voxel")
    if not prediction.any() or not truth.any():
        return MISSED_MM if prediction.any() or truth.any() else 0.0
    box = bounding_box(prediction | truth, 0)
    one, other = (_surface(np.pad(mask[box], 1)) for mask in (prediction, truth))
    return max(_percentile(one, other, voxel_size), _percentile(other, one, voxel_size))


def _surface(mask: Bool[np.ndarray, "z y x"]) -> Float[np.ndarray, "_ _ _"]:
    """Area of the surface around each corner of voxels, 0 where there is none."""
    codes = np.zeros(np.subtract(mask.shape, 1), np.uint8)
    for bit in range(8):  # the eight voxels around a corner
        starts = bit >> 2, bit >> 1 & 1, bit & 1
        around = tuple(slice(s, s + n) for s, n in zip(starts, codes.shape, strict=True))
        codes |= mask[around].astype(np.uint8) << bit
    return _AREA_OF_CODE[codes]


def _area_of_code() -> Float[np.ndarray, "256"]:
    """Area of the surface through eight voxels, by the bits of those that are inside."""
    inside = np.arange(256)[:, None] >> np.arange(8) & 1
    fewer = np.where(inside.sum(axis=1, keepdims=True) > 4, 1 - inside, inside)
    apart = np.arange(8)[:, None] ^ np.arange(8)
    shares_face = np.isin(apart, (1, 2, 4)).astype(int)  # one bit is another: along one axis
    shared = fewer * (fewer @ shares_face)
    keys = zip(fewer.sum(axis=1), shared.sum(axis=1) // 2, shared.max(axis=1), strict=True)
    return np.array([_AREAS[tuple(map(int, key))] for key in keys])


_AREA_OF_CODE = _area_of_code()


def _percentile(
    areas: Float[np.ndarray, "z y x"],
    other: Float[np.ndarray, "z y x"],
    voxel_size: tuple[float, float, float],
) -> float:
    """The distance to the other surface within which 95 % of a surface's area lies."""
    distances = distance_transform_edt(other == 0, sampling=voxel_size)[areas > 0]
    order = np.argsort(distances, kind="stable")
    shares = np.cumsum(areas[areas > 0][order])
    place = np.searchsorted(shares / shares[-1], PERCENT / 100)
    return float(distances[order][min(place, len(order) - 1)])
