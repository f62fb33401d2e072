"""Devices: one data axis over all of them, the state on each, the batch shared out.

Under `jax.jit` with these shardings the batch is one global array: losses, norms and gradients are
over all devices, and XLA inserts the all-reduce.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "data"


def data_mesh() -> Mesh:
    """A one-dimensional mesh of every device of every process."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of states, models and keys: whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading axis is shared out over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


ONCE = {"xla_backend_optimization_level": 0}  # compile fast what runs a single time


def born(mesh: Mesh, init: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Runs `init` so that its result is created on the mesh, never on the host."""
    return jax.jit(init, out_shardings=replicated(mesh), compiler_options=ONCE)(*arguments)


def abstract(mesh: Mesh, init: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Shapes, types and shardings of what `born` would return, without computing it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(init, *arguments),
    )
