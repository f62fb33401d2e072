"""Conformal risk control against exact fractions, split conformal prediction and simulations."""

import fractions
import itertools
import math

import numpy as np
import pytest
from scipy.special import erf

from cdm_jax.errors import UserError
from cdm_jax.metrics import conformal

LEVELS = (0.5, 0.8, 0.9, 0.95)


def around(mean, deviation):
    return conformal.Predicted(mean=mean, below=deviation, above=deviation)


def missed(scan, q):
    return fractions.Fraction(int((scan > q).sum()), scan.size)


def by_search(patients, level):
    """The definition, in exact fractions: every score is tried as q, from the smallest."""
    n, alpha = len(patients), 1 - fractions.Fraction(str(level))
    for q in sorted({float(v) for scans in patients for scan in scans for v in scan}):
        losses = [sum(missed(scan, q) for scan in scans) / len(scans) for scans in patients]
        mean = sum(losses) / n
        if fractions.Fraction(n, n + 1) * mean + fractions.Fraction(1, n + 1) <= alpha:
            return q
    return None


def drawn(rng, n, size=12):
    return [
        [rng.exponential(rng.uniform(0.5, 3), size) for _ in range(rng.integers(1, 4))]
        for _ in range(n)
    ]


@pytest.mark.parametrize(("level", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_so_many_patients_are_needed_and_no_fewer_suffice(level, needed):
    assert conformal.patients_needed(level) == needed
    rng = np.random.default_rng(0)
    patients = drawn(rng, needed)
    enough = conformal.fit_multiplier(patients, level)
    assert enough.controlled
    # Exactly so many leave no room for any miss: all that was seen is covered.
    assert enough.value == max(scan.max() for scans in patients for scan in scans)
    assert enough.guaranteed_level == level
    assert by_search(patients, level) == enough.value
    if needed > 1:
        fewer = conformal.fit_multiplier(patients[1:], level)
        assert not fewer.controlled
        assert by_search(patients[1:], level) is None
        assert fewer.patients == needed - 1
        assert fewer.patients_needed == needed


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [20, 33])
def test_the_multiplier_is_the_smallest_that_fulfils_the_definition(level, n):
    patients = drawn(np.random.default_rng(n), n)
    assert conformal.fit_multiplier(patients, level).value == by_search(patients, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [19, 20, 37, 200])
def test_one_voxel_a_patient_is_split_conformal_prediction(level, n):
    scores = np.random.default_rng(n).normal(size=n) ** 2
    fitted = conformal.fit_multiplier([[scores[i : i + 1]] for i in range(n)], level)
    place = math.ceil(fractions.Fraction(str(level)) * (n + 1))
    assert fitted.value == np.sort(scores)[place - 1]


def test_patients_of_one_known_distribution():
    uniform = np.arange(1, 1001) / 1000
    # 99 patients may miss (0.1 * 100 - 1) / 99 = 0.0909 each.
    assert conformal.fit_multiplier([[uniform]] * 99, 0.9).value == 0.91
    # One patient is too few: he may miss 0.1, and nothing more than 0.9 / 2 is guaranteed.
    alone = conformal.fit_multiplier([[uniform]], 0.9)
    assert (alone.value, alone.controlled) == (0.9, False)
    assert alone.guaranteed_level == pytest.approx(0.45)


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (20, 0.9), (30, 0.8), (3, 0.9), (6, 0.9)])
def test_a_new_patient_is_covered_as_promised_on_average(n, level):
    """Each patient is as hard as he is: voxels are alike within, patients differ by a lot."""
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(500):
        *known, new = rng.lognormal(0, 1, n + 1)
        patients = [[conformal.thinned(np.abs(rng.normal(0, s, 200)), 50)] for s in known]
        fitted = conformal.fit_multiplier(patients, level)
        covered.append(erf(fitted.value / new / math.sqrt(2)))  # of a normal distribution
    error = np.std(covered) / math.sqrt(len(covered))
    assert np.mean(covered) >= fitted.guaranteed_level - 3 * error
    if fitted.controlled:  # Theorem 2 of the paper: nor by much more, but for the thinning
        assert np.mean(covered) <= level + 2 / (n + 1) + 1 / 50 + 3 * error
    else:
        assert fitted.guaranteed_level == pytest.approx(n * level / (n + 1))


def test_pooling_voxels_would_not_keep_the_promise():
    """Why patients count once: large easy scans drown the small hard one."""
    easy, hard = np.full(10_000, 0.1), np.full(10, 5.0)
    patients = [[easy]] * 10 + [[hard]] * 9
    assert conformal.fit_multiplier(patients, 0.9).value == 5
    assert np.quantile(np.concatenate([p[0] for p in patients]), 0.9) == 0.1


def test_scans_of_one_patient_count_as_one_patient():
    a, b, c = (np.random.default_rng(seed).exponential(size=30) for seed in range(3))
    once, twice = ([[scan], [b], [c]] for scan in (a, np.concatenate([a, a])))
    value = conformal.fit_multiplier(once, 0.7).value
    assert conformal.fit_multiplier([[a, a], [b], [c]], 0.7).value == value
    assert conformal.fit_multiplier(twice, 0.7).value == value
    assert conformal.fit_multiplier([[a, b], [b], [c]], 0.7).patients == 3


