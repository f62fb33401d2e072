"""What tests run in processes of their own, where a CPU shows several devices.

  python -m tests.on_devices modes STAGE...   three steps in each mode: losses and collectives
  python -m tests.on_devices restore FOLDER... hashes of stages' newest states on several meshes

Prints one line of JSON.
"""

import functools
import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags
from clu.metrics import Average
from jax.sharding import Mesh

from cdm_jax import checkpoint, parallel, train
from cdm_jax.methods import base
from experiments import scaling
from experiments.networks import example
from tests.helpers import smoke_config

BATCH = 8


def meshes() -> dict[str, parallel.Devices]:
    """One device, and all of them in each mode."""
    one = parallel.Devices(mode="jit", mesh=Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    return {"one": one} | {mode: parallel.all_devices(mode) for mode in parallel.MODES}


def three_steps(stage: str, devices: parallel.Devices) -> tuple[list[dict[str, float]], dict]:
    """Metrics of three steps on batches of noise, and what the compiled step exchanges."""
    config = smoke_config(stage)
    method = base.create(config)
    shapes = example(config, BATCH)
    key = jax.random.key(0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = devices.born(functools.partial(method.init, frozen={}), key, zeros)
    _, metrics = jax.eval_shape(method.update, state, shapes, key)
    rng, found, program = np.random.default_rng(0), [], None
    for _ in range(3):
        stored = {
            name: rng.integers(0, 2**16, leaf.shape, np.uint16) for name, leaf in shapes.items()
        }
        empty = {name: Average.empty() for name in metrics}
        totals = jax.device_put(empty, parallel.replicated(devices.mesh))
        arguments = (totals, devices.put(stored))
        if program is None:
            step = train.make_step(method, key, devices, state)
            program = step.lower(state, *arguments).compile()
        state, totals = program(state, *arguments)
        found.append({name: float(value.compute()) for name, value in totals.items()})
    return found, scaling.collectives(program)


def modes(stages: list[str]) -> dict:
    """Losses and collectives of each stage in each mode."""
    report: dict = {"losses": {}, "collectives": {}, "bytes": {}}
    for stage in stages:
        config = smoke_config(stage)
        state = scaling.start(config, stage, example(config, BATCH))
        report["bytes"][stage] = 4 * scaling.size_of(state.params)
        for name, devices in meshes().items():
            losses, exchanged = three_steps(stage, devices)
            report["losses"][f"{stage} {name}"] = losses
            report["collectives"][f"{stage} {name}"] = exchanged
    return report


def restore(folders: list[str]) -> dict:
    """The hash of the newest state in each stage's folder, on each mesh, and its position."""
    report = {}
    for text in folders:
        folder = pathlib.Path(text)
        saved = checkpoint.provenance(folder)
        method = base.create(saved.config)
        shapes = scaling.start(saved.config, saved.config.stage, example(saved.config, BATCH))
        for name, devices in meshes().items():
            if name == "one" and jax.process_count() > 1:
                continue  # the other process has no part in that mesh
            position = _Position()
            with checkpoint.Checkpoints(folder, 2) as checkpoints:
                state = checkpoints.restore(devices.placed(shapes), position)
            whole = jax.device_get(devices.here(state))
            digest = hashlib.sha256()
            for leaf in jax.tree.leaves(whole):
                digest.update(np.ascontiguousarray(leaf).tobytes())
            report[f"{text} {name}"] = [digest.hexdigest(), position.state]
        assert method.depends_on == ()
    return report


class _Position:
    """Stands for an iterator: keeps the position that it is set to."""

    state = None

    def set_state(self, state):
        self.state = state


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    command, *arguments = sys.argv[1:]
    if arguments and ":" in arguments[0]:  # host:port, number and place of this process
        address, number, place, *arguments = arguments
        parallel.start(address, int(number), int(place))
    print(json.dumps({"modes": modes, "restore": restore}[command](arguments)))
