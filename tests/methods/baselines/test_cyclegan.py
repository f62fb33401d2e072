import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.adversarial import Pool
from cdm_jax.methods.baselines.cyclegan import CycleGAN
from configs import common

SOURCE, TARGET = 0.4, -0.4  # images of one intensity, for which all losses are known


class Affine(nn.Module):
    """Each pixel by itself: a generator and a discriminator whose results are known."""

    @nn.compact
    def __call__(self, images):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * images + self.param("shift", nn.initializers.zeros, ())


def _affine(scale, shift):
    return {"scale": jnp.float32(scale), "shift": jnp.float32(shift)}


def _known(rate, *, pool=4, number=2, **weights):
    """A system of affine networks, its state and a batch of constant images."""
    system = CycleGAN(
        to_target=Affine(),
        to_source=Affine(),
        discriminator=Affine(),
        optimizer=optax.sgd(rate),
        pool=pool,
        **({"cycle_weight": 10.0, "identity_weight": 5.0} | weights),
    )
    images = jnp.ones((number, 2, 2, 1))
    batch = {"source": SOURCE * images, "target": TARGET * images}
    params = {
        "generator": {"to_target": _affine(0.5, 0.1), "to_source": _affine(2, -0.3)},
        "discriminator": {"target": _affine(1, 0.5), "source": _affine(-1, 0.25)},
    }
    return system, jax.jit(system.init)(jax.random.key(0), batch, {}).replace(params=params), batch


# What the affine generators make of the constant images.
SYNTHETIC = {"target": 0.5 * SOURCE + 0.1, "source": 2 * TARGET - 0.3}  # 0.3 and -1.1
ADVERSARIAL = (0.3 + 0.5 - 1) ** 2 + (1.1 + 0.25 - 1) ** 2
CYCLE = abs(2 * 0.3 - 0.3 - SOURCE) + abs(0.5 * -1.1 + 0.1 - TARGET)
IDENTITY = abs(0.5 * TARGET + 0.1 - TARGET) + abs(2 * SOURCE - 0.3 - SOURCE)
# Half of what is real and half of what is not, in the target's and in the source's domain.
TARGET_LOSS = ((-0.4 + 0.5 - 1) ** 2 + (0.3 + 0.5) ** 2) / 2
SOURCE_LOSS = ((-0.4 + 0.25 - 1) ** 2 + (1.1 + 0.25) ** 2) / 2


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def published():
    system = base.create(common.base("cyclegan"))
    batch = {name: jnp.zeros((1, 256, 256, 2)) for name in ("source", "target")}
    return system, jax.eval_shape(lambda key: system.init(key, batch, {}), jax.random.key(0))


def test_the_published_networks_have_the_published_size(published):
    _, state = published
    for direction in ("to_target", "to_source"):
        assert _size(state.params["generator"][direction]) == 11_371_906
    for domain in ("target", "source"):
        assert _size(state.params["discriminator"][domain]) == 2_763_713
        assert state.memory[domain].images.shape == (50, 256, 256, 2)
    assert not state.statistics and not state.average


def test_the_published_settings(published):
    system, _ = published
    assert (system.cycle_weight, system.identity_weight, system.pool) == (10, 5, 50)
    assert not system.paired
    assert base.create(common.base("pix2pix")).paired


def test_the_losses_are_the_published_sum():
    system, state, batch = _known(0.0)
    _, metrics = system.update(state, batch, jax.random.key(0))
    assert metrics["adversarial"] == pytest.approx(ADVERSARIAL, rel=1e-5)
    assert metrics["cycle"] == pytest.approx(CYCLE, rel=1e-5)
    expected = ADVERSARIAL + 10 * CYCLE + 5 * IDENTITY
    assert expected == pytest.approx(3.6625)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["discriminator_loss"] == pytest.approx(TARGET_LOSS + SOURCE_LOSS, rel=1e-5)


def test_the_generators_play_first_and_both_losses_are_of_the_networks_before():
    """Had one network moved before, the other one's loss would be another at this rate."""
    system, state, batch = _known(0.01)
    _, metrics = system.update(state, batch, jax.random.key(0))
    expected = ADVERSARIAL + 10 * CYCLE + 5 * IDENTITY
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["discriminator_loss"] == pytest.approx(TARGET_LOSS + SOURCE_LOSS, rel=1e-5)


def test_the_cycle_teaches_both_generators():
    """The slope of the loss in to_target's shift, term by term.

    Adversarial: 2 (0.8 - 1); the cycle of sources: it lacks 0.1 after a doubling by to_source; the
    cycle of targets lacks 0.05; the identity is 0.3 too bright.
    """
    system, state, batch = _known(0.01)
    after, _ = system.update(state, batch, jax.random.key(0))
    slope = -0.4 - 10 * 2 - 10 * 1 + 5 * 1
    moved = after.params["generator"]["to_target"]["shift"]
    assert moved == pytest.approx(0.1 - 0.01 * slope, rel=1e-4)


