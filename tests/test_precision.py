"""Networks in bfloat16 or with another precision of matrix products: which numbers, and how far."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax import shapes
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from configs import phantom
from configs.common import SYSTEMS

SAME = ("mdn_joint", "m1", "m1_1x1", "m2")  # other settings of the networks of mdn and cunet
STAGES = tuple(stage for stage in SYSTEMS["all"] if stage not in SAME)
PRODUCTS = ("dot_general", "conv_general_dilated")


def smallest(stage, **changes):
    config = phantom.get_config(f"{stage},smoke")
    config.stage = stage
    config.update(changes)
    return config


def operations(jaxpr):
    """All operations of a program, those of its functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def products(config):
    """Products in the training step of a stage."""
    batch = shapes.example(config, 2)
    state = shapes.start(config, config.stage, batch)
    step = jax.make_jaxpr(base.create(config).update)(state, batch, jax.random.key(0))
    return [e for e in operations(step.jaxpr) if e.primitive.name in PRODUCTS]


def types(config):
    """How many products there are of each type of numbers."""
    return collections.Counter(
        "/".join(sorted({str(v.aval.dtype) for v in equation.invars}))
        for equation in products(config)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_product_of_a_network_is_in_the_precision_asked_for(stage):
    half = types(smallest(stage, precision="bfloat16"))
    # What is not a network's: the covariance of C-UNet's noise, the loss of CUT's patches.
    assert half["float32"] < 0.1 * half["bfloat16"], half
    assert set(half) <= {"float32", "bfloat16"}, half


@pytest.mark.parametrize("stage", ["mrm", "cunet", "pix2pix"])
def test_parameters_and_the_optimizer_stay_in_float32(stage):
    config = smallest(stage, precision="bfloat16")
    batch = shapes.example(config, 2)
    state = shapes.start(config, stage, batch)
    after, metrics = jax.eval_shape(base.create(config).update, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for leaf in jax.tree.leaves((after.params, after.optimizer, after.statistics, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_the_precision_of_products_is_that_of_the_config():
    assert set(types(smallest("m1"))) == {"float32"}

    def asked(matmul_precision):
        found = products(smallest("m1", matmul_precision=matmul_precision))
        return {str(equation.params["precision"]) for equation in found}

    assert asked("default") == {"None"}
    assert all("HIGHEST" in one for one in asked("float32"))
    assert all("HIGHEST" not in one and "HIGH" in one for one in asked("tensorfloat32"))


@pytest.mark.parametrize("key", ["precision", "matmul_precision"])
def test_an_unknown_precision_is_refused_by_name(key):
    with pytest.raises(UserError, match=f"unknown {key} 'float8': allowed are"):
        base.create(smallest("m1", **{key: "float8"}))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["mrm", "mdn", "cunet", "pix2pix"])
def test_loss_curves_agree_with_those_of_float32(stage):
    """Within 3 % of the curve, after each of 40 steps on the same batches."""

    def curve(precision):
        config = smallest(stage, precision=precision)
        generator = np.random.default_rng(0)
        smooth = np.cumsum(generator.normal(0, 0.1, (4, 8, 32, 32, 4)), axis=2)
        batches = jnp.tanh(jnp.asarray(smooth, jnp.float32))
        method = base.create(config)
        frozen = shapes.start(config, stage, shapes.example(config, 8)).frozen
        frozen = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.02, leaf.dtype), frozen)
        first = {"source": batches[0, ..., :2], "target": batches[0, ..., 2:]}
        state = jax.jit(method.init)(jax.random.key(0), first, frozen)
        update, losses = jax.jit(method.update), []
        for step in range(40):
            images = batches[step % 4]
            batch = {"source": images[..., :2], "target": images[..., 2:]}
            state, metrics = update(state, batch, jax.random.key(step))
            losses.append(float(metrics["loss"]))
        return np.array(losses)

    whole, half = curve("float32"), curve("bfloat16")
    assert whole[-4:].mean() < 0.99 * whole[:4].mean()
    np.testing.assert_allclose(half, whole, rtol=0.03)
    assert (half != whole).any()
