"""What does it buy a network to see the slices beside its own? On validation patients.

  python -m experiments.neighbors [--seeds=0,1,2] [--workdir=runs/neighbors]

Trains M1 without and with neighbors (`data.context`) on the same phantom patients, for the paper's
task and for any modalities, and scores it on the patients who were held out for validation, since a
default follows from the answer: PSNR in the brain, and the error of the step to the next slice. A
value of a patient is its mean over seeds; intervals are over patients. What is trained already is
not trained again. Every seed joins the others in `experiments/results/phantom/neighbors.json`; from
it comes `docs/results/phantom/neighbors.md`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cdm_jax import main as command_line
from cdm_jax.metrics.aggregate import Summary, summarize
from cdm_jax.phantom.patient import VERSIONS
from cdm_jax.records import WHOLE, Record, per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.writer import console
from configs import common
from experiments.records import SeedRecord, load_records, load_results, main_values
from experiments.study import DOCS, seed_by_seed, write

NAME = "phantom/neighbors"
COMMAND = "python -m experiments.neighbors"
CONTEXTS = (0, 1, 2)
TASKS = {"fixed": "m1", "any": "m1,any"}  # to the argument of the config
ROW, CONVENTION, PAPER = "m1", "volume", "t1+t2"
METRICS = {"psnr": (".2f", "PSNR"), "z_gradient": (".4f", "step error in z")}
# Many are held out: they are who is scored.
OVERRIDES = (
    "--config.data.validation_fraction=0.3",
    "--config.evaluate.part=validation",
    f"--config.evaluate.rows=({ROW!r},)",
    f"--config.evaluate.systems=({ROW!r},)",
    f"--config.evaluate.conventions=({CONVENTION!r},)",
)

Runs = Mapping[str, Mapping[str, Mapping[str, Sequence[Record]]]]
"""Pattern -> context -> seed -> records."""


def run(task: str, context: int, seed: int, workdir: pathlib.Path) -> dict[str, list[Record]]:
    """Trains and scores one network; patients, split and cache are shared by a task's."""
    shared = {"root": "patients", "cache": f"cache_{task}", "split_file": "split.json"}
    folder = workdir / f"{task}_{context}_{seed}"
    console.rule(f"{task}: {context} to each side, seed {seed}")
    arguments = [
        f"--config=configs/phantom.py:{TASKS[task]},seed={seed}",
        f"--config.data.context={context}",
        f"--workdir={folder}",
        *OVERRIDES,
        *(f"--config.data.{key}={workdir / name}" for key, name in shared.items()),
    ]
    if command_line.main(["cdm_jax.main", "train", *arguments]):
        raise SystemExit(1)
    parts = {"fixed": "validation"}
    if task == "any":
        parts = {pattern: f"validation/{pattern}" for pattern in common.cdm.PATTERNS}
    return {
        name: [main_values(record) for record in load_records(folder, part)]
        for name, part in parts.items()
    }


def measure(seeds: Sequence[int], workdir: pathlib.Path) -> None:
    """Runs what is missing, seed by seed, and adds each to the record."""
    settings = {"overrides": list(OVERRIDES), "phantom": VERSIONS["fixed"]}
    record = SeedRecord(NAME, COMMAND, settings)
    for seed in seeds:
        for task in TASKS:
            for context in CONTEXTS:
                for name, records in run(task, context, seed, workdir).items():
                    record.add(name, str(context), seed, records)
        record.save()


def values(runs: Mapping[str, Sequence[Record]], target: str, metric: str) -> pd.Series:
    """A value a patient, its mean over seeds."""
    seeds = [
        per_patient(records, CONVENTION)[ROW, target, WHOLE, metric] for records in runs.values()
    ]
    return pd.concat(seeds).groupby(level="patient").mean()


def gain(found: Mapping[str, Any], context: str, target: str, metric: str) -> Summary:
    """Of seeing so many neighbors over seeing none, paired by patient."""
    with_them, without = (values(found[key], target, metric) for key in (context, "0"))
    return summarize(with_them - without)


def table(runs: Runs, metric: str) -> pd.DataFrame:
    """Texts: for each pattern and target the value without neighbors, and what they change."""
    form, _ = METRICS[metric]
    lines = {}
    for name, found in runs.items():
        first = next(iter(found["0"].values()))
        for target in first[0]["rows"][ROW][CONVENTION]:
            changes = {
                f"{context} to each side": with_interval(
                    gain(found, context, target, metric), f"+{form}"
                )
                for context in found
                if context != "0"
            }
            none = with_interval(summarize(values(found["0"], target, metric)), form)
            lines[f"{PAPER}, fixed" if name == "fixed" else name, target] = {
                "none": none,
                **changes,
            }
    return pd.DataFrame(
        lines.values(), index=pd.MultiIndex.from_tuples(lines, names=["sources", "target"])
    )


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    runs = content["runs"]
    first = next(iter(runs["fixed"]["0"].values()))
    number = len(runs["fixed"]["0"])
    seeds = f"{number} seeds" if number > 1 else "one seed"
    parts = [
        "# What neighbors of a slice buy",
        f"Made by `{content['command']}`, with `{' '.join(content['overrides'])}`.",
        *(
            f"{title}:\n\n{to_markdown(table(runs, metric).reset_index().set_index('sources'))}"
            for metric, (_, title) in METRICS.items()
        ),
        f"M1 without neighbors, and what those to each side change. Means over {len(first)} "
        f"validation patients of the phantom and {seeds}, 95 % bootstrap intervals over patients "
        "in brackets. PSNR in dB, higher is better; the error of the step to the next slice is "
        "lower where a volume is steadier along z.",
    ]
    return "\n\n".join(parts) + "\n"


def show() -> None:
    """Prints and writes what the committed record says."""
    text = report(load_results(NAME))
    console.print(text, soft_wrap=True, markup=False)
    write(DOCS / f"{NAME}.md", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, writes the record and shows it."""
    seed_by_seed(arguments, __doc__, measure, show, "runs/neighbors")


if __name__ == "__main__":
    main()
