"""The folds of the cerebral cortex, from the surfaces of FreeSurfer's average brain.

The tissue maps of an average brain are blurred where people differ, and lose the sulci. The average
of surfaces keeps them: what lies inside the white surface is white matter, what lies between it and
the pial surface is cortex.
"""

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, Integer

# From the space of fsaverage to that of the MNI152 maps (FreeSurfer wiki, CoordinateSystems, 8b).
_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
    ]
)
# An average of surfaces is smaller than those it is of, by what their folds cancel.
_SHRUNK, _CENTER_MM = 1.045, np.array([0.0, -18.0, 12.0])


def load_cortex(
    shape: tuple[int, int, int], origin_mm: Float[np.ndarray, "3"]
) -> dict[str, Float32[np.ndarray, "x y z"]]:
    """Share of each 1 mm voxel inside the "white" and the "pial" surface of both hemispheres.

    Source: fsaverage5 (Fischl et al. 1999), as shipped by nilearn.
    """
    from nilearn import datasets

    files = datasets.fetch_surf_fsaverage("fsaverage5")  # packaged: nothing is downloaded
    found = {}
    for name in ("white", "pial"):
        shares = np.zeros(shape, np.float32)
        for side in ("left", "right"):
            image = nib.gifti.GiftiImage.from_filename(files[f"{name}_{side}"])
            corners, triangles = (part.data for part in image.darrays)
            corners = corners @ _TO_MNI152[:, :3].T + _TO_MNI152[:, 3]
            corners = _CENTER_MM + _SHRUNK * (corners - _CENTER_MM)
            shares += inside(corners - origin_mm, triangles, shape)
        found[name] = np.minimum(shares, 1)
    return found


def inside(
    corners: Float[np.ndarray, "n 3"],
    triangles: Integer[np.ndarray, "m 3"],
    shape: tuple[int, int, int],
) -> Float32[np.ndarray, "x y z"]:
    """Share of each voxel that lies inside a closed surface, given in voxels.

    Rays along x through the middle of the voxels: each crossing of the surface turns outside into
    inside or back. The share is exact along x, and that of the voxel's middle along y and z.
    """
    a, b, c = np.moveaxis(corners[triangles], 1, 0)
    lowest = np.ceil(np.minimum(np.minimum(a, b), c)[:, 1:]).astype(int)
    highest = np.floor(np.maximum(np.maximum(a, b), c)[:, 1:]).astype(int)
    crossings = [
        _cross_at(lowest + step, (lowest + step <= highest).all(axis=1), a, b, c)
        for step in np.ndindex(*(1 + (highest - lowest).max(axis=0)))
    ]
    x, y, z, sign = np.concatenate(crossings, axis=1)
    cell = np.floor(x).astype(int)
    first = np.ravel_multi_index((cell, y.astype(int), z.astype(int)), shape)
    step = shape[1] * shape[2]
    # What lies behind a crossing changes sides: a part of the crossed voxel, and all after it.
    changes = np.bincount(first, sign * (cell + 1 - x), minlength=np.prod(shape))
    changes += np.bincount(first + step, sign * (x - cell), minlength=np.prod(shape))
    share = np.cumsum(changes.reshape(shape).astype(np.float32), axis=0)
    return np.clip(np.abs(share), 0, 1)


def _cross_at(
    ray: np.ndarray, chosen: np.ndarray, *triangle: np.ndarray
) -> Float[np.ndarray, "4 n"]:
    """Where rays, each given by y and z, meet their triangle: x + 1/2, y, z and from which side."""
    point, (a, b, c) = ray[chosen], (corner[chosen] for corner in triangle)
    offset, one, other = point - a[:, 1:], b - a, c - a
    area = _area(one[:, 1:], other[:, 1:])
    with np.errstate(divide="ignore", invalid="ignore"):  # of triangles seen edge-on
        u, v = _area(offset, other[:, 1:]) / area, _area(one[:, 1:], offset) / area
        met = (u >= 0) & (v >= 0) & (u + v < 1)
    x = a[:, 0] + u * one[:, 0] + v * other[:, 0] + 0.5
    return np.stack([x, *point.T, np.sign(area)])[:, met]


def _area(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Twice the signed area that two edges span."""
    return one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
