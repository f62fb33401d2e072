"""What tests run in processes of their own, where a CPU shows several devices.

  python -m tests.on_devices modes STAGE...   three steps in each mode: losses, collectives, memory
  python -m tests.on_devices restore FOLDER... hashes of stages' newest states on several meshes
  python -m tests.on_devices timed WORKDIR     what a device computes while C-UNet is timed

Prints one line of JSON.
"""

import collections
import functools
import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import scaling
from benchmarks.networks import size_of
from cdm_jax import checkpoint, guard, inference, parallel, train
from cdm_jax.methods import base
from cdm_jax.shapes import create, example, start
from cdm_jax.tasks import task_of
from experiments import study, sweep
from tests.helpers import smoke_config

BATCH = 8
SHARED = 2**6  # elements of the arrays that fsdp shares out in tests, whose networks are small


def meshes() -> dict[str, parallel.Devices]:
    """One device, and all of them in each mode."""
    one = parallel.Devices(mode="jit", mesh=Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    return {"one": one} | {mode: parallel.all_devices(mode) for mode in parallel.MODES}


def fresh(config: ConfigDict, stage: str) -> base.State:
    """A stage as it starts, over fresh ones that it builds on."""
    method, shapes = create(config, stage), example(config, BATCH)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.jit(method.init)(jax.random.key(0), zeros, frozen(config, method))


def frozen(config: ConfigDict, method: base.Method) -> base.Model:
    """Fresh stages for a method to build on."""
    models = {stage: base.model_of(fresh(config, stage)) for stage in method.depends_on}
    return {
        stage: {name: model[name] for name in ("params", "statistics")}
        for stage, model in models.items()
    }


def three_steps(stage: str, devices: parallel.Devices) -> dict:
    """Metrics of three steps on batches of noise, what the step exchanges, where its state is."""
    config = smoke_config(stage)
    method = base.create(config)
    shapes = example(config, BATCH)
    key = jax.random.key(0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    init = functools.partial(method.init, frozen=frozen(config, method))
    state = devices.init_sharded(init, key, zeros)
    leaves = jax.tree.leaves(state)
    rng, found = np.random.default_rng(0), []
    step, nothing = train.make_step(method, key, devices, state, shapes, task_of(config.data))
    del nothing[guard.FINITE]  # what follows counts what an update exchanges, without the guard
    program = None
    for _ in range(3):
        images = [rng.integers(0, 2**16, leaf.shape, np.uint16) for leaf in shapes.values()]
        mirrored = rng.random(len(images[0])) < 0.5
        stored = {"images": np.concatenate(images, axis=-1), "mirrored": mirrored}
        arguments = (nothing, devices.put(stored))
        program = program or step.lower(state, *arguments).compile()
        state, totals = program(state, *arguments)
        found.append({name: float(value.compute()) for name, value in totals.items()})
    return {
        "losses": found,
        "collectives": scaling.collectives(program),
        "gathered": scaling.gathered(program),
        "kept": sum(not leaf.is_deleted() for leaf in leaves),
        "at_rest": at_rest(state),
    }


def at_rest(state: base.State) -> list[int]:
    """The bytes of a state on each device."""
    found: dict[int, int] = collections.Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            found[shard.device.id] += shard.data.nbytes
    return list(found.values())


def modes(stages: list[str]) -> dict:
    """What each stage does in each mode, and the shapes of its parameters."""
    report: dict = {}
    for stage in stages:
        config = smoke_config(stage)
        params = start(config, stage, example(config, BATCH)).params
        shapes = {
            name: [leaf.shape for leaf in jax.tree.leaves(network)]
            for name, network in params.items()
        }
        report[stage] = {"parameters": shapes, "bytes": 4 * size_of(params)}
        report[stage] |= {name: three_steps(stage, devices) for name, devices in meshes().items()}
    return report


def restore(folders: list[str]) -> dict:
    """The hash of the newest state in each stage's folder, on each mesh, and its position."""
    report = {}
    for text in folders:
        folder = pathlib.Path(text)
        saved = checkpoint.provenance(folder)
        method = base.create(saved.config)
        shapes = start(saved.config, saved.config.stage, example(saved.config, BATCH))
        for name, devices in meshes().items():
            if name == "one" and jax.process_count() > 1:
                continue  # the other process has no part in that mesh
            position = _Position()
            with checkpoint.Checkpoints(folder, 2) as checkpoints:
                state = checkpoints.restore(devices.sharded_shapes(shapes), position)
            whole = parallel.to_numpy(devices.replicate(state))
            digest = hashlib.sha256()
            for leaf in jax.tree.leaves(whole):
                digest.update(np.ascontiguousarray(leaf).tobytes())
            report[f"{text} {name}"] = [digest.hexdigest(), position.state]
        assert method.depends_on == ()
    return report


def timed(workdirs: list[str]) -> dict:
    """The program that `experiments.sweep` times: its share of the slices and of the operations."""
    (workdir,) = map(pathlib.Path, workdirs)
    seen = []
    original = inference.System.compile

    def compile(system: inference.System, compute: inference.Compute) -> inference.Compute:
        """Keeps what the compiled function is called with."""
        program = original(system, compute)
        return lambda *arguments: seen.append((program, arguments)) or program(*arguments)

    class Smoke(study.Study):
        """The smallest networks, as the run in the workdir has them."""

        def config(self, system: str) -> ConfigDict:
            return smoke_config(system)

    inference.System.compile = compile  # type: ignore[method-assign]
    sweep.seconds_a_slice(
        Smoke(dataset="phantom", small=True, root="", workdir=workdir), "cunet", 2
    )
    program, arguments = seen[-1]
    alone = jax.device_put(jax.device_get(arguments[:2]), jax.devices()[0])
    key = jax.device_put(arguments[2], jax.devices()[0])
    (slices,) = [shape.sharding.shard_shape(shape.shape) for shape in jax.tree.leaves(arguments[1])]
    return {
        "devices": jax.device_count(),
        "slices": slices[0],
        "keys": list(arguments[2].sharding.shard_shape(arguments[2].shape)),
        "flops": scaling.flops_of(program.lower(*arguments).compile()),
        "flops alone": scaling.flops_of(program.lower(*alone, key).compile()),
    }


class _Position:
    """Stands for an iterator: keeps the position that it is set to."""

    state = None

    def set_state(self, state):
        self.state = state


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    parallel.MIN_SHARDED_SIZE = SHARED
    command, *arguments = sys.argv[1:]
    if arguments and ":" in arguments[0]:  # host:port, number and place of this process
        address, number, place, *arguments = arguments
        parallel.start(address, int(number), int(place))
    print(json.dumps({"modes": modes, "restore": restore, "timed": timed}[command](arguments)))
