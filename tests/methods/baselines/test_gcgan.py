import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.gcgan import GcGAN, rotate
from configs import common

# Brighter to the right and further down, without two pixels that a quarter turn makes equal.
ROW, COLUMN = np.mgrid[:4, :4].astype(np.float32)
RAMP = COLUMN + np.float32(0.4) * ROW
# Mean distance between the ramp and the rotated ramp: a quarter turn exchanges rows and columns.
MOVED = np.abs(0.6 * COLUMN + 1.4 * ROW - 3).mean()


class Shaded(nn.Module):
    """A generator that multiplies images with the ramp: it commutes with nothing."""

    @nn.compact
    def __call__(self, images):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * images * RAMP[None, :, :, None]


class Corner(nn.Module):
    """A discriminator whose score is the upper left pixel and a shift."""

    @nn.compact
    def __call__(self, images):
        return images[:, :1, :1, :1] + self.param("shift", nn.initializers.zeros, ())


class Affine(nn.Module):
    """A generator that commutes with everything that moves pixels."""

    @nn.compact
    def __call__(self, images):
        return self.param("scale", nn.initializers.ones, ()) * images + 0.1


def _known(*, rate=0.0, generator=None, source=None, **weights):
    """A system whose losses are known; sources are ones, targets count the pixels."""
    system = GcGAN(
        generator=generator or Shaded(),
        discriminator=Corner(),
        optimizer=optax.sgd(rate),
        pool=4,
        **({"geometry_weight": 20.0, "identity_weight": 0.0} | weights),
    )
    ones = jnp.ones((2, 4, 4, 1))
    target = jnp.broadcast_to(jnp.arange(16.0).reshape(1, 4, 4, 1) / 16, ones.shape)
    batch = {"source": ones if source is None else source, "target": target}
    params = {
        "generator": {"scale": jnp.float32(0.5)},
        "discriminator": {
            "plain": {"shift": jnp.float32(0.5)},
            "transformed": {"shift": jnp.float32(0.2)},
        },
    }
    return system, jax.jit(system.init)(jax.random.key(0), batch, {}).replace(params=params), batch


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def published():
    system = base.create(common.base("gcgan"))
    batch = {name: jnp.zeros((1, 256, 256, 2)) for name in ("source", "target")}
    return system, jax.eval_shape(lambda key: system.init(key, batch, {}), jax.random.key(0))


def test_the_published_networks_have_the_published_size(published):
    _, state = published
    assert _size(state.params["generator"]) == 11_371_906
    for frame in ("plain", "transformed"):
        assert _size(state.params["discriminator"][frame]) == 2_763_713
        assert state.memory[frame].images.shape == (50, 256, 256, 2)


def test_the_published_settings(published):
    system, _ = published
    assert (system.geometry_weight, system.identity_weight) == (20, 5)
    assert system.pool == 50 and not system.paired
    assert system.generator.initial == system.discriminator.initial == "xavier"


def test_the_rotation_is_clockwise_and_can_be_undone():
    images = jnp.array([[1, 2], [3, 4]], jnp.float32)[None, :, :, None]
    np.testing.assert_array_equal(rotate(images)[0, :, :, 0], [[3, 1], [4, 2]])
    np.testing.assert_array_equal(rotate(rotate(images), -1), images)


def test_a_generator_that_commutes_with_the_rotation_loses_nothing_by_it():
    source = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))
    system, state, batch = _known(generator=Affine(), source=source)
    _, metrics = system.update(state, batch, jax.random.key(0))
    assert metrics["geometry"] == 0
    assert metrics["loss"] == metrics["adversarial"]


def test_a_generator_that_does_not_commute_loses_the_distance_in_both_frames():
    system, state, batch = _known()
    _, metrics = system.update(state, batch, jax.random.key(0))
    distance = 2 * 0.5 * MOVED
    assert metrics["geometry"] == pytest.approx(distance, rel=1e-5)
    assert metrics["loss"] - metrics["adversarial"] == pytest.approx(20 * distance, rel=1e-5)


def test_each_frame_learns_from_the_other_one_held_fixed():
    """At each pixel the slopes of both terms are those of one distance: held fixed, it is half.

    The upper left pixel of the ramp is 0, so the discriminators have no part in the slope.
    """
    system, state, batch = _known(rate=0.001)
    after, _ = system.update(state, batch, jax.random.key(0))
    moved = float(after.params["generator"]["scale"])
    assert moved == pytest.approx(0.5 - 0.001 * 20 * MOVED, rel=1e-4)


