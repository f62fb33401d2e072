"""Gradient magnitude similarity deviation (GMSD): how unevenly an image's edges are kept.

Xue, Zhang, Mou and Bovik 2014, "Gradient Magnitude Similarity Deviation: A Highly Efficient
Perceptual Image Quality Index", IEEE Transactions on Image Processing 23(2). It needs no weights.
The images are not halved first as there, which stands for the distance from which photographs are
looked at.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float32

C = 170 / 255**2  # the paper's constant, for values in [0, 1]


def squared_gradient(images: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n h w"]:
    """Computes the square of the gradient within each slice, by Prewitt's filters divided by 3.

    It is 1 beside a straight edge from 0 to 1. Beyond the frame an image goes on as 0.
    """
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1)] * 2)
    columns = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    across = columns[..., 2:] - columns[..., :-2]
    down = rows[..., 2:, :] - rows[..., :-2, :]
    return (across * across + down * down) / 9


def similarity_map(
    prediction: Float[np.ndarray, "*n h w"], truth: Float[np.ndarray, "*n h w"]
) -> Float32[np.ndarray, "*n h w"]:
    """Compares the lengths of the gradients of slices in [0, 1] (Xue et al. 2014, Eq. 4).

    The map is in [0, 1], in single precision; 1 where the gradients are equally long.
    """
    one, other = (squared_gradient(image.astype(np.float32)) for image in (prediction, truth))
    return (2 * np.sqrt(one * other) + np.float32(C)) / (one + other + np.float32(C))


def gmsd(
    prediction: Float[np.ndarray, "*n h w"],
    truth: Float[np.ndarray, "*n h w"],
    mask: Bool[np.ndarray, "*n h w"],
) -> float:
    """Computes the standard deviation of the similarity over a mask (Xue et al. 2014, Eq. 6).

    An image whose edges are all kept has 0, and so has one that loses all of them alike: the paper
    finds that eyes object to local damage.

    Args:
        prediction: Synthetic slices in [0, 1].
        truth: The real ones.
        mask: The voxels that count, over all slices together.

    Returns:
        The deviation, at least 0, lower is better; NaN for an empty mask.
    """
    if not mask.any():
        return math.nan
    return float(similarity_map(prediction, truth)[mask].std(dtype=np.float64))
