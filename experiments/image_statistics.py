"""Statistics of a patient's images that say how real they look: noise, contrasts, sharpness, bias.

The same code measures real and simulated patients. Images are (z, y, x), cubic voxels, and are
measured in units of their mean over the brain.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from cdm_jax.data.intensity import PERCENTILE

Volume: TypeAlias = Float[np.ndarray, "z y x"]
Mask: TypeAlias = Bool[np.ndarray, "z y x"]

PERCENTILES = (5, 25, 75, 95, 99)
TISSUES = ("white", "gray", "csf")
LESIONS = {"core": (1,), "edema": (2,), "enhancing": (3, 4)}
_FAR = 3  # voxels: what the difference of neighbors is compared with
_ENOUGH = 40_000  # voxels: what clusters are found on
_FEW = 50  # voxels: fewer give no number


def measure(
    images: Mapping[str, Volume], brain: Mask, labels: Int[np.ndarray, "z y x"] | None
) -> dict[str, float]:
    """All statistics of one patient.

    Args:
      images: "t1", "t1c", "t2" and "t2f" in any units, 0 where there is no brain.
      brain: which voxels are brain.
      labels: of a tumor, as BraTS numbers them; None where nobody has drawn it.

    Returns:
      "modality statistic" to its value; lesions are there where the labels have them.
    """
    tumor = np.zeros_like(brain) if labels is None else labels > 0
    scaled = {name: image / image[brain].mean() for name, image in images.items()}
    healthy = brain & ~ndimage.binary_dilation(tumor, iterations=2)
    tissues = cluster({name: flatten(image, brain) for name, image in scaled.items()}, healthy)
    found = {"csf share": float(tissues["csf"].sum() / healthy.sum())}
    for name, image in scaled.items():
        values = image_statistics(image, brain, tissues)
        if labels is not None:
            values |= lesion_contrasts(image, labels, tissues["white"])
        found |= {f"{name} {statistic}": value for statistic, value in values.items()}
    return found


def image_statistics(image: Volume, brain: Mask, tissues: Mapping[str, Mask]) -> dict[str, float]:
    """Statistics of one image whose mean over the brain is 1."""
    inside = ndimage.binary_erosion(brain)
    medians = {name: float(np.median(image[tissues[name]])) for name in TISSUES}
    return {
        "noise": noise(image, tissues["white"]),
        "gray / white": medians["gray"] / medians["white"],
        "csf / white": medians["csf"] / medians["white"],
        "sharpness in plane": sharpness(image, inside, axes=(1, 2)),
        "sharpness across": sharpness(image, inside, axes=(0,)),
        "bias": bias(image, tissues["white"], brain),
        "level": 1 / float(np.percentile(image[brain], PERCENTILE)),
    } | {f"p{part}": float(np.percentile(image[brain], part)) for part in PERCENTILES}


def lesion_contrasts(
    image: Volume, labels: Int[np.ndarray, "z y x"], white: Mask
) -> dict[str, float]:
    """Median of each label that is large enough, over that of white matter."""
    found = {}
    for name, numbers in LESIONS.items():
        region = np.isin(labels, numbers)
        if region.sum() >= _FEW:
            found[f"{name} / white"] = float(np.median(image[region]) / np.median(image[white]))
    return found


def noise(image: Volume, region: Mask) -> float:
    """Standard deviation of noise that is independent from voxel to voxel, within a tissue.

    Second differences remove what is linear over three voxels; a robust spread, their median
    absolute value over .6745 (of a normal distribution), overlooks edges; sqrt(6) is the standard
    deviation of a second difference of white noise.
    """
    spreads = []
    for axis in (1, 2):
        left, middle, right = (_shifted(image, axis, step, 2) for step in range(3))
        together = np.logical_and.reduce([_shifted(region, axis, step, 2) for step in range(3)])
        spreads.append(np.median(np.abs(left - 2 * middle + right)[together]) / 0.6745 / 6**0.5)
    return float(np.mean(spreads))


def sharpness(image: Volume, region: Mask, axes: tuple[int, ...]) -> float:
    """Mean absolute difference of neighbors, relative to that of voxels three apart.

    About 1 where neighbors have nothing in common; of a field whose correlation at distance d is
    exp(-d^2 / (4 L^2)) it is sqrt((1 - exp(-1 / (4 L^2))) / (1 - exp(-9 / (4 L^2)))): 1/3 for a
    large L in voxels.
    """
    ratios = []
    for axis in axes:
        means = []
        for step in (1, _FAR):
            together = _shifted(region, axis, 0, step) & _shifted(region, axis, step, step)
            difference = _shifted(image, axis, step, step) - _shifted(image, axis, 0, step)
            means.append(np.abs(difference[together]).mean())
        ratios.append(means[0] / means[1])
    return float(np.mean(ratios))


def bias(image: Volume, white: Mask, brain: Mask) -> float:
    """Standard deviation over the brain of the second-order polynomial through log white matter."""
    half = np.array(brain.shape) / 2
    places = np.argwhere(white) / half - 1
    values = np.log(np.maximum(image[white], 1e-3))
    # Lesions and vessels among the white matter would bend the polynomial.
    kept = np.abs(values - np.median(values)) < 0.5
    weights, *_ = np.linalg.lstsq(_polynomial(places[kept]), values[kept], rcond=None)
    return float(np.std(_polynomial(np.argwhere(brain) / half - 1) @ weights))


def flatten(image: Volume, brain: Mask) -> Volume:
    """The image over its mean nearby, so that bias does not pass for tissue."""
    spread = [side / 6 for side in brain.shape]  # about 25 mm
    sums, shares = (
        ndimage.gaussian_filter(part.astype(np.float32), spread, truncate=2)
        for part in (np.where(brain, np.minimum(image, 2), 0), brain)
    )
    return np.where(brain, image * shares / np.maximum(sums, 1e-6), 0)


def cluster(images: Mapping[str, Volume], region: Mask, rounds: int = 20) -> dict[str, Mask]:
    """White matter, gray matter and CSF by k-means of all modalities, each by its own spread.

    The start is what the modalities show of every healthy brain: CSF is dark on T1 and bright on
    T2, and white matter the other way about. A tissue's voxels lie in the interior of its cluster
    where there are such, so that borders do not blur it.
    """
    order = sorted(images)
    features = np.stack([images[name][region] for name in order], axis=-1)
    low, high = np.percentile(features, (5, 95), axis=0)
    features = np.clip((features - low) / np.maximum(high - low, 1e-6), -0.3, 1.3)
    sample = features[:: 1 + len(features) // _ENOUGH]
    rank = np.argsort(np.argsort(sample[:, order.index("t2")] - sample[:, order.index("t1")]))
    nearest = np.digitize(rank / len(rank), (0.4, 0.85))
    for _ in range(rounds):
        centers = np.stack([sample[nearest == tissue].mean(axis=0) for tissue in range(3)])
        nearest = _nearest(sample, centers)
    nearest = _nearest(features, centers)
    found = {}
    for number, name in enumerate(TISSUES):
        whole = np.zeros_like(region)
        whole[region] = nearest == number
        eroded = ndimage.binary_erosion(whole)
        found[name] = eroded if eroded.sum() >= _FEW else whole
    return found


def _nearest(
    features: Float[np.ndarray, "n c"], centers: Float[np.ndarray, "3 c"]
) -> Int[np.ndarray, "n"]:
    return np.stack([((features - c) ** 2).sum(axis=-1) for c in centers]).argmin(axis=0)


def block_mean(image: Volume, brain: Mask, factor: int) -> tuple[Volume, Mask]:
    """The image and its brain on a grid of voxels `factor` times as long, the brain's mean in each.

    A coarse voxel is brain where most of it is.
    """
    pad = [(0, -size % factor) for size in image.shape]
    shares, sums = (
        _blocks(np.pad(part, pad), factor) for part in (brain.astype(np.float32), image * brain)
    )
    coarse = shares > 0.5
    return np.where(coarse, sums / np.maximum(shares, 1e-6), 0), coarse


def _blocks(volume: np.ndarray, factor: int) -> np.ndarray:
    z, y, x = (size // factor for size in volume.shape)
    return volume.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5))


def _shifted(volume: np.ndarray, axis: int, start: int, lost: int) -> np.ndarray:
    """The volume from `start` on along an axis, `lost` voxels shorter."""
    part = [slice(None)] * volume.ndim
    part[axis] = slice(start, volume.shape[axis] - lost + start)
    return volume[tuple(part)]


def _polynomial(places: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 10"]:
    x, y, z = places.T
    return np.stack([np.ones_like(x), x, y, z, x * y, x * z, y * z, x**2, y**2, z**2], axis=-1)
