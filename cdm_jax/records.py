"""The record of a subject: its type, its JSON file, and tidy tables of many records.

docs/reference/records.md describes the file.
"""

import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict

import pandas as pd

from cdm_jax.errors import UserError
from cdm_jax.files import read_json, write_json
from cdm_jax.metrics.conventions import json_ready

WHOLE = "whole"  # the region of the numbers that a convention gives of a whole image
AVERAGE = "Avg"  # the mean over the target modalities, which stands beside them
KEYS = ("row", "target", "region", "metric")
COLUMNS = ("subject", "patient", "row", "convention", "target", "region", "metric", "value")

Scores: TypeAlias = dict[str, Any]
"""Metric to number, None where it is undefined; "regions": tumor region to such a mapping."""


class Identity(TypedDict):
    """What all rows of a record have in common.

    Attributes:
        subject: One time-point of a patient.
        patient: The unit of the split and of all statistics.
        split: Hash of the split.
        conventions: Metric convention to the hash of its version and parameters.
        config: Hash of the sampler, the number of samples, the copies and the seed.
        size: Of the model's frame, in pixels.
    """

    subject: str
    patient: str
    split: str
    conventions: dict[str, str]
    config: NotRequired[str]
    size: NotRequired[int]


class Record(Identity):
    """The scores of one subject.

    Attributes:
        rows: Row to convention to target modality to scores.
        checkpoint: System to the fingerprint of its values, where trained systems were evaluated.
        scales: Target modality to how its unit was found, where anybody's images were scored.
    """

    rows: dict[str, dict[str, dict[str, Scores]]]
    checkpoint: NotRequired[dict[str, str]]
    scales: NotRequired[dict[str, str]]


def write_record(path: pathlib.Path, record: Record) -> None:
    """Writes a record's file as a whole or not at all; NaN is written as null."""
    write_json(path, json_ready(record))


def read_record(path: pathlib.Path) -> Record:
    """Reads a record's file.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged, or not a record.
    """
    return check_record(read_json(path), str(path))


def read_records(folder: pathlib.Path) -> list[Record]:
    """Reads all records of a folder, in the order of their files' names; as `read_record`."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def check_record(content: Any, place: str) -> Record:
    """Gives back what was read from a file, named by `place`, if it is a record.

    Raises:
        UserError: It is not a record.
    """
    if fault := _fault(content):
        raise UserError(
            f"{place} is not a record of an evaluation: {fault}; move it elsewhere, or delete it "
            "and evaluate again"
        )
    return content


def _fault(content: Any) -> str:
    """What is wrong with a record; empty where nothing is."""
    if not isinstance(content, dict):
        return "it holds no mapping"
    for name, kind in {"subject": str, "patient": str, "split": str, "conventions": dict}.items():
        if not isinstance(content.get(name), kind):
            return f"{name!r} is missing or of another type"
    if not _ends_in_scores(content.get("rows"), 3):
        return "'rows' is not row -> convention -> target -> metric -> number or null"
    return ""


def _ends_in_scores(tree: Any, levels: int) -> bool:
    """Whether so many levels of mappings end in scores."""
    if not isinstance(tree, dict):
        return False
    if levels:
        return all(_ends_in_scores(branch, levels - 1) for branch in tree.values())
    return all(
        _ends_in_scores(value, 1)
        if metric == "regions"
        else value is None or isinstance(value, int | float)
        for metric, value in tree.items()
    )


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """Lays records out as one tidy table.

    Returns:
        A line for each number, in the records' order: `subject`, `patient`, `row`, `convention`,
        `target`, `region` (`WHOLE`, or a tumor region), `metric` and `value` (NaN where undefined).
    """
    lines = [
        (record["subject"], record["patient"], row, convention, target, region, metric, value)
        for record in records
        for row, conventions in record["rows"].items()
        for convention, targets in conventions.items()
        for target, scores in targets.items()
        for region, values in {WHOLE: scores, **scores.get("regions", {})}.items()
        for metric, value in values.items()
        if metric != "regions"
    ]
    return pd.DataFrame(lines, columns=COLUMNS).astype({"value": float})


def per_patient(records: Sequence[Record], convention: str) -> pd.DataFrame:
    """Gathers all numbers of a convention, one value a patient.

    Patients are the statistical unit: the time-points of one patient are averaged first, leaving
    out those without a value. All patients of the records are there, so that two rows pair up.

    Returns:
        A line for each patient, sorted, and a column for each (row, target, region, metric); NaN
        where a patient has no value. Target `AVERAGE` is the arithmetic mean of the targets; a
        patient who lacks one of them has no value there.

    Raises:
        UserError: The records are not comparable, or none was scored by the convention.
    """
    check_comparable(records)
    numbers = tidy(records)
    scored = numbers[numbers["convention"] == convention]
    if scored.empty:
        known = sorted({name for record in records for name in record["conventions"]})
        raise UserError(
            f"no record was scored by convention {convention!r}: choose from {', '.join(known)}, "
            "or evaluate with it first"
        )
    means = scored.groupby(["patient", *KEYS])["value"].mean()
    targets = scored["target"].nunique()
    sums = means.groupby(["patient", "row", "region", "metric"]).sum(min_count=targets)
    average = pd.concat({AVERAGE: sums / targets}, names=["target"])
    values = pd.concat([means, average.reorder_levels(means.index.names)]).unstack(KEYS)
    return values.reindex(sorted({record["patient"] for record in records}))


def check_comparable(records: Sequence[Record]) -> None:
    """Refuses records whose numbers may not be set side by side.

    Raises:
        UserError: There are no records, their splits or the fingerprints of a convention differ, or
            one subject has two evaluations of the same row.
    """
    if not records:
        raise UserError("there are no records: evaluate at least one patient first")
    _check_one("split", ((r["subject"], r["split"]) for r in records))
    for name in sorted({name for r in records for name in r["conventions"]}):
        tagged = ((r["subject"], r["conventions"].get(name)) for r in records)
        _check_one(f"convention {name!r}", ((s, tag) for s, tag in tagged if tag is not None))
    evaluations = Counter(
        (record["subject"], row, convention)
        for record in records
        for row, scores in record["rows"].items()
        for convention in scores
    )
    for (subject, row, convention), times in evaluations.items():
        if times > 1:
            raise UserError(
                f"subject {subject} has {times} evaluations of row {row!r} by convention "
                f"{convention!r}, and only one can count: choose one run's records"
            )


def _check_one(what: str, tagged: Iterable[tuple[str, str]]) -> None:
    first_with: dict[str, str] = {}
    for subject, tag in tagged:
        first_with.setdefault(tag, subject)
    if len(first_with) > 1:
        found = ", ".join(f"{tag} (as in {subject})" for tag, subject in first_with.items())
        raise UserError(
            f"the records' {what} differs: {found}; only records with the same one can be "
            "compared: evaluate again, or choose one run's records"
        )
