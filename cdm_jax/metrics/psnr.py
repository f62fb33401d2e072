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
    if mask is not None:
        prediction, truth = prediction[mask], truth[mask]
    error = np.subtract(prediction, truth, dtype=np.float64)
    if error.size == 0:
        return math.nan
    mean_squared_error = float(np.mean(np.square(error)))
    if mean_squared_error == 0:
        return cap
    return min(cap, 10 * math.log10(data_range**2 / mean_squared_error))


def best_gain(prediction: Float[np.ndarray, " voxel"], truth: Float[np.ndarray, " voxel"]) -> float:
    """Finds the factor with which a prediction, clipped to [0, 1], comes closest to the truth.

    The least squares over all voxels are exact. With the k brightest voxels clipped to 1, the
    squared error is a parabola of the factor on the interval in which just these reach 1; the
    lowest point of all parabolas on their intervals is taken.

    Args:
        prediction: Values in any unit; those below 0 count as 0.
        truth: Values in [0, 1].

    Returns:
        The factor, at least 0; 1 where the prediction shows nothing, so that no factor matters.
    """
    shown = prediction > 0
    order = np.argsort(prediction[shown].astype(np.float32))  # bright ones, last, reach 1 first
    p, t = prediction[shown][order].astype(np.float64), truth[shown][order].astype(np.float64)
    if not p.size:
        return 1.0
    squares, products, saturated = np.cumsum(p * p), np.cumsum(p * t), np.cumsum((1 - t) ** 2)
    lowest = 1 / np.append(p[1:], np.inf)  # of the interval in which the next voxel reaches 1
    gain = np.clip(products / squares, lowest, 1 / p)
    below = gain * (gain * squares - 2 * products) + np.cumsum(t * t)
    error = below + saturated[-1] - saturated
    return float(gain[np.argmin(error)])
