"""Trains the model that ships, exports it, and scores it on unseen patients.

  JAX_NUM_CPU_DEVICES=2 python -m experiments.shipped [--workdir=...] [--root=<real patients>]

trains by configs/shipped.py on simulated patients (hours on two cores; the same command goes on
after an interruption), writes `cdm_jax/shipped/`, and scores what lies there: on unseen simulated
patients, and on each real patient of `--root`, of whom it has seen none, beside baselines that are
fitted on the other ones. The record is `experiments/results/shipped.json`; from it come the tables
in `docs/results/shipped.md` and the model's card. `--show` draws them again.
"""

import argparse
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

import cdm_jax
from cdm_jax import checkpoint, shipped
from cdm_jax import main as command_line
from cdm_jax.api import TrainedModel
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_volume
from cdm_jax.data.ranges import training_ranges
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.evaluate_patterns import evaluate_patterns, summary
from cdm_jax.metrics.conventions import Case, get_convention
from cdm_jax.phantom import PhantomSettings, write_patient
from cdm_jax.records import Record, read_records
from cdm_jax.report.render import to_markdown
from cdm_jax.scoring import usable_segmentation
from cdm_jax.tasks import parse_pattern
from cdm_jax.writer import console
from configs import common, real
from configs import shipped as recipe
from experiments.records import load_results, main_values, save_results
from experiments.study import DOCS, write

NAME = "shipped"
COMMAND = "JAX_NUM_CPU_DEVICES=2 python -m experiments.shipped --root=<folder of real patients>"
CONVENTION = "volume"
BASELINES = ("copy", "brain_mean", "regression")
ROW = "cunet"
PATTERNS = common.cdm.PATTERNS
STAGES = ("mrm", "mdn", "cunet")
# In the picture: a patient that it has not seen, under a protocol that is not drawn.
SHOWN = PhantomSettings(shape=(128, 150, 112), voxel_mm=1.5, seed=8, scanner="mprage")
SHOWN_INDEX = 2

Scored = dict[str, list[Record]]
"""Pattern to the records of the patients that were scored under it."""


def train(workdir: pathlib.Path) -> None:
    """Trains what is not finished, and scores unseen simulated patients."""
    rows = (*BASELINES, ROW)
    arguments = [
        "--config=configs/shipped.py:any",
        f"--config.evaluate.rows={rows}",
        f"--config.evaluate.conventions=({CONVENTION!r},)",
        f"--workdir={workdir}",
    ]
    if command_line.main(["cdm_jax.main", "train", *arguments]):
        raise SystemExit(1)


def export(workdir: pathlib.Path, folder: pathlib.Path = shipped.FOLDER) -> int:
    """Writes what ships, with the ranges of the training patients as their cache tells them.

    A checkpoint of an earlier version does not say them.

    Returns:
      Bytes of the weights.
    """
    stage = workdir / shipped.STAGE
    _, provenance = checkpoint.load_model(stage)
    dataset = load_dataset(provenance.config, workdir)
    known = training_ranges(dataset.train, dataset.subjects)
    return shipped.export(stage, folder, known)


def simulated(workdir: pathlib.Path) -> Scored:
    """What `train` scored."""
    folder = workdir / "evaluation" / "test"
    return {name: [main_values(r) for r in read_records(folder / name)] for name in PATTERNS}


def hours(stage_folder: pathlib.Path) -> float:
    """How long a stage trained, if it was not interrupted: from its first file to its last line."""
    first, last = (stage_folder / name for name in ("parameters.txt", "metrics.jsonl"))
    return (last.stat().st_mtime - first.stat().st_mtime) / 3600


def real_subjects(root: pathlib.Path) -> list[Subject]:
    """The patients of a folder."""
    data = real.get_config("any").data
    return list(find_subjects(root, modalities=data.sources, patterns=data.patterns.to_dict()))


def score_real(root: pathlib.Path, workdir: pathlib.Path) -> Scored:
    """Scores of real patients: the shipped model's, and baselines fitted on the other patients."""
    model, found = cdm_jax.load(), Scored({name: [] for name in PATTERNS})
    for subject in real_subjects(root):
        fitted = _baselines(subject, root, workdir / "real")
        for name in PATTERNS:
            sources, targets = parse_pattern(name, model.sources)
            (record,) = fitted[name]
            own = {ROW: {CONVENTION: dict(_scores(model, subject, sources, targets))}}
            record = {**record, "rows": record["rows"] | own, "split": "leave-one-out"}
            found[name].append(main_values(record))
    return found


def _baselines(subject: Subject, root: pathlib.Path, workdir: pathlib.Path) -> Scored:
    """Records of one patient, pattern by pattern, of baselines fitted on all others."""
    config = real.get_config("any,size=128")
    config.data.update({"root": str(root), "cache": str(workdir / "cache")})
    config.data.update({"test_patients": (subject.patient_id,), "validation_fraction": 0.0})
    config.evaluate.update({"systems": (), "rows": BASELINES, "conventions": (CONVENTION,)})
    folder = workdir / subject.patient_id
    return evaluate_patterns(config, folder, load_dataset(config, folder))


