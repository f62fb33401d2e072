"""Losses, turns and pools that the adversarial systems share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdm_jax.methods.baselines.adversarial import (
    NETWORKS,
    Adversarial,
    Pool,
    cross_entropy,
    discriminator_loss,
    empty_pool,
    exchange,
    least_squares,
    score,
)
from cdm_jax.nn.patchgan import PatchGAN


class _System(Adversarial):
    """A system of which only single gradient steps are looked at."""

    def init(self, key, batch, frozen):
        raise NotImplementedError

    def update(self, state, batch, key):
        raise NotImplementedError

    def generate(self, model, sources):
        return sources


# Losses.

LOSSES = [least_squares, cross_entropy]


@pytest.mark.parametrize("real", [True, False])
def test_least_squares_wants_one_of_real_images_and_zero_of_synthetic_ones(real):
    scores = jnp.array([0.0, 1.0, 3.0])
    assert least_squares(scores, real) == pytest.approx((1 + 0 + 4) / 3 if real else 10 / 3)


@pytest.mark.parametrize("real", [True, False])
def test_cross_entropy_is_the_log_of_the_probability_given_to_the_truth(real):
    probability = np.array([0.2, 0.9])  # of being real
    logits = jnp.asarray(np.log(probability / (1 - probability)))
    expected = -np.log(probability if real else 1 - probability).mean()
    assert cross_entropy(logits, real) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "undecided", "value"), [(least_squares, 0.5, 0.25), (cross_entropy, 0.0, np.log(2))]
)
def test_nobody_tells_equal_distributions_apart_better_than_by_chance(loss, undecided, value):
    def total(scores):
        return discriminator_loss(loss, scores, scores)

    found, slope = jax.value_and_grad(total)(jnp.full((2, 3), undecided))
    assert found == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    assert total(jnp.full((2, 3), undecided + 0.1)) > found


@pytest.mark.parametrize(("loss", "optimum"), [(least_squares, 0.75), (cross_entropy, np.log(3.0))])
def test_the_best_score_is_the_share_of_real_images_among_those_that_look_alike(loss, optimum):
    """Three of four images of this look are real: D = p / (p + q), as a logit log(p / q)."""

    def total(value):
        # Elsewhere, among the images that differ, the score stands still.
        real = jnp.stack([value, value, value, jnp.zeros(())])
        synthetic = jnp.stack([value, jnp.zeros(()), jnp.zeros(()), jnp.zeros(())])
        return discriminator_loss(loss, real, synthetic)

    assert jax.grad(total)(jnp.float32(optimum)) == pytest.approx(0, abs=1e-6)
    assert jax.grad(total)(jnp.float32(optimum + 0.1)) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_even_sure_scores_give_finite_losses(loss):
    scores = jnp.array([-80.0, 80.0])
    assert np.isfinite(loss(scores, True)) and np.isfinite(jax.grad(loss)(scores, False)).all()


# Turns.


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_changes_its_network_alone(network, same):
    system = _System(optimizer=optax.sgd(0.5, momentum=0.9))
    params = {"generator": {"a": jnp.float32(2)}, "discriminator": {"a": jnp.float32(-1)}}
    before = system.start(params, statistics={"mean": jnp.ones(1)}, memory={"past": jnp.ones(1)})
    after, loss, extra = system.update_network(
        before, network, lambda own: (own["a"] ** 2, own["a"] + 1)
    )
    other = next(name for name in NETWORKS if name != network)
    start = params[network]["a"]
    assert loss == start**2 and extra == start + 1
    assert after.params[network]["a"] == start - 0.5 * 2 * start
    assert not same(after.optimizer[network], before.optimizer[network])
    assert after.params[other] is before.params[other]
    assert after.optimizer[other] is before.optimizer[other]
    assert (after.step, after.statistics, after.memory) == (0, before.statistics, before.memory)


def test_each_network_has_an_optimizer_state_of_its_own():
    """Adam's first step is the rate for every network, whatever the other one did before."""
    system = _System(optimizer=optax.adam(0.1))
    state = system.start({network: {"a": jnp.float32(2)} for network in NETWORKS})
    state, _, _ = system.update_network(state, "discriminator", lambda own: (100 * own["a"], None))
    state, _, _ = system.update_network(state, "generator", lambda own: (0.01 * own["a"], None))
    for network in NETWORKS:
        assert state.params[network]["a"] == pytest.approx(1.9, abs=1e-4)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_scores_come_alone_whatever_the_norm(norm):
    module, images = PatchGAN(2, norm=norm), jnp.ones((2, 32, 32, 3))
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    assert score(module, params, images).shape == (2, 2, 2, 1)


