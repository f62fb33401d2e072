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

from cdm_jax import inference
from cdm_jax.data.pipeline import SliceSource, plain_plans
from cdm_jax.evaluate import evaluate_run
from cdm_jax.metrics.aggregate import Record
from cdm_jax.writer import console
from experiments.records import load_results, main_values, save_results
from experiments.study import Study, chosen

STEPS = (1, 10, 20, 30, 40)
REPEATS = 7
BESIDE = ("copy", "brain_mean", "regression", "m1")  # rows without N, kept once

Sweep = dict[str, Any]


def sweep(study: Study, stages: tuple[str, ...], command: str) -> None:
    """Measures these systems for every N and adds each to the record as it is done."""
    name = f"{study.dataset}/sampling"
    content = start(name) | {"command": command}
    dataset, began, done = study.data(), time.perf_counter(), 0
    for stage in stages:
        known = content["systems"].setdefault(stage, {})
        for steps in STEPS:
            console.rule(f"{stage}: N = {steps}")
            config = study.config("cdm")
            usual = config.sampler.num_steps == steps  # whose records are there already
            config.sampler.num_steps = steps
            config.evaluate.systems = (stage,)
            folder = None if usual else f"{stage}_{steps}_steps"
            found = [main_values(r) for r in evaluate_run(config, study.workdir, dataset, folder)]
            if usual:
                content["beside"] = chosen(found, {row: row for row in BESIDE})
            records = [own_rows(record, stage) for record in found]
            row = known.get(str(steps))
            if row is None or identity(row["records"], stage) != identity(records, stage):
                row = {"seconds_a_slice": seconds_a_slice(study, stage, steps)}
            known[str(steps)] = row | {"records": records}
            save_results(name, content)
            done += steps
            left = (time.perf_counter() - began) * (len(stages) * sum(STEPS) / done - 1)
            console.print(f"about {left / 60:.0f} min left")


def start(name: str) -> Sweep:
    """What the record holds of this device; nothing where another device made it."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    try:
        content = load_results(name)
    except FileNotFoundError:
        content = {}
    return content if content.get("device") == device else {"device": device, "systems": {}}


def identity(records: Sequence[Record], stage: str) -> list[tuple[str, str]]:
    """What a time depends on: the checkpoints and the config of the sampling."""
    return [(record["checkpoint"][stage], record["config"]) for record in records]


def own_rows(record: Any, stage: str) -> Any:
    """A record with the system's one sample and mean alone."""
    rows = {
        row: scores
        for row, scores in record["rows"].items()
        if row == stage or row.startswith(f"{stage}/mean_of_")
    }
    return {**record, "rows": rows}


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
    source = SliceSource(study.data().test)
    images = source.read(plain_plans(np.arange(system.batch_size)))["images"]
    slices = images[..., : len(config.data.sources)]
    stored, key = {"source": jax.device_put(slices)}, jax.random.key(0)
    jax.block_until_ready(compiled(system.model, stored, key))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(system.model, stored, key))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / system.batch_size
