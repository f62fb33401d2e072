"""Slices a second that the input pipeline gives, from a warm cache onto the host, at 256x256.

  python -m experiments.input_speed [--before=<checkout of another commit>] [--show]

Simulated subjects fill a cache on disk, which is read once before anything is timed. Each setting
is measured in a process of its own, `ROUNDS` times in turn with the others and with the other
checkout's, so that what else the machine does falls on all of them; the record has the medians.
Nothing is trained. A training step of eight A100s takes 2,800 slices a second (C-UNet) to 27,000
(MDN), shared by as many processes as there are.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from rich.table import Table

from cdm_jax.data import pipeline
from cdm_jax.data.prepare import PreparedSubject
from cdm_jax.writer import console
from experiments.records import load_results, save_results

NAME = "input_speed"
SIZE, SUBJECTS, SLICES = 256, 8, 120  # half a gigabyte
SETTINGS = tuple(itertools.product((12, 96), (1, 2, 4)))  # slices a batch, threads
ROUNDS, SECONDS = 3, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: a batch size and a number of threads."""

    batch_size: int
    threads: int


def make_cache(folder: pathlib.Path) -> None:
    """Writes subjects whose brain fills the middle of each slice, as quantized noise."""
    rng = np.random.default_rng(0)
    for number in range(SUBJECTS):
        slices = rng.integers(0, 2**16, (SLICES, SIZE, SIZE, 4), np.uint16)
        np.save(folder / f"{number}.npy", slices)


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


def slices_a_second(folder: pathlib.Path, setting: Setting) -> float:
    """What one process gets out of the pipeline of the package that is imported."""
    options: dict[str, Any] = {"batch_size": setting.batch_size, "seed": 0, "flips": True}
    if hasattr(pipeline, "READ_OPTIONS"):  # of release 0.1, where threads were no setting
        changed = dataclasses.replace(pipeline.READ_OPTIONS, num_threads=setting.threads)
        pipeline.READ_OPTIONS = changed
    else:
        options["threads"] = setting.threads
    batches = iter(pipeline.training_batches(subjects(folder), **options))
    for _ in range(8):  # more than what the buffer held
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += setting.batch_size
    return count / (time.perf_counter() - start)


def measured(folder: pathlib.Path, setting: Setting, checkout: pathlib.Path) -> float:
    """The same in a process of its own, with the package of a checkout."""
    text = json.dumps([str(folder), dataclasses.asdict(setting)])
    done = subprocess.run(
        [sys.executable, __file__, text],
        env=os.environ | {"PYTHONPATH": f"{checkout}:{pathlib.Path(__file__).parents[1]}"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def measure(before: pathlib.Path | None) -> None:
    """Measures every setting and writes the record."""
    here = pathlib.Path(__file__).parents[1]
    checkouts = {"now": here} | ({"before": before} if before else {})
    found: dict[tuple[str, Setting], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_cache(folder)
        for path in folder.glob("*.npy"):
            path.read_bytes()
        for _ in range(ROUNDS):
            for batch_size, threads in SETTINGS:
                setting = Setting(batch_size=batch_size, threads=threads)
                for label, checkout in checkouts.items():
                    rate = measured(folder, setting, checkout)
                    found.setdefault((label, setting), []).append(rate)
    rows = [
        {"code": label, **dataclasses.asdict(setting), "slices_a_second": statistics.median(rates)}
        for (label, setting), rates in found.items()
    ]
    commits = {label: _commit(checkout) for label, checkout in checkouts.items()}
    content = {
        "command": f"python -m experiments.{NAME} --before=<checkout of {commits.get('before')}>",
        "size": SIZE,
        "cores": os.cpu_count(),
        "commits": commits,
        "rows": rows,
    }
    save_results(NAME, content)


def _commit(checkout: pathlib.Path) -> str:
    told = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()


def show() -> None:
    """Prints the record."""
    content = load_results(NAME)
    table = Table(title=f"slices a second, {SIZE}x{SIZE}, {content['cores']} cores, one process")
    for heading in ("code", "slices a batch", "threads", "slices/s"):
        table.add_column(heading, justify="right")
    for row in content["rows"]:
        rate = f"{row['slices_a_second']:.0f}"
        table.add_row(row["code"], str(row["batch_size"]), str(row["threads"]), rate)
    console.print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=pathlib.Path, help="checkout of another commit")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        measure(options.before)
    show()


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("["):
        place, values = json.loads(sys.argv[1])
        print(slices_a_second(pathlib.Path(place), Setting(**values)))
    else:
        main()
