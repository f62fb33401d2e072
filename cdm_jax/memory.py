"""Whether the devices have the memory that training takes, asked before a pipeline begins.

XLA plans the memory of a program when it compiles it. Each stage's training step is therefore
compiled before the first one trains, and a stage that will not fit is refused then instead of after
the days that the stages before it take. With JAX's persistent cache these compilations are those
that training needs anyway.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from cdm_jax import checkpoint, guard, parallel, shapes
from cdm_jax.data.dataset import Dataset
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.run import resolve, stage_keys, training_slices
from cdm_jax.tasks import task_of
from cdm_jax.train import make_step
from cdm_jax.writer import console

GIB = 2**30
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment (JAX takes 0.75 by default)"


def lowered_step(config: ConfigDict, devices: parallel.Devices, key: Array) -> jax.stages.Lowered:
    """The training step of `config.stage` as the loop compiles it, of arrays that do not exist.

    The key of training steps is a constant of the program; the number of steps is known to the
    optimizer's schedule alone.
    """
    each, number = config[config.stage].train.batch_size_per_device, devices.mesh.size
    batch, method = shapes.example(config, each * number), base.create(config)
    state = shapes.start(config, config.stage, batch)
    lead = (number, each) if devices.mode == "pmap" else (number * each,)
    stored = {
        name: jax.ShapeDtypeStruct((*lead, *part.shape[1:]), part.dtype)
        for name, part in shapes.stored_shapes(config, each * number).items()
    }
    skip = guard.is_skipping(config[config.stage].train)
    step: Any  # with `lower`, as it is jitted
    step, totals = make_step(method, key, devices, state, batch, task_of(config.data), skip=skip)
    return step.lower(
        devices.sharded_shapes(state),
        parallel.placed(totals, parallel.replicated(devices.mesh)),
        parallel.placed(stored, parallel.sharded(devices.mesh)),
    )


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Bytes of each device that a program takes while it runs, its arguments included."""
    plan: Any = program.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )


def device_limit() -> int | None:
    """Bytes that JAX may take of each of this process's devices; None of CPUs, which do not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit), default=None)


def check_pipeline(
    config: ConfigDict,
    stages: Sequence[str],
    workdir: pathlib.Path,
    dataset: Dataset,
    limit: int | None,
) -> None:
    """Refuses unfinished stages whose training step takes more memory than there is.

    The limit is that of each device in bytes; where it is None, nothing is compiled.

    Raises:
      UserError: a stage does not fit, or cannot be built.
    """
    if limit is None or (config.parallel == "pmap" and jax.process_count() > 1):
        return  # that step is put together from parts, and cannot be compiled beforehand
    for stage in stages:
        if not checkpoint.finished(workdir / stage):
            with explained(f"compiling the step of {stage}", f"set {remedy(config, stage)}"):
                needed = _needed(config, stage, dataset)
            console.print(f"{stage} takes {needed / GIB:.1f} of {limit / GIB:.1f} GiB a device")
            if needed > limit:
                raise UserError(
                    f"stage {stage} needs {needed / GIB:.1f} GiB of each device to train, and JAX "
                    f"may take {limit / GIB:.1f} GiB: set {remedy(config, stage)}"
                )


def _needed(config: ConfigDict, stage: str, dataset: Dataset) -> int:
    config = resolve(config, training_slices(dataset), stage)
    _, key, _ = stage_keys(config)
    return peak_bytes(lowered_step(config, parallel.all_devices(config.parallel), key).compile())


def remedy(config: ConfigDict, stage: str) -> str:
    """The settings with which a stage trains in less memory."""
    section, settings = config[stage], []
    if not section.get("remat", True):
        settings.append(f"--config.{stage}.remat=true")
    batch = section.train.batch_size_per_device
    if batch > 1:
        parts = next(n for n in range(2, batch + 1) if batch % n == 0)
        settings.append(
            f"--config.{stage}.train.batch_size_per_device={batch // parts} "
            f"--config.{stage}.optimizer.accumulate={parts * section.optimizer.accumulate} "
            "(the same effective batch)"
        )
    return ", or ".join([*settings, FRACTION, "a smaller --config.data.size"])


@contextlib.contextmanager
def explained(activity: str, advice: str, folder: pathlib.Path | None = None) -> Iterator[None]:
    """Answers a device's running out of memory in one line.

    Args:
      activity: what is done within, such as "the evaluation".
      advice: what to change.
      folder: of the stage that is trained within, whose newest checkpoint is mentioned.

    Raises:
      UserError: memory has run out.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = f"{activity} ran out of the device's memory: {advice}"
        step = checkpoint.latest_step(folder) if folder else None
        if step is not None:
            text += (
                f"; step {step} is saved in {folder}: the same command goes on from there, but "
                "another batch or size needs another --workdir"
            )
        raise UserError(text) from error
