"""Devices and processes: one data axis over all devices, and how a training step runs on them.

Three modes give the same numbers (`config.parallel`):

  jit   one program over global arrays: the batch is shared out, the state whole on each device, and
        XLA inserts the all-reduce of gradients;
  pmap  the same update mapped over the devices by `jax.pmap`, each with its part of the batch;
        `mean` below averages what has to be equal on all of them;
  fsdp  as jit, with parameters, optimizer state and moving average shared out as well: they are
        gathered when the step begins, and stay shared out in between.

BatchNorm sees the whole batch in each of them.
"""

import dataclasses
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from cdm_jax.errors import UserError

AXIS = "data"
MODES = ("jit", "pmap", "fsdp")
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
SHARDED_FIELDS = ("params", "optimizer", "average")  # of a state, in fsdp
MIN_SHARDED_SIZE = 2**12  # elements; smaller arrays stay whole
COMPILE_FAST: dict[str, Any] = {"xla_backend_optimization_level": 0}
OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # where JAX reads the address; later versions do not set it


# Processes


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run, before any array is made.

    Without arguments, `jax.distributed` finds the others where Slurm or Open MPI up to 4 has
    started several tasks; a single task stays by itself.

    Args:
      coordinator: host:port of the first process.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: some of the three are given, but not all; or none, in one of several tasks of a
        launcher that JAX does not know (MPICH, Intel MPI, Open MPI 5).
    """
    explicit = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(explicit) and not all(explicit):
        raise UserError(
            "several processes need all of --coordinator_address=<host:port>, --num_processes and "
            "--process_id, or none of them under Slurm or Open MPI up to 4"
        )
    if jax.distributed.is_initialized():
        return
    if all(explicit):
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT
        )
    elif _tasks("SLURM_STEP_NUM_TASKS") > 1 or (
        OPEN_MPI_4 in os.environ and _tasks("OMPI_COMM_WORLD_SIZE") > 1
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    elif (tasks := max(_tasks("OMPI_COMM_WORLD_SIZE"), _tasks("PMI_SIZE"))) > 1:
        raise UserError(
            f"this is one of {tasks} tasks of a launcher that JAX does not know (it knows Slurm "
            "and Open MPI up to 4): give each --coordinator_address=<host:port of the first> "
            f"--num_processes={tasks} and --process_id=<its rank>"
        )


def _tasks(variable: str) -> int:
    """How many tasks a launcher has started, by the variable that it sets for each of them."""
    return int(os.environ.get(variable, 1))


@contextmanager
def exit_on_peer_failure() -> Iterator[None]:
    """Ends this process, with a clear error, where another one of the run has died or failed.

    A process that fails leaves at once, without waiting for the others: they notice within
    `HEARTBEAT` seconds, or when they next exchange something with it.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, UserError):
            text = str(error)
        else:
            traceback.print_exc()
            text = (
                f"process {jax.process_index()} of {jax.process_count()} cannot go on, perhaps "
                "since another one has died: start all of them again by the same command; the run "
                "continues from its last checkpoint"
            )
        print(f"error: {text}", file=sys.stderr, flush=True)
        os._exit(1)  # a regular exit would wait for the dead


def is_first() -> bool:
    """Whether this process writes what is written once: logs, pictures, tables."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """Lets the first process do a piece of work before the others find it done."""
    if not is_first():
        wait_for_all(what)
    yield
    if is_first():
        wait_for_all(what)


def process_shard(items: Sequence[Any]) -> Sequence[Any]:
    """Those of the items that this process works on."""
    return items[jax.process_index() :: jax.process_count()]


def stop_requested(step: int, here: bool) -> bool:
    """Whether the run is to save and leave after this step: the same answer in every process.

    A single process knows it from `here`. Of several, JAX hears SIGTERM and agrees on a step.
    """
    if jax.process_count() == 1:
        return here
    return multihost_utils.reached_preemption_sync_point(step)


# Within a step


def axis() -> str | None:
    """The data axis within a function that `jax.pmap` maps over it, None anywhere else."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:
        return None
    return AXIS


def mean(tree: PyTree) -> PyTree:
    """The mean over devices where each sees a part of the batch, the tree itself elsewhere."""
    return jax.lax.pmean(tree, AXIS) if axis() else tree


def num_parts() -> int:
    """How many parts of the global batch there are, each at hand somewhere else."""
    return jax.lax.axis_size(AXIS) if axis() else 1


def gather(part: Array) -> Array:
    """The global batch, where only a part of it is at hand."""
    return jax.lax.all_gather(part, AXIS, tiled=True) if axis() else part


