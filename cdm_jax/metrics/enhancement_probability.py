"""The probability that a voxel enhances, from a predicted T1c and the ends of its distribution.

A voxel enhances where T1c gains more than `THRESHOLD` over T1, each in units of its own median in
the brain (`enhancement.py`). T1 is known; of T1c a system predicts a mean and two quantiles, and so
how probable each gain is. What it predicts was learned from training patients and may be wrong:
isotonic regression on other patients turns it into the part of voxels that do enhance. The sum of
the map says how much enhances: the same patients tell how far the volume may lie above it.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import isotonic_regression
from scipy.special import ndtr, ndtri

from cdm_jax.metrics.conformal import Predicted, detection
from cdm_jax.metrics.enhancement import THRESHOLD

Values = Float[np.ndarray, " voxel"]
Voxels = Bool[np.ndarray, " voxel"]
Counts = Float[np.ndarray, "3 bin"]
"""Of one scan by bin of the raw probability: voxels, enhancing voxels, sum of raw probabilities."""

# Between bins, evenly spaced in standard deviations, so that rare voxels have bins of their own.
_EDGES = ndtr(np.linspace(-5, 5, 1001))
_TILT = 0.01  # part of the raw probability in a table: voxels keep their order on plateaus too
_STEPS = 40  # of a table's probabilities; with its two ends it has at most 43 points
_LEAST = 1e-6  # standard deviation: where no end is predicted apart from the mean, a step is left
MORE_ML = 1.0  # added to the expected volume, so that where nothing is expected a little may be
BINS = 10  # in which predicted and observed parts are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What a raw probability is worth: points that are joined by lines, and level beyond them.

    Attributes:
        raw: Rising, in [0, 1].
        probability: Of the same length, not falling, in [0, 1].

    Raises:
        ValueError: It is no such table.
    """

    raw: Sequence[float]
    probability: Sequence[float]

    def __post_init__(self) -> None:
        raw, probability = np.array(self.raw, float), np.array(self.probability, float)
        both = np.stack([raw, probability])  # raises where their lengths differ
        rising = (np.diff(raw) > 0).all() and (np.diff(probability) >= 0).all()
        if not both.size or not rising or not ((both >= 0) & (both <= 1)).all():
            raise ValueError("a table rises from 0 at the least to 1 at the most")

    def apply(self, raw: Values) -> Values:
        """The calibrated probabilities."""
        return np.interp(raw, self.raw, self.probability)


def raw_probability(
    predicted: Predicted, precontrast: Values, levels: Sequence[float]
) -> Values | None:
    """How probable a predicted distribution of T1c makes it that each voxel of a brain enhances.

    Half of the distribution lies below the mean and half above, each half being that of a normal
    distribution whose quantile is the predicted end: both ends keep their levels. It enhances above
    ``median(mean T1c) * (THRESHOLD + T1 / median(T1))``.

    Args:
        predicted: Of T1c in the voxels of the brain, in any unit.
        precontrast: T1 in the same voxels, in any unit.
        levels: Of the lower and the upper end, such as 0.05 and 0.95.

    Returns:
        In [0, 1], one a voxel, in double precision; None where a median is not above 0: there is no
        unit.
    """
    before, after = float(np.median(precontrast)), float(np.median(predicted.mean))
    if min(before, after) <= 0:
        return None
    lower, upper = (abs(float(ndtri(level))) for level in levels)
    needed = after * (THRESHOLD + precontrast.astype(np.float64) / before) - predicted.mean
    deviation = np.where(needed < 0, predicted.below / lower, predicted.above / upper)
    return ndtr(-needed / np.maximum(deviation, _LEAST * after))


def counted(raw: Values, enhances: Voxels) -> Counts:
    """Counts the voxels of one scan, as parts of all of them, so that scans can be added."""
    numbers = np.digitize(raw, _EDGES)
    parts = [None, enhances.astype(float), raw]
    sums = [np.bincount(numbers, part, minlength=_EDGES.size + 1) for part in parts]
    return np.stack(sums) / raw.size


def fit_table(patients: Sequence[Sequence[Counts]]) -> Table:
    """Isotonic regression of what enhances on the raw probability; a patient counts once.

    What the regression finds equal, or within a step of `_STEPS`, becomes one point at its center,
    so that lines between the points keep the order of voxels (Oron and Flournoy 2017, "Centered
    isotonic regression"); a hundredth of the raw probability keeps it at the two ends as well.

    Args:
        patients: For each patient the counts of each of his scans, which count alike. Not empty.
    """
    total = np.sum([np.mean(scans, axis=0) for scans in patients], axis=0)
    weights, hits, raws = total[:, total[0] > 0]
    x = raws / weights
    fitted = np.clip(isotonic_regression(hits / weights, weights=weights).x, 0, 1)
    _, group = np.unique(np.floor(fitted * _STEPS), return_inverse=True)
    of_group = np.bincount(group, weights)
    centers, levels = (np.bincount(group, weights * values) / of_group for values in (x, fitted))
    ends = [x[0], *centers, x[-1]], [fitted[0], *levels, fitted[-1]]
    # By rounding a center may lie beyond the only bin that it is of.
    points, values = (np.maximum.accumulate(np.clip(numbers, 0, 1)) for numbers in ends)
    points, first = np.unique(points, return_index=True)
    tilted = (1 - _TILT) * values[first] + _TILT * points
    return Table(raw=points.tolist(), probability=tilted.tolist())


def fit_bound(patients: Sequence[Sequence[tuple[float, float]]], level: float) -> float | None:
    """The factor with which ``factor * (expected + MORE_ML)`` bounds a new patient's volume.

    Split conformal prediction (Lei et al. 2018, "Distribution-free predictive inference for
    regression"): of a patient who is exchangeable with these, the volume is at most that with a
    probability of at least the level, however bad what is expected is.

    Args:
        patients: For each patient the expected and the true volume in ml of each of his scans, of
            which the worst counts.
        level: Such as 0.9.

    Returns:
        None where there are too few patients for the level: nine allow 90 %.
    """
    needed = sorted(max(true / (e + MORE_ML) for e, true in scans) for scans in patients)
    rank = math.ceil(round((len(needed) + 1) * level, 9))
    return needed[rank - 1] if rank <= len(needed) else None


def scores(probability: Values, enhances: Voxels) -> dict[str, float]:
    """How good a map is in the voxels of one region; not empty.

    Returns:
        ``auroc``, the probability that a voxel that enhances has more than one that does not, NaN
        where all do or none does; ``brier``, the mean square error (Brier 1950); ``flat_brier``,
        that of the region's own part for every voxel; ``enhancing``, that part.
    """
    part = float(enhances.mean())
    return {
        "auroc": detection(enhances, probability),
        "brier": float(((probability - enhances) ** 2).mean()),
        "flat_brier": part * (1 - part),
        "enhancing": part,
    }


def reliability(probability: Values, enhances: Voxels) -> dict[str, dict[str, float]]:
    """Compares predicted with observed parts in bins of the map of one patient.

    Returns:
        For each bin that has voxels, by its lower end such as "0.3": ``part`` of all voxels,
        ``predicted``, its mean probability, and ``observed``, the part that enhances.
    """
    numbers = np.minimum((probability * BINS).astype(int), BINS - 1)
    found = {}
    for number in np.unique(numbers):
        mask = numbers == number
        found[f"{number / BINS:g}"] = {
            "part": float(mask.mean()),
            "predicted": float(probability[mask].mean()),
            "observed": float(enhances[mask].mean()),
        }
    return found
