"""The scale of whole predicted volumes."""

import numpy as np
import pytest

from cdm_jax.data.volume_scale import (
    LEAST,
    Curve,
    fit_curve,
    rescaled,
    scans_of,
    tops,
)


def curve(**changes):
    """What is found in simulated patients, about."""
    given = {"offsets": (-0.1, 0.2), "powers": (-1.2, 0.8), "lowest": 0.7, "highest": 0.95}
    return Curve(**{**given, "scans": 9, **changes})


def scans(law, number=12, noise=0.0, seed=0):
    """Scans whose acquired values follow from the predicted ones by a curve."""
    rng, made = np.random.default_rng(seed), []
    for top in np.linspace(0.7, 0.95, number):
        values = rng.uniform(0.1, 1.0, 500)
        truth = values * law.factors(values, top) * np.exp(noise * rng.standard_normal())
        made.append((float(top), values, truth))
    return made


@pytest.mark.parametrize(
    ("offsets", "powers"),
    [((-0.2,), (-1.5,)), ((-0.1, 0.2), (-1.2, 0.8)), ((0.0, 0.4, 0.1), (-1.0, 1.0, 0.3))],
)
def test_a_curve_is_found_again_by_the_values_that_it_gives(offsets, powers):
    given = curve(offsets=offsets, powers=powers)
    found = fit_curve(scans(given))
    assert (found.scans, found.lowest, found.highest) == (12, 0.7, 0.95)
    values = np.linspace(0.1, 1, 30)
    for top in (0.7, 0.8, 0.95):
        expected = given.factors(values, top)
        np.testing.assert_allclose(found.factors(values, top), expected, rtol=1e-3)
    assert fit_curve(scans(given)[: LEAST - 1]) is None


def test_a_curve_is_kept_where_it_predicts_scans_that_it_was_not_fitted_to():
    """By hand, of factors alone: fitted anew by a grid without each of the scans."""
    kept = 0
    for seed in range(12):
        law = curve(offsets=(-0.06,), powers=(-0.4,))
        made = scans(law, number=8, noise=0.12, seed=seed)
        offsets, powers = np.meshgrid(np.linspace(-1, 1, 201), np.linspace(-4, 4, 201))
        error, plain = 0.0, 0.0
        moments = [(np.log(t), (x @ x), (x @ y), (y @ y)) for t, x, y in made]

        def cost(moment, offset, power):
            top, xx, xy, yy = moment
            factor = np.exp(offset + power * top)
            return factor**2 * xx - 2 * factor * xy + yy

        for number, own in enumerate(moments):
            others = [m for n, m in enumerate(moments) if n != number]
            total = sum(cost(m, offsets, powers) for m in others)
            best = np.unravel_index(total.argmin(), total.shape)
            error += cost(own, offsets[best], powers[best])
            plain += cost(own, 0.0, 0.0)
        found = fit_curve(made)
        if abs(error / plain - 1) > 0.1:  # else the grid is too coarse to tell
            assert (found is not None) == (error < plain)
        kept += found is not None
    assert 0 < kept < 12


def test_a_curve_that_turns_values_around_is_not_taken():
    rng, made = np.random.default_rng(0), []
    for top in np.linspace(0.7, 0.95, 12):
        values = rng.uniform(0.1, 1.0, 500)
        made.append((float(top), values, 0.3 / values))
    assert not curve(offsets=(-1.2, -2.0), powers=(0.0, 0.0)).is_rising()
    found = fit_curve(made)
    assert found is None or found.is_rising()


def test_beyond_what_was_seen_the_factor_stays():
    one, values = curve(), np.array([0.2, 0.6])
    expected = np.exp(-0.1 + 0.2 * np.log(values) + np.log(0.8) * (-1.2 + 0.8 * np.log(values)))
    np.testing.assert_allclose(one.factors(values, 0.8), expected)
    for inside, outside in ((0.7, 0.2), (0.95, 1.4)):
        np.testing.assert_array_equal(one.factors(values, inside), one.factors(values, outside))
    dark = one.factors(np.array([0.0, 0.01, 0.05]), 0.8)
    assert (dark == dark[0]).all()
    assert (one.factors(values, 0.0) == 1).all()


@pytest.fixture
def volumes():
    rng = np.random.default_rng(1)
    brain = np.zeros((3, 12, 12), bool)
    brain[:, 1:11, 1:11] = True
    mean = rng.uniform(0.2, 0.75, (3, 12, 12, 2)) * brain[..., None]
    mean[1, 5, 5:8] = 0.8
    found = {"mean": mean, "lower": mean * 0.8, "upper": mean * 1.3, "deviation": mean * 0.1}
    return found, brain


def test_a_mean_and_its_ends_are_mapped_by_the_means_top_and_keep_their_order(volumes):
    images, brain = volumes
    found = rescaled(images, brain, {"t2f": curve()}, ("t1c", "t2f"))
    top = np.percentile(images["mean"][brain][:, 1], 99.5)
    assert tops(images["mean"], brain)[1] == pytest.approx(top)
    for name, image in images.items():
        np.testing.assert_array_equal(found[name][..., 0], image[..., 0])
        seen = images["mean"] if name == "deviation" else image
        factors = curve().factors(seen[..., 1], top)
        np.testing.assert_allclose(found[name][..., 1], np.clip(factors * image[..., 1], 0, 1))
    assert (found["lower"] <= found["mean"]).all() and (found["mean"] <= found["upper"]).all()
    assert found["upper"][..., 1].max() == 1 and not found["mean"][~brain].any()
    alone = rescaled({"m1": images["upper"]}, brain, {"t2f": curve()}, ("t1c", "t2f"))
    factors = curve().factors(images["upper"][..., 1], min(1.3 * top, 0.95))
    expected = np.clip(factors * images["upper"][..., 1], 0, 1)
    np.testing.assert_allclose(alone["m1"][..., 1], expected)


def test_without_a_curve_or_a_brain_nothing_changes(volumes):
    images, brain = volumes
    for curves, mask in (({}, brain), ({"t1": curve()}, brain), ({"t2f": curve()}, brain & False)):
        assert rescaled(images, mask, curves, ("t1c", "t2f")) == images


def test_a_scan_is_seen_from_its_base_to_its_top(volumes):
    images, brain = volumes
    truth = np.broadcast_to(np.arange(3.0)[:, None, None, None], images["mean"].shape)
    for channel, (top, values, acquired) in enumerate(scans_of(truth, images["mean"], brain)):
        assert top == tops(images["mean"], brain)[channel]
        np.testing.assert_array_equal(values, images["mean"][brain][:, channel])
        assert set(acquired) == {0, 1, 2}
