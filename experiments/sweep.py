"""What sampling steps buy: quality and time of a system for several N, for Table IV and Fig. 5 (a).

The trained networks stay the same; only N of DDIM changes. Times are of one sample, for a full
batch, compiled and warm, the median of several calls.
"""

import statistics
import time
from typing import Any

import jax
import numpy as np

from cdm_jax import inference
from cdm_jax.data.pipeline import SliceSource
from cdm_jax.evaluate import evaluate_run
from cdm_jax.writer import console
from experiments.records import load_results, main_values, save_results
from experiments.study import Study

STEPS = (1, 10, 20, 30, 40)
REPEATS = 7

Sweep = dict[str, Any]


def sweep(study: Study, stages: tuple[str, ...], command: str) -> None:
    """Measures these systems for every N and adds them to the record."""
    name = f"{study.dataset}/sampling"
    try:
        systems = load_results(name)["systems"]
    except FileNotFoundError:
        systems = {}
    dataset = study.data()
    for stage in stages:
        rows = {}
        for place, steps in enumerate(STEPS):
            console.rule(f"{stage}: N = {steps} ({place + 1} of {len(STEPS)})")
            config = study.config("cdm")
            usual = config.sampler.num_steps == steps  # whose records are there already
            config.sampler.num_steps = steps
            config.evaluate.systems = (stage,)
            folder = None if usual else f"{stage}_{steps}_steps"
            records = evaluate_run(config, study.workdir, dataset, folder)
            rows[str(steps)] = {
                "records": [own_rows(main_values(record), stage) for record in records],
                "seconds_a_slice": seconds_a_slice(study, stage, steps),
            }
        systems[stage] = rows
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    save_results(name, {"command": command, "device": device, "systems": systems})


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
    slices = np.stack([source[n]["source"] for n in range(system.batch_size)])
    stored, key = {"source": jax.device_put(slices)}, jax.random.key(0)
    jax.block_until_ready(compiled(system.model, stored, key))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(system.model, stored, key))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / system.batch_size
