"""What `volume` measures beside PSNR, SSIM and MAE: best gain, edges, steadiness through slices."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from scipy.signal import convolve2d

from cdm_jax.metrics.conventions import get_convention
from cdm_jax.metrics.gmsd import gmsd
from cdm_jax.metrics.psnr import best_gain, psnr
from cdm_jax.metrics.steadiness import step_error, z_gradient_error
from tests.metrics import cases

VOLUME = get_convention("volume")
GOLDEN = {"psnr_best_gain": 22.420499, "gain": 1.105654, "gmsd": 0.0791016, "z_gradient": 0.0564345}


@pytest.fixture(scope="module")
def head():
    return cases.head()


def scaled(case):
    peak = np.percentile(case.truth[case.brain], 99.5)
    return case.prediction / peak, np.where(case.brain, np.clip(case.truth / peak, 0, 1), 0)


def error_of(gain, prediction, truth):
    return np.mean((np.clip(gain * prediction, 0, 1) - truth) ** 2)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_gain_is_that_of_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    truth = rng.beta(2, 3, 400)
    prediction = rng.uniform(0.05, 30) * np.maximum(truth + rng.normal(0, 0.3, 400), -0.1)
    prediction[: 3 * seed] *= 20  # outliers, which a least squares without clipping would follow
    grid = np.geomspace(1e-3, 1e3, 4000)
    coarse = grid[np.argmin([error_of(g, prediction, truth) for g in grid])]
    near = (coarse * 0.99, coarse * 1.01)
    fine = minimize_scalar(error_of, near, args=(prediction, truth), method="bounded", bounds=near)
    assert best_gain(prediction, truth) == pytest.approx(fine.x, rel=1e-4)


def test_where_nothing_is_clipped_the_best_gain_is_least_squares():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.5, 100)
    prediction = 3 * truth + rng.uniform(0, 0.1, 100)
    (slope,), *_ = np.linalg.lstsq(prediction[:, None], truth, rcond=None)
    assert best_gain(prediction, truth) == pytest.approx(slope, rel=1e-6)


def test_a_voxel_counts_as_clipped_only_where_the_gain_makes_it_so():
    # Were the first voxel clipped, the others would ask for .2 and no error were left.
    prediction, truth = np.array([1.0, *[0.5] * 4]), np.array([1.0, *[0.1] * 4])
    assert best_gain(prediction, truth) == pytest.approx((1 + 4 * 0.05) / (1 + 4 * 0.25))


def test_a_prediction_that_shows_nothing_has_no_gain():
    assert best_gain(np.zeros(5), np.full(5, 0.5)) == 1
    assert best_gain(np.full(5, -1.0), np.full(5, 0.5)) == 1


@pytest.mark.parametrize("factor", [0.03, 0.7, 1.5, 40])
def test_the_scale_of_a_prediction_does_not_matter_to_the_best_gain(head, factor):
    own, other = (
        VOLUME.score(dataclasses.replace(head, prediction=f * head.prediction)) for f in (1, factor)
    )
    assert other["psnr_best_gain"] == pytest.approx(own["psnr_best_gain"], abs=1e-6)
    assert other["gain"] * factor == pytest.approx(own["gain"], rel=1e-6)
    assert other["psnr_best_gain"] >= other["psnr"]
    assert own["psnr"] - other["psnr"] > 0.5  # which the plain one is punished for
    for name, numbers in own["regions"].items():
        assert other["regions"][name]["psnr_best_gain"] == pytest.approx(numbers["psnr_best_gain"])


def test_regions_take_the_gain_of_the_brain(head):
    scores = VOLUME.score(head)
    prediction, truth = scaled(head)
    matched = np.clip(scores["gain"] * prediction, 0, 1)
    core = np.isin(head.segmentation, (1, 3))
    expected = psnr(matched, truth, mask=core)
    assert scores["regions"]["tumor_core"]["psnr_best_gain"] == pytest.approx(expected, abs=1e-9)
    assert scores["psnr_best_gain"] == pytest.approx(psnr(matched, truth, mask=head.brain))


def deviation_by_hand(prediction, truth, mask):
    """As the authors' script computes it, but for the halving of the images."""
    kernel = np.array([[1, 0, -1]] * 3) / 3
    c, maps = 170, []
    for one, other in zip(255 * prediction, 255 * truth, strict=True):
        lengths = [
            np.sqrt(sum(convolve2d(i, k, mode="same") ** 2 for k in (kernel, kernel.T)))
            for i in (one, other)
        ]
        product, squares = lengths[0] * lengths[1], lengths[0] ** 2 + lengths[1] ** 2
        maps.append((2 * product + c) / (squares + c))
    return np.std(np.array(maps)[mask])