def test_the_identity_counts_in_both_frames():
    """Targets of one intensity q: the loss is |q| times the mean of |ramp / 2 - 1|, twice."""
    system, state, batch = _known(identity_weight=5.0, geometry_weight=0.0)
    batch["target"] = jnp.full((2, 4, 4, 1), -0.8)
    _, metrics = system.update(state, batch, jax.random.key(0))
    identity = 0.8 * np.abs(RAMP / 2 - 1).mean()
    assert metrics["loss"] - metrics["adversarial"] == pytest.approx(5 * 2 * identity, rel=1e-5)


def test_each_discriminator_sees_its_own_frame_of_real_and_synthetic_images():
    """The upper left pixel is the lower left one of before, after a clockwise turn."""
    source = jnp.broadcast_to(jnp.arange(16.0).reshape(1, 4, 4, 1) / 4, (2, 4, 4, 1))
    system, state, batch = _known(generator=Affine(), source=source)
    _, metrics = system.update(state, batch, jax.random.key(0))
    synthetic = {"plain": 0.1, "transformed": 0.5 * 12 / 4 + 0.1}
    real = {"plain": 0.0, "transformed": 12 / 16}
    shift = {"plain": 0.5, "transformed": 0.2}
    adversarial = sum((synthetic[k] + shift[k] - 1) ** 2 for k in shift)
    assert metrics["adversarial"] == pytest.approx(adversarial, rel=1e-5)
    judged = [(real[k] + shift[k] - 1) ** 2 + (synthetic[k] + shift[k]) ** 2 for k in shift]
    assert metrics["discriminator_loss"] == pytest.approx(sum(judged) / 2, rel=1e-5)


def test_the_generator_plays_first_and_both_losses_are_of_the_networks_before():
    settings = {"generator": Affine(), "identity_weight": 5.0}
    system, state, batch = _known(**settings)
    still, before = system.update(state, batch, jax.random.key(0))
    assert jax.tree.map(float, still.params) == jax.tree.map(float, state.params)
    system, state, batch = _known(rate=0.1, **settings)
    after, metrics = system.update(state, batch, jax.random.key(0))
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, before))
    assert abs(after.params["generator"]["scale"] - 0.5) > 0.01
    for frame, params in state.params["discriminator"].items():
        assert abs(after.params["discriminator"][frame]["shift"] - params["shift"]) > 0.01


def test_pools_store_each_frame_by_itself():
    system, state, batch = _known()
    after, _ = system.update(state, batch, jax.random.key(0))
    for frame in ("plain", "transformed"):  # ones stay ones when they are rotated
        pool = after.memory[frame]
        assert pool.filled == 2
        np.testing.assert_allclose(pool.images[1, ..., 0], 0.5 * RAMP, rtol=1e-6)
    source = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (2, 4, 4, 1))
    system, state, batch = _known(generator=Affine(), source=source)
    after, _ = system.update(state, batch, jax.random.key(0))
    row = np.arange(4.0)
    plain, turned = (after.memory[k].images[0, ..., 0] for k in ("plain", "transformed"))
    np.testing.assert_allclose(plain, np.tile(0.5 * row[:, None] + 0.1, (1, 4)), rtol=1e-6)
    np.testing.assert_allclose(turned, np.tile(0.5 * row[::-1] + 0.1, (4, 1)), rtol=1e-6)


def test_an_update_moves_the_networks_and_nothing_else(start, same):
    changes = {"data.size": 32, "gcgan.blocks": 1}
    method, state, batch = start("gcgan", changes, size=32)
    method = dataclasses.replace(method, optimizer=optax.sgd(0.01))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(0))
    assert set(metrics) == {"loss", "discriminator_loss", "adversarial", "geometry"}
    assert all(np.isfinite(value) for value in metrics.values())
    assert not same(after.params["generator"], state.params["generator"])
    for frame, params in state.params["discriminator"].items():
        assert not same(after.params["discriminator"][frame], params)
    assert after.step == state.step + 1
    assert same((after.statistics, after.frozen), (state.statistics, state.frozen))
    translate = jax.jit(method.translate, static_argnums=3)
    images = translate(base.model_of(after), batch["source"], jax.random.key(0), 1)
    assert images.shape == (1, *batch["target"].shape) and jnp.abs(images).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.size": 34}, "multiple of 4"),
        ({"data.sources": ("t1",)}, "identity_weight=0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_way_out(create, changes, said):
    with pytest.raises(UserError, match=said):
        create("gcgan", {"data.size": 32} | changes)
