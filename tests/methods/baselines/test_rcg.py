import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdm_jax.methods import base
from cdm_jax.methods.baselines import rcg
from configs import common

TINY = {
    "data.size": 16,
    "mrm.patch": 4,
    "mrm.mask_cell": 4,
    "mrm.width": 16,
    "rcg.width": 4,
    "rcg.multipliers": (1,),
    "rcg.attention": (),
}


@pytest.fixture(scope="module")
def begun(images, start, stir):
    """The system, its fresh state over an MRM and an RDM that do something, and a batch."""
    config = common.smoke(common.base("rcg"))
    config.update_from_flattened_dict(TINY)
    method, batch = rcg.create(config), images(0)
    mrm, state, _ = start("mrm")
    measured = mrm.finish(state, lambda: [batch], list, jax.random.key(0))
    frozen = {"mrm": {"params": measured.params, "statistics": measured.statistics}}
    sampler = jax.jit(lambda key: method.rdm.init(key, batch, {}))(jax.random.key(1))
    frozen["rdm"] = {"params": stir(sampler.params), "statistics": sampler.statistics}
    init = jax.jit(lambda key, frozen: method.init(key, batch, frozen))
    return method, init(jax.random.key(0), frozen), batch


@pytest.fixture(scope="module")
def model(begun, stir):
    """A model in which nothing is hidden behind initial zeros."""
    return base.model_of(begun[1]) | {"params": stir(begun[1].params)}


def test_the_paper_scale_network_has_no_source_channels_and_a_condition():
    """From the published 311,017,538: two input channels fewer, and a linear layer of y."""
    method = rcg.create(common.base("rcg"))
    images = jax.ShapeDtypeStruct((1, 256, 256, 2), jnp.float32)
    batch = {"source": images, "target": images}
    state = jax.eval_shape(method.init, jax.random.key(0), batch, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
    assert count == 311_017_538 - 2 * 192 * 9 + (384 + 1) * 4 * 192
    assert state.params["null"].shape == (384,)
    assert method.depends_on == ("mrm", "rdm")


def test_the_result_is_the_same_for_other_sources(begun, model, images):
    method, _, batch = begun
    translate = jax.jit(method.translate, static_argnums=3)
    one = translate(model, batch["source"], jax.random.key(1), 2)
    assert one.shape == (2, *batch["target"].shape)
    assert float(jnp.abs(one).max()) <= 1
    np.testing.assert_array_equal(one, translate(model, images(9)["source"], jax.random.key(1), 2))
    assert (
        one != translate(model, batch["source"], jax.random.key(2), 2)
    ).mean() > 0.2  # many are -1 or 1
    assert (one[0] != one[1]).mean() > 0.2
    assert (one[:, 0] != one[:, 1]).mean() > 0.2


def _used(function, *arguments):
    """Shapes of the arguments that any computation takes."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used = {str(v) for equation in jaxpr.eqns for v in equation.invars}
    return {v.aval.shape for v in jaxpr.invars if str(v) in used}


def test_neither_translation_nor_training_computes_with_the_sources(begun, model, images):
    """Sources of five modalities: no other argument has that shape."""
    method, state, batch = begun
    sources, key = images(0, sources=5)["source"], jax.random.key(1)
    assert sources.shape not in _used(lambda *a: method.translate(*a, 2), model, sources, key)
    used = _used(method.update, state, batch | {"source": sources}, key)
    assert sources.shape not in used
    assert batch["target"].shape in used


def test_pixels_follow_from_the_sampled_representation(begun, model):
    """The same noise of pixels with another RDM gives other images."""
    method, _, batch = begun
    frozen = model["frozen"]
    moved = jax.tree.map(lambda leaf: -leaf, frozen["rdm"])
    translate = jax.jit(method.translate, static_argnums=3)
    found = [
        translate(model | {"frozen": frozen | {"rdm": r}}, batch["source"], jax.random.key(1), 1)
        for r in (frozen["rdm"], moved)
    ]
    assert (found[0] != found[1]).mean() > 0.3


@pytest.fixture(scope="module")
def descend(begun, stir):
    """`descend(share, mrm)`: what a step of plain descent takes from the parameters."""
    method, state, batch = begun
    updates = {}
    for share in (0.0, 1.0):
        plain = {"condition_dropout": share, "optimizer": optax.sgd(1.0), "average_decay": 0.0}
        updates[share] = jax.jit(dataclasses.replace(method, **plain).update)

    def run(share, mrm=None):
        frozen = state.frozen | ({"mrm": mrm} if mrm else {})
        start = base.new_state(stir(state.params), optax.sgd(1.0), averaged=False, frozen=frozen)
        after, _ = updates[share](start, batch, jax.random.key(4))
        return jax.tree.map(lambda a, b: a - b, start.params, after.params)

    return run


@pytest.mark.slow
def test_the_null_learns_where_it_replaces_the_representation_and_only_there(descend):
    never, always = descend(0.0), descend(1.0)
    assert not never["null"].any()
    assert always["null"].all()
    assert any(leaf.any() for leaf in jax.tree.leaves(never["network"]))


def test_the_targets_representation_counts_unless_the_null_replaces_it(begun, descend, same):
    mrm = jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, begun[1].frozen["mrm"])
    assert same(descend(1.0), descend(1.0, mrm))
    assert not same(descend(0.0), descend(0.0, mrm))


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_frozen_stages_alone(begun, train, same):
    method, state, batch = begun
    method = dataclasses.replace(method, optimizer=optax.adam(3e-3))
    state = base.new_state(state.params, method.optimizer, averaged=True, frozen=state.frozen)
    trained, losses = train(method, state, batch, 100)
    assert float(losses[0]) == pytest.approx(1, abs=0.1)  # a fresh network answers zero
    assert losses[-30:].mean() < 0.6
    assert int(trained.step) == 100
    assert same(trained.frozen, state.frozen)


def test_it_is_a_stochastic_translator_without_audits(begun):
    method = begun[0]
    assert isinstance(method, base.Translator)
    assert method.stochastic
    assert method.audits(4) == {}
