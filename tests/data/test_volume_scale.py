"""The scale of whole predicted volumes."""

import numpy as np
import pytest

from cdm_jax.data.volume_scale import (
    LEAST,
    Line,
    best_factors,
    fit_line,
    read_lines,
    rescaled,
    save_lines,
    tops,
)
from cdm_jax.errors import UserError


def line(**changes):
    given = {"offset": 0.1, "power": -1.5, "lowest": 0.5, "highest": 1.0, "patients": 9}
    return Line(**given | changes)


def test_a_line_is_found_again_by_the_factors_that_it_gives():
    given = line(lowest=0.6, highest=0.95)
    seen = np.linspace(0.6, 0.95, 12).tolist()
    found = fit_line(seen, [given.factor(top) for top in seen])
    assert found.patients == 12
    for name in ("offset", "power", "lowest", "highest"):
        assert getattr(found, name) == pytest.approx(getattr(given, name))
    assert fit_line(seen[: LEAST - 1], seen[: LEAST - 1]) is None


def test_a_line_is_kept_where_it_predicts_volumes_that_it_was_not_fitted_to():
    """By hand: fitted anew without each of the volumes, over many draws of a weak relation."""
    rng, kept = np.random.default_rng(0), 0
    for _ in range(60):
        seen = rng.uniform(0.6, 1.0, 10)
        factors = np.exp(-0.4 * np.log(seen) - 0.1 + 0.1 * rng.standard_normal(10))
        left_out = []
        for number in range(10):
            others = np.arange(10) != number
            power, offset = np.polyfit(np.log(seen[others]), np.log(factors[others]), 1)
            told = offset + power * np.log(seen[number])
            left_out.append(np.log(factors[number]) - told)
        helps = np.mean(np.square(left_out)) < np.mean(np.log(factors) ** 2)
        found = fit_line(seen.tolist(), factors.tolist())
        assert (found is not None) == helps
        kept += helps
    assert 10 < kept < 50


def test_beyond_what_was_seen_the_factor_stays():
    one = line()
    assert one.factor(0.8) == pytest.approx(np.exp(0.1) * 0.8**-1.5)
    assert (one.factor(0.2), one.factor(1.4)) == (one.factor(0.5), one.factor(1.0))
    assert one.factor(0.0) == 1.0


@pytest.fixture
def volumes():
    rng = np.random.default_rng(1)
    brain = np.zeros((3, 6, 6), bool)
    brain[:, 1:5, 1:5] = True
    mean = rng.uniform(0.2, 0.6, (3, 6, 6, 2)) * brain[..., None]
    return {"mean": mean, "upper": mean * 1.3, "deviation": mean * 0.1}, brain


def test_a_mean_and_what_belongs_to_it_get_the_factor_of_the_means_own_top(volumes):
    images, brain = volumes
    found = rescaled(images, brain, {"t2f": line()}, ("t1c", "t2f"))
    top = np.percentile(images["mean"][brain][:, 1], 99.5)
    assert tops(images["mean"], brain)[1] == pytest.approx(top)
    factor = np.exp(0.1) * top**-1.5
    for name, image in images.items():
        np.testing.assert_array_equal(found[name][..., 0], image[..., 0])
        expected = np.clip(factor * image[..., 1], 0, 1)
        np.testing.assert_allclose(found[name][..., 1], expected, rtol=1e-6)
    assert found["upper"].max() == 1
    alone = rescaled({"m1": images["upper"]}, brain, {"t2f": line()}, ("t1c", "t2f"))
    factor = np.exp(0.1) * min(1.3 * top, 1.0) ** -1.5
    expected = np.clip(factor * images["upper"][..., 1], 0, 1)
    np.testing.assert_allclose(alone["m1"][..., 1], expected, rtol=1e-6)


def test_without_a_line_or_a_brain_nothing_changes(volumes):
    images, brain = volumes
    for lines, mask in (({}, brain), ({"t1": line()}, brain), ({"t2f": line()}, brain & False)):
        assert rescaled(images, mask, lines, ("t1c", "t2f")) == images


def test_the_best_factor_has_the_least_square_error(volumes):
    images, _ = volumes
    truth = images["mean"] * [0.8, 1.2] + 0.01 * np.random.default_rng(2).standard_normal(2)
    found = best_factors(truth, images["mean"])

    def error(factors):
        return ((truth - images["mean"] * factors) ** 2).sum(axis=(0, 1, 2))

    for step in (-1e-3, 1e-3):
        assert (error(np.array(found) + step) > error(np.array(found))).all()
    assert best_factors(truth, 0 * truth) == [1.0, 1.0]


def test_lines_are_read_for_the_model_that_they_were_fitted_to_alone(tmp_path):
    assert read_lines(tmp_path, "abc") is None
    lines = {"t2f": line()}
    save_lines(tmp_path, lines, "abc")
    assert read_lines(tmp_path, "abc") == lines
    assert read_lines(tmp_path, "another") is None
    (tmp_path / "volume_scale.json").write_text('{"checkpoint": "abc", "lines": {"t2f": 3}}')
    with pytest.raises(UserError, match=r"volume_scale\.json is damaged"):
        read_lines(tmp_path, "abc")