def _scores(
    model: TrainedModel, subject: Subject, sources: Sequence[str], targets: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each target and its scores, of what `synthesize` gives on the patient's own grid."""
    images = {name: subject.images[name] for name in sources}
    result = model.synthesize(images, subject=subject.subject_id)
    native = read_native(subject, sources, [*sources, *targets])
    segmentation, _ = usable_segmentation(subject, native.brain)
    for target in targets:
        scale = model.system.provenance.scales[target]
        case = Case(
            subject=subject.subject_id,
            modality=target,
            prediction=read_volume(result[target]) / scale,
            truth=native.images[target],
            brain=native.brain,
            segmentation=segmentation,
        )
        yield target, get_convention(CONVENTION).score(case)


def table(records: Scored, metric: str = "psnr") -> pd.DataFrame:
    """Means of a metric by pattern and row, a column a target."""
    names = {ROW: "shipped model"}
    return summary(records, CONVENTION, metric).rename(index=names)


def markdown(numbers: pd.DataFrame) -> str:
    """A table as Markdown; what is given needs no number."""
    cells = numbers.map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return to_markdown(cells)


def tables(content: dict[str, Any]) -> str:
    """The record's tables, as Markdown."""
    parts = []
    for name, told in (
        ("simulated", "unseen simulated patients; baselines are fitted on its training patients"),
        ("real", "real patients, of whom it has seen none; baselines are fitted on the others"),
    ):
        if name in content:
            number = len(next(iter(content[name].values())))
            heading = f"Mean PSNR in the brain (convention `{CONVENTION}`, dB) of {number} {told}."
            parts += [heading, markdown(table(content[name]))]
    if "real" in content:
        parts += [
            "Of the real patients after the factor for each patient and target that makes its PSNR "
            "highest, as no input tells a target's scale:",
            markdown(table({"t1+t2": content["real"]["t1+t2"]}, "psnr_best_gain")),
        ]
    return "\n\n".join(parts)


def verdict(content: dict[str, Any]) -> str:
    """One sentence: the model beside a regression that has seen patients, the paper's task."""
    if "real" not in content:
        return "It has not been scored on real patients."
    means = table({"t1+t2": content["real"]["t1+t2"]}).mean(axis=1).droplevel("sources")
    gained = means["shipped model"] - means["regression"]
    return (
        f"From T1 and T2 of real patients it is {abs(gained):.2f} dB "
        f"{'above' if gained > 0 else 'below'} a regression on the intensities of single pixels "
        "that was fitted on the other real patients (mean of T1c and T2-FLAIR)."
    )


def card(content: dict[str, Any]) -> str:
    """The model's card."""
    config: ConfigDict = recipe.get_config()
    size, patients = config.data.size, config.phantom.num_patients
    spent = ", ".join(f"{stage} {value:.2f} h" for stage, value in content["hours"].items())
    return f"""# The model that ships with cdm_jax

Takes any of T1, T1c, T2 and T2-FLAIR of a skull-stripped brain and makes the others. Not for
clinical use.

- **Trained on** {patients} simulated patients and no real one: deformed anatomy of an atlas,
  simulated tumors, each patient scanned by another random protocol (`phantom.protocol=random`).
- **Networks** MRM, MDN and C-UNet of `configs/shipped.py`, axial slices of {size}x{size} pixels;
  {content["bytes"] / 1e6:.1f} MB in half precision. In synthesis C-UNet takes its learned null
  instead of a y that MDN samples (`cunet.null_y`): nothing is random.
- **Made by** `{COMMAND}`: {spent}, {content["machine"]}.
- **License** Apache-2.0, as the code.

## What it scores

{tables(content)}

{verdict(content)}

## Limits

- It has seen no patient. Enhancement and lesions that T1, T2 and FLAIR do not show are not made up
  for: a synthetic T1c says nothing about contrast uptake.
- Values follow a rule, not a scanner: the network's [0, 1] times the median scale of the simulated
  patients. The scale of a sequence that was never acquired is in no input.
- It works slice by slice, at {size} pixels: details below 2 mm are lost, and small steps between
  slices remain.
- Whoever has patients with all sequences should train or fine-tune on them
  (`--config=configs/<data set>.py:any,finetune`) and compare.
"""


def show() -> None:
    """Prints and writes what the committed record says."""
    content = load_results(NAME)
    console.print(tables(content), soft_wrap=True)
    write(shipped.FOLDER / shipped.CARD, card(content))
    write(DOCS / f"{NAME}.md", tables(content) + "\n")


def draw() -> None:
    """Shows in docs/overview.png what it makes of T1 and T2 of an unseen simulated patient."""
    with tempfile.TemporaryDirectory() as place:
        given, made = pathlib.Path(place, "given"), pathlib.Path(place, "made")
        given.mkdir()
        write_patient(given, SHOWN, SHOWN_INDEX)
        arguments = [f"--input={given}", f"--output={made}", "--make=t1c,t2f", "--replace"]
        if command_line.main(["cdm_jax.main", "synthesize", *arguments]):
            raise SystemExit(1)
        (picture,) = made.rglob("*.png")
        shutil.copy(picture, DOCS.parent / "overview.png")


def measure(workdir: pathlib.Path, root: pathlib.Path | None) -> None:
    """Trains, exports, scores, and writes the record."""
    train(workdir)
    size = export(workdir)
    content = {
        "command": COMMAND,
        "machine": f"{os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}",
        "hours": {stage: hours(workdir / stage) for stage in STAGES},
        "bytes": size,
        "simulated": simulated(workdir),
    }
    if root:
        content["real"] = score_real(root, workdir)
    save_results(NAME, content)


def main() -> None:
    """Runs what is missing, writes the record, draws from it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/shipped"))
    parser.add_argument("--root", type=pathlib.Path, help="folder of real patients to score")
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args()
    if not options.show:
        measure(options.workdir, options.root)
        draw()
    show()


if __name__ == "__main__":
    main()
