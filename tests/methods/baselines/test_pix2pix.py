import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.adversarial import cross_entropy, discriminator_loss, score
from cdm_jax.methods.baselines.pix2pix import HalvingUNet
from cdm_jax.nn.dropout import Dropout
from configs import common

TINY = {"data.size": 32, "pix2pix.halvings": 3}  # too few levels for dropout


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _network(**changes):
    settings = {"width": 2, "halvings": 6, "num_targets": 2, "dropout": 0.5}
    return HalvingUNet(**(settings | changes))


@pytest.fixture(scope="module")
def published():
    system = base.create(common.base("pix2pix"))
    batch = {name: jnp.zeros((1, 256, 256, 2)) for name in ("source", "target")}
    return system, jax.eval_shape(lambda key: system.init(key, batch, {}), jax.random.key(0))


@pytest.fixture(scope="module")
def still(start):
    """A system that never moves, its state and a batch."""
    method, state, batch = start("pix2pix", TINY, size=32)
    return dataclasses.replace(method, optimizer=optax.sgd(0.0)), state, batch


@pytest.fixture(scope="module")
def moved(start):
    """A system, its state before and after an update at a great rate, the batch and the metrics."""
    method, state, batch = start("pix2pix", TINY, size=32)
    method = dataclasses.replace(method, optimizer=optax.sgd(0.1))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(5))
    return method, state, after, batch, metrics


@pytest.fixture(scope="module")
def dropping():
    """A UNet with one level of dropout, its variables and images."""
    network, images = _network(), jax.random.normal(jax.random.key(1), (3, 64, 64, 2))
    init = jax.jit(network.init, static_argnums=2)
    return network, init(jax.random.key(0), images, False), images


# The networks.


def test_the_published_networks_have_the_published_size(published):
    system, state = published
    assert _size(state.params["generator"]) == 54_410_882
    assert _size(state.params["discriminator"]) == 2_766_657
    # A running mean and a variance of every feature that is normalized on the way down and up.
    down, up = [128, 256, 512, 512, 512, 512], [512, 512, 512, 512, 256, 128, 64]
    assert _size(state.statistics) == 2 * sum(down + up)
    assert (system.l1_weight, system.generator.dropout, system.paired) == (100, 0.5, True)


def _outputs(network, size, kind):
    """Shapes of what the layers of a kind return in training, in their order."""
    images = jnp.zeros((1, size, size, 2))
    variables = jax.eval_shape(lambda key: network.init(key, images, False), jax.random.key(0))

    def run(variables):
        return network.apply(
            variables,
            images,
            True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, kind),
        )[1].get("intermediates", {})

    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(jax.eval_shape(run, variables))]
    return sorted(shapes)


