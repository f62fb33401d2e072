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
from cdm_jax.data import pipeline, prepare
from cdm_jax.tasks import Task

SIZE, SUBJECTS, SLICES = 256, 8, 120  # half a gigabyte of whole slices
ROWS = 0.75  # of a slice, that the largest section of a brain covers; 0.59 on average, as in BraTS
SECONDS, REPEATS = 1.0, 5

Row = dict[str, Any]


def make_cache(folder: pathlib.Path) -> list[Any]:
    """Subjects of random slices in the shape of a brain, as this checkout keeps them on disk.

    All slices are to train on, and are read once.
    """
    draws = np.random.default_rng(0)
    found = []
    for number in range(SUBJECTS):
        slices = draws.integers(1, 2**16, (SLICES, SIZE, SIZE, 4), np.uint16)
        height = np.linspace(-1, 1, SLICES)[:, None]
        outside = np.abs(np.linspace(-1, 1, SIZE)) > ROWS * np.sqrt(1 - height**2)
        slices[outside] = 0
        content: Row = {
            "subject_id": f"{number}",
            "patient_id": f"{number}",
            "sources": ("t1", "t2"),
            "targets": ("t1c", "t2f"),
            "native_shape": (SLICES, SIZE, SIZE),
            "slice_indices": tuple(range(SLICES)),
            "training": tuple(range(SLICES)),
            "intensities": {},
        }
        found.append(write(content, slices, folder / f"{number}.npy"))
        np.load(folder / f"{number}.npy")
    return found


def write(content: Row, slices: np.ndarray, path: pathlib.Path) -> Any:
    """A prepared subject on disk; whole slices where a checkout is older than `data.cache`."""
    if hasattr(prepare, "PreparedSubject"):
        np.save(path, slices)
        return prepare.PreparedSubject(**content, path=path)
    from cdm_jax.data.cache import write_prepared

    return write_prepared(prepare.Prepared(**content, slices=slices), path)


def worker(folder: pathlib.Path) -> None:
    """Answers each line of the standard input, a function's name and its arguments, with JSON."""
    prepared = make_cache(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.npy"))
    known: dict[str, Callable[..., Row]] = {"rate": rate, "parts": parts}
    known["bytes"] = lambda _: {"a_slice": size / (SUBJECTS * SLICES)}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(known[name](prepared, *arguments)), flush=True)


def rate(prepared: list[Any], batch_size: int, threads: int) -> Row:
    """Slices a second of the pipeline, and processor time, when its buffers are used up."""
    options: Row = {"batch_size": batch_size, "seed": 0, "flips": True, "threads": threads}
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


def parts(prepared: list[Any], batch_size: int) -> Row:
    """Processor milliseconds of each part of a batch, on the host and on the devices."""
    source: Any = pipeline.SliceSource(prepared)
    order = grain.MapDataset.range(len(source)).seed(0).shuffle()
    order = order.random_map(pipeline._plan_flip).repeat()
    plans = np.array([order[k] for k in range(batch_size)])
    stored, put = source.read(plans), parallel.all_devices("jit").put
    placed, task = put(stored), Task(sources=("t1", "t2"), targets=("t1c", "t2f"))
    unpack, key = jax.jit(task.batch), jax.random.key(0)
    calls: dict[str, Callable[[], Any]] = {
        "plan": lambda: np.array([order[k] for k in range(batch_size)]),
        "read": lambda: source.read(plans),
        "put": lambda: put(stored),
        "to floats in the step": lambda: unpack(placed, key),
    }
    return {name: milliseconds(call) for name, call in calls.items()}


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