def test_gmsd_is_that_of_a_restatement_of_the_authors_script(head):
    prediction, truth = scaled(head)
    prediction = np.clip(np.where(head.brain, prediction, 0), 0, 1)
    expected = deviation_by_hand(prediction, truth, head.brain)
    assert 0.01 < expected < 0.5
    assert VOLUME.score(head)["gmsd"] == pytest.approx(expected, abs=1e-5)
    everywhere = np.ones_like(head.brain)
    expected = deviation_by_hand(prediction, truth, everywhere)
    assert gmsd(prediction, truth, everywhere) == pytest.approx(expected, abs=1e-5)


def test_gmsd_sees_lost_edges_and_no_constant():
    rng = np.random.default_rng(0)
    truth = 0.2 + 0.3 * (gaussian_filter(rng.normal(size=(3, 40, 40)), (0, 3, 3)) > 0)
    inside = np.zeros(truth.shape, bool)
    inside[:, 2:-2, 2:-2] = True
    assert gmsd(truth + 0.1, truth, inside) == pytest.approx(0, abs=1e-5)
    mild, strong = (gmsd(gaussian_filter(truth, (0, s, s)), truth, inside) for s in (0.7, 2.0))
    assert 0.01 < mild < strong
    assert math.isnan(gmsd(truth, truth, np.zeros_like(inside)))


def test_steadiness_sees_jumps_from_slice_to_slice_and_no_constant_error():
    truth = np.random.default_rng(0).uniform(0.3, 0.6, (20, 8, 8))
    mask = np.ones(truth.shape, bool)
    jumps = 0.05 * (-1.0) ** np.arange(20)[:, None, None]
    ramp = 0.01 * np.arange(20)[:, None, None]
    found = [
        z_gradient_error(step_error(truth + error, truth), mask) for error in (0.05, ramp, jumps)
    ]
    assert found == pytest.approx([0, 0.01, 0.1], abs=1e-12)


def test_steadiness_counts_steps_with_both_ends_in_the_mask(head):
    prediction, truth = scaled(head)
    prediction = np.clip(np.where(head.brain, prediction, 0), 0, 1)
    scores = VOLUME.score(head)
    masks = {"whole_tumor": head.segmentation > 0, "healthy": head.brain & (head.segmentation == 0)}
    for found, mask in [
        (scores, head.brain),
        *((scores["regions"][name], mask) for name, mask in masks.items()),
    ]:
        squares = [
            (
                (prediction[z + 1, y, x] - prediction[z, y, x])
                - (truth[z + 1, y, x] - truth[z, y, x])
            )
            ** 2
            for z, y, x in np.argwhere(mask)
            if z + 1 < len(mask) and mask[z + 1, y, x]
        ]
        assert found["z_gradient"] == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-9)
    flat = np.zeros_like(head.brain)
    flat[5] = True
    assert math.isnan(z_gradient_error(step_error(prediction, truth), flat))


def test_what_is_measured_beside_changes_only_together_with_a_version(head):
    scores = VOLUME.score(head)
    assert {name: scores[name] for name in GOLDEN} == pytest.approx(GOLDEN, rel=1e-4)
