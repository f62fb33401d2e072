"""The estimators of realism, against images whose noise, sharpness and bias are known."""

import numpy as np
import pytest
from scipy import ndimage

from experiments import image_statistics as statistics

SHAPE = (40, 48, 44)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[4:-4, 4:-4, 4:-4] = True


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_is_that_of_white_noise_on_a_slope_with_edges(sigma):
    rng = np.random.default_rng(0)
    slope = 1 + 0.01 * np.arange(SHAPE[2])
    image = np.broadcast_to(slope, SHAPE) + sigma * rng.standard_normal(SHAPE)
    image[:, 20:] += 3  # an edge, which few voxels meet
    assert statistics.noise(image, BRAIN) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_sharpness_of_a_field_is_that_of_its_correlation(length):
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(rng.standard_normal((60, 60, 60)), length, mode="wrap")
    expected = np.sqrt((1 - np.exp(-1 / (4 * length**2))) / (1 - np.exp(-9 / (4 * length**2))))
    region = np.ones(field.shape, bool)
    for axes in ((0,), (1, 2)):
        assert statistics.sharpness(field, region, axes) == pytest.approx(expected, rel=0.04)


def test_thick_slices_lower_the_sharpness_across_alone():
    field = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(SHAPE), 0.7)
    thick = ndimage.gaussian_filter1d(field, 2.0, axis=0)
    before, after = (
        [statistics.sharpness(image, BRAIN, axes) for axes in ((0,), (1, 2))]
        for image in (field, thick)
    )
    assert after[0] < 0.8 * before[0]
    assert after[1] == pytest.approx(before[1], rel=0.1)


def test_bias_is_the_spread_of_the_field_that_was_applied():
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    field = 0.1 * x + 0.05 * y * z - 0.08 * z**2
    image = np.exp(field) * (1 + 0.02 * np.random.default_rng(0).standard_normal(SHAPE))
    white = BRAIN & (np.random.default_rng(1).random(SHAPE) < 0.3)
    image[white & (x > 0.9)] *= 3  # lesions
    assert statistics.bias(image, white, BRAIN) == pytest.approx(np.std(field[BRAIN]), rel=0.05)


def phantom_of_three(rng):
    """Stripes of white and gray matter and CSF under a bias field, with known signals."""
    truth = np.broadcast_to((np.arange(SHAPE[1]) // 6 % 3)[:, None], SHAPE)
    signals = {
        "t1": (1.0, 0.7, 0.2),
        "t1c": (1.0, 0.75, 0.2),
        "t2": (0.7, 1.0, 3.0),
        "t2f": (0.9, 1.2, 0.2),
    }
    bias = np.exp(0.1 * np.linspace(-1, 1, SHAPE[2]))
    images = {
        name: np.where(BRAIN, np.array(values)[truth] * bias, 0)
        + 0.02 * rng.standard_normal(SHAPE) * BRAIN
        for name, values in signals.items()
    }
    return images, truth, signals


def test_clusters_are_the_tissues_and_contrasts_their_signals():
    images, truth, signals = phantom_of_three(np.random.default_rng(2))
    for number, (_, mask) in enumerate(statistics.cluster(images, BRAIN).items()):
        assert mask.sum() > 1000
        assert (truth[mask] == number).all()
    found = statistics.measure(images, BRAIN, None)
    for name, (white, gray, csf) in signals.items():
        assert found[f"{name} gray / white"] == pytest.approx(gray / white, rel=0.05)
        assert found[f"{name} csf / white"] == pytest.approx(csf / white, rel=0.05)
    assert not [name for name in found if "edema" in name]


def test_a_tumor_counts_neither_as_tissue_nor_where_it_is_small():
    images, _, signals = phantom_of_three(np.random.default_rng(2))
    labels = np.zeros(SHAPE, np.int16)
    labels[10:20, 8:14, 10:20] = 2
    labels[10:12, 8:10, 10:12] = 3
    for image in images.values():
        image[labels == 2] = 5.0
    found = statistics.measure(images, BRAIN, labels)
    assert found["t1 edema / white"] == pytest.approx(5 / signals["t1"][0], rel=0.1)
    assert found["t1 gray / white"] == pytest.approx(0.7, rel=0.05)
    assert "t1 enhancing / white" not in found


def test_a_coarser_grid_holds_the_brains_mean_of_each_block():
    image, brain = np.full((5, 4, 4), 2.0), np.ones((5, 4, 4), bool)
    brain[:2, :2, 0] = False
    image[~brain] = 100.0
    coarse, region = statistics.block_mean(image, brain, 2)
    assert coarse.shape == (3, 2, 2)
    np.testing.assert_allclose(coarse[region], 2)
    assert not region[0, 0, 0] and region[0, 0, 1] and not region[2].any()
