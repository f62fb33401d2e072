"""A segmenter as the judge: what is a synthetic image worth to a program that looks for a tumor?

  python -m experiments.segmenter --small [--root=<real patients>]

Trains CDM, M1 and a segmenter on the same phantom patients; the segmenter with modalities left out
at random, so that it needs no synthesis. Unseen patients, and those real ones of `--root` that have
a segmentation, then lack T1c and T2f. The segmenter is given the acquired images; what each system
makes of T1 and T2; copies of these; or nothing, and is told that nothing was given. Its regions are
scored by Dice and HD95, and each row is compared with the one that has nothing in their place.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.progress import track

from cdm_jax import inference
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.judge import SLICES, STAGE, Judge
from cdm_jax.methods.segmenter import REGIONS
from cdm_jax.metrics.aggregate import Comparison, compare, summarize
from cdm_jax.metrics.segmentation import MISSED_MM
from cdm_jax.records import AVERAGE, per_patient
from cdm_jax.report.judgements import ACQUIRED, COPY, NOTHING
from cdm_jax.report.judgements import JUDGED_BY as CONVENTION
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.writer import console
from experiments.study import Study, main
from experiments.uncertainty import values

NAME = "segmenter"
STAGES = ("mrm", "mdn", "cunet", "m1", NAME)
SYNTHESES = {"M1": ("m1", 1), "CDM": ("cunet", 1), "CDM mean of 8": ("cunet", 8)}
ROWS = (ACQUIRED, *SYNTHESES, COPY, NOTHING)
# 40 of 160 patients are unseen; which of them enhances is chance, and intervals are over them.
COHORT = (
    "--config.phantom.num_patients=160",
    "--config.data.test_fraction=0.25",
    "--config.data.validation_fraction=0.1",
)
METRICS = {"dice": ("Dice", ".3f"), "hd95": ("HD95 in mm", ".1f")}  # names and formats
SHOWN = {name: name.replace("_", " ") for name in REGIONS} | {AVERAGE: "mean"}
COHORTS = {"records": "Unseen phantom patients", "real": "Real patients"}


# What is measured


def measure(study: Study) -> None:
    """Trains what is missing, scores every unseen patient, writes the record."""
    root, changes = study.root, () if study.smoke else COHORT
    study = dataclasses.replace(
        study,
        root="",
        workdir=study.workdir.with_name(f"{study.workdir.name}_{NAME}"),
        overrides=(*study.overrides, *changes),
    )
    study.train(STAGES)
    systems = {
        row: (inference.load_system(study.workdir / stage, SLICES), samples)
        for row, (stage, samples) in SYNTHESES.items()
    }
    judge = Judge(study.workdir / STAGE, systems)
    dataset = load_dataset(judge.config, study.workdir)
    unseen = [dataset.subjects[subject.subject_id] for subject in dataset.test]
    patients: dict[str, tuple[Sequence[Subject], str]] = {"records": (unseen, dataset.split_hash)}
    if root:
        names = tuple(judge.config.data.sources)
        patients["real"] = find_subjects(root, modalities=names), "none of them trained on"
    content: dict[str, Any] = {
        "command": study.command(NAME) + " --root=<folder>" * bool(root),
        "overrides": list(changes),
    }
    for cohort, (subjects, split) in patients.items():
        told = f"judging {COHORTS[cohort].lower()}"
        scored = (judge.score(s, split) for s in track(subjects, told, console=console))
        content[cohort] = [record for record in scored if record]
    study.save(NAME, content)


# What it says


def against_nothing(patients: pd.DataFrame, row: str, region: str, metric: str) -> Comparison:
    """A row minus the one without a synthesis, patient by patient."""
    one, other = (values(patients, name, region, metric) for name in (row, NOTHING))
    return compare(one, other)


def difference(found: Comparison, form: str) -> str:
    """A difference with its interval, such as "+0.020 [+0.010, +0.030]"."""
    text = f"{found.difference:+{form}}"
    if found.interval is None:
        return text
    low, high = found.interval
    return f"{text} [{low:+{form}}, {high:+{form}}]"


def verdict(patients: pd.DataFrame) -> str:
    """Whether synthesis beats the segmenter that needs none, by the mean Dice over the regions."""
    found = {row: against_nothing(patients, row, AVERAGE, "dice") for row in SYNTHESES}
    better = [row for row, one in found.items() if one.interval and one.interval[0] > 0]
    worse = [row for row, one in found.items() if one.interval and one.interval[1] < 0]
    said = "Synthesis does NOT beat the segmenter that needs none"
    if not any(one.interval for one in found.values()):
        said = "Too few patients to tell whether synthesis beats the segmenter that needs none"
    elif better:
        said = f"Synthesis beats the segmenter that needs none by {', '.join(better)}"
    if worse:
        said += f" ({', '.join(worse)}: worse than without)"
    parts = [f"{row} {difference(one, '.3f')}" for row, one in found.items()]
    return f"{said}: mean Dice over the regions minus that without a synthesis {'; '.join(parts)}."


def table(patients: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Texts: the means of a metric, a line a row and a column a region."""
    name, form = METRICS[metric]
    cells = {
        text: [
            with_interval(summarize(values(patients, row, region, metric)), form) for row in ROWS
        ]
        for region, text in SHOWN.items()
    }
    return pd.DataFrame(cells, index=pd.Index(ROWS, name=f"{name}; T1c and T2f are"))


def differences(patients: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Texts: what each row has more of a metric than the one without a synthesis."""
    name, form = METRICS[metric]
    rows = [row for row in ROWS if row != NOTHING]
    cells = {
        text: [difference(against_nothing(patients, row, region, metric), form) for row in rows]
        for region, text in SHOWN.items()
    }
    return pd.DataFrame(cells, index=pd.Index(rows, name=f"{name}, minus without"))


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    made = f"Made by `{content['command']}`, with `{' '.join(content['overrides'])}`."
    parts = ["# A segmenter as the judge", made]
    for cohort, heading in COHORTS.items():
        if not content.get(cohort):
            continue
        patients = per_patient(content[cohort], CONVENTION)
        parts += [f"## {heading} ({len(patients)})", verdict(patients)]
        for metric in METRICS:
            parts += [to_markdown(draw(patients, metric)) for draw in (table, differences)]
    parts.append(
        "Means over patients; in brackets 95 % bootstrap intervals over them, of three or more. "
        "Dice: more is better; HD95: less is better. A region that is neither there nor found has "
        "a Dice of 1 and an HD95 of 0 mm, one that is only there or only found has 0 and "
        f"{MISSED_MM:g} mm."
    )
    return "\n\n".join(parts) + "\n"


def show(study: Study) -> None:
    """Prints the text and writes it, from the record."""
    study.save_text(NAME, report(study.load(NAME)))


if __name__ == "__main__":
    main(None, __doc__, measure, show, ("phantom",))
