"""The scale of a predicted volume, of which a network that sees single slices knows little.

By the intensity rule (`intensity.py`) the 99.5th percentile of an acquired volume's brain is 1. In
a patient with bright lesions all other tissue is therefore darker, in every slice, also in one that
shows no lesion. A network that sees a slice at a time cannot know that; the volume that it has
predicted tells part of it, as its own 99.5th percentile, the top, differs from that of others. As
lesions themselves stay near 1, the factor depends on the value as well:

  log(factor) = sum over i of (offset_i + power_i * log(top)) * log(value)^i

with i up to 2. The curve is fitted to the volumes of patients who were not trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.intensity import PERCENTILE

RULE = (
    "each value was multiplied by exp of the sum over i of (offsets[i] + powers[i] log(top)) "
    "log(value)^i, top being the predicted volume's 99.5th percentile in the brain, between lowest "
    "and highest; values below 0.05 got the factor of 0.05"
)
LEAST = 8  # patients for a curve
DARKEST = 0.05  # below, the factor stays: logarithms of noise would decide it
VOXELS = 4000  # of a patient that a curve is fitted to
STEPS = 10  # of Gauss and Newton's method, which needs about five
SLOPE = 0.1  # of a curve at the least: what is brighter stays so

Volume = Float[np.ndarray, "slice h w t"]
Values = Float[np.ndarray, "_"]
Scan = tuple[float, Values, Values]
"""The top of a predicted volume, and voxels of its brain beside the acquired ones."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """By what to multiply the values of a volume, given its top.

    Attributes:
        offsets: one for each power of the value's logarithm, from 0.
        powers: by which the factor follows the top; as many.
        lowest: top of the scans that it was fitted to; a lower one counts as this one.
        highest: the same at the other end.
        scans: to how many it was fitted.
    """

    offsets: Sequence[float]
    powers: Sequence[float]
    lowest: float
    highest: float
    scans: int

    def factors(
        self, values: Float[np.ndarray, "*shape"], top: float
    ) -> Float[np.ndarray, "*shape"]:
        """The factor of each value in a volume with this top; 1 in an empty one."""
        if top <= 0:
            return np.ones_like(values)
        within = math.log(min(max(top, self.lowest), self.highest))
        logs = np.log(np.maximum(values, DARKEST))
        pairs = zip(self.offsets, self.powers, strict=True)
        return np.exp(sum((o + p * within) * logs**i for i, (o, p) in enumerate(pairs)))

    def is_rising(self) -> bool:
        """Whether a larger value stays the larger one, with every top."""
        values = np.linspace(DARKEST, 1, 200)
        ends = [values * self.factors(values, top) for top in (self.lowest, self.highest)]
        return all((np.diff(np.log(end)) > SLOPE * np.diff(np.log(values))).all() for end in ends)


Curves = Mapping[str, Curve]
"""Target -> its curve; a target without one keeps its scale."""


def tops(volume: Float[np.ndarray, "*slices t"], brain: Bool[np.ndarray, "*slices"]) -> list[float]:
    """The 99.5th percentile in the brain of each target of a volume."""
    return np.percentile(volume[brain], PERCENTILE, axis=0).tolist()


def scans_of(truth: Volume, volume: Volume, brain: Bool[np.ndarray, "slice h w"]) -> list[Scan]:
    """For each target what `fit_curve` takes of a predicted volume: evenly spaced voxels."""
    step = max(1, np.count_nonzero(brain) // VOXELS)
    seen, acquired = (image[brain][::step].astype(np.float64).T for image in (volume, truth))
    return list(zip(tops(volume, brain), seen, acquired, strict=True))


def fit_curve(scans: Sequence[Scan]) -> Curve | None:
    """Least squares of the acquired values on the predicted ones.

    Of the curves with as many powers of the value as they may have, and of none, that one is taken
    which predicts each scan best from all the others.

    Returns:
        None of fewer than `LEAST` scans, and where no curve is better than none.
    """
    told = [scan for scan in scans if scan[0] > 0]
    if len(told) < LEAST:
        return None
    best, least = None, sum(float(np.sum((y - x) ** 2)) for _, x, y in told)
    for order in range(3):
        curve, error = _fitted(told, order)
        if error < least and curve.is_rising():
            best, least = curve, error
    return best


def _fitted(scans: Sequence[Scan], order: int) -> tuple[Curve, float]:
    """A curve by Gauss and Newton's method, and its square error on scans that are left out.

    Without a scan, another step from the curve of all gives the curve of the others.
    """
    ridge = 1e-6 * np.eye(2 * order + 2)
    weights = np.zeros(2 * order + 2)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(STEPS):
        parts = [_normal(scan, weights) for scan in scans]
        whole, slope = (np.sum([part[k] for part in parts], axis=0) for k in (0, 1))
        weights = weights + np.linalg.solve(whole + ridge, slope)
    error = 0.0
    for scan, (own, pull) in zip(scans, parts, strict=True):
        without = weights - np.linalg.solve(whole - own + ridge, pull)
        _, x, y = scan
        error += float(np.sum((y - x * np.exp(_features(scan, order) @ without)) ** 2))
    seen = [top for top, _, _ in scans]
    curve = Curve(
        offsets=weights[: order + 1].tolist(),
        powers=weights[order + 1 :].tolist(),
        lowest=min(seen),
        highest=max(seen),
        scans=len(scans),
    )
    return curve, error


def _features(scan: Scan, order: int) -> Float[np.ndarray, "voxel _"]:
    top, values, _ = scan
    logs = np.log(np.maximum(values, DARKEST))[:, None] ** np.arange(order + 1)
    return np.concatenate([logs, math.log(top) * logs], axis=1)


def _normal(scan: Scan, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A scan's part of the normal equations at these weights."""
    features = _features(scan, len(weights) // 2 - 1)
    made = scan[1] * np.exp(features @ weights)
    slopes = made[:, None] * features
    return slopes.T @ slopes, slopes.T @ (scan[2] - made)


def fit_curves(scans: Mapping[str, Sequence[Scan]]) -> Curves:
    """The curve of each target that one helps, see `fit_curve`."""
    found = {target: fit_curve(ones) for target, ones in scans.items()}
    return {target: curve for target, curve in found.items() if curve is not None}


def rescaled(
    volumes: Mapping[str, Volume],
    brain: Bool[np.ndarray, "slice h w"],
    curves: Curves,
    targets: Sequence[str],
) -> dict[str, Volume]:
    """Volumes in [0, 1] on the scale that they should have.

    Args:
        volumes: by name, from one subject's slices. Where one is the "mean", its top counts for
            all: others are the ends of its interval, or the "deviation", which gets the mean's
            factors.
        brain: of these slices.
        curves: by target.
        targets: of the volumes' channels.
    """
    if not brain.any() or curves.keys().isdisjoint(targets):
        return dict(volumes)
    found = {}
    common = tops(volumes["mean"], brain) if "mean" in volumes else None
    for name, volume in volumes.items():
        seen = common or tops(volume, brain)
        values = volumes["mean"] if name == "deviation" else volume
        found[name] = volume.copy()
        for channel, (target, top) in enumerate(zip(targets, seen, strict=True)):
            if target in curves:
                factors = curves[target].factors(values[..., channel], top)
                found[name][..., channel] = np.clip(volume[..., channel] * factors, 0, 1)
    return found
