"""DDIM against closed forms: Gaussian data, DDPM's posterior, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.diffusion.ddim import DDIM
from cdm_jax.diffusion.process import PREDICTIONS, training_target
from cdm_jax.diffusion.schedule import alpha_bar

TABLE = alpha_bar("linear", 1000)
MEAN, DEVIATION = 1.5, 0.4


def _optimal(kind):
    """The best prediction for data ~ N(MEAN, DEVIATION^2): the posterior mean, by conjugacy."""
    table = jnp.asarray(TABLE, jnp.float32)

    def predict(x, t):
        signal = table[t][:, None]
        gain = DEVIATION**2 * jnp.sqrt(signal) / (DEVIATION**2 * signal + 1 - signal)
        x0 = MEAN + gain * (x - jnp.sqrt(signal) * MEAN)
        noise = (x - jnp.sqrt(signal) * x0) / jnp.sqrt(1 - signal)
        return training_target(kind, x0, noise, table[t])

    return predict


def _sample(noise, key=0, kind="x0", **settings):
    ddim = DDIM(alpha_bar=tuple(TABLE.tolist()), prediction=kind, **settings)
    return jax.jit(lambda x: ddim.sample(_optimal(kind), x, jax.random.key(key)))(noise)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_without_noise_gaussian_data_follow_the_probability_flow(kind):
    noise = jnp.linspace(-2, 2, 9)[:, None]
    # The flow keeps each point's quantile (Song et al. 2021, ODE view), so it is linear here.
    start = np.sqrt(TABLE[-1]) * MEAN
    spread = np.sqrt(TABLE[-1] * DEVIATION**2 + 1 - TABLE[-1])
    expected = MEAN + DEVIATION * (np.asarray(noise) - start) / spread
    np.testing.assert_allclose(_sample(noise, kind=kind, num_steps=1000), expected, atol=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_of_gaussian_data_have_its_mean_and_deviation(eta):
    noise = jax.random.normal(jax.random.key(1), (20_000, 1))
    samples = np.asarray(_sample(noise, eta=eta, num_steps=200))
    assert samples.mean() == pytest.approx(MEAN, abs=0.02)
    assert samples.std() == pytest.approx(DEVIATION, abs=0.02)


def test_eta_zero_is_deterministic_and_eta_one_is_not():
    noise = jnp.ones((3, 2))
    np.testing.assert_array_equal(_sample(noise, key=1, eta=0.0), _sample(noise, key=2, eta=0.0))
    assert not np.allclose(_sample(noise, key=1, eta=1.0), _sample(noise, key=2, eta=1.0))


def test_one_step_returns_the_estimate_of_the_clean_data():
    noise = jnp.asarray([[-1.0], [2.0]])
    expected = _optimal("x0")(noise, jnp.asarray([999, 999]))
    np.testing.assert_allclose(_sample(noise, num_steps=1), expected, rtol=1e-6)


def test_eta_one_with_all_steps_has_the_variance_of_ddpm_posteriors():
    sigma = np.asarray(DDIM(alpha_bar=tuple(TABLE.tolist()), eta=1.0, num_steps=1000).steps().sigma)
    previous = np.append(1.0, TABLE[:-1])
    beta = 1 - TABLE / previous
    posterior = beta * (1 - previous) / (1 - TABLE)  # Ho et al. 2020, Eq. 7
    np.testing.assert_allclose(sigma[::-1] ** 2, posterior, rtol=1e-4, atol=1e-9)


def test_one_step_of_eta_one_draws_from_the_ddpm_posterior():
    early, late = 0.9, 0.6  # alpha_bar at t = 0 and t = 1
    clean, x_t, draws = 0.7, -0.4, 100_000

    def predict(x, t):
        return jnp.where(t[:, None] == 1, clean, x)  # the last step returns the state itself

    ddim = DDIM(alpha_bar=(early, late), num_steps=2, eta=1.0)
    found = np.asarray(ddim.sample(predict, jnp.full((draws, 1), x_t), jax.random.key(0)))
    alpha, beta = late / early, 1 - late / early
    mean = (np.sqrt(early) * beta * clean + np.sqrt(alpha) * (1 - early) * x_t) / (1 - late)
    assert found.mean() == pytest.approx(mean, abs=0.005)
    assert found.var() == pytest.approx(beta * (1 - early) / (1 - late), rel=0.02)


def test_a_clipped_estimate_keeps_to_the_range_and_explains_the_noised_image():
    """Wherever x0 is clipped, the noise is what x_t holds beside it (Dhariwal & Nichol's code)."""
    early, late, bound = 0.9, 0.5, 2.0
    x_t = np.asarray([[3.0], [0.2], [-3.0]])

    def predict(x, t):  # no noise at first: x0 = x_t / sqrt(late), which is out of range
        return jnp.where(t[:, None] == 1, 0.0, 3.0)

    ddim = DDIM(alpha_bar=(early, late), num_steps=2, prediction="noise", clip=bound)
    found = ddim.sample(predict, jnp.asarray(x_t, jnp.float32), jax.random.key(0))
    clean = np.clip(x_t / np.sqrt(late), -bound, bound)
    noise = (x_t - np.sqrt(late) * clean) / np.sqrt(1 - late)
    between = np.sqrt(early) * clean + np.sqrt(1 - early) * noise
    last = (between - np.sqrt(1 - early) * 3) / np.sqrt(early)
    assert abs(last[0, 0]) < bound < abs(last[2, 0])
    np.testing.assert_allclose(found, np.clip(last, -bound, bound), atol=1e-5)


def test_a_bound_that_is_never_reached_changes_nothing():
    noise = jnp.linspace(-1, 1, 5)[:, None]
    free = _sample(noise, kind="noise", num_steps=20)
    bounded = _sample(noise, kind="noise", num_steps=20, clip=100.0)
    np.testing.assert_allclose(bounded, free, rtol=1e-3, atol=1e-3)


def test_sampling_is_one_loop_whatever_the_number_of_steps():
    def size(num_steps):
        ddim = DDIM(alpha_bar=tuple(TABLE.tolist()), num_steps=num_steps)
        jaxpr = jax.make_jaxpr(lambda x: ddim.sample(_optimal("x0"), x, jax.random.key(0)))
        return len(str(jaxpr(jnp.zeros((2, 1)))).splitlines())

    assert size(10) == size(100)
