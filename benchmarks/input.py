"""Slices a second that the training input gives, from a warm cache at 256x256, and what they cost.

  python -m benchmarks.input [--before=<checkout of another commit>] [--show]

Random slices in the shape of a brain lie in a cache on disk, which is read once before anything is
timed. Of each checkout, a process of its own writes such a cache and measures one setting after the
other, in turn with the other checkout's, so that what else the machine does falls on both; the
record has medians over the rounds. Processor time counts all threads of a process, and depends less
on what else runs. Nothing is trained. Writes `benchmarks/results/input.json` and prints it beside
what eight A100s are estimated to take (`benchmarks/scaling.py`).
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax

from benchmarks import input_worker, scaling
from benchmarks.input_worker import SIZE, Row
from benchmarks.parts.asking import Ask, asked
from benchmarks.records import load_results, save_results
from cdm_jax.writer import console

NAME = "input"
BATCHES, THREADS = (12, 96), (1, 2, 4)
QUESTIONS = [("rate", batch, threads) for batch in BATCHES for threads in THREADS]
QUESTIONS += [("parts", batch) for batch in BATCHES]  # type: ignore[misc]
QUESTIONS += [("bytes",)]  # type: ignore[list-item]
ROUNDS = 5
NEEDED = ("cunet", "mdn")  # the slowest and the fastest stage of CDM
HERE = pathlib.Path(__file__).parents[1]


def _asked(checkout: pathlib.Path, folder: pathlib.Path) -> contextlib.AbstractContextManager[Ask]:
    """A process with the package of a checkout, as a function that asks it."""
    folder.mkdir()
    command = [sys.executable, "-P", input_worker.__file__, str(folder)]
    return asked(command, os.environ | {"PYTHONPATH": str(checkout)})


def measure(before: pathlib.Path | None) -> None:
    """Measures every setting in turn, and writes the record."""
    checkouts = ({"before": before.absolute()} if before else {}) | {"now": HERE}
    found: dict[tuple, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        workers = {
            code: stack.enter_context(_asked(checkout, pathlib.Path(name, code)))
            for code, checkout in checkouts.items()
        }
        for number in range(ROUNDS):
            console.print(f"round {number + 1} of {ROUNDS}")
            for question in QUESTIONS:
                for code, ask in workers.items():
                    found.setdefault((code, *question), []).append(ask(question))
    medians = {key: _medians(several) for key, several in found.items()}
    commits = {code: _commit(checkout) for code, checkout in checkouts.items()}
    content = {
        "command": f"python -m benchmarks.{NAME} --before=<checkout of {commits.get('before')}>",
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
        "bytes_a_slice": {code: medians[code, "bytes"]["a_slice"] for code in checkouts},
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
    sizes = [f"{size / 1e3:.0f} ({code})" for code, size in content["bytes_a_slice"].items()]
    lines += ["", f"Kilobytes of the cache a slice: {', '.join(sizes)}."]
    taken = [f"{stage} {needed(stage):,.0f}" for stage in NEEDED]
    return [*lines, "", f"Estimated of eight A100s, in slices/s: {', '.join(taken)}."]


def main() -> None:
    """Measures, writes the record, prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=pathlib.Path, help="checkout of a commit to compare with")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        measure(options.before)
    console.print("\n".join(tables(load_results(NAME))), soft_wrap=True)


if __name__ == "__main__":
    main()
