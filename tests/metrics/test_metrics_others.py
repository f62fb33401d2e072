"""The conventions against scikit-image, and others' against restatements of their scripts.

Against torchmetrics and MONAI themselves: tests/parity/test_parity_conventions.py.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions import CONVENTIONS, get_convention, json_ready
from tests.metrics import cases

METRICS = ("psnr", "ssim", "mae")
OTHERS = tuple(name for name in CONVENTIONS if name not in ("paper", "volume"))
BY_SLICE = tuple(name for name in OTHERS if get_convention(name).space == "slices")
ABSENT = {
    "resvit": {"ssim"},
    "syndiff": {"ssim", "mae"},
    "brasyn": {"psnr", "mae"},
    "skimage": {"mae"},
}


@pytest.fixture(scope="module", params=cases.NAMES)
def case(request):
    return cases.named(request.param, request)


@pytest.fixture(scope="module")
def ball(request):
    return cases.named("ball", request)


def clean(case):
    """The ball with its prediction in [0, 1] and nowhere wrongly empty."""
    return dataclasses.replace(
        case, prediction=np.clip(0.8 * cases.slices(cases.head()).prediction, 0, 1)
    )


def agree(found, **expected):
    for name in METRICS:
        value = expected.get(name, math.nan)
        assert found[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def pairs(case):
    """Slices of both images in [0, 1]; a network's tanh at its end, the intensity rule here."""
    return list(zip(np.clip(case.prediction, 0, 1), case.truth, strict=True))


