import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines import diffusion
from cdm_jax.nn.adm import ADM
from configs import common

TINY = {"width": 4, "multipliers": (1,), "attention": (), "average_decay": 0.99}


def _config(changes=None, size=16):
    config = common.smoke(common.base("diffusion"))
    config.data.size = size
    config.diffusion.update(TINY | (changes or {}))
    return config


@pytest.fixture(scope="module")
def begun(images):
    """A tiny system, its fresh state, and a batch of that shape."""
    method, batch = diffusion.create(_config()), images(0)
    state = jax.jit(lambda key: method.init(key, batch, {}))(jax.random.key(0))
    return method, state, batch


@pytest.fixture(scope="module")
def model(begun, stir):
    """A model whose network answers more than zero."""
    return {"params": stir(begun[1].params)}


def test_the_paper_scale_network_is_the_published_one():
    """Two sources and two noised targets in, the noise of both targets out."""
    method = diffusion.create(common.base("diffusion"))
    images = jax.ShapeDtypeStruct((1, 256, 256, 2), jnp.float32)
    batch = {"source": images, "target": images}
    state = jax.eval_shape(method.init, jax.random.key(0), batch, {})
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 311_017_538
    assert method.network.attention == (3, 4, 5)
    assert method.sampler.prediction == "noise"
    assert method.sampler.clip == 1.0


def test_the_loss_is_that_of_the_noise_which_was_added(begun):
    """A predictor that knows the clean images can work the noise out, one that is blind cannot."""
    method, _, batch = begun
    table = jnp.asarray(method.sampler.alpha_bar, jnp.float32)

    def knows(x_t, t):
        signal = table[t][:, None, None, None]
        return (x_t - jnp.sqrt(signal) * batch["target"]) / jnp.sqrt(1 - signal)

    seen = []

    def blind(x_t, t):
        seen.append((x_t, t))
        return jnp.zeros_like(x_t)

    def loss(predict, target):
        errors, _ = method.sampler.errors(predict, target, jax.random.key(1))
        return float(jnp.mean(errors**2))

    assert loss(knows, batch["target"]) == pytest.approx(0, abs=1e-4)
    power = loss(blind, batch["target"])
    ((x_t, t),) = seen
    assert power == pytest.approx(float(jnp.mean(knows(x_t, t) ** 2)), rel=1e-3)
    assert len(set(t.tolist())) > 1
    assert int(t.min()) >= 0 and int(t.max()) < 1000


@pytest.mark.slow
def test_training_starts_at_the_noises_power_and_moves_the_average_behind_the_parameters(
    begun, train
):
    method, state, batch = begun
    method = dataclasses.replace(method, optimizer=optax.adam(3e-3))
    state = base.new_state(state.params, method.optimizer, averaged=True, frozen={})
    trained, losses = train(method, state, batch, 120)
    assert float(losses[0]) == pytest.approx(1, abs=0.1)  # a fresh network answers zero
    assert losses[-30:].mean() < 0.6
    assert int(trained.step) == 120

    def distance(one, other):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return sum(float(((a - b) ** 2).sum()) for a, b in pairs)

    moved = distance(trained.params, state.params)
    assert 0 < distance(trained.average, trained.params) < moved
    assert base.model_of(trained)["params"] is trained.average


def test_samples_are_in_range_and_follow_from_key_and_sources(begun, model, images):
    method, _, batch = begun
    translate = jax.jit(method.translate, static_argnums=3)
    one = np.asarray(translate(model, batch["source"], jax.random.key(1), 3))
    assert one.shape == (3, *batch["target"].shape)
    assert np.abs(one).max() <= 1
    assert (one[0] != one[1]).mean() > 0.5
    np.testing.assert_array_equal(one, translate(model, batch["source"], jax.random.key(1), 3))
    mixed = batch["source"].at[1].set(images(9)["source"][1])
    changed = (np.asarray(translate(model, mixed, jax.random.key(1), 3)) != one).mean(
        axis=(0, 2, 3, 4)
    )
    assert changed[1] > 0.3
    np.testing.assert_array_equal(changed[[0, 2, 3]], 0)


def test_sampling_denoises_with_the_network_it_was_given(begun):
    """A network that knows the answer leads every sample there, whatever the noise."""
    method, _, batch = begun
    table = jnp.asarray(method.sampler.alpha_bar, jnp.float32)

    class Oracle(ADM):
        def __call__(self, x, t, condition=None, train=False):
            x_t, sources = x[..., :2], x[..., 2:]
            signal = table[t][:, None, None, None]
            return (x_t - jnp.sqrt(signal) * 0.5 * sources) / jnp.sqrt(1 - signal)

    fields = {f.name: getattr(method.network, f.name) for f in dataclasses.fields(ADM)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    oracle = dataclasses.replace(method, network=Oracle(**fields))
    found = jax.jit(oracle.translate, static_argnums=3)(
        {"params": {}}, batch["source"], jax.random.key(0), 2
    )
    expected = np.broadcast_to(0.5 * batch["source"], found.shape)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_any_number_of_modalities_fits(images):
    config = _config()
    config.data.sources, config.data.targets = ("t1", "t2", "t2f"), ("t1c",)
    method, batch = diffusion.create(config), images(0, sources=3, targets=1)
    state = jax.eval_shape(method.init, jax.random.key(0), batch, {})
    state, _ = jax.eval_shape(method.update, state, batch, jax.random.key(0))
    found = jax.eval_shape(
        lambda *given: method.translate(*given, 2),
        base.model_of(state),
        batch["source"],
        jax.random.key(0),
    )
    assert found.shape == (2, *batch["target"].shape)


def test_it_is_stochastic_builds_on_nothing_and_has_no_audits(begun):
    method = begun[0]
    assert isinstance(method, base.Translator)
    assert method.stochastic and method.paired
    assert method.depends_on == () and method.audits(4) == {}


def test_its_card_says_how_it_is_sampled(begun):
    method = begun[0]
    assert method.facts() == {"sampler": f"DDIM, {method.sampler.num_steps} steps, eta 0"}
    assert any("deviation of the samples" in limit for limit in method.limits())


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"prediction": "epsilon"}, 16, "unknown diffusion.prediction 'epsilon': allowed are x0"),
        ({"heads": 3}, 16, "diffusion.heads 3 do not divide 4 channels"),
        ({"attention": (5,), "multipliers": (1, 2)}, 16, "maps of 5 pixels.*have 16, 8; choose"),
        ({"multipliers": (1, 2)}, 17, "17 pixels cannot be halved 1 times.*multiple of 2"),
        ({"schedule": "quadratic"}, 16, "unknown noise schedule 'quadratic'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes, size, message):
    with pytest.raises(UserError, match=message):
        diffusion.create(_config(changes, size))
