"""Leave one real patient out: all stages on the others, small, on a CPU.

  python -m experiments.real --root=<folder of patients> [--workdir=runs/real]

Every patient of the folder is left out once, or those of `--patients`. Writes
`experiments/results/real_leave_one_out.json` and prints its tables.
"""

import argparse
import pathlib

from cdm_jax import main as command_line
from cdm_jax.data.subjects import find_subjects
from cdm_jax.metrics.aggregate import Record
from cdm_jax.report.tables import results_table, to_rich
from cdm_jax.writer import console
from configs import real
from experiments.records import load_records, load_results, main_values, save_results

NAME = "real_leave_one_out"
COMMAND = "python -m experiments.real --root=<folder>"


def leave_out(patient: str, root: pathlib.Path, workdir: pathlib.Path) -> list[Record]:
    """Trains without one patient and evaluates on him; returns his records."""
    folder = workdir / patient
    arguments = [
        "--config=configs/real.py:cdm",
        f"--config.data.root={root}",
        f"--config.data.cache={workdir / 'cache'}",
        f"--config.data.test_patients=({patient!r},)",
        f"--workdir={folder}",
    ]
    if command_line.main(["cdm_jax.main", "train", *arguments]):
        raise SystemExit(1)
    return [main_values(record) for record in load_records(folder)]


def main() -> None:
    """Runs what is missing, writes the record, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=pathlib.Path, help="folder of patients")
    parser.add_argument("--patients", help="those to leave out, comma-separated; default all")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/real"))
    options = parser.parse_args()
    if options.root:
        data = real.get_config().data
        subjects = find_subjects(
            options.root,
            modalities=data.sources + data.targets,
            patterns=data.patterns.to_dict(),
        )
        patients = sorted({subject.patient_id for subject in subjects})
        if options.patients:
            patients = options.patients.split(",")
        records = [r for p in patients for r in leave_out(p, options.root, options.workdir)]
        # Each left-out patient has a split of his own, which is what is meant here.
        records = [{**record, "split": "leave-one-out"} for record in records]
        save_results(NAME, {"command": COMMAND, "records": records})
    records = load_results(NAME)["records"]
    for convention in ("volume", "paper"):
        console.print(to_rich(results_table(records, convention)))


if __name__ == "__main__":
    main()