def test_equal_scores_are_covered_together():
    assert conformal.fit_multiplier([[np.full(7, 2.5)]] * 12, 0.9).value == 2.5


@pytest.mark.parametrize("size", [1, 7, 50, 51, 99, 100, 1000, 12345])
def test_thinned_scores_err_by_little_and_on_the_safe_side(size):
    scores = np.random.default_rng(size).exponential(size=size)
    kept = conformal.thinned(scores, 50)
    assert kept.size == min(size, 50)
    assert kept[-1] == scores.max()
    assert (np.diff(kept) >= 0).all()
    for q in np.linspace(0, scores.max(), 200):
        excess = missed(kept, q) - missed(scores, q)
        assert 0 <= excess < fractions.Fraction(1, 50)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.2, -0.1])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(UserError, match="between 0 and 1"):
        conformal.fit_multiplier([[np.ones(3)]], level)


@pytest.mark.parametrize("patients", [[], [[]], [[np.ones(0)]], [[np.ones(2)], [np.ones(0)]]])
def test_nothing_to_calibrate_on_is_refused(patients):
    with pytest.raises(UserError, match="at least one patient"):
        conformal.fit_multiplier(patients, 0.9)


def test_a_score_is_the_multiplier_that_just_covers_its_voxel():
    rng = np.random.default_rng(0)
    truth, mean, deviation = rng.random((3, 500))
    scores = conformal.scores(truth, around(mean, 0.1 * deviation), 0.01)
    for factor, covered in ((1.001, True), (0.999, False)):
        half = factor * scores * (0.1 * deviation + 0.01)
        assert (((mean - half <= truth) & (truth <= mean + half)) == covered).all()


def test_bounds_enclose_the_mean_within_the_range():
    mean = np.array([0.0, 0.5, 1.0, 0.02], np.float32)
    deviation = np.array([0.0, 0.1, 0.0, 0.0], np.float32)
    lower, upper = conformal.bounds(around(mean, deviation), 2.0, 0.05)
    np.testing.assert_allclose(lower, [0, 0.2, 0.9, 0], atol=1e-6)
    np.testing.assert_allclose(upper, [0.1, 0.8, 1, 0.12], atol=1e-6)


def test_regions_have_the_numbers_that_were_built_into_them():
    mean = np.full(8, 0.5)
    truth = np.array([0.5, 0.55, 0.45, 0.7, 0.9, 0.5, 0.5, 0.1])
    deviation = np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0])
    left = np.arange(8) < 4
    regions = {"left": left, "right": ~left, "none": np.zeros(8, bool)}
    images = around(mean, deviation)
    found = conformal.coverage_by_region(truth, images, regions, multiplier=2.0, floor=0.05)
    assert found.keys() == {"left", "right"}
    assert found["left"] == pytest.approx(
        {"coverage": 3 / 4, "width": 0.2, "mae": 0.3 / 4, "deviation": 0}
    )
    assert found["right"] == pytest.approx(
        {"coverage": 2 / 4, "width": (2 * 0.6 + 2 * 0.2) / 4, "mae": 0.2, "deviation": 0.05}
    )


def test_what_was_calibrated_is_covered_exactly():
    """Rounding at the ends of an interval costs no voxel."""
    rng = np.random.default_rng(0)
    truth, mean, deviation = rng.random((3, 10_000)).astype(np.float32)
    voxels = (truth, around(mean, np.float32(0.03) * deviation))
    scores = conformal.scores(*voxels, 0.01)
    q = conformal.fit_multiplier([[scores]], 0.9).value
    everywhere = {"brain": np.ones(truth.shape, bool)}
    found = conformal.coverage_by_region(*voxels, everywhere, multiplier=q, floor=0.01)
    assert found["brain"]["coverage"] == 0.9


SHARES = np.array([0.25, 0.5, 1.0])


def test_the_most_certain_voxels_are_kept():
    errors = np.array([4.0, 1.0, 3.0, 2.0])
    curve = conformal.risk_coverage(errors, errors, SHARES)
    np.testing.assert_allclose(curve.risk, [1, 1.5, 2.5])
    assert curve.area == pytest.approx((1 + 1.5 + 2 + 2.5) / 4)
    worst = conformal.risk_coverage(errors, -errors, SHARES)
    np.testing.assert_allclose(worst.risk, [4, 3.5, 2.5])


def test_equally_uncertain_voxels_are_kept_in_the_mean_of_all_orders():
    errors = np.array([5.0, 0.0, 1.0, 7.0, 2.0])
    uncertainty = np.array([1.0, 0.0, 1.0, 2.0, 1.0])
    tied = np.flatnonzero(uncertainty == 1)
    curves = []
    for order in itertools.permutations(tied):
        chosen = errors[[1, *order, 3]]
        curves.append([chosen[:k].mean() for k in range(1, 6)])
    curve = conformal.risk_coverage(errors, uncertainty, np.arange(1, 6) / 5)
    np.testing.assert_allclose(curve.risk, np.mean(curves, axis=0))
    assert curve.area == pytest.approx(np.mean(curves))


