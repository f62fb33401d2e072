"""Does the condition help? Several seeds of every stage on the same phantom patients.

  python -m experiments.seeds [--seeds=0,1,2] [--workdir=runs/seeds]

Each seed trains MRM, MDN, C-UNet, M1 and M1 at C-UNet's capacity afresh and is evaluated on the
same unseen patients. A row's value for a patient is its mean over seeds; intervals are over
patients. What is trained already is not trained again. Writes
`experiments/results/phantom_seeds.json` and, from it, `docs/results/phantom/seeds.md`.
"""

import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from cdm_jax import main as command_line
from cdm_jax.metrics.aggregate import summarize
from cdm_jax.records import AVERAGE, WHOLE, Record, per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.writer import console
from experiments.records import load_records, load_results, main_values, save_results
from experiments.study import DOCS, seed_by_seed, write

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


def psnr(runs: Mapping[str, Sequence[Record]], convention: str) -> pd.DataFrame:
    """PSNR: a line for each seed and patient, a column for each (row, target)."""
    values = pd.concat({n: per_patient(records, convention) for n, records in runs.items()})
    return values.xs((WHOLE, "psnr"), axis=1, level=("region", "metric"))


def table(runs: Mapping[str, Sequence[Record]], convention: str) -> pd.DataFrame:
    """Texts: mean of each row and its paired difference from M1, for each target."""
    first, *_ = runs.values()
    rows = first[0]["rows"]
    values = psnr(runs, convention)
    over_seeds = values.groupby("patient").mean()
    lines = []
    for row in rows:
        cells = []
        for target in rows["copy"][convention]:
            own, base = over_seeds[row, target], over_seeds[REFERENCE, target]
            cells += [f"{own.mean():.2f}", "" if row == REFERENCE else difference(own - base)]
        spread = values[row, AVERAGE].groupby(level=0, sort=False).mean()
        lines.append([*cells, ", ".join(f"{value:.2f}" for value in spread)])
    headings = [h for t in rows["copy"][convention] for h in (t, f"difference from {REFERENCE}")]
    index = pd.Index(rows, name=f"{convention}, PSNR")
    return pd.DataFrame(lines, index=index, columns=[*headings, "seeds"])


def difference(values: pd.Series) -> str:
    """A mean of paired differences with its interval."""
    return with_interval(summarize(values), "+.2f")


def findings(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    """Markdown lines: the answer to each question, over the seeds and seed by seed."""
    values, lines = psnr(runs, "volume"), []
    for question, row, other in QUESTIONS:
        answers = []
        for target in values.columns.unique("target").drop(AVERAGE):
            paired = values[row, target] - values[other, target]
            seeds = ", ".join(f"{m:+.2f}" for m in paired.groupby(level=0, sort=False).mean())
            over_seeds = difference(paired.groupby("patient").mean())
            answers.append(f"{target} {over_seeds} dB (seeds: {seeds})")
        lines.append(f"- {question} {row} against {other}: {'; '.join(answers)}.")
    return lines


def show() -> None:
    """Prints and writes what the committed record says."""
    runs = load_results(NAME)["runs"]
    tables = [to_markdown(table(runs, convention)) for convention in ("volume", "paper")]
    text = "\n\n".join(["\n".join(findings(runs)), *tables])
    console.print(text, soft_wrap=True)
    write(DOCS / "phantom/seeds.md", text + "\n")


def measure(seeds: Sequence[int], workdir: pathlib.Path) -> None:
    """Runs what is missing, and writes the record."""
    runs = {str(seed): run_seed(seed, workdir) for seed in seeds}
    save_results(NAME, {"command": COMMAND, "runs": runs})


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, writes the record, prints the tables."""
    seed_by_seed(arguments, __doc__, measure, show, "runs/seeds")


if __name__ == "__main__":
    main()
