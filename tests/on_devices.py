"""What tests run in processes of their own, where a CPU shows several devices.

  python -m tests.on_devices modes            three steps in each mode: losses and collectives
  python -m tests.on_devices restore STAGE... hashes of checkpoints' states on several meshes

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

STAGES = ("mrm", "m1", "pix2pix", "cyclegan", "diffusion")
BATCH = 8


def meshes() -> dict[str, parallel.Devices]:
    """One device, and all of them in each mode."""
    one = parallel.Devices(mode="jit", mesh=Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    return {"one": one} | {mode: parallel.all_devices(mode) for mode in parallel.MODES}


def losses(stage: str, devices: parallel.Devices) -> list[dict[str, float]]:
    """Metrics of three steps on batches of noise."""
    config = smoke_config(stage)
    method = base.create(config)
    rng = np.random.default_rng(0)
    shapes = example(config, BATCH)
    key = jax.random.key(0)
    fresh = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
    state = devices.born(functools.partial(method.init, frozen={}), key, fresh)
    step = train.make_step(method, key, devices, state)
    _, metrics = jax.eval_shape(method.update, state, shapes, key)
    found = []
    for _ in range(3):
        batch = {
            name: rng.integers(0, 2**16, leaf.shape, np.uint16) for name, leaf in shapes.items()
        }
        totals = {name: Average.empty() for name in metrics}
        totals = jax.device_put(totals, parallel.replicated(devices.mesh))
        state, totals = step(state, totals, devices.put(batch))
        found.append({name: float(value.compute()) for name, value in totals.items()})
    return found


def modes() -> dict:
    """Losses of each stage in each mode, and what the compiled steps exchange."""
    config = smoke_config("all")
    report: dict = {"losses": {}, "collectives": {}, "bytes": {}}
    for stage in STAGES:
        config[stage].train.batch_size_per_device = BATCH // jax.device_count()
        state = scaling.start(config, stage, example(config, BATCH))
        report["bytes"][stage] = 4 * scaling.size_of(state.params)
        for name, devices in meshes().items():
            report["losses"][f"{stage} {name}"] = losses(stage, devices)
            if name != "one":
                program = scaling.lowered_step(config, stage, devices).compile()
                report["collectives"][f"{stage} {name}"] = scaling.collectives(program)
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
    print(json.dumps(modes() if command == "modes" else restore(arguments)))
