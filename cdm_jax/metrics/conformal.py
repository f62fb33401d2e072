"""Intervals around a mean image whose coverage is calibrated on patients, not on voxels.

An interval goes from mean - q (below + floor) to mean + q (above + floor) within [0, 1]. Below and
above are how far a system says that its mean may be off: both the deviation of its samples, or the
distances to the two ends that it predicts. The voxels of one brain say the same thing many times
over, so a patient counts once: his loss is the share of his voxels that the intervals miss, in the
whole brain or in a group such as a tumor. Conformal risk control (Angelopoulos, Bates, Fisch, Lei
and Schuster 2022, "Conformal Risk Control", Theorem 1) picks the smallest q for which the expected
loss of a new, exchangeable patient is at most 1 - level, whatever the images are and however bad
the distances.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from cdm_jax.errors import UserError

KEPT_SCORES = 10_000  # of a scan; fewer raise its loss by less than 1 / KEPT_SCORES
KEPT_WIDTHS = 1000  # of a patient, from which edges between strata are taken
TOLERANCE = 1e-9  # of sums of binary fractions that should be exact

Voxels = Float[np.ndarray, " voxel"]
Multipliers = float | Float[np.ndarray, "*shape"]
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """A mean image and how far it may be off, in units of [0, 1].

    Attributes:
      mean: in [0, 1].
      below: not negative.
      above: not negative.
    """

    mean: Float[np.ndarray, "..."]
    below: Float[np.ndarray, "..."]
    above: Float[np.ndarray, "..."]

    @property
    def width(self) -> Float[np.ndarray, "*shape"]:
        """From end to end, not calibrated."""
        return self.below + self.above

    def at(self, mask: Bool[np.ndarray, "*shape"]) -> "Predicted":
        """The voxels of a mask."""
        return Predicted(mean=self.mean[mask], below=self.below[mask], above=self.above[mask])


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
    truth: Float[np.ndarray, "*shape"], predicted: Predicted, floor: float
) -> Float[np.ndarray, "*shape"]:
    """The multiplier that each voxel would need: `|truth - mean| / (below or above + floor)`.

    Args:
      truth: in [0, 1].
      predicted: the mean and the distances.
      floor: positive, so that voxels of no distance, such as those on which all samples agree, have
        a width too.
    """
    distance = np.where(truth < predicted.mean, predicted.below, predicted.above)
    return np.abs(truth - predicted.mean) / (distance + np.float32(floor))


def strata(
    widths: Float[np.ndarray, "*shape"], edges: Sequence[float]
) -> Int[np.ndarray, "*shape"]:
    """The number of each voxel's stratum by its predicted width, from 0, the narrowest.

    An edge belongs to the stratum above it, so that n edges make n + 1 strata.
    """
    return np.digitize(widths, np.asarray(edges, np.float32))


def edges_between(patients: Sequence[Scan], shares: Sequence[float]) -> list[float]:
    """Widths between strata: quantiles at these shares, where every patient counts alike.

    Fewer where two are equal. They are numbers of single precision, as widths are.
    """
    places = (np.arange(KEPT_WIDTHS) + 0.5) / KEPT_WIDTHS
    alike = np.concatenate([np.quantile(widths, places) for widths in patients])
    return np.unique(np.quantile(alike, shares).astype(np.float32)).astype(float).tolist()


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
    predicted: Predicted, multiplier: Multipliers, floor: float
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Lower and upper ends of the intervals, within [0, 1] as the truth is.

    The multiplier is one for all voxels, or one for each.
    """
    factor, more = np.asarray(multiplier, np.float32), np.float32(floor)
    lower = predicted.mean - factor * (predicted.below + more)
    upper = predicted.mean + factor * (predicted.above + more)
    return np.clip(lower, 0, 1), np.clip(upper, 0, 1)


def coverage_by_region(
    truth: Float[np.ndarray, "*shape"],
    predicted: Predicted,
    regions: Mapping[str, Bool[np.ndarray, "*shape"]],
    *,
    multiplier: Multipliers,
    floor: float,
) -> dict[str, dict[str, float]]:
    """How the intervals do in each region of one patient; an empty region is left out.

    Images and floor are as for `scores`; `multiplier` is q, for all voxels or for each.

    Returns:
      For each region `coverage` (the share of its voxels whose truth lies within), `width` (upper
      less lower end, mean), `mae` (of the mean image) and `deviation` (mean of below and above).
    """
    lower, upper = bounds(predicted, multiplier, floor)
    maps = {
        # By score: rounding at the ends of an interval must not undo what was calibrated.
        "coverage": scores(truth, predicted, floor) <= multiplier,
        "width": upper - lower,
        "mae": np.abs(truth - predicted.mean),
        "deviation": predicted.width / 2,
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


def detection(errors: Bool[np.ndarray, " voxel"], uncertainty: Voxels) -> float:
    """How well an uncertainty tells voxels that err from others: the area under the ROC curve.

    It is the probability that a voxel that errs is more uncertain than one that does not; a tie
    counts half (Mann and Whitney 1947). NaN where all err or none does.
    """
    wrong = int(errors.sum())
    right = errors.size - wrong
    if not wrong or not right:
        return math.nan
    ranks = scipy.stats.rankdata(uncertainty)
    return float((ranks[errors].sum() - wrong * (wrong + 1) / 2) / (wrong * right))
