"""Correction of the bias field: what it removes, what it leaves, and what it overdoes."""

import numpy as np
import pytest

from cdm_jax.phantom.correction import _splines, correct_bias
from cdm_jax.phantom.fields import Grid

GRID = Grid(shape=(40, 48, 40), voxel_mm=4.0)
X, Y, Z = np.meshgrid(*GRID.axes_mm(), indexing="ij")
BRAIN = (X / 70) ** 2 + (Y / 85) ** 2 + (Z / 70) ** 2 < 1
FIELD = 0.003 * X - 0.002 * Y + 3e-5 * Z**2


@pytest.fixture(scope="module")
def tissue():
    """CSF, gray and white matter as a T1 shows them, in layers of 12 mm."""
    return np.array([0.25, 0.65, 1.0])[(np.arange(48) // 3 % 3)][None, :, None] * np.ones(
        GRID.shape
    )


def corrected(image, distance_mm=60.0, seed=0):
    noise = 0.02 * np.random.default_rng(seed).standard_normal(GRID.shape)
    values = (1000 * (image + noise))[BRAIN].astype(np.float32)
    return values, correct_bias(values, BRAIN, GRID, distance_mm)


def test_a_smooth_field_goes_and_the_tissues_stay(tissue):
    _, after = corrected(tissue * np.exp(FIELD))
    left = np.log(after / (1000 * tissue[BRAIN]))
    assert np.std(FIELD[BRAIN]) > 0.12
    for signal in (0.65, 1.0):
        assert np.std(left[tissue[BRAIN] == signal]) < 0.05
    contrast = after[tissue[BRAIN] == 1.0].mean() / after[tissue[BRAIN] == 0.65].mean()
    assert contrast == pytest.approx(1 / 0.65, rel=0.03)


def test_without_bias_hardly_anything_changes(tissue):
    before, after = corrected(tissue)
    assert np.std(np.log(after / before)) < 0.01


def test_the_image_keeps_its_level_and_the_same_image_is_corrected_alike(tissue):
    before, after = corrected(tissue * np.exp(FIELD))
    assert np.log(after).mean() == pytest.approx(np.log(before).mean(), abs=1e-4)
    np.testing.assert_array_equal(after, corrected(tissue * np.exp(FIELD))[1])


def test_a_wide_edema_is_flattened_the_more_the_closer_the_control_points(tissue):
    near = np.exp(-((X - 30) ** 2 + Y**2 + Z**2) / (2 * 25**2))
    image = np.ones_like(tissue) * (1 + 0.4 * near)  # one tissue, and what differs smoothly in it
    middle, far = (near > 0.8)[BRAIN], (near < 0.05)[BRAIN]
    before, *_ = corrected(image)
    contrasts = [
        values[middle].mean() / values[far].mean()
        for values in (before, *(corrected(image, distance)[1] for distance in (100.0, 25.0)))
    ]
    assert contrasts[0] > 1.33
    assert contrasts[0] > contrasts[1] > contrasts[2]
    assert contrasts[2] < 1.1


def test_voxels_without_signal_do_not_matter(tissue):
    values = (1000 * tissue * np.exp(FIELD))[BRAIN].astype(np.float32)
    values[::7] = 1.0  # as where a window cut everything off
    after = correct_bias(values, BRAIN, GRID, 60.0)
    left = np.log(after / (1000 * tissue[BRAIN]))
    assert np.isfinite(after).all()
    assert np.std(left[(tissue[BRAIN] == 1.0) & (values > 1)]) < 0.05


@pytest.mark.parametrize("size", [30, 31])
def test_splines_are_local_and_share_each_voxel(size):
    basis = _splines(size, 4.0, 30.0).toarray()
    np.testing.assert_allclose(basis.sum(axis=1), 1)
    assert basis.min() >= 0 and (np.count_nonzero(basis, axis=1) <= 4).all()
    assert basis.shape == (size, 4 + 3)
