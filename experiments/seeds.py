"""Does the condition help? Several seeds of every stage on the same phantom patients.

  python -m experiments.seeds [--seeds=0,1,2] [--workdir=runs/seeds]

Each seed trains MRM, MDN, C-UNet, M1 and M1 at C-UNet's capacity afresh and is evaluated on the
same unseen patients. A row's value for a patient is its mean over seeds; intervals are over
patients. What is trained already is not trained again. Writes
`experiments/results/phantom_seeds.json` and, from it, `docs/results/phantom/seeds.md`.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cdm_jax import main as command_line
from cdm_jax.metrics.aggregate import Record, compare, per_patient, summarize
from cdm_jax.writer import console
from experiments.records import load_records, load_results, main_values, save_results
from experiments.study import DOCS, write

NAME = "phantom_seeds"
COMMAND = "python -m experiments.seeds"
SYSTEMS = ("cdm", "m1_1x1")
REFERENCE = "m1"
# The question, the row, the row that it is compared with.
QUESTIONS = (
    ("Does the condition help?", "cunet/mean_of_8", "m1"),
    ("Does capacity alone help?", "m1_1x1", "m1"),
    ("Is the condition more than capacity?", "cunet/mean_of_8", "m1_1x1"),
    ("Is it this patient's condition?", "cunet", "cunet/shuffled"),
)


def run_seed(seed: int, workdir: pathlib.Path) -> list[Record]:
    """Trains and evaluates one seed; patients, split and cache are shared by all."""
    shared = {"root": "patients", "cache": "cache", "split_file": "split.json"}
    overrides = [f"--config.data.{key}={workdir / name}" for key, name in shared.items()]
    folder = workdir / f"seed_{seed}"
    for system in SYSTEMS:
        console.rule(f"seed {seed}: {system}")
        config = f"--config=configs/phantom.py:{system},seed={seed}"
        if command_line.main(["cdm_jax.main", "train", config, f"--workdir={folder}", *overrides]):
            raise SystemExit(1)
    return [main_values(record) for record in load_records(folder)]


def over_seeds(
    runs: Sequence[Sequence[Record]], row: str, convention: str, target: str, metric: str
) -> Float[np.ndarray, "patients"]:
    """Each patient's mean over seeds."""
    values = [per_patient(records, row, convention, target, metric)[1] for records in runs]
    return np.mean(values, axis=0)


def table(runs: Sequence[Sequence[Record]], convention: str, metric: str) -> list[str]:
    """Markdown lines: mean of each row and its paired difference from M1, for each target."""
    first = runs[0][0]["rows"]
    targets = list(first["copy"][convention])
    lines = [
        f"| {convention}, {metric.upper()} | "
        + " | ".join(f"{target} | difference from {REFERENCE}" for target in targets)
        + " | seeds |",
        "| --- |" + " ---: | :---: |" * len(targets) + " ---: |",
    ]
    for row in first:
        cells = []
        for target in targets:
            values = over_seeds(runs, row, convention, target, metric)
            base = over_seeds(runs, REFERENCE, convention, target, metric)
            cells += [f"{summarize(values).mean:.2f}", _difference(values, base)]
        spread = [
            np.nanmean([per_patient(r, row, convention, t, metric)[1] for t in targets])
            for r in runs
        ]
        cells.append(", ".join(f"{value:.2f}" for value in spread))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def _difference(values: np.ndarray, base: np.ndarray) -> str:
    result = compare(values, base)
    if result.interval is None or not np.any(values - base):
        return ""
    low, high = result.interval
    return f"{result.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def findings(runs: Sequence[Sequence[Record]]) -> list[str]:
    """Markdown lines: the answer to each question, over the seeds and seed by seed."""
    lines = []
    for question, row, other in QUESTIONS:
        answers = []
        for target in runs[0][0]["rows"][REFERENCE]["volume"]:
            pairs = [
                [over_seeds([run], name, "volume", target, "psnr") for name in (row, other)]
                for run in runs
            ]
            seeds = ", ".join(f"{np.mean(mine - theirs):+.2f}" for mine, theirs in pairs)
            over_all = _difference(*np.mean(pairs, axis=0))
            answers.append(f"{target} {over_all} dB (seeds: {seeds})")
        lines.append(f"- {question} {row} against {other}: {'; '.join(answers)}.")
    return lines


def show() -> None:
    """Prints and writes what the committed record says."""
    runs = list(load_results(NAME)["runs"].values())
    tables = [table(runs, convention, "psnr") for convention in ("volume", "paper")]
    text = "\n\n".join("\n".join(lines) for lines in [findings(runs), *tables])
    console.print(text, soft_wrap=True)
    write(DOCS / "phantom/seeds.md", text + "\n")


def main() -> None:
    """Runs what is missing, writes the record, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/seeds"))
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        runs = {str(seed): run_seed(seed, options.workdir) for seed in seeds}
        save_results(NAME, {"command": COMMAND, "runs": runs})
    show()


if __name__ == "__main__":
    main()