def mirrored_ssim(prediction, truth):
    """torchmetrics' SSIM by scikit-image: mirror first, so that no voxel of the frame is lost."""
    return structural_similarity(
        *(np.pad(image, 5, mode="reflect") for image in (prediction, truth)),
        data_range=max(np.ptp(prediction), np.ptp(truth)),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


# Each script restated, in the units that it works in.


def test_reggan_is_its_test_of_the_foreground_and_ssim_with_a_range_of_2(case):
    psnrs, ssims, errors = [], [], []
    for prediction, truth in pairs(case):
        fake, real = 2 * prediction - 1, 2 * truth - 1
        shown = real != -1
        if not shown.any():
            continue
        squared = np.mean(((fake[shown] + 1) / 2 - (real[shown] + 1) / 2) ** 2)
        psnrs.append(100 if squared < 1e-10 else 20 * np.log10(1 / np.sqrt(squared)))
        ssims.append(structural_similarity(fake, real, data_range=2))
        errors.append(np.abs(fake[shown] - real[shown]).mean() / 2)
    assert 0 < len(psnrs) < len(case.truth)
    found = get_convention("reggan").score(case)
    agree(found, psnr=np.mean(psnrs), ssim=np.mean(ssims), mae=np.mean(errors))
    assert (found["slices"], found["skipped"]) == (len(psnrs), len(case.truth) - len(psnrs))


def test_resvit_is_the_mean_of_arrays_whose_empty_slices_stayed_zero(case):
    psnrs, errors = np.zeros(len(case.truth)), np.zeros(len(case.truth))
    for i, (prediction, truth) in enumerate(pairs(case)):
        if truth.max() <= 0:
            continue
        errors[i] = abs(prediction - truth).mean()
        scaled = prediction / prediction.max() if prediction.any() else prediction
        psnrs[i] = peak_signal_noise_ratio(scaled, truth / truth.max())
    assert (psnrs == 0).any()
    agree(get_convention("resvit").score(case), psnr=np.mean(psnrs), mae=np.mean(errors))


def test_syndiff_is_the_nanmean_over_slices_divided_by_their_own_maxima(case):
    values = []
    with np.errstate(invalid="ignore"):
        for prediction, truth in pairs(case):
            one, other = prediction / prediction.max(), truth / truth.max()
            values.append(20 * np.log10(one.max() / np.sqrt(np.mean((one - other) ** 2))))
    found = get_convention("syndiff").score(case)
    agree(found, psnr=np.nanmean(values))
    assert found["skipped"] == np.isnan(values).sum() > 0


def test_brasyn_is_the_mean_over_the_whole_cuboid_of_masked_images(case):
    def normalized(image):
        low, high = np.percentile(image, [0.5, 99.5])
        low = 0 if low < 0 else low
        return (np.clip(image, low, high) - low) / (high - low)

    prediction, truth = normalized(case.prediction), normalized(case.truth)
    found = get_convention("brasyn").score(case)
    if case.segmentation is None:
        agree(found, ssim=mirrored_ssim(prediction, truth))
        assert found["regions"] == {}
        return
    tumor = case.segmentation > 0
    healthy = mirrored_ssim(prediction * ~tumor, truth * ~tumor)
    agree(found, ssim=healthy)
    agree(found["regions"]["healthy"], ssim=healthy)
    agree(found["regions"]["whole_tumor"], ssim=mirrored_ssim(prediction * tumor, truth * tumor))


# The libraries.


def test_skimage_is_its_defaults_on_slices_with_each_true_slices_range(case):
    psnrs, ssims = [], []
    for prediction, truth in pairs(case):
        data_range = np.ptp(truth)
        if data_range:
            psnrs.append(peak_signal_noise_ratio(truth, prediction, data_range=data_range))
            ssims.append(structural_similarity(truth, prediction, data_range=data_range))
    agree(get_convention("skimage").score(case), psnr=np.mean(psnrs), ssim=np.mean(ssims))


def test_torchmetrics_pools_a_volume_and_clips_it_to_the_truths_range(case):
    data_range = np.ptp(case.truth)
    assert np.ptp(case.prediction) > data_range
    prediction = np.clip(case.prediction, case.truth.min(), case.truth.max())
    agree(
        get_convention("torchmetrics").score(case),
        psnr=peak_signal_noise_ratio(case.truth, prediction, data_range=data_range),
        ssim=mirrored_ssim(prediction, case.truth),
        mae=np.abs(prediction - case.truth).mean(),
    )


def test_torchmetrics_takes_volumes_in_any_unit(ball):
    scanner = dataclasses.replace(ball, prediction=700 * ball.prediction, truth=700 * ball.truth)
    one, other = (get_convention("torchmetrics").score(c) for c in (ball, scanner))
    agree(other, **{**one, "mae": 700 * one["mae"]})


def test_monai_is_wangs_ssim_of_slices(case):
    shown = [(prediction, truth) for prediction, truth in pairs(case) if truth.any()]
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    agree(
        get_convention("monai").score(case),
        psnr=np.mean([peak_signal_noise_ratio(t, p, data_range=1) for p, t in shown]),
        ssim=np.mean([structural_similarity(t, p, data_range=1, **wang) for p, t in shown]),
        mae=np.mean([np.abs(p - t).mean() for p, t in shown]),
    )


def test_volume_is_scikit_images_map_and_error_over_the_masks(case):
    peak = np.percentile(case.truth[case.brain], 99.5)
    prediction, truth = (
        np.where(case.brain, np.clip(image / peak, 0, 1), 0)
        for image in (case.prediction, case.truth)
    )
    _, similarity = structural_similarity(
        truth,
        prediction,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    found = get_convention("volume").score(case)
    scored = [(found, case.brain)]
    if case.segmentation is not None:
        tumor = case.segmentation > 0
        scored.append((found["regions"]["whole_tumor"], tumor))
        scored.append((found["regions"]["healthy"], case.brain & ~tumor))
    for scores, mask in scored:
        agree(
            scores,
            psnr=peak_signal_noise_ratio(truth[mask], prediction[mask], data_range=1),
            ssim=similarity[mask].mean(),
            mae=np.abs(truth - prediction)[mask].mean(),
        )


# What each sees and what it does not.


def test_monai_and_paper_are_the_same_numbers(ball):
    assert get_convention("monai").score(ball) == get_convention("paper").score(ball)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_only_conventions_that_scale_the_prediction_by_itself_miss_its_gain(ball, name):
    right = clean(ball)
    dark = dataclasses.replace(right, prediction=0.7 * right.prediction)
    one, other = (get_convention(name).score(c) for c in (right, dark))
    metric = "ssim" if name == "brasyn" else "psnr"
    missed = name in ("resvit", "syndiff", "brasyn")
    assert (other[metric] == pytest.approx(one[metric], abs=1e-9)) == missed


@pytest.mark.parametrize("name", CONVENTIONS)
def test_what_is_painted_outside_the_head_counts_by_convention(ball, name):
    right = clean(ball)
    painted = right.prediction.copy()
    painted[:, :4][right.truth[:, :4] == 0] = 0.3
    one, other = (
        get_convention(name).score(c)
        for c in (right, dataclasses.replace(right, prediction=painted))
    )
    changed = {m for m in METRICS if one[m] != pytest.approx(other[m], nan_ok=True)}
    ignored = {"volume": set(METRICS), "reggan": {"psnr", "mae"}}.get(name, ABSENT.get(name, set()))
    assert changed == set(METRICS) - ignored


def test_syndiff_rewards_predicting_nothing_where_it_is_difficult(ball):
    right = dataclasses.replace(clean(ball), brain=None, segmentation=None)
    each = [
        get_convention("syndiff").score(
            dataclasses.replace(right, prediction=p[None], truth=t[None])
        )["psnr"]
        for p, t in zip(right.prediction, right.truth, strict=True)
    ]
    empty = right.prediction.copy()
    empty[np.nanargmin(each)] = 0
    scores = [
        get_convention("syndiff").score(dataclasses.replace(right, prediction=p))
        for p in (right.prediction, empty)
    ]
    assert scores[1]["psnr"] > scores[0]["psnr"]
    assert scores[1]["skipped"] == scores[0]["skipped"] + 1


def test_brasyn_dilutes_a_tumor_that_is_all_wrong(ball):
    right = clean(ball)
    tumor = right.segmentation > 0
    wrong = np.where(tumor, right.truth.max() - right.truth, right.truth)
    found = get_convention("brasyn").score(dataclasses.replace(right, prediction=wrong))
    assert found["regions"]["whole_tumor"]["ssim"] > 1 - 4 * tumor.mean() > 0.85
    # All that is not 1 lies within reach of the window around the tumor.
    inside = get_convention("volume").score(
        dataclasses.replace(right, prediction=wrong, brain=right.truth > 0)
    )
    assert inside["regions"]["whole_tumor"]["ssim"] < 0.5


# Edges.


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_source_does_not_compute_is_nan_and_null_in_json(ball, name):
    scores = get_convention(name).score(clean(ball))
    assert {m for m in METRICS if math.isnan(scores[m])} == ABSENT.get(name, set())
    read = json.loads(json.dumps(json_ready(scores), allow_nan=False))
    assert {m for m in METRICS if read[m] is None} == ABSENT.get(name, set())


@pytest.mark.parametrize("name", OTHERS)
def test_identical_images_are_capped_and_counted(ball, name):
    scores = get_convention(name).score(dataclasses.replace(ball, prediction=ball.truth))
    units = scores.get("slices", 1.0)
    share = units / (units + scores["skipped"]) if name == "resvit" else 1.0
    full = {"psnr": 100 * share, "ssim": 1, "mae": 0}
    agree(scores, **{m: v for m, v in full.items() if m not in ABSENT.get(name, set())})
    if name != "brasyn":
        assert scores["capped"] == units


@pytest.mark.parametrize("name", OTHERS)
def test_an_empty_truth_is_skipped_and_counted(ball, name):
    blank = dataclasses.replace(ball, truth=np.zeros_like(ball.truth))
    scores = get_convention(name).score(blank)
    agree(scores)
    assert scores["skipped"] == (len(blank.truth) if name in BY_SLICE else 1)
    assert scores.get("slices", 0) == scores.get("capped", 0) == 0


@pytest.mark.parametrize("name", OTHERS)
def test_an_empty_prediction_is_scored_or_undefined_but_never_an_error(ball, name):
    blank = dataclasses.replace(ball, prediction=np.zeros_like(ball.truth))
    scores = get_convention(name).score(blank)
    if name in ("syndiff", "brasyn"):
        agree(scores)
    else:
        assert 0 < scores["psnr"] < 30


def test_brasyn_has_no_score_for_a_tumor_that_is_not_there(ball):
    healthy = dataclasses.replace(ball, segmentation=np.zeros_like(ball.segmentation))
    scores = get_convention("brasyn").score(healthy)
    unlabeled = get_convention("brasyn").score(dataclasses.replace(ball, segmentation=None))
    agree(scores["regions"]["whole_tumor"])
    agree(scores["regions"]["healthy"], ssim=unlabeled["ssim"])
    assert unlabeled["regions"] == {}


@pytest.mark.parametrize("name", BY_SLICE)
def test_slices_in_scanner_units_are_refused(name):
    with pytest.raises(UserError, match=r"P-7 t1c.*\[0, 1\]"):
        get_convention(name).score(cases.head())


@pytest.mark.parametrize("name", OTHERS)
def test_single_precision_images_score_as_doubles(ball, name):
    right = clean(ball)
    single = dataclasses.replace(
        right,
        prediction=right.prediction.astype(np.float32),
        truth=right.truth.astype(np.float32),
    )
    one, other = (get_convention(name).score(c) for c in (right, single))
    agree(one, **{m: other[m] for m in METRICS})
