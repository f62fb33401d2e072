import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.diffusion.process import PREDICTIONS, corrupt, split_prediction, training_target
from cdm_jax.errors import UserError

SIGNAL = jnp.asarray([0.999, 0.5, 0.02])


def _draw():
    x0_key, noise_key = jax.random.split(jax.random.key(0))
    return jax.random.normal(x0_key, (3, 4, 5)), jax.random.normal(noise_key, (3, 4, 5))


def test_corruption_keeps_unit_variance_and_mixes_signal_as_stated():
    x0, noise = (jax.random.normal(jax.random.key(k), (1, 200_000)) for k in (1, 2))
    x_t = corrupt(x0, noise, jnp.asarray([0.3]))
    assert float(x_t.var()) == pytest.approx(1, abs=0.01)
    correlation = np.corrcoef(np.asarray(x0[0]), np.asarray(x_t[0]))[0, 1]
    assert correlation**2 == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_perfect_prediction_of_any_kind_gives_back_signal_and_noise(kind):
    x0, noise = _draw()
    x_t = corrupt(x0, noise, SIGNAL)
    target = training_target(kind, x0, noise, SIGNAL)
    found_x0, found_noise = split_prediction(kind, target, x_t, SIGNAL)
    np.testing.assert_allclose(found_x0, x0, atol=2e-4)
    np.testing.assert_allclose(found_noise, noise, atol=2e-4)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_both_estimates_explain_the_noised_input_whatever_is_predicted(kind):
    x_t, prediction = _draw()
    x0, noise = split_prediction(kind, prediction, x_t, SIGNAL)
    np.testing.assert_allclose(corrupt(x0, noise, SIGNAL), x_t, atol=2e-5)


def test_unknown_prediction_types_are_refused():
    x0, noise = _draw()
    with pytest.raises(UserError, match="x0, noise"):
        training_target("score", x0, noise, SIGNAL)
    with pytest.raises(UserError, match="x0, noise"):
        split_prediction("score", x0, noise, SIGNAL)
