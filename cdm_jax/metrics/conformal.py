"""Intervals around a mean image whose coverage is calibrated on patients, not on voxels.

An interval is mean ± q (deviation + floor) within [0, 1]. The voxels of one brain say the same
thing many times over, so a patient counts once: his loss is the share of his brain that the
intervals miss. Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster 2022,
"Conformal Risk Control", Theorem 1) picks the smallest q for which the expected loss of a new,
exchangeable patient is at most 1 - level, whatever the images are and however bad the deviations.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.errors import UserError

KEPT_SCORES = 10_000  # of a scan; fewer raise its loss by less than 1 / KEPT_SCORES
TOLERANCE = 1e-9  # of sums of binary fractions that should be exact

Voxels = Float[np.ndarray, " voxel"]
Scan = Float[np.ndarray, "_"]  # scores of one scan, of which each has its own number of voxels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiplier:
    """A calibrated q and what is known of it.

    Attributes:
      value: q.
      controlled: whether a new patient's expected coverage is at least the level.
      guaranteed_level: the coverage that a new patient may expect: the level itself where it is
        controlled, less where there are too few patients.
      patients: calibrated on.
      patients_needed: the fewest with which this level can be controlled.
    """

    value: float
    controlled: bool
    guaranteed_level: float
    patients: int
    patients_needed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """The error of what is kept when only the most certain voxels are.

    Attributes:
      risk: mean error of the kept voxels, one value a share.
      area: the mean of that error over all shares from one voxel to all of them.
    """

    risk: Float[np.ndarray, " share"]
    area: float


def patients_needed(level: float) -> int:
    """The fewest patients with which a coverage can be controlled: n + 1 >= 1 / (1 - level).

    Raises:
      UserError: the level does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level {level:g} must lie between 0 and 1, for example 0.9")
    return math.ceil(round(1 / _alpha(level) - 1, 9))


def _alpha(level: float) -> float:
    """1 - level as it is meant: 0.1 for 0.9."""
    return round(1 - level, 12)


def scores(
    truth: Float[np.ndarray, "*shape"],
    mean: Float[np.ndarray, "*shape"],
    deviation: Float[np.ndarray, "*shape"],
    floor: float,
) -> Float[np.ndarray, "*shape"]:
    """The multiplier that each voxel would need: `|truth - mean| / (deviation + floor)`.

    Args:
      truth: in [0, 1].
      mean: of the samples, in [0, 1].
      deviation: of the samples.
      floor: positive, so that voxels on which all samples agree have a width too.
    """
    return np.abs(truth - mean) / (deviation + np.float32(floor))


def thinned(values: Scan, number: int = KEPT_SCORES) -> Scan:
    """At most `number` of a scan's scores, sorted, that stand for all of them on the safe side.

    Of each of `number` equal groups of the sorted scores the largest is kept: at any q the kept
    ones miss at least the share that all of them do, and by less than 1 / number more.
    """
    kept = min(number, values.size)
    last = np.ceil(np.arange(1, kept + 1) * (values.size / kept) - TOLERANCE).astype(int) - 1
    return np.sort(values)[last]


def fit_multiplier(patients: Sequence[Sequence[Scan]], level: float) -> Multiplier:
    """The smallest q that covers a new patient's brain as asked.

    With n patients of losses L_i, conformal risk control asks for sum L_i(q) + 1 <= alpha (n + 1).
    Below n + 1 = 1 / alpha no q fulfils it; then the plain mean of the losses is held to alpha,
    which by the same theorem guarantees only a coverage of n level / (n + 1).

    Args:
      patients: for each patient the scores of each of his scans, which count equally.
      level: nominal coverage, such as 0.9.

    Raises:
      UserError: no patients, a scan without voxels, or a level that is none.
    """
    needed, n, alpha = patients_needed(level), len(patients), _alpha(level)
    if not n or any(not scans or not all(s.size for s in scans) for scans in patients):
        raise UserError("calibration needs at least one patient, and a brain in each scan")
    controlled = n >= needed
    allowed = alpha * (n + 1) - 1 if controlled else alpha * n
    pooled = [(scan, len(scans)) for scans in patients for scan in scans]
    values = np.concatenate([scan for scan, _ in pooled])
    weights = np.concatenate([np.full(scan.size, 1 / (k * scan.size)) for scan, k in pooled])
    order = np.argsort(values)[::-1]
    # missed[k] is the loss, summed over patients, of a q just below the k-th largest score, less
    # that score's own: what q = that score leaves uncovered.
    missed = np.cumsum(weights[order]) - weights[order]
    chosen = np.searchsorted(missed, allowed + TOLERANCE, side="right") - 1
    return Multiplier(
        value=float(values[order[chosen]]),
        controlled=controlled,
        guaranteed_level=level if controlled else n * level / (n + 1),
        patients=n,
        patients_needed=needed,
    )


def bounds(
    mean: Float[np.ndarray, "*shape"],
    deviation: Float[np.ndarray, "*shape"],
    multiplier: float,
    floor: float,
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Lower and upper ends of the intervals, within [0, 1] as the truth is."""
    half = np.float32(multiplier) * (deviation + np.float32(floor))
    return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def coverage_by_region(
    truth: Float[np.ndarray, "*shape"],
    mean: Float[np.ndarray, "*shape"],
    deviation: Float[np.ndarray, "*shape"],
    regions: Mapping[str, Bool[np.ndarray, "*shape"]],
    *,
    multiplier: float,
    floor: float,
) -> dict[str, dict[str, float]]:
    """How the intervals do in each region of one patient; an empty region is left out.

    Images and floor are as for `scores`; `multiplier` is q.

    Returns:
      For each region `coverage` (the share of its voxels whose truth lies within), `width` (upper
      less lower end, mean), `mae` (of the mean image) and `deviation` (mean).
    """
    lower, upper = bounds(mean, deviation, multiplier, floor)
    maps = {
        # By score: rounding at the ends of an interval must not undo what was calibrated.
        "coverage": scores(truth, mean, deviation, floor) <= multiplier,
        "width": upper - lower,
        "mae": np.abs(truth - mean),
        "deviation": deviation,
    }
    return {
        region: {name: float(values[mask].mean(dtype=np.float64)) for name, values in maps.items()}
        for region, mask in regions.items()
        if mask.any()
    }


def risk_coverage(
    errors: Voxels, uncertainty: Voxels, shares: Float[np.ndarray, " share"]
) -> RiskCoverage:
    """Keeps the most certain voxels of one patient and takes the mean error of what is kept.

    Equally uncertain voxels are kept in a random order, by expectation: a constant uncertainty
    gives a flat curve. `uncertainty=errors` is the best possible curve.

    Args:
      errors: absolute errors.
      uncertainty: what the voxels are sorted by.
      shares: in (0, 1]: at least one voxel is kept.
    """
    _, group, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    expected = np.bincount(group, weights=errors) / counts
    kept_error = np.cumsum(expected[np.sort(group)]) / np.arange(1, errors.size + 1)
    kept = np.maximum(np.rint(shares * errors.size).astype(int), 1)
    return RiskCoverage(risk=kept_error[kept - 1], area=float(kept_error.mean()))
