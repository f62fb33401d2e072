"""Four ways to a model for one's own patients, each real patient left out once.

  python -m experiments.fine_tuning --root=<folder of real patients> [--workdir=runs/fine_tuning]

"real": trained on the other patients alone; "fine-tuned": the same from the shipped model;
"mixed": that with half of each batch simulated. All by the settings of the config value `finetune`,
at 128x128, any modalities in. What the shipped model does without them, and baselines, are in the
record of `experiments.shipped`. Writes `experiments/results/fine_tuning.json` and from it
`docs/results/fine_tuning.md`; `--show` draws it again.
"""

import argparse
import pathlib

import pandas as pd

from cdm_jax import main as command_line
from cdm_jax.records import Record, read_records
from cdm_jax.writer import console
from experiments.records import load_results, main_values, save_results
from experiments.shipped import CONVENTION, ROW, Scored, markdown, real_subjects, table
from experiments.study import DOCS, write

NAME = "fine_tuning"
COMMAND = "python -m experiments.fine_tuning --root=<folder of real patients>"
_ALONE = ("--config.data.simulated.patients=0", "--config.data.simulated.share=0.0")
WAYS = {  # what each changes in the config
    "real": ["--config.init_from=", *_ALONE],
    "fine-tuned": [*_ALONE],
    "mixed": [],
}


def leave_out(patient: str, way: str, root: pathlib.Path, workdir: pathlib.Path) -> Scored:
    """Trains without one patient, in one of `WAYS`; the patient's records by pattern."""
    folder = workdir / patient / way
    arguments = [
        "--config=configs/real.py:any,finetune",
        f"--config.data.root={root}",
        f"--config.data.cache={workdir / 'cache'}",
        f"--config.data.test_patients=({patient!r},)",
        f"--config.evaluate.rows=({ROW!r},)",
        f"--config.evaluate.conventions=({CONVENTION!r},)",
        f"--workdir={folder}",
        *WAYS[way],
    ]
    if command_line.main(["cdm_jax.main", "train", *arguments]):
        raise SystemExit(1)
    patterns = sorted((folder / "evaluation" / "test").iterdir())
    return {p.name: [_record(r) for r in read_records(p)] for p in patterns if p.is_dir()}


def _record(record: Record) -> Record:
    return {**main_values(record), "split": "leave-one-out"}


def measure(root: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains what is missing and writes the record."""
    found: dict[str, Scored] = {way: {} for way in WAYS}
    for subject in real_subjects(root):
        for way in WAYS:
            console.rule(f"{subject.patient_id} left out, {way}")
            for pattern, records in leave_out(subject.patient_id, way, root, workdir).items():
                found[way].setdefault(pattern, []).extend(records)
    save_results(NAME, {"command": COMMAND, "ways": found})


def comparison(metric: str = "psnr") -> pd.DataFrame:
    """Means by pattern and way, beside those of the shipped model and of the baselines."""
    parts = [table(load_results("shipped")["real"], metric)]
    for way, records in load_results(NAME)["ways"].items():
        parts.append(table(records, metric).rename(index={"shipped model": way}))
    return pd.concat(parts).sort_index(level="sources", sort_remaining=False)


def show() -> None:
    """Prints and writes what the committed records say."""
    content = load_results(NAME)
    number = len(content["ways"]["real"]["t1+t2"])
    free = comparison("psnr_best_gain").loc[["t1+t2"], ["t1c", "t2f"]]
    parts = [
        f"Made by `{content['command']}`. Mean PSNR in the brain (convention `{CONVENTION}`, dB) "
        f"of {number} real patients, each left out once: the shipped model as it is; trained on "
        "the others alone (real), from the shipped model (fine-tuned), and that with half of each "
        "batch simulated (mixed).",
        markdown(comparison()),
        "The same of T1 and T2 after the factor for each patient and target that makes its PSNR "
        "highest, as no input tells a target's scale:",
        markdown(free),
    ]
    text = "\n\n".join(parts)
    console.print(text, soft_wrap=True)
    write(DOCS / f"{NAME}.md", text + "\n")


def main() -> None:
    """Runs what is missing, writes the record, draws from it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--root", type=pathlib.Path, help="folder of real patients")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/fine_tuning"))
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args()
    if not options.show:
        if not options.root:
            parser.error("--root=<folder of real patients> is needed, or --show")
        measure(options.root, options.workdir)
    show()


if __name__ == "__main__":
    main()
