"""Peak signal-to-noise ratio."""

import math

import numpy as np
from jaxtyping import Bool, Float


def psnr(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    data_range: float = 1.0,
    mask: Bool[np.ndarray, "*space"] | None = None,
    cap: float = 100.0,
) -> float:
    """Computes ``10 log10(data_range² / mean squared error)``.

    Args:
        prediction: The synthetic image, of any dimension.
        truth: The real image, on the same scale.
        data_range: The difference between the largest and the smallest allowed value.
        mask: The voxels that count; all of them where it is None.
        cap: The value, in dB, given to identical images and to any that come close to them.

    Returns:
        The ratio in dB, at most ``cap``; NaN for an empty mask.
    """
    error = np.subtract(prediction, truth, dtype=np.float64)
    if mask is not None:
        error = error[mask]
    if error.size == 0:
        return math.nan
    mean_squared_error = float(np.mean(np.square(error)))
    if mean_squared_error == 0:
        return cap
    return min(cap, 10 * math.log10(data_range**2 / mean_squared_error))
