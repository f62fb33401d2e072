"""The ends of intervals around a corrected mean."""

import itertools

import numpy as np
import pytest

from cdm_jax.data.ends import LEAST_SCANS, Ends, fit_ends, scans_of
from cdm_jax.data.polynomials import products
from cdm_jax.data.volume_scale import tops


def scans(number=LEAST_SCANS, seed=0, voxels=800):
    """The error of a voxel is normal, and its deviation grows with the one source."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        known = rng.uniform(0.2, 0.8, (voxels, 5))
        found.append((known, known[:, 0] + deviation(known) * rng.standard_normal(voxels)))
    return found


def deviation(known):
    return 0.02 + 0.1 * known[:, 3] ** 2


def test_products_are_those_that_are_written_out():
    x, y = np.array([2.0, 3.0]), np.array([5.0, 7.0])
    expected = [x * 0 + 1, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3]
    np.testing.assert_allclose(products(np.stack([x, y], -1), 3), np.stack(expected, -1))
    assert products(np.zeros((4, 3, 6)), 3).shape == (4, 3, 84)


def test_ends_lie_where_the_levels_say_at_every_voxel():
    """The quantiles of a normal distribution, of which nothing is told to the fit."""
    fitted = fit_ends(scans(40), (0.05, 0.95))
    known, truth = scans(1, seed=1, voxels=20_000)[0]
    below, above = fitted.distances(known)
    for distance in (below, above):
        off = np.abs(distance / (1.645 * deviation(known)) - 1)
        assert np.median(off) < 0.05 and np.quantile(off, 0.95) < 0.15
    for share in ((truth < known[:, 0] - below), (truth > known[:, 0] + above)):
        assert share.mean() == pytest.approx(0.05, abs=0.01)
    narrow = fit_ends(scans(40), (0.25, 0.75))
    assert np.median(narrow.distances(known)[0] / below) == pytest.approx(0.41, abs=0.02)


def test_what_lies_beyond_the_scans_counts_as_their_end_and_no_end_reaches_the_mean():
    fitted = fit_ends(scans(), (0.05, 0.95))
    inside = np.clip(np.full((1, 5), 0.5), fitted.lowest, fitted.highest)
    for column, value in itertools.product(range(5), (-3.0, 4.0)):
        outside, end = inside.copy(), inside.copy()
        outside[:, column] = value
        end[:, column] = (fitted.lowest if value < 0 else fitted.highest)[column]
        np.testing.assert_allclose(fitted.distances(outside), fitted.distances(end))
    negative = Ends(**{**vars(fitted), "below": [-w for w in fitted.below]})
    assert negative.distances(inside)[0] == fitted.least > 0


def test_few_scans_leave_the_ends_of_the_network():
    assert fit_ends(scans(LEAST_SCANS - 1), (0.05, 0.95)) is None


def test_a_scan_tells_of_each_voxel_what_is_known_of_it():
    rng = np.random.default_rng(0)
    stored = rng.integers(1, 2**16, (3, 8, 8, 2), dtype=np.uint16)
    stored[:, 0] = 0
    brain = stored[..., 0] > 0
    volumes = {
        "mean": rng.uniform(0.3, 0.6, (3, 8, 8, 2)).astype(np.float32),
        "lower": np.full((3, 8, 8, 2), 0.2, np.float32),
        "upper": np.full((3, 8, 8, 2), 0.9, np.float32),
    }
    truth = rng.uniform(size=(3, 8, 8, 2)).astype(np.float32)
    for channel, (known, acquired) in enumerate(scans_of(truth, volumes, stored)):
        mean = volumes["mean"][brain][:, channel]
        expected = [mean, mean - 0.2, 0.9 - mean, *(stored[brain].T / 65535)]
        expected.append(np.full(len(mean), tops(volumes["mean"], brain)[channel]))
        np.testing.assert_allclose(known, np.stack(expected, -1), rtol=1e-5)
        np.testing.assert_array_equal(acquired, truth[brain][:, channel])
