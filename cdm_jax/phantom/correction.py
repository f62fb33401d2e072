"""Correction of the bias field, as cohorts do it before they are shared, with what it overdoes."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import interpolate, ndimage, sparse

from cdm_jax.phantom.fields import Grid, scatter

_LATTICE_MM = 4.0  # on which the field is estimated
_LEVELS = (8, 4, 2, 1)  # distances of control points, the first as a multiple of the last
_ROUNDS = 20  # at each level
_BINS = 200
_BLUR = 0.15 / 2.355  # standard deviation by which bias is taken to blur the histogram
_NOISE = 0.01  # of the Wiener filter
_SILENT = 0.05  # part of the median signal below which a voxel tells nothing about the field


def correct_bias(
    values: Float32[np.ndarray, "n"],
    brain: Bool[np.ndarray, "x y z"],
    grid: Grid,
    distance_mm: float,
) -> Float32[np.ndarray, "n"]:
    """Divides an image by a smooth field that is estimated from the image alone.

    It stands for N4 (Tustison et al. 2010, doi 10.1109/TMI.2010.2046908), by which many cohorts are
    corrected, and follows its steps. The logarithm of a signal is that of its tissue plus that of
    the bias. The sharpened histogram of these logarithms says what a voxel would be without bias;
    splines smooth what is left over, which is taken away, again and again, with control points
    that come closer until they are `distance_mm` apart. No step knows anatomy. So what differs
    smoothly within a tissue, such as edema or a paler lobe, passes for bias and is flattened too,
    the more the closer the control points are, and bias that looks like tissue stays.

    Args:
        values: Signals of the brain voxels, positive.
        brain: Which voxels are brain.
        grid: Of the voxels.
        distance_mm: Between control points in the end.

    Returns:
        The corrected signals; the mean of their logarithm is what it was.
    """
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    step = max(1, round(_LATTICE_MM / grid.voxel_mm))
    image = scatter(brain, values)[box][::step, ::step, ::step]
    inside = image > _SILENT * np.median(values)
    logs = np.log(image[inside]).astype(np.float64)
    field, found = np.zeros(brain[box].shape), np.zeros_like(logs)
    for multiple in _LEVELS:
        bases = [_splines(size, grid.voxel_mm, multiple * distance_mm) for size in field.shape]
        coarse = [basis[::step] for basis in bases]
        smooth = _smoother(inside, coarse)
        points = np.zeros([basis.shape[1] for basis in bases])
        for _ in range(_ROUNDS):
            added = smooth(logs - found - _without_bias(logs - found))
            points += added
            found += _along(added, coarse)[inside]
        field += _along(points, bases)
    log_field = field[brain[box]]
    return (values / np.exp(log_field - log_field.mean())).astype(np.float32)


def _without_bias(logs: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """What each log intensity is expected to be without bias (Sled et al. 1998).

    Bias blurs the histogram of tissues, here as a Gaussian would. A Wiener filter undoes it; what
    is expected where a value was seen is the mean of all values that may have become it, weighted
    by the sharpened histogram.
    """
    counts, edges = np.histogram(logs, _BINS)
    width, size = edges[1] - edges[0], 4 * _BINS
    blur = np.exp(-2 * (np.pi * np.fft.rfftfreq(size, width) * _BLUR) ** 2)

    def filtered(histogram: np.ndarray, response: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.fft.rfft(histogram) * response, size)

    places = edges[0] + width * (np.arange(size) - _BINS + 0.5)
    padded = np.pad(counts.astype(float), (_BINS, 2 * _BINS))
    sharp = np.maximum(filtered(padded, blur / (blur**2 + _NOISE)), 0)
    mean = filtered(sharp * places, blur) / np.maximum(filtered(sharp, blur), 1e-6)
    return np.interp(logs, places, mean)


def _splines(size: int, voxel_mm: float, distance_mm: float) -> sparse.csr_array:
    """Cubic B-splines along an axis of `size` voxels, one a column; each row sums to 1."""
    parts = max(1, round(size * voxel_mm / distance_mm))
    knots = np.arange(-3, parts + 4) / parts
    places = (np.arange(size) + 0.5) / size
    return sparse.csr_array(interpolate.BSpline.design_matrix(places, knots, 3))


def _smoother(
    inside: Bool[np.ndarray, "x y z"], bases: Sequence[sparse.sparray]
) -> Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "a b c"]]:
    """Makes control points of the values inside: the approximation of Lee et al. 1997, Eq. 5."""
    squares, cubes = ([basis.power(power).T for basis in bases] for power in (2, 3))
    sums = np.ix_(*(square.sum(axis=0) for square in squares))
    total = (sums[0] * sums[1] * sums[2])[inside]
    weights = np.maximum(_along(inside.astype(float), squares), 1e-6)

    def smooth(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "a b c"]:
        return _along(scatter(inside, values / total), cubes) / weights

    return smooth


def _along(
    volume: Float[np.ndarray, "a b c"], matrices: Sequence[sparse.sparray]
) -> Float[np.ndarray, "x y z"]:
    """Multiplies each axis of a volume by a matrix."""
    for matrix in matrices:
        product = matrix @ volume.reshape(len(volume), -1)
        volume = np.moveaxis(product.reshape(-1, *volume.shape[1:]), 0, -1)
    return volume
