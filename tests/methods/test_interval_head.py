"""The head for the ends of an interval: what it learns, and from what."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdm_jax import shipped
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.cdm.cunet import pinball_loss
from cdm_jax.methods.cdm.cunet_network import HEAD, IntervalHead
from cdm_jax.pattern import for_pattern
from configs import common
from configs.cdm import ALL

QUANTILES = (0.05, 0.95)
WITH = {"m1.quantiles": QUANTILES, "cunet.quantiles": QUANTILES}


@pytest.fixture(scope="module")
def frozen(start, stir):
    """A finished MRM and an MDN with arbitrary parameters."""
    mrm, state, batch = start("mrm")
    state = mrm.finish(state, lambda: [batch], list, jax.random.key(0))
    models = {"mrm": {"params": state.params, "statistics": state.statistics}}
    _, state, _ = start("mdn", None, models)
    statistics = state.statistics | {"error_factor": 0.3 * jnp.eye(16)}
    return models | {"mdn": {"params": stir(state.params), "statistics": statistics}}


# The loss.


@pytest.mark.parametrize("quantile", [0.05, 0.3, 0.5, 0.95])
def test_the_empirical_quantile_minimizes_the_pinball_loss(quantile):
    """Found by trying every value; NumPy says what the quantile is."""
    values = np.random.default_rng(0).gamma(2, size=61).astype(np.float32)
    truth = jnp.asarray(values)[:, None, None, None]

    def loss(end):
        ends = jnp.full((1, 61, 1, 1, 1), end)
        return pinball_loss(ends, truth, (quantile,), jnp.ones_like(truth))

    best = min(values, key=lambda value: float(loss(value)))
    assert best == np.quantile(values, quantile, method="inverted_cdf")


def test_the_pinball_loss_is_the_mean_of_what_counts():
    truth = jnp.array([1.0, 1.0, 9.0]).reshape(3, 1, 1, 1)
    ends = jnp.stack([jnp.zeros_like(truth), 2 + jnp.zeros_like(truth)])
    weight = jnp.array([1.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
    # The truth is above the lower end by 1, and below the upper one by 1; the third is not seen.
    expected = (0.1 * 1 + (1 - 0.8) * 1) / 2
    assert float(pinball_loss(ends, truth, (0.1, 0.8), weight)) == pytest.approx(expected)
    assert float(pinball_loss(ends, truth, (0.1, 0.8), 0 * weight)) == 0


# The head.


def test_ends_never_cross_the_mean_whatever_the_parameters_are(stir):
    head, key = IntervalHead(8), jax.random.key(0)
    x, mean = 5 * jax.random.normal(key, (2, 4, 4, 6)), jax.random.normal(key, (2, 4, 4, 3))
    params, apply = jax.jit(head.init)(key, x, mean), jax.jit(head.apply)
    for seed in range(5):
        made, lower, upper = apply(stir(params, seed=seed, scale=30.0), x, mean)
        np.testing.assert_array_equal(made, mean)
        assert (lower <= mean).all() and (mean <= upper).all()
        assert (lower < upper).any()


@pytest.mark.parametrize("stage", ["m1", "cunet"])
def test_ends_teach_the_features_and_not_the_output_layer_of_the_mean(start, frozen, stage):
    """A loss of the ends alone has a gradient before that layer and none in it."""
    method, state, batch = start(stage, WITH, frozen if stage == "cunet" else None)
    y = jnp.zeros((4, 16)) if stage == "cunet" else None

    def ends(params):
        made = method.network.apply({"params": params}, batch["source"], y, True)
        return jnp.abs(made[1:] - 3.0).sum()

    found = jax.jit(jax.grad(ends))(state.params["network"])
    last = max((n for n in found if n.startswith("Conv_")), key=lambda n: int(n[5:]))
    assert found[last]["kernel"].shape[-1] == 2  # of the two targets
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found[last]))
    for name in ("ConvBlock_0", HEAD):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(found[name]))


@pytest.mark.parametrize("stage", ["m1", "cunet"])
def test_a_system_without_quantiles_has_no_head(start, frozen, stage):
    method, state, batch = start(stage, None, frozen if stage == "cunet" else None)
    assert HEAD not in state.params["network"]
    arguments = base.model_of(state), batch["source"], jax.random.key(9), 2
    assert jax.jit(method.predict, static_argnums=3)(*arguments).keys() == {"mean"}


def test_ends_become_the_quantiles_of_noise_that_nothing_predicts():
    """The truth is noise of two sizes, which a feature tells apart; the mean is zero."""
    head, key = IntervalHead(8), jax.random.key(0)
    loud = jnp.arange(512).reshape(2, 16, 16, 1) % 2 == 0
    features, size = jnp.where(loud, 0.5, -0.5), jnp.where(loud, 0.8, 0.2)
    mean, optimizer = jnp.zeros((2, 16, 16, 2)), optax.adam(2e-2)
    params = head.init(key, features, mean)

    def loss(params, noise):
        ends = head.apply(params, features, mean)[1:]
        return pinball_loss(ends, size * noise, QUANTILES, jnp.ones_like(noise))

    def step(carry, key):
        params, state = carry
        noise = jax.random.uniform(key, mean.shape, minval=-1.0)
        changes, state = optimizer.update(jax.grad(loss)(params, noise), state)
        return (optax.apply_updates(params, changes), state), 0.0

    carry = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(key, 300)))(carry)
    _, lower, upper = head.apply(params, features, mean)
    # Of a uniform distribution on [-size, size], 5 and 95 % lie below 0.9 of its ends.
    np.testing.assert_allclose(upper, np.broadcast_to(0.9 * size, upper.shape), rtol=0.1)
    np.testing.assert_allclose(lower, np.broadcast_to(-0.9 * size, lower.shape), rtol=0.1)


def test_the_background_teaches_the_ends_nothing(start, same):
    """Where no source shows a brain, any truth gives the head the same update."""
    method, state, batch = start("m1", WITH | {"m1.optimizer.clip": 0.0})  # by the norm of all
    outside = np.zeros((4, 16, 16, 1), bool)
    outside[:, :6] = True
    batch["source"] = jnp.where(outside, -1.0, batch["source"])
    other = batch | {"target": jnp.where(outside, 0.7, batch["target"])}
    update = jax.jit(method.update)
    heads = [update(state, b, jax.random.key(0))[0].params["network"][HEAD] for b in (batch, other)]
    assert same(*heads)
    inside = batch | {"target": jnp.where(outside, batch["target"], 0.7)}
    assert not same(heads[0], update(state, inside, jax.random.key(0))[0].params["network"][HEAD])


# The method.


def test_every_sample_has_ends_of_its_own_around_it(start, frozen, stir):
    method, state, batch = start("cunet", WITH, frozen)
    model = base.model_of(state.replace(params=stir(state.params, scale=0.1)))
    arguments = model, batch["source"], jax.random.key(0), 3
    drawn = jax.jit(method.predict, static_argnums=3)(*arguments)
    mean = jax.jit(method.synthesize, static_argnums=3)(*arguments)
    np.testing.assert_allclose(drawn["mean"], mean, atol=1e-6)
    assert {name: images.shape for name, images in drawn.items()} == dict.fromkeys(
        ("mean", "lower", "upper"), (3, 4, 16, 16, 2)
    )
    assert (drawn["lower"] <= drawn["mean"]).all() and (drawn["mean"] <= drawn["upper"]).all()
    assert drawn["lower"].min() >= 0 and drawn["upper"].max() <= 1
    assert (drawn["upper"][0] != drawn["upper"][1]).any()
    assert method.facts()["quantiles"] == "0.05, 0.95"


def test_of_a_pattern_the_ends_of_what_is_wanted_are_given(start, stir):
    changes = {"data.sources": ALL, "data.targets": ALL}
    system, state, batch = start("m1", WITH | changes, sources=4, targets=4)
    model = base.model_of(state.replace(params=stir(state.params, scale=0.1)))
    pattern = for_pattern(system, ALL, ("t1", "t2"), ("t1c", "t2f"))
    assert pattern.quantiles == QUANTILES
    given = batch["source"][..., jnp.array([0, 2])]
    predict = {one: jax.jit(one.predict, static_argnums=3) for one in (pattern, system)}
    found = predict[pattern](model, given, jax.random.key(0), 1)
    hidden = batch["source"].at[..., jnp.array([1, 3])].set(-1.0)
    whole = predict[system](model, hidden, jax.random.key(0), 1)
    assert found.keys() == whole.keys() == {"mean", "lower", "upper"}
    for name, images in found.items():
        np.testing.assert_array_equal(images, whole[name][..., jnp.array([1, 3])])


def test_a_config_from_before_the_head_gives_the_same_system():
    config = common.smoke(common.base("m1"))
    now = base.create(config)
    del config.m1.quantiles
    before = base.create(config)
    assert before.quantiles == now.quantiles == ()
    assert before.network == now.network
    assert "quantiles" not in before.facts()


def test_the_shipped_model_has_no_head():
    model, saved = shipped.load_model()
    assert saved.config.cunet.quantiles == ()
    assert base.create(saved.config).quantiles == ()
    assert HEAD not in model["params"]["network"]


@pytest.mark.parametrize(
    "quantiles", [(0.05,), (0.95, 0.05), (0.0, 0.9), (0.1, 1.0), (0.1, 0.5, 0.9)]
)
def test_quantiles_that_are_no_ends_are_refused(create, quantiles):
    with pytest.raises(UserError, match=r"m1\.quantiles .* are no ends of an interval"):
        create("m1", {"m1.quantiles": quantiles})
