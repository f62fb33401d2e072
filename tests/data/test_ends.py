"""The ends of intervals around a corrected mean."""

import itertools

import numpy as np
import pytest

from cdm_jax.data.ends import Ends, scans_of
from cdm_jax.data.volume_scale import tops
from cdm_jax.end_fitting import LEAST_SCANS, fit_ends


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


def test_ends_lie_where_the_levels_say_at_every_voxel():
    """The quantiles of a normal distribution, of which nothing is told to the fit."""
    fitted = fit_ends(scans(), (0.05, 0.95))
    known, truth = scans(1, seed=1, voxels=20_000)[0]
    below, above = fitted.distances(known)
    for distance in (below, above):
        off = np.abs(distance / (1.645 * deviation(known)) - 1)
        assert np.median(off) < 0.1 and np.quantile(off, 0.95) < 0.25
    for share in ((truth < known[:, 0] - below), (truth > known[:, 0] + above)):
        assert share.mean() == pytest.approx(0.05, abs=0.01)
    narrow = fit_ends(scans(), (0.25, 0.75))
    assert np.median(narrow.distances(known)[0] / below) == pytest.approx(0.41, abs=0.03)


def test_distances_are_those_of_the_layers_written_out():
    layers = [
        {"kernel": [[1.0, -1.0], [0.0, 2.0]], "bias": [0.5, 0.0]},
        {"kernel": [[1.0, 0.0], [3.0, -1.0]], "bias": [0.0, 0.25]},
    ]
    ends = Ends(layers=layers, lowest=[0.0, 0.0], highest=[1.0, 1.0], scans=1)
    below, above = ends.distances(np.array([[0.2, 0.6], [0.9, 0.1]]))
    # Hidden values: (.7, 1) and (1.4, -.7), of which the last counts as 0.
    np.testing.assert_allclose(below, 0.1 * np.log1p(np.exp([0.7 + 3.0, 1.4])))
    np.testing.assert_allclose(above, 0.1 * np.log1p(np.exp([-1.0 + 0.25, 0.25])))


def test_every_scan_counts_alike_however_many_voxels_it_has():
    """Half of the scans err ten times as much as the others, which have ten times the voxels."""
    rng = np.random.default_rng(0)
    mixed = []
    for voxels, off in [(100, 0.2), (1000, 0.02)] * 24:
        known = rng.uniform(0.2, 0.8, (voxels, 5))
        mixed.append((known, known[:, 0] + off * rng.standard_normal(voxels)))
    distances = fit_ends(mixed, (0.05, 0.95)).distances(rng.uniform(0.3, 0.7, (1000, 5)))
    # Of both deviations 5 % lie below -x where a tenth of the wide one does.
    for distance in distances:
        assert np.median(distance) == pytest.approx(1.2816 * 0.2, rel=0.2)


def test_what_lies_beyond_the_scans_counts_as_their_end():
    fitted = fit_ends(scans(), (0.05, 0.95))
    inside = np.clip(np.full((1, 5), 0.5), fitted.lowest, fitted.highest)
    for column, value in itertools.product(range(5), (-3.0, 4.0)):
        outside, end = inside.copy(), inside.copy()
        outside[:, column] = value
        end[:, column] = (fitted.lowest if value < 0 else fitted.highest)[column]
        np.testing.assert_allclose(fitted.distances(outside), fitted.distances(end))


def test_few_scans_leave_the_ends_of_the_network():
    assert fit_ends(scans(LEAST_SCANS - 1), (0.05, 0.95)) is None


def around(image, brain):
    """Of each voxel mean and deviation of its neighbors in the brain, the Gaussian written out."""
    found = []
    for voxel in np.argwhere(brain):
        others = np.argwhere(brain)
        others = others[(np.abs(others - voxel)[:, 1:] <= 4).all(axis=1)]
        weights = np.exp(-(((others - voxel) / (1.5, 1, 1)) ** 2).sum(axis=1) / 2)
        values = image[tuple(others.T)]
        mean = np.average(values, weights=weights)
        found.append((mean, np.sqrt(np.average((values - mean) ** 2, weights=weights))))
    return np.array(found).T


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
        expected += [*around(volumes["mean"][..., channel], brain)]
        expected += [one for source in (0, 1) for one in around(stored[..., source] / 65535, brain)]
        expected.append(np.full(len(mean), tops(volumes["mean"], brain)[channel]))
        np.testing.assert_allclose(known, np.stack(expected, -1), atol=1e-5)
        np.testing.assert_array_equal(acquired, truth[brain][:, channel])
