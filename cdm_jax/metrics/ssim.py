"""Structural similarity (Wang et al. 2004, "Image quality assessment"), in any dimension."""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter

from cdm_jax.errors import UserError

SIGMA = 1.5
RADIUS = 5  # The window has 2 * RADIUS + 1 = 11 taps along each axis.
K1 = 0.01
K2 = 0.03


def _window_mean(image: Float[np.ndarray, "*space"]) -> Float[np.ndarray, "*space"]:
    return gaussian_filter(image, SIGMA, radius=RADIUS, mode="reflect")


def ssim_map(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
) -> Float[np.ndarray, "*space"]:
    """Computes the similarity around each voxel (Wang et al. 2004, Eq. 13).

    Local moments are means under a Gaussian window (standard deviation 1.5, 11 taps along each
    axis) with the population's covariance. Images are continued by reflection at the frame.

    Args:
        prediction: The synthetic image, of any dimension.
        truth: The real image, on the same scale.
        data_range: The difference between the largest and the smallest allowed value.

    Returns:
        A map in [-1, 1] of the images' shape, in double precision.
    """
    x = prediction.astype(np.float64)
    y = truth.astype(np.float64)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x * mean_x
    variance_y = _window_mean(y * y) - mean_y * mean_y
    covariance = _window_mean(x * y) - mean_x * mean_y

    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_and_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance * contrast_and_structure


def mean_inside(similarity: Float[np.ndarray, "*space"], mask: Bool[np.ndarray, "*space"]) -> float:
    """Averages a similarity map over a mask; NaN for an empty mask."""
    return float(similarity[mask].mean()) if mask.any() else math.nan


def ssim(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
    mask: Bool[np.ndarray, "*space"] | None = None,
) -> float:
    """Averages the similarity map.

    Without a mask, the outermost 5 voxels along each axis do not count: only windows that lie
    wholly in the frame do, as in Wang et al. and in scikit-image, whose ``structural_similarity``
    with Gaussian weights and the population's covariance gives the same number. With a mask, every
    voxel of the mask counts, also those near the frame.

    Args:
        prediction: The synthetic image, of any dimension.
        truth: The real image, on the same scale.
        data_range: The difference between the largest and the smallest allowed value.
        mask: The voxels whose similarity counts.

    Returns:
        The similarity, in [-1, 1]; NaN for an empty mask.

    Raises:
        UserError: There is no mask and an axis is shorter than the window.
    """
    similarity = ssim_map(prediction, truth, data_range)
    if mask is not None:
        return mean_inside(similarity, mask)
    if min(similarity.shape) <= 2 * RADIUS:
        raise UserError(
            f"SSIM over a whole frame needs at least {2 * RADIUS + 1} voxels along each axis, "
            f"got {similarity.shape}: use larger images, or give a mask"
        )
    return float(similarity[(slice(RADIUS, -RADIUS),) * similarity.ndim].mean())
