"""PSNR, MAE and SSIM against scikit-image and against hand arithmetic."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import metrics as skimage_metrics

from cdm_jax.errors import UserError
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import (
    RADIUS,
    SCIKIT_IMAGE,
    SLAB,
    TORCHMETRICS,
    WANG,
    ssim,
    ssim_map,
    ssim_with_border,
)


def structured(shape, seed=0):
    """A smooth blob on a zero background, like a brain in its frame, and a noisy copy."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    blob = (np.square(grid).sum(axis=0) < 0.6) * (0.5 + 0.4 * np.sin(6 * grid[0] + 3 * grid[-1]))
    noisy = gaussian_filter(blob, 1.0) + rng.normal(scale=0.05, size=shape)
    return np.clip(noisy, 0, 1), blob


def noise(shape, seed=1):
    rng = np.random.default_rng(seed)
    return rng.random(shape), rng.random(shape)


def skimage_ssim(prediction, truth, data_range, full=False):
    return skimage_metrics.structural_similarity(
        prediction,
        truth,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=full,
    )


PAIRS = [
    make(shape) for make in (structured, noise) for shape in [(40, 33), (23, 31, 27), (11, 12)]
]


@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
@pytest.mark.parametrize("data_range", [1.0, 2.0, 4095.0])
def test_psnr_and_ssim_equal_those_of_scikit_image(prediction, truth, data_range):
    prediction, truth = prediction * data_range, truth * data_range
    expected = skimage_metrics.peak_signal_noise_ratio(truth, prediction, data_range=data_range)
    assert psnr(prediction, truth, data_range) == pytest.approx(expected, abs=1e-6)

    mean, similarity = skimage_ssim(prediction, truth, data_range, full=True)
    assert ssim(prediction, truth, data_range) == pytest.approx(mean, abs=1e-6)
    np.testing.assert_allclose(ssim_map(prediction, truth, data_range), similarity, atol=1e-6)


def test_single_precision_images_are_scored_in_double_precision():
    prediction, truth = (image.astype(np.float32) for image in structured((40, 33)))
    doubles = prediction.astype(np.float64), truth.astype(np.float64)
    assert psnr(prediction, truth) == psnr(*doubles)
    assert mae(prediction, truth) == mae(*doubles)
    assert ssim(prediction, truth) == ssim(*doubles)


def test_hand_arithmetic():
    truth = np.array([[0.0, 0.0], [1.0, 1.0]])
    prediction = np.array([[0.1, 0.0], [1.0, 0.7]])
    assert mae(prediction, truth) == pytest.approx(0.1)
    assert psnr(prediction, truth) == pytest.approx(10 * math.log10(1 / 0.025))
    top = np.array([[True, True], [False, False]])
    assert mae(prediction, truth, mask=top) == pytest.approx(0.05)
    assert psnr(prediction, truth, mask=top) == pytest.approx(10 * math.log10(1 / 0.005))
    assert psnr(truth + 0.1, truth) == pytest.approx(20)


def test_ssim_of_two_constant_images_is_their_luminance_term():
    prediction, truth = np.full((16, 16), 0.2), np.full((16, 16), 0.8)
    c1 = 0.01**2
    expected = (2 * 0.2 * 0.8 + c1) / (0.2**2 + 0.8**2 + c1)
    assert ssim(prediction, truth) == pytest.approx(expected)


def test_identical_images_reach_the_cap_and_full_similarity():
    image, _ = noise((16, 16))
    assert psnr(image, image) == 100
    assert psnr(image, image, cap=60.0) == 60
    assert psnr(image + 1e-9, image) == 100
    assert mae(image, image) == 0
    assert ssim(image, image) == pytest.approx(1)


def test_metrics_do_not_depend_on_which_image_comes_first():
    prediction, truth = structured((30, 30))
    for metric in (psnr, mae, ssim):
        assert metric(prediction, truth) == metric(truth, prediction)


def test_an_empty_mask_gives_nan():
    image, other = noise((16, 16))
    empty = np.zeros((16, 16), bool)
    for metric in (psnr, mae, ssim):
        assert math.isnan(metric(image, other, mask=empty))


def test_a_mask_averages_the_whole_map_and_no_mask_leaves_the_border_out():
    prediction, truth = noise((20, 24))
    similarity = ssim_map(prediction, truth)
    everywhere = np.ones((20, 24), bool)
    assert ssim(prediction, truth, mask=everywhere) == pytest.approx(similarity.mean())
    inner = np.zeros((20, 24), bool)
    inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = True
    assert ssim(prediction, truth, mask=inner) == pytest.approx(ssim(prediction, truth))
    assert ssim(prediction, truth, mask=everywhere) != pytest.approx(ssim(prediction, truth))


def test_a_frame_smaller_than_the_window_is_refused():
    image, other = noise((10, 30))
    with pytest.raises(UserError, match="at least 11 voxels"):
        ssim(image, other)


@pytest.mark.parametrize("shape", [(40, 33), (23, 31, 27)])
@pytest.mark.parametrize("make", [structured, noise])
def test_the_uniform_window_is_scikit_images_default(make, shape):
    prediction, truth = make(shape)
    mean, similarity = skimage_metrics.structural_similarity(
        truth, prediction, data_range=1.5, full=True
    )
    assert ssim(prediction, truth, 1.5, window=SCIKIT_IMAGE) == pytest.approx(mean, abs=1e-9)
    found = ssim_map(prediction, truth, 1.5, SCIKIT_IMAGE)
    np.testing.assert_allclose(found, similarity, atol=1e-9)


def test_a_frame_smaller_than_a_smaller_window_is_refused():
    image, other = noise((6, 30))
    with pytest.raises(UserError, match="at least 7 voxels"):
        ssim(image, other, window=SCIKIT_IMAGE)


@pytest.mark.parametrize("window", [WANG, SCIKIT_IMAGE, TORCHMETRICS])
@pytest.mark.parametrize(
    "place", [(slice(15, 18), slice(20, 22)), (slice(0, 3), slice(37, 40)), (slice(3), slice(40))]
)
def test_the_mean_with_the_border_needs_only_the_box_of_what_is_shown(window, place):
    prediction, truth = np.zeros((33, 40)), np.zeros((33, 40))
    prediction[place], truth[place] = noise(truth[place].shape)
    expected = ssim_map(prediction, truth, 0.7, window).mean()
    assert ssim_with_border(prediction, truth, 0.7, window) == pytest.approx(expected, abs=1e-12)
    assert expected < 0.995


def test_the_mean_with_the_border_of_nothing_is_full_and_without_a_range_undefined():
    blank = np.zeros((12, 12))
    assert ssim_with_border(blank, blank) == 1
    assert math.isnan(ssim_with_border(blank, blank, 0.0))


@pytest.mark.parametrize("slices", [SLAB, SLAB + 1, 2 * SLAB + 7])
def test_a_volume_of_several_slabs_has_the_similarity_of_scikit_image(slices):
    rng = np.random.default_rng(slices)
    prediction, truth = rng.random((2, slices, 13, 12))
    _, similarity = skimage_ssim(prediction, truth, 1.0, full=True)
    np.testing.assert_allclose(ssim_map(prediction, truth), similarity, atol=1e-10)
    mask = np.zeros(truth.shape, bool)
    mask[3:-1, 4:9, 2:11] = True
    assert ssim(prediction, truth, mask=mask) == pytest.approx(similarity[mask].mean(), abs=1e-10)