def test_a_constant_uncertainty_gives_a_flat_curve_and_a_tiny_share_one_voxel():
    errors = np.random.default_rng(0).random(100)
    flat = conformal.risk_coverage(errors, np.zeros(100), np.array([0.0001, 0.3, 1.0]))
    np.testing.assert_allclose(flat.risk, errors.mean())
    assert flat.area == pytest.approx(errors.mean())
    best = conformal.risk_coverage(errors, errors, np.array([0.0001]))
    assert best.risk == pytest.approx(errors.min())


# Intervals whose two sides differ, strata of their width, and the detection of errors.


def test_a_score_takes_the_side_on_which_the_truth_lies():
    mean, below, above = (np.full(3, value) for value in (0.5, 0.1, 0.3))
    images = conformal.Predicted(mean=mean, below=below, above=above)
    truth = np.array([0.3, 0.9, 0.5])
    np.testing.assert_allclose(conformal.scores(truth, images, 0.0), [2, 4 / 3, 0])
    lower, upper = conformal.bounds(images, np.array([1.0, 2.0, 0.0]), 0.0)
    np.testing.assert_allclose(lower, [0.4, 0.3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(upper, [0.8, 1.0, 0.5], rtol=1e-6)
    assert images.at(truth < 0.4).width == pytest.approx([0.4])


def test_an_edge_belongs_to_the_stratum_above_it():
    widths = np.array([0.0, 0.1, 0.100001, 0.3, 5.0], np.float32)
    assert conformal.strata(widths, [float(np.float32(0.1)), 0.3]).tolist() == [0, 1, 1, 2, 2]


def test_edges_are_quantiles_over_patients_who_count_alike():
    small, large = np.zeros(100), np.ones(100_000)
    assert conformal.edges_between([small, large], (0.25, 0.75)) == [0, 1]
    assert conformal.edges_between([small, small], (0.25, 0.5, 0.75)) == [0]
    scan = np.random.default_rng(0).permutation(1000) / 1000
    assert conformal.edges_between([scan], (0.5,)) == pytest.approx([0.4995])


def test_strata_cover_what_one_multiplier_misses():
    """Wide intervals are too narrow by a factor of 4: known noise, new patients, known coverage."""
    rng = np.random.default_rng(0)

    def patient():
        wide = rng.random(400) < rng.uniform(0.01, 0.1)
        width = np.where(wide, 0.4, 0.1).astype(np.float32)
        error = rng.lognormal(0, 0.2) * np.where(wide, 0.8, 0.05) * rng.standard_normal(400)
        images = around(np.zeros(400, np.float32), width / 2)
        return conformal.strata(width, [0.25]), conformal.scores(error, images, 0.01)

    known, new = [patient() for _ in range(100)], [patient() for _ in range(300)]
    alone = conformal.fit_multiplier([[scores] for _, scores in known], 0.9).value
    for number in (0, 1):
        groups = [[scores[s == number]] for s, scores in known if (s == number).any()]
        own = conformal.fit_multiplier(groups, 0.9).value
        covered, missed_by_one = [], []
        for stratum, scores in new:
            if (stratum == number).any():
                covered.append((scores[stratum == number] <= own).mean())
                missed_by_one.append((scores[stratum == number] <= alone).mean())
        assert np.mean(covered) == pytest.approx(0.9, abs=0.025)
        assert (np.mean(missed_by_one) < 0.5) == (number == 1)


@pytest.mark.parametrize("n", [12, 25])
def test_a_stratum_that_some_patients_lack_keeps_its_promise_to_those_who_have_it(n):
    """Simulated: n counts the patients who have voxels there, whatever their number is."""
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(400):
        sizes = rng.poisson(6, n + 1)  # of voxels in the stratum, of which a patient has few
        scales = rng.lognormal(0, 0.7, n + 1) * (1 + sizes / 6)
        scores = [np.abs(rng.normal(0, s, k)) for s, k in zip(scales, sizes, strict=True)]
        *known, new = scores
        if not new.size:
            continue
        fitted = conformal.fit_multiplier([[one] for one in known if one.size], 0.9)
        covered.append((new <= fitted.value).mean() if fitted.controlled else 0.9)
    error = np.std(covered) / math.sqrt(len(covered))
    assert np.mean(covered) >= 0.9 - 3 * error


def test_detection_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    errors = rng.random(60) < 0.3
    uncertainty = np.round(rng.random(60) + 0.3 * errors, 1)  # with ties
    pairs = [
        1.0 if wrong > right else 0.5 if wrong == right else 0.0
        for wrong in uncertainty[errors]
        for right in uncertainty[~errors]
    ]
    assert conformal.detection(errors, uncertainty) == pytest.approx(np.mean(pairs))
    assert conformal.detection(errors, errors.astype(float)) == 1
    assert conformal.detection(errors, np.zeros(60)) == 0.5
    assert math.isnan(conformal.detection(np.zeros(60, bool), uncertainty))
    assert math.isnan(conformal.detection(np.ones(60, bool), uncertainty))
