"""Structural similarity (Wang et al. 2004, "Image quality assessment"), in any dimension."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter, uniform_filter

from cdm_jax.errors import UserError
from cdm_jax.metrics.regions import bounding_box

K1, K2 = 0.01, 0.03
SLAB = 40  # slices of a volume that are computed at once: their arrays are reused, large ones not


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """How the local moments are taken.

    Attributes:
        radius: The window has ``2 * radius + 1`` taps along each axis.
        sigma: The standard deviation of its Gaussian weights, in voxels; None for equal weights.
        border: How images go on beyond the frame, in SciPy's words: ``reflect`` repeats the
            outermost voxels, ``mirror`` does not.
        sample_covariance: Whether (co)variances are divided by the number of taps less one, as if
            the weights were equal.
    """

    radius: int = 5
    sigma: float | None = 1.5
    border: Literal["reflect", "mirror"] = "reflect"
    sample_covariance: bool = False

    def mean(self, image: Float[np.ndarray, "*space"]) -> Float[np.ndarray, "*space"]:
        """Averages an image around each voxel."""
        if self.sigma is None:
            return uniform_filter(image, 2 * self.radius + 1, mode=self.border)
        return gaussian_filter(image, self.sigma, radius=self.radius, mode=self.border)

    def correction(self, dimensions: int) -> float:
        """Returns the factor of (co)variances in an image of so many dimensions."""
        taps = (2 * self.radius + 1) ** dimensions
        return taps / (taps - 1) if self.sample_covariance else 1.0


WANG = Window()
"""Wang et al. 2004, and this package's own."""
SCIKIT_IMAGE = Window(radius=3, sigma=None, sample_covariance=True)
"""The defaults of scikit-image's ``structural_similarity`` (formerly ``compare_ssim``)."""
TORCHMETRICS = Window(border="mirror")
"""The defaults of torchmetrics' ``structural_similarity_index_measure``."""
RADIUS = WANG.radius


def ssim_map(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
    window: Window = WANG,
) -> Float[np.ndarray, "*space"]:
    """Computes the similarity around each voxel (Wang et al. 2004, Eq. 13).

    Local moments are by default means under a Gaussian window (standard deviation 1.5, 11 taps
    along each axis) with the population's covariance, and images are continued by reflection at
    the frame.

    Args:
        prediction: The synthetic image, of any dimension.
        truth: The real image, on the same scale.
        data_range: The difference between the largest and the smallest allowed value; positive.
        window: How the moments are taken.

    Returns:
        A map in [-1, 1] of the images' shape, in double precision.
    """
    if len(prediction) <= SLAB or prediction.ndim < 3:
        return _map(prediction, truth, data_range, window)

    def slab(start: int) -> Float[np.ndarray, "*space"]:
        """The map of some slices, which windows around them do not reach beyond."""
        before = min(start, window.radius)
        seen = slice(start - before, start + SLAB + window.radius)
        found = _map(prediction[seen], truth[seen], data_range, window)
        return found[before : before + SLAB]

    with ThreadPoolExecutor() as threads:  # NumPy and SciPy let each other's threads run
        return np.concatenate(list(threads.map(slab, range(0, len(prediction), SLAB))))


def _map(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float,
    window: Window,
) -> Float[np.ndarray, "*space"]:
    x, y = prediction.astype(np.float64), truth.astype(np.float64)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    correction = window.correction(x.ndim)
    mean_x, mean_y = window.mean(x), window.mean(y)
    covariance = window.mean(x * y)
    variances = window.mean(np.square(x, out=x) + np.square(y, out=y))  # only their sum counts
    # In place, since making large arrays takes longer than filling them.
    product = mean_x * mean_y
    squares = np.square(mean_x, out=mean_x)
    squares += np.square(mean_y, out=mean_y)
    for moment, of_means in ((covariance, product), (variances, squares)):
        moment -= of_means
        moment *= correction
    for numerator, denominator, constant in ((product, squares, c1), (covariance, variances, c2)):
        numerator *= 2
        numerator += constant
        denominator += constant
        numerator /= denominator
    product *= covariance
    return product  # of luminance and of contrast and structure


def mean_inside(similarity: Float[np.ndarray, "*space"], mask: Bool[np.ndarray, "*space"]) -> float:
    """Averages a similarity map over a mask; NaN for an empty mask."""
    return float(similarity[mask].mean()) if mask.any() else math.nan


def ssim(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
    mask: Bool[np.ndarray, "*space"] | None = None,
    window: Window = WANG,
) -> float:
    """Averages the similarity map.

    Without a mask, the outermost voxels along each axis (5 by default) do not count: only windows
    that lie wholly in the frame do, as in Wang et al. and in scikit-image, whose
    ``structural_similarity`` with Gaussian weights and the population's covariance gives the same
    number. With a mask, every voxel of the mask counts, also those near the frame.

    Arguments are as for `ssim_map`.

    Returns:
        The similarity, in [-1, 1]; NaN for an empty mask.

    Raises:
        UserError: There is no mask and an axis is shorter than the window.
    """
    if mask is not None:
        if not mask.any():
            return math.nan
        box = bounding_box(mask, margin=window.radius)  # no window of the mask reaches beyond it
        return mean_inside(ssim_map(prediction[box], truth[box], data_range, window), mask[box])
    similarity = ssim_map(prediction, truth, data_range, window)
    radius = window.radius
    if min(similarity.shape) <= 2 * radius:
        raise UserError(
            f"SSIM over a whole frame needs at least {2 * radius + 1} voxels along each axis, "
            f"got {similarity.shape}: use larger images, or give a mask"
        )
    return float(similarity[(slice(radius, -radius),) * similarity.ndim].mean())


def ssim_with_border(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
    window: Window = WANG,
) -> float:
    """Averages the similarity map over every voxel of the frame, its border included.

    Where both images are zero they are alike (similarity 1), so only the box around the rest is
    computed; the result is the whole frame's.

    Arguments are as for `ssim_map`, but the data range may be 0.

    Returns:
        The similarity, in [-1, 1]; NaN where the data range is 0.
    """
    if not data_range > 0:
        return math.nan
    shown = (prediction != 0) | (truth != 0)
    if not shown.any():
        return 1.0
    # Windows of the box's outermost voxels see zeros only, within it and beyond it.
    box = bounding_box(shown, margin=2 * window.radius)
    dissimilarity = 1 - ssim_map(prediction[box], truth[box], data_range, window)
    return 1 - float(dissimilarity.sum()) / truth.size
