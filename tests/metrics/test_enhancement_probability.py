"""The probability that a voxel enhances: raw, calibrated, and scored, on made-up voxels."""

import math

import numpy as np
import pytest
import scipy.stats

from cdm_jax.metrics.conformal import Predicted
from cdm_jax.metrics.enhancement import THRESHOLD
from cdm_jax.metrics.enhancement_probability import (
    MORE_ML,
    Table,
    counted,
    fit_bound,
    fit_table,
    raw_probability,
    reliability,
    scores,
)

LEVELS = (0.05, 0.95)


def probability(mean, below, above, before, levels=LEVELS):
    arrays = (np.broadcast_to(np.asarray(a, float), np.shape(mean)) for a in (mean, below, above))
    mean, below, above = arrays
    made = Predicted(mean=mean, below=below, above=above)
    return raw_probability(made, np.asarray(before, float), levels)


def test_the_ends_keep_their_levels():
    t1c = np.array([1.0, 1, 1, 1, 1])
    t1 = np.full(5, 2.0)
    assert THRESHOLD == 0.2
    at_upper = probability(t1c, 0.5, 0.2, t1)  # needed: 1 * (.2 + 1) = 1.2
    np.testing.assert_allclose(at_upper, 0.05)
    bright = t1c + 0.4 * np.eye(5)[2]  # one voxel has 1.4 against 1.2
    at_lower = probability(bright, 0.4, 9.0, t1)
    assert at_lower[2] == pytest.approx(scipy.stats.norm(1.4, 0.4 / 1.6448536).sf(1.2))
    exactly = probability(bright, 0.2, 9.0, t1)
    assert exactly[2] == pytest.approx(0.95)
    other = probability(t1c, 0.5, 0.2, t1, levels=(0.1, 0.8))
    np.testing.assert_allclose(other, 0.2)


@pytest.mark.parametrize("gain", [0.01, 1, 300])
def test_each_half_is_that_of_a_normal_distribution_in_any_unit(gain):
    rng = np.random.default_rng(0)
    mean, below, above = rng.uniform(0.5, 1.5, 99), rng.uniform(0.1, 1, 99), rng.uniform(0.1, 1, 99)
    t1 = rng.uniform(0.3, 1, 99)
    needed = np.median(mean) * (0.2 + t1 / np.median(t1))
    z = scipy.stats.norm.ppf(0.95)
    spread = np.where(needed < mean, below, above) / z
    expected = scipy.stats.norm(mean, spread).sf(needed)
    found = probability(gain * mean, gain * below, gain * above, 7 * t1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert 0 <= found.min() < 0.1 and 0.9 < found.max() <= 1


def test_without_a_width_it_is_a_step_and_without_a_unit_nothing():
    t1 = np.ones(3)
    assert probability([1, 1, 1.5], 0, 0, t1).tolist() == [0, 0, 1]
    assert probability([0, 0, 1.5], 0, 0, t1) is None
    assert probability([1, 1, 1], 0, 0, 0 * t1) is None


def test_the_table_is_what_was_observed_where_the_raw_probability_errs():
    """Two patients of 200 000 voxels, of which the part raw**2 enhances."""
    rng = np.random.default_rng(0)
    patients = []
    for _ in range(2):
        raw = rng.uniform(size=200_000)
        patients.append([counted(raw, rng.uniform(size=raw.size) < raw**2)])
    table = fit_table(patients)
    assert 10 < len(table.raw) <= 43
    grid = np.linspace(0.02, 0.98, 40)
    assert np.abs(table.apply(grid) - grid**2).max() < 0.04
    assert (np.diff(table.apply(grid)) > 0).all()  # the order of voxels is kept


def test_a_patient_counts_once_however_many_voxels_and_scans_he_has():
    raw = np.full(1000, 0.5)
    always, never = np.ones(1000, bool), np.zeros(1000, bool)
    few, many = counted(raw[:10], always[:10]), counted(raw, never)
    assert fit_table([[few], [many]]).apply(raw[:1])[0] == pytest.approx(0.5)
    scans = fit_table([[few, counted(raw, never), counted(raw, never)], [counted(raw, always)]])
    assert scans.apply(raw[:1])[0] == pytest.approx(0.99 * (1 / 3 + 1) / 2 + 0.01 * 0.5)


def test_a_table_is_monotone_whatever_was_observed_and_keeps_the_order_on_plateaus():
    raw = np.tile([0.1, 0.4, 0.6, 0.9], 100)
    falling = np.tile([True, True, False, False], 100)
    table = fit_table([[counted(raw, falling)]])
    found = table.apply(np.array([0.1, 0.4, 0.6, 0.9]))
    np.testing.assert_allclose(found, 0.5, atol=0.01)
    assert (np.diff(found) > 0).all()
    for wrong in (
        {"raw": [0.2, 0.1], "probability": [0, 1]},
        {"raw": [0.1, 0.2], "probability": [1, 0]},
        {"raw": [0.1, 0.2], "probability": [0, 2]},
        {"raw": [0.1], "probability": [0, 1]},
        {"raw": [], "probability": []},
        {"raw": ["x"], "probability": [0.0]},
    ):
        with pytest.raises((TypeError, ValueError)):
            Table(**wrong)


def test_scores_are_those_of_a_map_by_hand():
    truth = np.array([True, True, False, False])
    found = scores(np.array([0.9, 0.4, 0.6, 0.1]), truth)
    assert found["auroc"] == 0.75  # three of four pairs are in order
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert (found["flat_brier"], found["enhancing"]) == (0.25, 0.5)
    assert math.isnan(scores(np.array([0.9]), np.array([True]))["auroc"])


def test_bins_hold_what_was_predicted_and_what_was_observed():
    found = reliability(
        np.array([0.0, 0.02, 0.31, 0.39, 1.0]), np.array([False, True, False, True, True])
    )
    assert found.keys() == {"0", "0.3", "0.9"}
    assert found["0"] == pytest.approx({"part": 0.4, "predicted": 0.01, "observed": 0.5})
    assert found["0.3"] == pytest.approx({"part": 0.4, "predicted": 0.35, "observed": 0.5})
    assert found["0.9"] == {"part": 0.2, "predicted": 1, "observed": 1}


def test_the_bound_holds_for_new_patients_as_often_as_promised():
    """Drawn anew 2000 times: 19 patients calibrate, one is new; 18 of 20 ranks are covered."""
    rng, held = np.random.default_rng(0), []
    for _ in range(2000):
        expected, true = rng.gamma(2, 5, 20), rng.gamma(1, 9, 20) * (rng.random(20) < 0.7)
        factor = fit_bound([[pair] for pair in zip(expected[1:], true[1:], strict=True)], 0.9)
        held.append(true[0] <= factor * (expected[0] + MORE_ML))
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_of_several_scans_of_a_patient_the_worst_counts_and_too_few_patients_give_no_bound():
    patients = [[(0.0, float(n)), (1.0, 0.0)] for n in range(1, 10)]
    assert fit_bound(patients, 0.9) == 9
    assert fit_bound(patients, 0.8) == 8
    assert fit_bound(patients[1:], 0.9) is None
    assert fit_bound([], 0.9) is None
