"""Stages before any array is made: the shapes of their batches and states, by tracing alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdm_jax.methods import base
from cdm_jax.tasks import task_of

Shapes = Any  # a tree of jax.ShapeDtypeStruct


def source_channels(data: ConfigDict) -> int:
    """Channels of a slice's sources, those of its neighbors included, by a section `data`."""
    return len(data.sources) * (1 + 2 * task_of(data).context)


def example(config: ConfigDict, number: int) -> Shapes:
    """The shapes of a batch of this many slices."""
    data = config.data
    shapes = {
        name: jax.ShapeDtypeStruct((number, data.size, data.size, channels), jnp.float32)
        for name, channels in (("source", source_channels(data)), ("target", len(data.targets)))
    }
    if task_of(data).is_any:
        shapes["weight"] = jax.ShapeDtypeStruct((number, len(data.targets)), jnp.float32)
    return shapes


def stored_shapes(config: ConfigDict, number: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a stored batch of this many slices is made of, as the input pipeline gives it."""
    data, task = config.data, task_of(config.data)
    modalities, pixels = len(task.modalities), (number, data.size, data.size)
    shapes = {
        "images": jax.ShapeDtypeStruct((*pixels, modalities), jnp.uint16),
        "mirrored": jax.ShapeDtypeStruct((number,), jnp.bool_),
    }
    if task.context:
        beside = source_channels(data) - len(data.sources)
        shapes["neighbors"] = jax.ShapeDtypeStruct((*pixels, beside), jnp.uint16)
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
    found: dict[str, base.Model] = {}
    for stage in method.depends_on:  # each after those that it builds on itself
        earlier = create(config, stage)
        below = {name: found[name] for name in earlier.depends_on}
        state = jax.eval_shape(earlier.init, jax.random.key(0), batch, below)
        model = base.model_of(state)
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
