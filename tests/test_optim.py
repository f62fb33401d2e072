"""Optimizers against loops in NumPy; rates are read off Adam's steps under a constant gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cdm_jax.errors import UserError
from cdm_jax.optim import average_decay, make_optimizer, moving_average

START = np.asarray([1.0, -2.0, 0.5])
GRADIENTS = np.random.default_rng(0).normal(size=(12, 3)) * [1.0, 0.1, 10.0]
B1, B2, EPSILON = 0.8, 0.95, 1e-8


def _config(**changes):
    return ConfigDict(
        {
            "learning_rate": 0.01,
            "betas": (B1, B2),
            "weight_decay": 0.0,
            "decay": "coupled",
            "schedule": "constant",
            "decay_from": 0.5,
            "warmup_steps": 0,
            "clip": 0.0,
            "accumulate": 1,
        }
        | changes
    )


def _path(config, gradients=GRADIENTS, num_steps=100):
    """Parameters after each step."""
    optimizer = make_optimizer(config, num_steps)

    def step(carry, gradient):
        params, state = carry
        changes, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
        return (params, state), params

    start = jnp.asarray(START, jnp.float32)
    gradients = jnp.asarray(gradients, jnp.float32)
    return np.asarray(jax.lax.scan(step, (start, optimizer.init(start)), gradients)[1])


def _adam_by_hand(*, coupled=0.0, decoupled=0.0, clip=np.inf):
    """PyTorch's documented Adam (`weight_decay` joins the gradient) and AdamW (it does not)."""
    p, m, v, path = START.copy(), np.zeros(3), np.zeros(3), []
    for t, g in enumerate(GRADIENTS, start=1):
        g = g * min(1.0, clip / np.linalg.norm(g))
        g = g + coupled * p
        p = p - 0.01 * decoupled * p
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * g**2
        p = p - 0.01 * (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPSILON)
        path.append(p)
    return np.stack(path)


def test_coupled_decay_is_pytorchs_adam():
    found = _path(_config(weight_decay=0.3))
    np.testing.assert_allclose(found, _adam_by_hand(coupled=0.3), rtol=1e-4)


def test_decoupled_decay_is_adamw():
    found = _path(_config(weight_decay=0.3, decay="decoupled"))
    np.testing.assert_allclose(found, _adam_by_hand(decoupled=0.3), rtol=1e-4)


def test_the_gradient_is_clipped_by_its_global_norm_before_decay_joins_it():
    found = _path(_config(weight_decay=0.3, clip=0.5))
    np.testing.assert_allclose(found, _adam_by_hand(coupled=0.3, clip=0.5), rtol=1e-4)
    assert np.abs(found - _path(_config(weight_decay=0.3))).max() > 1e-3


def _rates(schedule, num_steps, warmup):
    """Under a constant gradient Adam's step is the learning rate itself."""
    config = _config(schedule=schedule, warmup_steps=warmup)
    path = _path(config, np.ones((num_steps + 1, 3)), num_steps)
    return -np.diff(np.concatenate([START[None], path]), axis=0)[:, 0]


@pytest.mark.parametrize("batches", [2, 3])
def test_accumulated_batches_make_one_update_of_their_mean_gradient(batches):
    changes = {"weight_decay": 0.3, "clip": 0.5, "schedule": "linear_decay", "decay_from": 0.0}
    found = _path(_config(**changes, accumulate=batches), num_steps=len(GRADIENTS))
    means = GRADIENTS.reshape(-1, batches, 3).mean(axis=1)
    expected = _path(_config(**changes), gradients=means, num_steps=len(means))
    np.testing.assert_allclose(found[batches - 1 :: batches], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[batches::batches], found[batches - 1 : -1 : batches])


def test_the_moving_average_forgets_as_much_in_an_update_of_several_batches():
    section = ConfigDict({"average_decay": 0.9, "optimizer": {"accumulate": 4}})
    assert average_decay(section) ** 4 == pytest.approx(0.9)


def test_no_batches_for_an_update_are_refused():
    with pytest.raises(UserError, match="accumulate is 0: use 1 or more"):
        make_optimizer(_config(accumulate=0), 10)


def test_a_constant_rate_stays():
    np.testing.assert_allclose(_rates("constant", 40, 0), 0.01, rtol=1e-3)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear_decay"])
def test_warm_up_rises_linearly_from_zero_to_the_full_rate(schedule):
    rates = _rates(schedule, 50, 10)
    np.testing.assert_allclose(rates[:11], np.linspace(0, 0.01, 11), atol=1e-6)
    assert rates[10] == rates.max()


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_is_half_way_at_half_time_and_ends_at_zero(warmup):
    rates = _rates("cosine", 100 + warmup, warmup)[warmup:]
    np.testing.assert_allclose(rates[[0, 50, 100]], [0.01, 0.005, 0], atol=1e-6)
    np.testing.assert_allclose(rates[25] + rates[75], 0.01, atol=1e-6)  # symmetric about half time
    assert (np.diff(rates) < 1e-7).all()


@pytest.mark.parametrize("warmup", [0, 20])
def test_linear_decay_is_constant_for_half_of_the_run_then_falls_to_zero(warmup):
    rates = _rates("linear_decay", 100 + warmup, warmup)[warmup:]
    np.testing.assert_allclose(rates[:51], 0.01, atol=1e-6)
    np.testing.assert_allclose(rates[50:], np.linspace(0.01, 0, 51), atol=1e-6)


@pytest.mark.parametrize("change", [{"schedule": "step"}, {"decay": "l2"}])
def test_unknown_names_are_refused_with_what_is_allowed(change):
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"unknown {name} '{value}': allowed are co"):
        make_optimizer(_config(**change), 10)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_moving_average_warms_up_as_a_loop_by_hand(decay):
    values = np.random.default_rng(1).normal(size=(30, 2))
    found = {"a": jnp.asarray(values[0], jnp.float32)}
    expected = values[0]
    for n, value in enumerate(values):
        rate = min(decay, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * value
        new = {"a": jnp.asarray(value, jnp.float32)}
        found = moving_average(found, new, jnp.asarray(n), decay)
        np.testing.assert_allclose(found["a"], expected, atol=1e-5)
