"""How long a patient's evaluation takes, now and before evaluations chose their rows.

  python -m benchmarks.evaluation_time [--workdir=runs/evaluation_time] [--show]

The version before is taken from git. Each version simulates the same patients and trains the same
networks for one step, since quality does not matter here; they are timed in turns. A patient's
time is the difference between an evaluation of several patients and of one, divided by how many
more they are: what is done once (loading, compiling) is not in it. Where other programs use the
same cores, compare processor times. To keep two rows of CDM, a sweep of N scored eleven: all of
those shown but M1's. Writes `benchmarks/results/evaluation_time.json`.
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.records import load_results, save_results
from cdm_jax.writer import console

NAME = "evaluation_time"
COMMAND = "python -m benchmarks.evaluation_time"
BEFORE = "a4c5f40"  # the last commit whose evaluations scored every row, one subject after another
ROOT = pathlib.Path(__file__).parents[1]


class Case(NamedTuple):
    """What is evaluated.

    Attributes:
      told: what it is, for the table.
      argument: of the config, after the stage.
      changes: of the config.
      patients: of the longer of two evaluations.
    """

    told: str
    argument: str
    changes: Mapping[str, Any]
    patients: int


class Variant(NamedTuple):
    """Which version evaluates which systems, and which rows of them: all where empty."""

    version: str
    systems: tuple[str, ...]
    rows: tuple[str, ...] = ()


CASES = {
    "small": Case(
        "small networks at 64x64, volumes of 64x64x48",
        "small",
        {"phantom.num_patients": 12, "data.test_fraction": 0.5},
        3,
    ),
    "full": Case(
        "the tests' smallest networks at 256x256, volumes of 240x240x155",
        "smoke,size=256",
        {
            "phantom.num_patients": 4,
            "phantom.shape": (240, 240, 155),
            "phantom.voxel_mm": 1.0,
            "data.test_fraction": 0.5,
            "sampler.num_steps": 30,
            "evaluate.num_samples": 8,
        },
        2,
    ),
}
BOTH = ("cunet", "m1")
VARIANTS = {
    "every row of CDM and M1, before": Variant("before", BOTH),
    "every row of CDM and M1, now": Variant("now", BOTH),
    "what a sweep of N keeps, now": Variant("now", BOTH[:1], ("cunet", "cunet/mean_of_8")),
}
# Runs in either version's folder: the wall and processor time of one and of several patients.
CHILD = """
import dataclasses, json, os, pathlib, shutil, sys, time
import jax
from absl import flags
from cdm_jax import checkpoint
from cdm_jax.data.dataset import load_dataset
from cdm_jax.evaluate import evaluate_run
from cdm_jax.train import train_stage
from configs import phantom

flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
workdir, argument, changes, patients = json.loads(sys.argv[1])
workdir = pathlib.Path(workdir)
jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
config = phantom.get_config(f"cdm,{argument}")
for name, value in changes.items():
    section, key = name.split(".")
    with config[section].unlocked():
        config[section][key] = tuple(value) if isinstance(value, list) else value
dataset = load_dataset(config, workdir)
for config.stage in ("mrm", "mdn", "cunet", "m1"):
    config[config.stage].train.update({"num_steps": 1, "batch_size_per_device": 1})
    if not checkpoint.finished(workdir / config.stage):
        train_stage(config, workdir, dataset)

def run(number, conventions):
    shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    config.evaluate.conventions = conventions
    some = dataclasses.replace(dataset, test=dataset.test[:number])
    start = clocks()
    records = evaluate_run(config, workdir, some, "timed")
    return [b - a for a, b in zip(start, clocks())], len(records[0]["rows"])

def clocks():  # the second is of worker processes too
    return time.perf_counter(), sum(os.times()[:4])

run(1, ())  # compiles
(one, _), (several, rows) = (run(n, ("paper", "volume")) for n in (1, patients))
seconds, processor = ((b - a) / (patients - 1) for a, b in zip(one, several))
print(json.dumps({"rows": rows, "seconds": seconds, "processor_seconds": processor}))
"""


def version_before(folder: pathlib.Path) -> pathlib.Path:
    """The files of the commit `BEFORE`, unpacked where they are not there yet."""
    if not (folder / "cdm_jax").exists():
        packed = subprocess.run(
            ["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
    return folder


def timed(
    version: pathlib.Path, case: Case, workdir: pathlib.Path, variant: Variant
) -> dict[str, Any]:
    """One variant's time a patient, measured in a process of its own."""
    chosen = {"evaluate.systems": variant.systems, "evaluate.rows": variant.rows}
    changes = dict(case.changes) | chosen
    request = json.dumps([str(workdir.absolute()), case.argument, changes, case.patients])
    command = [sys.executable, "-c", CHILD, request]
    done = subprocess.run(command, cwd=version, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(workdir: pathlib.Path, repeats: int) -> None:
    """Times every case and variant in turns and writes the record, which grows with each turn."""
    folders = {"before": version_before(workdir / "before"), "now": ROOT}
    content: dict[str, Any] = {
        "command": f"{COMMAND} --repeats={repeats}",
        "before": BEFORE,
        "machine": f"CPU, {os.cpu_count()} cores, shared with other programs",
        "cases": {
            name: {"told": case.told, "found": {variant: [] for variant in VARIANTS}}
            for name, case in CASES.items()
        },
    }
    for turn, name, variant in itertools.product(range(repeats), CASES, VARIANTS):
        console.rule(f"{name}: {variant} ({turn + 1} of {repeats})")
        version = VARIANTS[variant].version
        trained = workdir / f"{name}_{version}"
        row = timed(folders[version], CASES[name], trained, VARIANTS[variant])
        content["cases"][name]["found"][variant].append(row)
        console.print(row)
        save_results(NAME, content)


def show() -> None:
    """Prints the record's table: medians over the turns."""
    content = load_results(NAME)
    for case in content["cases"].values():
        table = Table(title=f"Evaluation of a patient: {case['told']}; {content['machine']}")
        for heading in ("", "rows scored", "seconds", "processor seconds"):
            table.add_column(heading, justify="right" if heading else "left")
        for variant, turns in case["found"].items():
            if not turns:  # the measurement was interrupted
                continue
            medians = (
                statistics.median(turn[key] for turn in turns)
                for key in ("seconds", "processor_seconds")
            )
            table.add_row(variant, str(turns[0]["rows"]), *(f"{value:.1f}" for value in medians))
        console.print(table)


def main() -> None:
    """Measures unless asked not to, then prints the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs") / NAME)
    parser.add_argument("--repeats", type=int, default=2, help="turns of all variants")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        measure(options.workdir, options.repeats)
    show()


if __name__ == "__main__":
    main()
