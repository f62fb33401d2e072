"""Statistics over patients, from the JSON records of single subjects."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import stats

from cdm_jax.errors import UserError

Record: TypeAlias = Mapping[str, Any]
"""The scores of one subject (one time-point of one patient), as read from its JSON file.

``{"subject", "patient", "split": hash, "conventions": {name: fingerprint}, ...,
"rows": {row: {convention: {target: {"psnr", "ssim", "mae", "regions": {...}}}}}}``
"""

FEWEST_PATIENTS = 3  # With fewer, an interval would say nothing.
RESAMPLES = 9999
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """How one metric is distributed over patients.

    Attributes:
        mean: The mean; NaN for no patients.
        standard_deviation: The sample's standard deviation; NaN for fewer than two patients.
        median: The median; NaN for no patients.
        n: The number of patients that have a value.
        interval: The mean's 95 % interval; None for fewer than three patients.
    """

    mean: float
    standard_deviation: float
    median: float
    n: int
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one row differs from another over the patients that both have.

    Attributes:
        difference: The mean of the paired differences, first row minus second; NaN for no pairs.
        n: The number of pairs.
        interval: The mean difference's 95 % interval; None for fewer than three pairs.
        p_value: Of the two-sided Wilcoxon signed-rank test; None for fewer than three pairs.
    """

    difference: float
    n: int
    interval: tuple[float, float] | None
    p_value: float | None


def summarize(values: Float[np.ndarray, " patients"]) -> Summary:
    """Summarizes one metric over patients; NaNs are dropped, and ``n`` counts what is left."""
    present = values[~np.isnan(values)]
    n = present.size
    return Summary(
        mean=float(present.mean()) if n else math.nan,
        standard_deviation=float(present.std(ddof=1)) if n > 1 else math.nan,
        median=float(np.median(present)) if n else math.nan,
        n=n,
        interval=_interval(present),
    )


def compare(
    values_a: Float[np.ndarray, " patients"], values_b: Float[np.ndarray, " patients"]
) -> Comparison:
    """Compares two rows, patient by patient; patients that lack either value are dropped.

    Args:
        values_a: One value a patient.
        values_b: The other row's values of the same patients, in the same order.

    Returns:
        The paired difference with its interval and test.
    """
    differences = values_a - values_b
    differences = differences[~np.isnan(differences)]
    n = differences.size
    return Comparison(
        difference=float(differences.mean()) if n else math.nan,
        n=n,
        interval=_interval(differences),
        p_value=_wilcoxon(differences),
    )


def _interval(values: Float[np.ndarray, " patients"]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean.

    Not BCa: it is undefined where all patients agree (identical images, capped PSNR), and on skewed
    samples of 10 to 100 patients its coverage is no better (within 2 points of the percentile's).
    """
    if values.size < FEWEST_PATIENTS:
        return None
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=SEED
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _wilcoxon(differences: Float[np.ndarray, " patients"]) -> float | None:
    if differences.size < FEWEST_PATIENTS:
        return None
    if not differences.any():
        return 1.0  # The test drops zeros and would have nothing left.
    return float(stats.wilcoxon(differences).pvalue)


def check_comparable(records: Sequence[Record]) -> None:
    """Refuses records whose numbers may not be set side by side.

    Raises:
        UserError: There are no records, their splits or the fingerprints of a convention differ, or
            one subject has two evaluations of the same row.
    """
    if not records:
        raise UserError("there are no records: evaluate at least one patient first")
    _check_one("split", ((r["subject"], r["split"]) for r in records))
    for name in sorted({name for r in records for name in r["conventions"]}):
        tagged = ((r["subject"], r["conventions"].get(name)) for r in records)
        _check_one(f"convention {name!r}", ((s, tag) for s, tag in tagged if tag is not None))
    evaluations = Counter(
        (record["subject"], row, convention)
        for record in records
        for row, scores in record["rows"].items()
        for convention in scores
    )
    for (subject, row, convention), times in evaluations.items():
        if times > 1:
            raise UserError(
                f"subject {subject} has {times} evaluations of row {row!r} by convention "
                f"{convention!r}, and only one can count: choose one run's records"
            )


def _check_one(what: str, tagged: Iterable[tuple[str, str]]) -> None:
    first_with: dict[str, str] = {}
    for subject, tag in tagged:
        first_with.setdefault(tag, subject)
    if len(first_with) > 1:
        found = ", ".join(f"{tag} (as in {subject})" for tag, subject in first_with.items())
        raise UserError(
            f"the records' {what} differs: {found}; only records with the same one can be "
            "compared: evaluate again, or choose one run's records"
        )


def per_patient(
    records: Sequence[Record],
    row: str,
    convention: str,
    target: str,
    metric: str,
    region: str | None = None,
) -> tuple[list[str], Float[np.ndarray, " patients"]]:
    """Gathers one metric of one row, one value a patient.

    Patients are the statistical unit: the time-points of one patient are averaged first, leaving
    out those without a value. All patients of the records are there, so that two rows pair up.

    Args:
        records: One record a subject.
        row: The system's row.
        convention: The convention's name.
        target: The target modality.
        metric: ``psnr``, ``ssim``, ``mae`` or another number of the convention.
        region: A tumor region; the convention's main value where it is None.

    Returns:
        The patients' names, sorted, and their values; NaN where a patient has none.

    Raises:
        UserError: The records are not comparable, or none has this row.
    """
    check_comparable(records)
    rows = dict.fromkeys(name for record in records for name in record["rows"])
    if row not in rows:
        raise UserError(f"no record has a row {row!r}: choose from {', '.join(rows)}")
    values: dict[str, list[float]] = {record["patient"]: [] for record in records}
    for record in records:
        scores = record["rows"].get(row, {}).get(convention, {}).get(target, {})
        if region is not None:
            scores = scores.get("regions", {}).get(region, {})
        value = scores.get(metric)
        if value is not None and not math.isnan(value):
            values[record["patient"]].append(value)
    patients = sorted(values)
    means = [np.mean(values[p]) if values[p] else math.nan for p in patients]
    return patients, np.array(means, dtype=np.float64)
