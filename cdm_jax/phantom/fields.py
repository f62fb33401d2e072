"""The voxel grid of a scan, and smooth random fields on it."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import sparse

# Half the width of the box that holds a head; fields are constant beyond it.
_HEAD_MM = 130.0

# Draws a new field of unit variance, of the given length in mm, on one value per brain voxel.
FieldSampler = Callable[[float], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of cubic voxels, stored patient right to left, front to back, feet to head (LPS).

    Attributes:
        shape: Voxels along x, y and z.
        voxel_mm: Edge of a voxel in mm.
    """

    shape: tuple[int, int, int]
    voxel_mm: float

    def axes_mm(self) -> list[Float[np.ndarray, "_"]]:
        """Distances of the voxels from the grid's center in mm, one array an axis."""
        return [(np.arange(size) - (size - 1) / 2) * self.voxel_mm for size in self.shape]

    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel indices to NIfTI's RAS mm, with the origin of the BraTS data sets."""
        affine = np.diag([-self.voxel_mm, -self.voxel_mm, self.voxel_mm, 1.0])
        affine[1, 3] = (self.shape[1] - 1) * self.voxel_mm
        return affine


def smooth_field(
    rng: np.random.Generator, grid: Grid, length_mm: float
) -> Float32[np.ndarray, "x y z"]:
    """Draws a Gaussian random field with mean 0 and variance 1 at every voxel.

    White noise on a lattice fixed to the head, spread by Gaussian kernels of standard deviation
    `length_mm`, so the correlation at distance d is close to exp(-d^2 / (4 length_mm^2)). As the
    lattice does not depend on the grid, the same generator gives the same field at any resolution.
    """
    lattice = np.arange(-_HEAD_MM - 3 * length_mm, _HEAD_MM + 4 * length_mm, length_mm)
    field = rng.standard_normal((len(lattice),) * 3, dtype=np.float32)
    for axis in grid.axes_mm():
        distance = np.clip(axis, -_HEAD_MM, _HEAD_MM)[:, None] - lattice
        kernel = np.exp(-0.5 * (distance / length_mm) ** 2)
        kernel[kernel < 1e-3] = 0
        kernel /= np.linalg.norm(kernel, axis=1, keepdims=True)
        # Sparse, as most weights are 0, and as BLAS threads of several workers slow each other.
        spread = sparse.csr_array(kernel.astype(np.float32)) @ field.reshape(len(lattice), -1)
        field = np.moveaxis(spread.reshape(len(axis), *field.shape[1:]), 0, -1)
    return field


def octaves(field: FieldSampler, *parts: tuple[float, float]) -> np.ndarray:
    """The sum of independent fields, each given by its standard deviation and its length in mm."""
    return np.sum([np.float32(amount) * field(length_mm) for amount, length_mm in parts], axis=0)


def scatter(brain: Bool[np.ndarray, "x y z"], values: np.ndarray) -> np.ndarray:
    """Puts the values of the brain voxels into a volume of zeros."""
    volume = np.zeros(brain.shape, values.dtype)
    volume[brain] = values
    return volume