def test_discriminators_learn_from_their_own_domain():
    """The slope of each loss in the shift: the mean of the residuals of real and synthetic."""
    system, state, batch = _known(0.01)
    after, _ = system.update(state, batch, jax.random.key(0))
    found = {name: params["shift"] for name, params in after.params["discriminator"].items()}
    assert found["target"] == pytest.approx(0.5 - 0.01 * (-0.9 + 0.8), rel=1e-4)
    assert found["source"] == pytest.approx(0.25 - 0.01 * (-1.15 + 1.35), rel=1e-4)


def test_without_its_weight_the_identity_is_left_out(create, images):
    changes = {
        "data.size": 32,
        "data.targets": ("a", "b", "c"),
        "cyclegan.identity_weight": 0.0,
        "cyclegan.blocks": 1,
    }
    system, batch = create("cyclegan", changes), images(0, targets=3, size=32)
    state = jax.eval_shape(lambda key: system.init(key, batch, {}), jax.random.key(0))
    after, metrics = jax.eval_shape(system.update, state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
    assert state.memory["source"].images.shape == (4, 32, 32, 2)
    assert state.memory["target"].images.shape == (4, 32, 32, 3)
    known, state, batch = _known(0.0, identity_weight=0.0)
    _, metrics = known.update(state, batch, jax.random.key(0))
    assert metrics["loss"] == pytest.approx(ADVERSARIAL + 10 * CYCLE, rel=1e-5)


def test_pools_store_what_the_generators_made():
    system, state, batch = _known(0.01)
    after, _ = system.update(state, batch, jax.random.key(0))
    for domain, value in SYNTHETIC.items():
        assert after.memory[domain].filled == 2
        np.testing.assert_allclose(after.memory[domain].images[:2], value, rtol=1e-5)
        np.testing.assert_array_equal(after.memory[domain].images[2:], 0)
    assert after.step == 1


def test_discriminators_are_shown_past_images_by_chance_in_each_domain_by_itself():
    system, state, batch = _known(0.0, pool=1, number=1)
    past = {"target": 0.9, "source": -0.9}
    memory = {
        name: Pool(value * jnp.ones((1, 2, 2, 1)), jnp.int32(1)) for name, value in past.items()
    }
    state = state.replace(memory=memory)
    keys = jax.random.split(jax.random.key(0), 400)
    after, metrics = jax.jit(jax.vmap(lambda key: system.update(state, batch, key)))(keys)
    stored = {name: np.asarray(pool.images)[:, 0, 0, 0, 0] for name, pool in after.memory.items()}
    swapped = {name: np.isclose(stored[name], SYNTHETIC[name]) for name in past}
    for name, value in past.items():
        assert np.isclose(stored[name], value)[~swapped[name]].all()
        assert swapped[name].mean() == pytest.approx(0.5, abs=0.125)
    assert abs(np.corrcoef(swapped["target"], swapped["source"])[0, 1]) < 0.25
    change = swapped["target"] * ((0.9 + 0.5) ** 2 - (0.3 + 0.5) ** 2) / 2
    change = change + swapped["source"] * ((0.9 + 0.25) ** 2 - (1.1 + 0.25) ** 2) / 2
    found = metrics["discriminator_loss"]
    np.testing.assert_allclose(found, TARGET_LOSS + SOURCE_LOSS + change, rtol=1e-5)


def test_synthesis_takes_the_generator_to_the_targets():
    system, state, batch = _known(0.0)
    model = base.model_of(state)
    images = system.translate(model, batch["source"], jax.random.key(0), 3)
    assert images.shape == (1, 2, 2, 2, 1)  # one translation, whatever was asked for
    np.testing.assert_allclose(images, SYNTHETIC["target"], rtol=1e-6)


@pytest.mark.slow
def test_only_the_networks_their_optimizers_and_the_pools_change(start, same):
    changes = {"data.size": 32, "cyclegan.blocks": 1, "cyclegan.optimizer.warmup_steps": 0}
    method, state, batch = start("cyclegan", changes, size=32)
    method = dataclasses.replace(method, optimizer=optax.sgd(0.01))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(0))
    assert set(metrics) == {"loss", "discriminator_loss", "adversarial", "cycle"}
    assert all(np.isfinite(value) for value in metrics.values())
    for network, networks in state.params.items():
        for name, params in networks.items():
            assert not same(after.params[network][name], params)
    assert after.step == state.step + 1
    assert same((after.statistics, after.frozen), (state.statistics, state.frozen))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.size": 30}, "multiple of 4"),
        ({"data.size": 20}, "24 pixels or more"),
        ({"cyclegan.blocks": 0}, "blocks 0"),
        ({"cyclegan.pool": 0}, "pool 0"),
        ({"data.targets": ("t1c",)}, "identity_weight=0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_way_out(create, changes, said):
    with pytest.raises(UserError, match=said):
        create("cyclegan", {"data.size": 32} | changes)
