"""Slices a second that the training input gives, from a warm cache at 256x256, and what they cost.

  python -m experiments.input [--before=<checkout of another commit>] [--show]

Random slices lie in a cache on disk that is read once before anything is timed. Of each checkout, a
process of its own measures one setting after the other, in turn with the other checkout's, so that
what else the machine does falls on both; the record has medians over the rounds. Processor time
counts all threads of a process, and depends less on what else runs. Nothing is trained. Writes
`experiments/results/input.json` and prints it beside what eight A100s are estimated to take
(`experiments/scaling.py`).
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from cdm_jax import parallel
from cdm_jax.data import pipeline
from cdm_jax.data.prepare import PreparedSubject
from cdm_jax.methods import base
from cdm_jax.writer import console
from experiments import scaling
from experiments.records import load_results, save_results

NAME = "input"
SIZE, SUBJECTS, SLICES = 256, 8, 120  # half a gigabyte
BATCHES, THREADS = (12, 96), (1, 2, 4)
QUESTIONS = [("rate", batch, threads) for batch in BATCHES for threads in THREADS]
QUESTIONS += [("parts", batch) for batch in BATCHES]  # type: ignore[misc]
ROUNDS, SECONDS, REPEATS = 5, 1.0, 5
NEEDED = ("cunet", "mdn")  # the slowest and the fastest stage of CDM
HERE = pathlib.Path(__file__).parents[1]

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


# In the process of a checkout


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
    placed, unpack = put(stored), jax.jit(base.unpack, static_argnums=2)
    return {
        "plan": lambda: np.array([order[k] for k in range(batch_size)]),
        "read": lambda: source.read(plans),
        "put": lambda: put(stored),
        "to floats in the step": lambda: unpack(placed["images"], placed["mirrored"], 2),
    }


def parts_before(source: Any, order: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
    """What made a batch where the host splits, mirrors and stacks."""
    batches = order.batch(batch_size, drop_remainder=True)
    plans, put = batches[0], parallel.all_devices("jit").put
    items = [source[first] for first in plans[:, 0].tolist()]
    known = dict(zip(plans[:, 0].tolist(), items, strict=True))
    stored = pipeline._read(known, plans)  # type: ignore[attr-defined]
    placed, to_floats = put(stored), jax.jit(base.to_model_range)
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


# In the process that asks


@contextlib.contextmanager
def asked(checkout: pathlib.Path, folder: pathlib.Path) -> Iterator[Callable[..., Row]]:
    """A process with the package of a checkout, as a function that asks it."""
    command = [sys.executable, "-P", __file__, f"--worker={folder}"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        lines, answers = process.stdin, process.stdout
        assert lines and answers

        def ask(*question: Any) -> Row:
            print(json.dumps(question), file=lines, flush=True)
            return json.loads(answers.readline())

        yield ask


def measure(before: pathlib.Path | None) -> None:
    """Measures every setting in turn, and writes the record."""
    checkouts = ({"before": before.absolute()} if before else {}) | {"now": HERE}
    found: dict[tuple, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        make_cache(folder)
        workers = {code: stack.enter_context(asked(c, folder)) for code, c in checkouts.items()}
        for number in range(ROUNDS):
            console.print(f"round {number + 1} of {ROUNDS}")
            for question in QUESTIONS:
                for code, ask in workers.items():
                    found.setdefault((code, *question), []).append(ask(*question))
    medians = {key: _medians(several) for key, several in found.items()}
    commits = {code: _commit(checkout) for code, checkout in checkouts.items()}
    content = {
        "command": f"python -m experiments.{NAME} --before=<checkout of {commits.get('before')}>",
        "commits": commits,
        "size": SIZE,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "rounds": ROUNDS,
        "rates": [
            {"code": code, "batch_size": rest[0], "threads": rest[1]} | row
            for (code, kind, *rest), row in medians.items()
            if kind == "rate"
        ],
        "milliseconds": [
            {"code": code, "batch_size": rest[0]} | row
            for (code, kind, *rest), row in medians.items()
            if kind == "parts"
        ],
    }
    save_results(NAME, content)


def _medians(several: list[Row]) -> Row:
    return {name: statistics.median(row[name] for row in several) for name in several[0]}


def _commit(checkout: pathlib.Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# What is drawn from the record


def needed(stage: str) -> float:
    """Slices a second that eight A100s are estimated to take in a stage's training."""
    content = load_results(scaling.NAME)
    (row,) = [r for r in content["rows"] if (r["stage"], r["mode"]) == (stage, "jit")]
    return 8 * content["each"] * scaling.PEAK * scaling.SHARE / row["flops"]


def tables(content: Row) -> list[str]:
    """Markdown lines."""
    commits = ", ".join(f"{code} is {commit}" for code, commit in content["commits"].items())
    lines = [
        f"Slices of {content['size']} pixels a side a second in one process on {content['cores']} "
        f"cores, and microseconds of processor time a slice; {commits}.",
        "",
        "| slices a batch | threads | code | slices/s | processor us |",
        "| ---: | ---: | --- | ---: | ---: |",
    ]
    for row in content["rates"]:
        rates = f"{row['slices_a_second']:.0f} | {row['processor_us_a_slice']:.0f}"
        lines.append(f"| {row['batch_size']} | {row['threads']} | {row['code']} | {rates} |")
    names = list(dict.fromkeys(name for row in content["milliseconds"] for name in row))[2:]
    lines += ["", f"Milliseconds of processor time a batch; the device is a {content['device']}."]
    lines += ["", f"| slices a batch | code | {' | '.join(names)} |"]
    lines += [f"| ---: | --- | {' | '.join(['---:'] * len(names))} |"]
    for row in content["milliseconds"]:
        times = " | ".join(f"{row[name]:.1f}" if name in row else "" for name in names)
        lines.append(f"| {row['batch_size']} | {row['code']} | {times} |")
    taken = [f"{stage} {needed(stage):,.0f}" for stage in NEEDED]
    return [*lines, "", f"Estimated of eight A100s, in slices/s: {', '.join(taken)}."]


def main() -> None:
    """Measures, writes the record, prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=pathlib.Path, help="checkout of a commit to compare with")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    if not options.show:
        measure(options.before)
    console.print("\n".join(tables(load_results(NAME))), soft_wrap=True)


if __name__ == "__main__":
    main()
