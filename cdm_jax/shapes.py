"""Stages before any array is made: the shapes of their batches and states, by tracing alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdm_jax.methods import base
from cdm_jax.tasks import task_of

Shapes = Any  # a tree of jax.ShapeDtypeStruct


def example(config: ConfigDict, number: int) -> Shapes:
    """The shapes of a batch of this many slices."""
    data = config.data
    shapes = {
        name: jax.ShapeDtypeStruct((number, data.size, data.size, len(modalities)), jnp.float32)
        for name, modalities in (("source", data.sources), ("target", data.targets))
    }
    if task_of(data).is_any:
        shapes["weight"] = jax.ShapeDtypeStruct((number, len(data.targets)), jnp.float32)
    return shapes


def stored_shapes(config: ConfigDict, number: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a stored batch of this many slices is made of, as the input pipeline gives it."""
    data, task = config.data, task_of(config.data)
    modalities = len(task.modalities)
    shapes = {
        "images": jax.ShapeDtypeStruct((number, data.size, data.size, modalities), jnp.uint16),
        "mirrored": jax.ShapeDtypeStruct((number,), jnp.bool_),
    }
    if task.is_any:
        shapes["known"] = jax.ShapeDtypeStruct((number, modalities), jnp.bool_)
    return shapes


def create(config: ConfigDict, stage: str) -> base.Method:
    """The method of any stage of a config."""
    config = config.copy_and_resolve_references()
    config.stage = stage
    return base.create(config)


def start(config: ConfigDict, stage: str, batch: Shapes) -> base.State:
    """The shapes of a stage's fresh state, over fresh stages that it builds on."""
    method = create(config, stage)
    return jax.eval_shape(method.init, jax.random.key(0), batch, frozen(config, method, batch))


def frozen(config: ConfigDict, method: base.Method, batch: Shapes) -> dict[str, base.Model]:
    """The shapes of the models that a stage builds on."""
    found = {}
    for stage in method.depends_on:
        model = base.model_of(start(config, stage, batch))
        found[stage] = {name: model[name] for name in ("params", "statistics")}
    return found


def inference_parameters(method: base.Translator, state: base.State, batch: Shapes) -> int:
    """Parameters, of this stage and of those that it builds on, that a translation uses."""
    model = base.model_of(state)
    translate = functools.partial(method.translate, num_samples=1)
    closed = jax.make_jaxpr(translate)(model, batch["source"], jax.random.key(0))
    used = {id(variable) for equation in closed.jaxpr.eqns for variable in equation.invars}
    leaves = jax.tree_util.tree_leaves_with_path(model)  # the first of the program's inputs
    return sum(
        leaf.size
        for (path, leaf), variable in zip(leaves, closed.jaxpr.invars, strict=False)
        if jax.tree_util.DictKey("params") in path and id(variable) in used
    )
