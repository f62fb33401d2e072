"""Steadiness from slice to slice: the error of the gradient through the slices."""

import math

import numpy as np
from jaxtyping import Bool, Float


def step_error(
    prediction: Float[np.ndarray, "z y x"], truth: Float[np.ndarray, "z y x"]
) -> Float[np.ndarray, "z-1 y x"]:
    """Computes the synthetic step to the next slice minus the real one, in the images' unit."""
    return np.diff(np.subtract(prediction, truth, dtype=np.float64), axis=0)


def z_gradient_error(
    steps: Float[np.ndarray, "step y x"], mask: Bool[np.ndarray, "z y x"]
) -> float:
    """Computes the root mean square of the steps' errors between voxels of a mask.

    An error that is the same in neighboring slices, such as a gain, hardly counts; a brightness
    that jumps from slice to slice does, and so do noise and lost detail.

    Args:
        steps: From `step_error`.
        mask: A step counts where both of its voxels are in it.

    Returns:
        The error in the images' unit a slice, lower is better; NaN where no step counts.
    """
    inside = steps[mask[1:] & mask[:-1]]
    return float(np.sqrt(np.mean(np.square(inside)))) if inside.size else math.nan
