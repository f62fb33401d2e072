import math

import numpy as np
import pytest

from cdm_jax.metrics.aggregate import compare, summarize


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
