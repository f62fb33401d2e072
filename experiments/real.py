"""Leave one real patient out: all stages on the others, small, on a CPU.

  python -m experiments.real --root=<folder of patients> [--workdir=runs/real]

Every patient of the folder is left out once, or those of `--patients`: scored, and synthesized to
`<workdir>/<patient>/synthetic`. Writes `experiments/results/real_leave_one_out.json` and, from it,
`docs/results/real_leave_one_out.md`.
"""

import argparse
import pathlib
from collections.abc import Sequence

import pandas as pd

from cdm_jax import main as command_line
from cdm_jax.data.nifti import changed_fields
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.records import WHOLE, Record, per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import results_table
from cdm_jax.synthesize import synthesize_subjects
from cdm_jax.writer import console
from configs import real
from experiments.records import load_records, load_results, main_values, save_results
from experiments.study import DOCS, write

NAME = "real_leave_one_out"
COMMAND = "python -m experiments.real --root=<folder>"
SHOWN = ("copy", "brain_mean", "regression", "cunet/mean_of_8", "cunet/null", "cunet/oracle", "m1")


def synthesize(subjects: Sequence[Subject], workdir: pathlib.Path) -> None:
    """Writes the targets of these subjects to `<workdir>/synthetic`, on their sources' grid.

    Raises:
      SystemExit: a header states another grid than the first source's.
    """
    config, output = real.get_config(), workdir / "synthetic"
    samples = config.evaluate.num_samples
    synthesize_subjects(subjects, output, workdir / "cunet", samples=samples)
    for subject in subjects:
        for target in config.data.targets:
            path = output / subject.subject_id / f"{subject.subject_id}-{target}.nii.gz"
            if changed := changed_fields(path, subject.images[config.data.sources[0]]):
                raise SystemExit(f"{path} differs from its source in {', '.join(changed)}")


def leave_out(
    patient: str, subjects: Sequence[Subject], root: pathlib.Path, workdir: pathlib.Path
) -> list[Record]:
    """Trains without one patient, scores and synthesizes him; returns his records."""
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
    synthesize([subject for subject in subjects if subject.patient_id == patient], folder)
    return [main_values(record) for record in load_records(folder)]


def by_patient(records: Sequence[Record], convention: str) -> pd.DataFrame:
    """Texts: PSNR of each target, a line a patient and one of their means."""
    values, targets = per_patient(records, convention), real.get_config().data.targets
    values.loc["mean"] = values.mean()
    cells = {
        row: [
            " / ".join(f"{values.at[name, (row, target, WHOLE, 'psnr')]:.2f}" for target in targets)
            for name in values.index
        ]
        for row in SHOWN
    }
    heading = f"PSNR ({convention}), {' / '.join(targets)}"
    return pd.DataFrame(cells, index=values.index.rename(heading))


def show() -> None:
    """Prints and writes what the committed record says."""
    records = load_results(NAME)["records"]
    tables = [to_markdown(by_patient(records, "volume"))]
    tables += [results_table(records, name).markdown() for name in ("volume", "paper")]
    text = "\n\n".join(tables)
    console.print(text, soft_wrap=True)
    write(DOCS / "real_leave_one_out.md", text + "\n")


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
        records = [
            record
            for patient in patients
            for record in leave_out(patient, subjects, options.root, options.workdir)
        ]
        # Each left-out patient has a split of his own, which is what is meant here.
        records = [{**record, "split": "leave-one-out"} for record in records]
        save_results(NAME, {"command": COMMAND, "records": records})
    show()


if __name__ == "__main__":
    main()