def device_shard(batch: Array, number: int) -> Array:
    """The `number` examples of a global batch that are this device's."""
    if not axis():
        return batch
    return jax.lax.dynamic_slice_in_dim(batch, jax.lax.axis_index(AXIS) * number, number)


def gather_params(params: PyTree) -> PyTree:
    """Parameters gathered, where fsdp shares them out: before a network computes with them.

    Without it, XLA is free to gather activations instead.
    """
    if axis() or jax.sharding.get_abstract_mesh().empty:
        return params
    return jax.lax.with_sharding_constraint(params, PartitionSpec())


# Devices


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is shared out over the devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def local_mesh() -> Mesh:
    """The devices of this process, for what it computes without the others."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def global_batch(parts: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Global arrays, shared out over a mesh, of the parts that each process has."""
    return {
        name: jax.make_array_from_process_local_data(sharded(mesh), part)
        for name, part in parts.items()
    }


def to_numpy(tree: PyTree) -> PyTree:
    """Global arrays, whole in each process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def placed(tree: PyTree, place: NamedSharding) -> PyTree:
    """Shapes of a tree's arrays, all with one sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _same(tree: PyTree) -> PyTree:
    return tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Where a run's state and batches are, and how its step is compiled.

    Attributes:
      mode: one of `MODES`.
      mesh: every device of every process.
    """

    mode: str
    mesh: Mesh

    def shardings(self, state: Any) -> Any:
        """The sharding of each leaf of a state, or of the shapes of one."""
        everywhere = jax.tree.map(lambda _: replicated(self.mesh), state)
        if self.mode != "fsdp":
            return everywhere
        spread = {name: jax.tree.map(self._spread, getattr(state, name)) for name in SHARDED_FIELDS}
        return everywhere.replace(**spread)

    def _spread(self, leaf: Any) -> NamedSharding:
        """Shares out the longest axis that the devices divide."""
        number = self.mesh.size
        axes = [a for a, length in enumerate(leaf.shape) if length % number == 0]
        if not axes or math.prod(leaf.shape) < MIN_SHARDED_SIZE:
            return replicated(self.mesh)
        longest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, AXIS))

    def init_sharded(self, init: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `init` so that its state is created in its place, never on the host."""
        init = jax.jit(init, inline=True)  # traced once, for the shapes and for the program
        places = self.shardings(jax.eval_shape(init, *arguments))
        return jax.jit(init, out_shardings=places, compiler_options=COMPILE_FAST)(*arguments)

    def sharded_shapes(self, shapes: Any) -> Any:
        """Shapes of a state with the shardings that it has here."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            self.shardings(shapes),
        )

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """This process's part of a global batch, onto the devices.

        Under pmap a leading axis counts the devices.
        """
        if self.mode == "pmap":
            number = jax.local_device_count()
            batch = {k: part.reshape(number, -1, *part.shape[1:]) for k, part in batch.items()}
        return global_batch(batch, self.mesh)

    def compile(self, step: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """Compiles `step(state, totals, batch) -> (state, totals)`; the state is donated.

        Args:
          step: pure; sees the global batch, or under pmap one device's part of it.
          state: a state, for its shapes.
        """
        if self.mode == "pmap":
            return self._mapped(step)
        if self.mode == "jit":
            return jax.jit(step, donate_argnums=0, out_shardings=replicated(self.mesh))

        def gathered(state: Any, totals: Any, batch: Any) -> Any:
            """The step on whole parameters; the mesh is set for those that it updates itself."""
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(state.replace(params=gather_params(state.params)), totals, batch)

        places = (self.shardings(state), replicated(self.mesh))
        return jax.jit(gathered, donate_argnums=0, out_shardings=places)

    def _mapped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step under `jax.pmap`: state and totals are the same on all devices, unstacked."""
        mapped = jax.pmap(
            step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=0
        )
        if jax.process_count() == 1:
            return mapped
        place = replicated(self.mesh)

        def to_global(leaf: Array) -> Array:
            """Of several processes, pmap returns to each its own copy: the same for all."""
            parts = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)

        return lambda *arguments: jax.tree.map(to_global, mapped(*arguments))

    def replicate(self, tree: PyTree) -> PyTree:
        """The tree whole on each device, for validation and measurements."""
        if self.mode != "fsdp":
            return tree
        # One program: those that `device_put` starts, one an array, may wait for each other.
        return jax.jit(_same, out_shardings=replicated(self.mesh))(tree)


def all_devices(mode: str) -> Devices:
    """Every device of every process.

    Raises:
      UserError: unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"unknown parallel '{mode}': allowed are {', '.join(MODES)}")
    return Devices(mode=mode, mesh=Mesh(np.asarray(jax.devices()), (AXIS,)))
