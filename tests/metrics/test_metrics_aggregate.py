import math

import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.metrics.aggregate import check_comparable, compare, per_patient, summarize


def record(subject, psnr, *, patient=None, split="s1", volume="v1", row="cdm", regions=None):
    scores = {"psnr": psnr, "ssim": 0.9, "mae": 0.01, "regions": regions or {}}
    return {
        "subject": subject,
        "patient": patient or subject,
        "split": split,
        "conventions": {"volume": volume},
        "rows": {row: {"volume": {"t1c": scores}}},
    }


def test_summary_by_hand():
    summary = summarize(np.array([1.0, 2.0, 3.0, 10.0, np.nan]))
    assert (summary.mean, summary.median, summary.n) == (4, 2.5, 4)
    assert summary.standard_deviation == pytest.approx(math.sqrt((9 + 4 + 1 + 36) / 3))
    low, high = summary.interval
    assert 1 <= low < 4 < high <= 10


@pytest.mark.parametrize("n", [0, 1, 2])
def test_one_or_two_patients_have_no_interval(n):
    values = np.arange(1.0, 1.0 + n)
    summary, comparison = summarize(values), compare(values, values)
    assert summary.interval is comparison.interval is comparison.p_value is None
    assert summary.n == comparison.n == n
    assert math.isnan(summary.mean) == (n == 0)
    assert math.isnan(summary.standard_deviation) == (n < 2)


def test_intervals_are_the_same_every_time():
    values = np.random.default_rng(0).normal(size=30)
    assert summarize(values) == summarize(values.copy())
    assert compare(values, values**2) == compare(values, values**2)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_cover_the_true_mean_about_95_times_in_100(draw):
    rng = np.random.default_rng(0)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    intervals = [summarize(getattr(rng, draw)(size=40)).interval for _ in range(200)]
    coverage = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.88 <= coverage <= 0.99


def test_an_interval_is_as_wide_as_the_central_limit_theorem_says():
    values = np.random.default_rng(1).normal(size=400)
    low, high = summarize(values).interval
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)


def test_patients_that_all_agree_have_an_interval_of_no_width():
    assert summarize(np.full(5, 100.0)).interval == (100, 100)


def test_comparison_pairs_patients():
    """A small constant gain shows through a spread between patients far larger than it."""
    rng = np.random.default_rng(0)
    ours = rng.normal(30, 5, size=20)
    theirs = ours - 0.1 + rng.normal(0, 0.01, size=20)
    comparison = compare(ours, theirs)
    assert comparison.difference == pytest.approx(0.1, abs=0.01)
    assert 0.08 < comparison.interval[0] < comparison.interval[1] < 0.12
    assert comparison.p_value == pytest.approx(2 / 2**20)  # All 20 signs agree: exact test.
    mirrored = compare(theirs, ours)
    assert mirrored.difference == -comparison.difference
    assert mirrored.p_value == comparison.p_value


def test_comparison_drops_patients_that_lack_either_value():
    a = np.array([1.0, np.nan, 3.0, 5.0, 9.0])
    b = np.array([0.0, 1.0, np.nan, 3.0, 6.0])
    comparison = compare(a, b)
    assert (comparison.difference, comparison.n) == (2, 3)
    assert comparison.p_value == pytest.approx(2 / 2**3)


def test_equal_rows_do_not_differ():
    values = np.arange(10.0)
    comparison = compare(values, values)
    assert (comparison.difference, comparison.interval, comparison.p_value) == (0, (0, 0), 1)


def test_time_points_are_averaged_to_their_patient():
    records = [
        record("P2-000", 10.0, patient="P2"),
        record("P1-000", 20.0, patient="P1"),
        record("P1-001", 30.0, patient="P1"),
        record("P1-002", None, patient="P1"),
        record("P1-003", math.nan, patient="P1"),
        record("P3-000", None, patient="P3"),
    ]
    patients, values = per_patient(records, "cdm", "volume", "t1c", "psnr")
    assert patients == ["P1", "P2", "P3"]
    np.testing.assert_array_equal(values, [25, 10, np.nan])
    assert summarize(values).n == 2


def test_regions_and_rows_that_a_patient_lacks_are_nan_in_place():
    core = {"tumor_core": {"psnr": 15.0, "ssim": None, "mae": 0.1}}
    records = [record("A", 20.0, regions=core), record("B", 30.0), record("C", 1.0, row="other")]
    patients, values = per_patient(records, "cdm", "volume", "t1c", "psnr", "tumor_core")
    assert patients == ["A", "B", "C"]
    np.testing.assert_array_equal(values, [15, np.nan, np.nan])
    assert np.isnan(per_patient(records, "cdm", "volume", "t1c", "ssim", "tumor_core")[1]).all()
    np.testing.assert_array_equal(
        per_patient(records, "other", "volume", "t1c", "psnr")[1], [np.nan, np.nan, 1]
    )


def test_an_unknown_row_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match="choose from cdm"):
        per_patient([record("A", 1.0)], "cmd", "volume", "t1c", "psnr")


def test_records_of_one_split_and_convention_are_comparable():
    check_comparable([record("A", 1.0), record("B", 2.0), record("A", 2.0, row="unet")])
    other_convention = {**record("C", 2.0), "conventions": {"paper": "p1"}}
    check_comparable([record("A", 1.0), other_convention])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (record("B", 2.0, split="s2"), r"split differs: s1 \(as in A\), s2 \(as in B\)"),
        (record("B", 2.0, volume="v2"), r"convention 'volume' differs: v1 \(as in A\), v2"),
        (record("A", 2.0), "subject A has 2 evaluations of row 'cdm'"),
    ],
)
def test_mixed_records_are_refused(other, message):
    records = [record("A", 1.0), other]
    with pytest.raises(UserError, match=message):
        check_comparable(records)
    with pytest.raises(UserError, match=message):
        per_patient(records, "cdm", "volume", "t1c", "psnr")


def test_no_records_are_refused():
    with pytest.raises(UserError, match="there are no records"):
        check_comparable([])
