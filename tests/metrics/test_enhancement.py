"""Enhancement in a synthetic T1c minus T1, on images whose enhancement is known voxel by voxel."""

import dataclasses
import math

import numpy as np
import pytest

from cdm_jax.metrics import enhancement
from cdm_jax.metrics.conventions import Case, get_convention

VOXEL_ML = 0.008
SHAPE = (12, 16, 16)


def ball(radius, center=(6, 8, 8)):
    axes = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) <= radius**2


BRAIN = np.zeros(SHAPE, bool)
BRAIN[1:-1, 1:-1, 1:-1] = True
TUMOR, RING = ball(4), ball(4) & ~ball(2)


def images(shown, gain=1.0):
    """T1, and a T1c of another scale in which the given voxels are half as bright again."""
    t1 = BRAIN * np.random.default_rng(0).normal(1.0, 0.02, SHAPE)
    return t1, gain * t1 * np.where(shown, 1.5, 1.0)


def measured(made, true, gain=1.0):
    t1, truth = images(true)
    masks = {"brain": BRAIN, "whole_tumor": TUMOR, "elsewhere": BRAIN & ~TUMOR}
    return enhancement.measure(images(made, gain)[1], truth, t1, masks, VOXEL_ML)


def test_volumes_and_overlap_are_those_of_the_voxels_that_were_made_brighter():
    core = ball(2)
    shifted = ball(2, (6, 8, 9))
    vessel = ball(1, (2, 2, 2))
    found = measured(shifted | vessel, core | vessel)
    outside = found["elsewhere"]
    assert outside["enhancing_ml"] == pytest.approx(vessel.sum() * VOXEL_ML)
    assert outside["enhancement_dice"] == 1
    found = found["whole_tumor"]
    assert found["true_enhancing_ml"] == pytest.approx(core.sum() * VOXEL_ML)
    assert found["enhancing_ml"] == pytest.approx(shifted.sum() * VOXEL_ML)
    expected = 2 * (core & shifted).sum() / (core.sum() + shifted.sum())
    assert 0.2 < expected < 0.9
    assert found["enhancement_dice"] == pytest.approx(expected)


@pytest.mark.parametrize("gain", [0.02, 1, 500])
def test_the_scale_of_the_synthesis_does_not_matter(gain):
    assert measured(RING, RING, gain)["brain"]["enhancement_dice"] == 1


def test_an_end_of_a_distribution_is_in_units_of_its_usual_image():
    t1, truth = images(RING)
    masks = {"brain": BRAIN}
    own = enhancement.measure(1.5 * t1, truth, t1, masks, VOXEL_ML)["brain"]
    usual = enhancement.measure(1.5 * t1, truth, t1, masks, VOXEL_ML, t1)["brain"]
    assert own["enhancing_ml"] == 0
    assert usual["enhancing_ml"] == pytest.approx(BRAIN.sum() * VOXEL_ML)
    assert own["true_enhancing_ml"] == usual["true_enhancing_ml"]


def test_a_copy_of_t1_enhances_nowhere_and_an_invention_overlaps_with_nothing():
    nothing = np.zeros(SHAPE, bool)
    copied = measured(nothing, RING)["whole_tumor"]
    assert (copied["enhancing_ml"], copied["enhancement_dice"]) == (0, 0)
    assert copied["true_enhancing_ml"] > enhancement.LEAST_ML
    invented = measured(RING, nothing)["whole_tumor"]
    assert invented["true_enhancing_ml"] == invented["enhancement_dice"] == 0
    neither = measured(nothing, nothing)["whole_tumor"]
    assert neither["enhancing_ml"] == 0 and math.isnan(neither["enhancement_dice"])


def test_a_weak_gain_is_below_the_threshold_and_a_strong_one_above():
    t1, _ = images(RING)
    for factor, enhances in ((1.1, False), (1.3, True)):
        image = t1 * np.where(RING, factor, 1.0)
        found = enhancement.measure(image, image, t1, {"brain": BRAIN}, 1.0)["brain"]
        assert found["enhancing_ml"] == enhances * RING.sum()


def test_what_has_no_unit_or_no_voxel_is_nan():
    t1, truth = images(RING)
    masks = {"brain": BRAIN, "whole_tumor": np.zeros(SHAPE, bool)}
    found = enhancement.measure(np.zeros(SHAPE), truth, t1, masks, VOXEL_ML)
    assert all(map(math.isnan, found["whole_tumor"].values()))
    assert math.isnan(found["brain"]["enhancing_ml"])
    assert math.isnan(found["brain"]["enhancement_dice"])
    assert found["brain"]["true_enhancing_ml"] == pytest.approx(RING.sum() * VOXEL_ML)


def test_volume_scores_enhancement_where_t1_is_given_and_only_there():
    t1, truth = images(RING)
    labels = np.where(RING, 3, np.where(TUMOR, 1, 0))
    bare = Case(
        subject="s",
        modality="t1c",
        prediction=images(ball(3))[1],
        truth=truth,
        brain=BRAIN,
        segmentation=labels,
    )
    case = dataclasses.replace(bare, precontrast=t1, voxel_ml=VOXEL_ML)
    volume = get_convention("volume")
    scores, without = volume.score(case), volume.score(bare)
    expected = measured(ball(3), RING)
    for name in enhancement.METRICS:
        assert name not in without and name not in without["regions"]["whole_tumor"]
        assert scores[name] == pytest.approx(expected["brain"][name])
        found = scores["regions"]["whole_tumor"][name]
        assert found == pytest.approx(expected["whole_tumor"][name])
    assert {name: scores[name] for name in without if name != "regions"} == pytest.approx(
        {name: number for name, number in without.items() if name != "regions"}
    )
    empty = volume.score(dataclasses.replace(case, truth=np.zeros(SHAPE)))
    assert set(empty) == set(scores)
    assert math.isnan(empty["true_enhancing_ml"]) and empty["skipped"] == 1


def test_agreement_counts_patients_and_explains_variance():
    true = np.array([10.0, 6.0, 2.0, 0.6, 0.0, 0.1, np.nan, 3.0])
    made = np.array([8.0, 0.0, 2.5, 0.5, 0.0, 1.0, 5.0, np.nan])
    found = enhancement.agreement(made, true)
    assert (found.patients, found.enhancing, found.detected, found.cleared) == (6, 4, 3, 1)
    assert (found.sensitivity, found.specificity) == (0.75, 0.5)
    both = true[:6], made[:6]
    expected = 1 - np.mean((both[1] - both[0]) ** 2) / np.var(both[0])
    assert found.r_squared == pytest.approx(expected)


def test_agreement_of_known_predictors():
    true = np.array([0.0, 1.0, 5.0, 20.0])
    assert enhancement.agreement(true, true).r_squared == 1
    constant = enhancement.agreement(np.full(4, true.mean()), true)
    assert constant.r_squared == pytest.approx(0)
    assert (constant.sensitivity, constant.specificity) == (1, 0)
    assert enhancement.agreement(2 * true, true).r_squared < 0
    one = enhancement.agreement(np.array([1.0]), np.array([1.0]))
    assert math.isnan(one.r_squared) and math.isnan(one.specificity)
    none = enhancement.agreement(np.array([np.nan]), np.array([1.0]))
    assert none.patients == 0 and math.isnan(none.sensitivity)
