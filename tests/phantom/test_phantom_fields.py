"""Smooth random fields and the voxel grid."""

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.phantom.fields import Grid, octaves, smooth_field


def test_a_field_has_unit_variance_and_the_stated_correlation():
    grid = Grid(shape=(64, 64, 48), voxel_mm=3.0)
    fields = [smooth_field(np.random.default_rng(seed), grid, 6.0) for seed in range(4)]
    field = np.stack(fields)
    assert field.mean() == pytest.approx(0, abs=0.05)
    assert field.std() == pytest.approx(1, abs=0.03)
    for step in (1, 2, 4):
        correlation = np.mean(field[:, step:] * field[:, :-step])
        assert correlation == pytest.approx(np.exp(-((3.0 * step) ** 2) / (4 * 36.0)), abs=0.06)


def test_the_same_generator_gives_the_same_field_at_any_resolution():
    coarse = smooth_field(np.random.default_rng(1), Grid(shape=(17, 15, 13), voxel_mm=6.0), 9.0)
    fine = smooth_field(np.random.default_rng(1), Grid(shape=(33, 29, 25), voxel_mm=3.0), 9.0)
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-5)


def test_a_field_stays_finite_beyond_the_head():
    field = smooth_field(np.random.default_rng(0), Grid(shape=(8, 8, 80), voxel_mm=9.0), 5.0)
    assert np.isfinite(field).all()


def test_the_affine_is_that_of_brats():
    affine = Grid(shape=(240, 240, 155), voxel_mm=1.0).affine()
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(affine, expected)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")


def test_octaves_add_their_variances():
    grid, rng = Grid(shape=(48, 48, 48), voxel_mm=3.0), np.random.default_rng(0)
    total = octaves(lambda mm: smooth_field(rng, grid, mm), (0.6, 5.0), (0.8, 2.0))
    assert total.std() == pytest.approx(1, abs=0.1)
    assert total.dtype == np.float32
