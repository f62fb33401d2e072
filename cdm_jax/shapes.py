"""Stages before any array is made: the shapes of their batches and states, by tracing alone."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdm_jax.methods import base

Shapes = Any  # a tree of jax.ShapeDtypeStruct


def example(config: ConfigDict, number: int) -> Shapes:
    """The shapes of a batch of this many slices."""
    data = config.data
    return {
        name: jax.ShapeDtypeStruct((number, data.size, data.size, len(modalities)), jnp.float32)
        for name, modalities in (("source", data.sources), ("target", data.targets))
    }


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
    models = {stage: base.model_of(start(config, stage, batch)) for stage in method.depends_on}
    return {
        stage: {name: model[name] for name in ("params", "statistics")}
        for stage, model in models.items()
    }