# Pools.


def _numbered(*numbers):
    """Images of one pixel that can be told apart."""
    return jnp.array(numbers, jnp.float32)[:, None, None, None]


def _numbers(images):
    return np.asarray(images)[..., 0, 0, 0]


@pytest.fixture(scope="module")
def swaps():
    """2000 exchanges of image 10 with the full pool 1, 2, 3, 4: stored and shown numbers."""
    pool = Pool(_numbered(1, 2, 3, 4), jnp.int32(4))
    keys = jax.random.split(jax.random.key(0), 2000)
    after, shown = jax.jit(jax.vmap(lambda key: exchange(pool, _numbered(10), key)))(keys)
    assert (after.filled == 4).all()
    return _numbers(after.images), _numbers(shown)[:, 0]


def test_a_pool_fills_up_with_every_image_and_hands_it_on():
    pool, counts = empty_pool(5, _numbered(0)), []
    for first in (1, 3):
        pool, shown = exchange(pool, _numbered(first, first + 1), jax.random.key(first))
        assert _numbers(shown).tolist() == [first, first + 1]
        counts.append(int(pool.filled))
    assert counts == [2, 4]
    assert _numbers(pool.images).tolist() == [1, 2, 3, 4, 0]


def test_a_full_pool_shows_new_and_past_images_with_equal_chance(swaps):
    _, shown = swaps
    assert (shown == 10).mean() == pytest.approx(0.5, abs=5 * np.sqrt(0.25 / len(shown)))


def test_a_past_image_is_shown_once_and_the_new_one_takes_its_place(swaps):
    stored, shown = swaps
    for images, one in zip(stored, shown, strict=True):
        expected = [10 if number == one else number for number in (1, 2, 3, 4)]
        assert images.tolist() == expected


def test_every_past_image_is_as_likely(swaps):
    _, shown = swaps
    shares = [(shown == number).mean() for number in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, 1 / 8, atol=5 * np.sqrt(1 / 8 * 7 / 8 / len(shown)))


def test_nothing_is_lost_or_doubled_when_a_batch_fills_the_pool_and_goes_on():
    def run(key):
        return exchange(empty_pool(3, _numbered(0)), _numbered(*range(1, 9)), key)

    pools, shown = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 50))
    assert (pools.filled == 3).all()
    assert (_numbers(shown)[:, :3] == [1, 2, 3]).all()  # while it fills up
    late = _numbers(shown)[:, 3:]
    for images, rest in zip(_numbers(pools.images), late, strict=True):
        assert sorted([*images, *rest]) == list(range(1, 9))
    # An image that came into the pool with this batch can be shown again within it.
    assert (late != np.arange(4, 9)).any() and np.isin(late, [4, 5]).any(axis=1).sum() > 25


def test_a_pool_of_one_keeps_whole_images():
    pool = Pool(jnp.full((1, 2, 3, 4), 7.0), jnp.int32(1))
    new = jnp.arange(24.0).reshape(1, 2, 3, 4)
    for seed in range(6):
        after, shown = exchange(pool, new, jax.random.key(seed))
        swapped = bool((shown == 7).all())
        np.testing.assert_array_equal(shown, pool.images if swapped else new)
        np.testing.assert_array_equal(after.images, new if swapped else pool.images)