def test_eight_halvings_of_256_pixels_end_in_one(published):
    system, _ = published
    shapes = _outputs(system.generator, 256, nn.Conv)
    sides = [(256 // 2**level, 64 * min(2**level // 2, 8)) for level in range(1, 9)]
    assert shapes == sorted((side, side, channels) for side, channels in sides)


@pytest.mark.parametrize(
    ("halvings", "sides"), [(8, [4, 8, 16]), (7, [4, 8]), (6, [4]), (5, []), (9, [4, 8, 16])]
)
def test_dropout_is_in_the_widest_levels_above_the_deepest(halvings, sides):
    """At most three, as in "unet_256"; two in "unet_128"."""
    shapes = _outputs(_network(halvings=halvings), 2**halvings, Dropout)
    assert shapes == [(side, side, 16) for side in sides]


def test_pictures_of_other_shapes_and_numbers_of_modalities_come_out():
    network = _network(halvings=3, num_targets=3)
    images = jnp.zeros((2, 16, 24, 1))
    out, _ = jax.eval_shape(
        lambda key: network.init_with_output(key, images, False), jax.random.key(0)
    )
    assert out.shape == (2, 16, 24, 3)


def test_every_level_reaches_the_output_by_its_skip(dropping):
    """With the way through the deeper levels cut, each level's own features still count."""
    network, variables, images = dropping

    @jax.jit
    def paint(params):
        changed = {**variables, "params": params}
        rngs = {"dropout": jax.random.key(0)}
        return network.apply(changed, images, True, rngs=rngs, mutable=["batch_stats"])[0]

    params = jax.device_get(variables["params"])
    for level in range(network.halvings - 1):
        # ConvTranspose_0 is that of the deepest level; a norm's bias of 0 passes nothing on.
        name = f"ConvTranspose_{network.halvings - 2 - level}"
        deeper = params | {name: jax.tree.map(np.zeros_like, params[name])}
        encoder = f"Conv_{level}"
        changed = deeper | {encoder: jax.tree.map(np.negative, params[encoder])}
        assert jnp.abs(paint(deeper) - paint(changed)).max() > 1e-4, level


# Training.


def _flat(state, value):
    """The state with a discriminator that gives every pair the same logit."""
    discriminator = dict(state.params["discriminator"])
    last = discriminator["Conv_4"]["conv"]
    last = {"kernel": jnp.zeros_like(last["kernel"]), "bias": jnp.full_like(last["bias"], value)}
    discriminator["Conv_4"] = {"conv": last}
    return state.replace(params={**state.params, "discriminator": discriminator})


@pytest.mark.parametrize("logit", [0.0, 1.5])
def test_the_losses_are_the_published_ones(still, logit):
    method, state, batch = still
    painted = _training_images(method, state, batch["source"])
    l1 = np.abs(np.asarray(painted) - np.asarray(batch["target"])).mean()
    _, metrics = jax.jit(method.update)(_flat(state, logit), batch, jax.random.key(0))
    called_real = 1 / (1 + np.exp(-logit))  # probability
    assert metrics["l1"] == pytest.approx(l1, rel=1e-4)
    assert metrics["loss"] == pytest.approx(-np.log(called_real) + 100 * l1, rel=1e-4)
    expected = -(np.log(called_real) + np.log(1 - called_real)) / 2
    assert metrics["discriminator_loss"] == pytest.approx(expected, rel=1e-4)


def _training_images(method, state, sources):
    variables = {"params": state.params["generator"], "batch_stats": state.statistics["generator"]}
    rngs = {"dropout": jax.random.key(0)}
    return method.generator.apply(variables, sources, True, rngs=rngs, mutable=["batch_stats"])[0]


def test_the_discriminator_plays_first_against_the_generator_of_before(moved):
    method, before, after, batch, metrics = moved
    painted = _training_images(method, before, batch["source"])

    def logits(state, targets):
        pairs = jnp.concatenate([batch["source"], targets], axis=-1)
        return score(method.discriminator, state.params["discriminator"], pairs)

    l1 = float(jnp.abs(painted - batch["target"]).mean())
    old, new = (float(cross_entropy(logits(state, painted), True)) for state in (before, after))
    assert abs(new - old) > 0.01
    assert metrics["loss"] == pytest.approx(new + 100 * l1, rel=1e-5)
    assert metrics["adversarial"] == pytest.approx(new, rel=1e-3)
    judged = discriminator_loss(
        cross_entropy, logits(before, batch["target"]), logits(before, painted)
    )
    assert metrics["discriminator_loss"] == pytest.approx(float(judged), rel=1e-4)


def test_an_update_moves_both_networks_and_the_running_means(moved, same):
    _, before, after, _, metrics = moved
    assert set(metrics) == {"loss", "discriminator_loss", "adversarial", "l1"}
    for one, other in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True
    ):
        assert (np.asarray(one) != np.asarray(other)).any()
    assert not same(before.statistics, after.statistics)
    assert after.step == before.step + 1
    assert not after.memory and not after.frozen


def test_running_means_take_a_tenth_of_every_batch_once(still):
    """Of a batch that stays the same, n updates leave 0.9^n to be learned."""
    method, state, batch = still
    update = jax.jit(method.update)
    first, _ = update(state, batch, jax.random.key(0))
    second, _ = update(first, batch, jax.random.key(1))
    norms = zip(*(jax.tree.leaves_with_path(s.statistics) for s in (first, second)), strict=True)
    for (path, one), (_, two) in norms:
        fresh = 1.0 if path[-1].key == "var" else 0.0
        np.testing.assert_allclose(two - fresh, 1.9 * (one - fresh), rtol=1e-3, atol=1e-5)


def test_the_discriminator_sees_the_source_beside_the_image(still):
    """Two-channel sources and targets make pairs of four channels, and the sources matter."""
    method, state, batch = still
    kernel = state.params["discriminator"]["Conv_0"]["conv"]["kernel"]
    assert kernel.shape == (4, 4, 4, 4)
    update = jax.jit(lambda state: method.update(state, batch, jax.random.key(0))[1])
    for channels in (slice(0, 2), slice(2, 4)):
        discriminator = dict(state.params["discriminator"])
        conv = discriminator["Conv_0"]["conv"]
        blind = conv | {"kernel": kernel.at[:, :, channels].set(0)}
        discriminator["Conv_0"] = {"conv": blind}
        changed = state.replace(params={**state.params, "discriminator": discriminator})
        difference = update(changed)["adversarial"] - update(state)["adversarial"]
        assert abs(difference) > 1e-6


# Dropout and synthesis.


def test_in_training_dropout_follows_the_key(dropping):
    network, variables, images = dropping

    @jax.jit
    def paint(key):
        rngs = {"dropout": key}
        return network.apply(variables, images, True, rngs=rngs, mutable=["batch_stats"])[0]

    one, again, other = (paint(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).max() > 0


def test_both_networks_see_the_same_dropout(start):
    """A discriminator that has just seen the images scores those same ones: D then G, one pass."""
    changes = {"data.size": 64, "pix2pix.halvings": 6, "pix2pix.dropout": 0.9}
    method, state, batch = start("pix2pix", changes, size=64, number=2)
    seen = []
    score_of = type(method)._score

    class Watched(type(method)):
        def _score(self, params, sources, targets):
            seen.append(targets)
            return score_of(self, params, sources, targets)

    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    watched = Watched(**fields)
    synthetic, _ = jax.jit(method._paint)(
        state.params["generator"], state, batch["source"], jax.random.key(3)
    )

    @jax.jit
    def scored(state, batch, synthetic):
        watched._discriminator_loss(state.params["discriminator"], batch, synthetic)
        watched._generator_loss(state.params["generator"], state, batch, jax.random.key(3))
        return seen[1:]

    first, second = scored(state, batch, synthetic)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_synthesis_is_without_dropout_and_of_each_image_by_itself(dropping, still):
    method, _, _ = still
    network, variables, images = dropping
    method = dataclasses.replace(method, generator=network)
    statistics = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    model = {
        "params": {"generator": variables["params"]},
        "statistics": {"generator": statistics},
        "frozen": {},
    }
    translate = jax.jit(method.translate, static_argnums=3)
    together = translate(model, images, jax.random.key(0), 2)
    assert together.shape == (1, *images.shape)
    np.testing.assert_array_equal(together, translate(model, images, jax.random.key(1), 2))
    generate = jax.jit(method.generate)
    alone = generate(model, images[:1])
    np.testing.assert_allclose(alone, together[0, :1], atol=1e-6)
    certain = dataclasses.replace(method, generator=_network(dropout=0.0))
    np.testing.assert_array_equal(jax.jit(certain.generate)(model, images), together[0])
    fresh = generate(model | {"statistics": {"generator": variables["batch_stats"]}}, images)
    assert jnp.abs(fresh - together[0]).max() > 0  # the running means do count


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.size": 36}, "multiple of 8"),
        ({"data.size": 16}, "24 pixels or more"),
        ({"pix2pix.halvings": 1}, "halvings 1 are too few"),
        ({"pix2pix.dropout": 1.0}, r"dropout is 1.0: it must be in"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_way_out(create, changes, said):
    with pytest.raises(UserError, match=said):
        create("pix2pix", TINY | changes)
