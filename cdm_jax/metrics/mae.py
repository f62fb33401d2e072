"""Mean absolute error."""

import math

import numpy as np
from jaxtyping import Bool, Float


def mae(
    prediction: Float[np.ndarray, "*space"],
    truth: Float[np.ndarray, "*space"],
    mask: Bool[np.ndarray, "*space"] | None = None,
) -> float:
    """Computes the mean absolute difference, in the images' own unit.

    Args:
        prediction: The synthetic image, of any dimension.
        truth: The real image, on the same scale.
        mask: The voxels that count; all of them where it is None.

    Returns:
        The error, at least 0; NaN for an empty mask.
    """
    if mask is not None:
        prediction, truth = prediction[mask], truth[mask]
    error = np.subtract(prediction, truth, dtype=np.float64)
    return float(np.mean(np.abs(error))) if error.size else math.nan
