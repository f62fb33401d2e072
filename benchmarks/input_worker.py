"""The process that times the training input of one checkout, asked by `benchmarks.input`.

Runs with an older checkout's package as well, and so imports nothing else of this repository.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from cdm_jax import parallel
from cdm_jax.data import pipeline
from cdm_jax.data.prepare import PreparedSubject
from cdm_jax.methods.base import to_model_range
from cdm_jax.tasks import Task

SIZE, SUBJECTS, SLICES = 256, 8, 120  # half a gigabyte
SECONDS, REPEATS = 1.0, 5

Row = dict[str, Any]


def make_cache(folder: pathlib.Path) -> None:
    """Writes subjects of random slices, and reads them once."""
    draws = np.random.default_rng(0)
    for number in range(SUBJECTS):
        slices = draws.integers(0, 2**16, (SLICES, SIZE, SIZE, 4), np.uint16)
        np.save(folder / f"{number}.npy", slices)
        np.load(folder / f"{number}.npy")


def subjects(folder: pathlib.Path) -> list[PreparedSubject]:
    """The subjects of a cache, all of their slices to train on."""
    return [
        PreparedSubject(
            subject_id=path.stem,
            patient_id=path.stem,
            sources=("t1", "t2"),
            targets=("t1c", "t2f"),
            native_shape=(SLICES, SIZE, SIZE),
            slice_indices=tuple(range(SLICES)),
            training=tuple(range(SLICES)),
            intensities={},
            path=path,
        )
        for path in sorted(folder.glob("*.npy"))
    ]


def worker(folder: pathlib.Path) -> None:
    """Answers each line of the standard input, a function's name and its arguments, with JSON."""
    prepared = subjects(folder)
    known: dict[str, Callable[..., Row]] = {"rate": rate, "parts": parts}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(known[name](prepared, *arguments)), flush=True)


def rate(prepared: list[PreparedSubject], batch_size: int, threads: int) -> Row:
    """Slices a second of the pipeline, and processor time, when its buffers are used up."""
    options: Row = {"batch_size": batch_size, "seed": 0, "flips": True, "threads": threads}
    if hasattr(pipeline, "READ_OPTIONS"):  # where the number of threads is no setting yet
        pipeline.READ_OPTIONS.num_threads = options.pop("threads")
    batches: Any = iter(pipeline.training_batches(prepared, **options))
    for _ in range(8):
        next(batches)
    start, processor, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += batch_size
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    batches.close()
    return {"slices_a_second": count / seconds, "processor_us_a_slice": 1e6 * processor / count}


def parts(prepared: list[PreparedSubject], batch_size: int) -> Row:
    """Processor milliseconds of each part of a batch."""
    source: Any = pipeline.SliceSource(prepared)
    order = grain.MapDataset.range(len(source)).seed(0).shuffle()
    order = order.random_map(pipeline._plan_flip).repeat()
    timed = parts_now if hasattr(source, "read") else parts_before
    return {name: milliseconds(call) for name, call in timed(source, order, batch_size).items()}


def parts_now(source: Any, order: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
    """What makes a batch today, on the host and on the devices."""
    plans = np.array([order[k] for k in range(batch_size)])
    stored, put = source.read(plans), parallel.all_devices("jit").put
    placed, task = put(stored), Task(sources=("t1", "t2"), targets=("t1c", "t2f"))
    unpack, key = jax.jit(task.batch), jax.random.key(0)
    return {
        "plan": lambda: np.array([order[k] for k in range(batch_size)]),
        "read": lambda: source.read(plans),
        "put": lambda: put(stored),
        "to floats in the step": lambda: unpack(placed, key),
    }


def parts_before(source: Any, order: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
    """What made a batch where the host splits, mirrors and stacks."""
    batches = order.batch(batch_size, drop_remainder=True)
    plans, put = batches[0], parallel.all_devices("jit").put
    items = [source[first] for first in plans[:, 0].tolist()]
    known = dict(zip(plans[:, 0].tolist(), items, strict=True))
    stored = pipeline._read(known, plans)  # type: ignore[attr-defined]
    placed, to_floats = put(stored), jax.jit(to_model_range)
    return {
        "plan": lambda: batches[0],
        "read": lambda: [source[first] for first in plans[:, 0].tolist()],
        "split, mirror, stack": lambda: pipeline._read(known, plans),  # type: ignore[attr-defined]
        "put": lambda: put(stored),
        "to floats in the step": lambda: jax.tree.map(to_floats, placed),
    }


def milliseconds(call: Callable[[], Any]) -> float:
    """Median processor time of a call, compiled before."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        jax.block_until_ready(call())
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


if __name__ == "__main__":
    worker(pathlib.Path(sys.argv[1]))
