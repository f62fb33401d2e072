"""What sampling steps buy: quality and time of a system for several N, for Table IV and Fig. 5 (a).

The trained networks stay the same; only N of DDIM changes. Times are of one sample, for a full
batch, compiled and warm, the median of several calls. The record grows by one (system, N) at a
time; what it times on this device with these checkpoints is not timed again.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cdm_jax import inference
from cdm_jax.data.pipeline import SliceSource, plain_plans, stored_sources
from cdm_jax.evaluate import evaluate_run
from cdm_jax.records import Record
from cdm_jax.rows import num_samples, sample_rows
from cdm_jax.tasks import task_of
from cdm_jax.writer import console
from experiments.records import main_values
from experiments.study import Study, chosen

NAME = "sampling"
STEPS = (1, 10, 20, 30, 40)
REPEATS = 7
BESIDE = ("copy", "brain_mean", "regression", "m1")  # rows without N, kept once

Sweep = dict[str, Any]


def sweep(study: Study, stages: tuple[str, ...], command: str) -> None:
    """Measures these systems for every N and adds each to the record as it is done."""
    content = start(study) | {"command": command}
    dataset, began, done = study.data(), time.perf_counter(), 0
    for stage in stages:
        known = content["systems"].setdefault(stage, {})
        for steps in STEPS:
            console.rule(f"{stage}: N = {steps}")
            config = study.config("cdm")
            usual = config.sampler.num_steps == steps  # whose records are there already
            config.sampler.num_steps = steps
            rows = rows_swept(config, stage)
            config.evaluate.rows = (*BESIDE, *rows) if usual else rows
            config.evaluate.systems = (stage, "m1") if usual else (stage,)
            folder = None if usual else f"{stage}_{steps}_steps"
            found = [main_values(r) for r in evaluate_run(config, study.workdir, dataset, folder)]
            if usual:
                content["beside"] = chosen(found, {row: row for row in BESIDE})
            records = chosen(found, {row: row for row in rows})
            row = known.get(str(steps))
            if row is None or identity(row["records"], stage) != identity(records, stage):
                row = {"seconds_a_slice": seconds_a_slice(study, stage, steps)}
            known[str(steps)] = row | {"records": records}
            study.save(NAME, content)
            done += steps
            left = (time.perf_counter() - began) * (len(stages) * sum(STEPS) / done - 1)
            console.print(f"about {left / 60:.0f} min left")


def rows_swept(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """The rows of a system that are scored for every N."""
    return sample_rows(stage, num_samples(config, stage))


def start(study: Study) -> Sweep:
    """What the record holds of this device; nothing where another device made it."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    try:
        content = study.load(NAME)
    except FileNotFoundError:
        content = {}
    return content if content.get("device") == device else {"device": device, "systems": {}}


def identity(records: Sequence[Record], stage: str) -> list[tuple[str, str]]:
    """What a time depends on: the checkpoints and the config of the sampling."""
    return [(record["checkpoint"][stage], record["config"]) for record in records]


def seconds_a_slice(study: Study, stage: str, steps: int) -> float:
    """Median time of one sample of a slice, in a full batch on all devices of this process."""
    config = study.config("cdm")
    config.sampler.num_steps = steps
    system = inference.load_system(
        study.workdir / stage, config.evaluate.batch_size, config.sampler
    )
    compiled = system.compile(
        lambda model, batch, key: {"t": system.method.translate(model, batch["source"], key, 1)[0]}
    )
    data, number = system.provenance.config.data, system.batch_size
    source = SliceSource(study.data().test, context=task_of(data).context)
    slices = stored_sources(source.read(plain_plans(np.arange(number))), len(data.sources))
    keys = inference.slice_keys(jax.random.key(0), 0, number)
    batch = system.put({"source": slices}, keys)
    jax.block_until_ready(compiled(system.model, *batch))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(system.model, *batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / number
