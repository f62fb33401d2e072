"""Single patients: which of them to show, and their numbers for tables that can be sorted."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cdm_jax.records import WHOLE, Record, tidy
from cdm_jax.report.tables import ABSENT, DECIMALS, grid, heading

CONTRAST = "t1c"  # where an enhancing tumor shows, if it is a target
ENHANCING = "enhancing_tumor"


def targets_of(records: Sequence[Record]) -> list[str]:
    """The target modalities of the records, in their order."""
    return tidy(records)["target"].unique().tolist()


def value(
    record: Record, row: str, convention: str, target: str, metric: str, region: str = WHOLE
) -> float | None:
    """One number of a record; None where there is none."""
    scores = record["rows"].get(row, {}).get(convention, {}).get(target, {})
    if region != WHOLE:
        scores = scores.get("regions", {}).get(region, {})
    return scores.get(metric)


def choose(records: Sequence[Record], row: str, convention: str, count: int) -> dict[str, str]:
    """Chooses up to `count` subjects to show, so that the good and the bad of a row are seen.

    First the one whose tumor enhances most, then the best and the worst by the mean PSNR over the
    targets, then the next worst.

    Returns:
        Subject to the reason in words, in the order of choice.
    """
    numbers = tidy(records)
    numbers = numbers[(numbers["row"] == row) & (numbers["convention"] == convention)]
    numbers = numbers[(numbers["region"] == WHOLE) & (numbers["metric"] == "psnr")]
    means = numbers.groupby("subject", sort=False)["value"].mean().dropna()
    ranked = means.sort_values(kind="stable").index
    reasons: dict[str, str] = {}
    targets = targets_of(records)
    contrast = CONTRAST if CONTRAST in targets else targets[0]
    enhancing = {
        r["subject"]: value(r, "copy", convention, contrast, "mae", ENHANCING) or 0.0
        for r in records
    }
    if strongest := max(enhancing, key=enhancing.__getitem__) if any(enhancing.values()) else None:
        reasons[strongest] = (
            f"the tumor that enhances most (where a copied source errs most in {contrast})"
        )
    for subject in ranked[-1:]:
        reasons.setdefault(subject, f"the best PSNR of {row}")
    for subject in ranked[:1]:
        reasons.setdefault(subject, f"the worst PSNR of {row}")
    for subject in ranked:
        reasons.setdefault(subject, f"the next worst PSNR of {row}")
    for record in records:
        reasons.setdefault(record["subject"], "no PSNR")
    return dict(list(reasons.items())[:count])


def places(records: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """Where numbers were measured: a label to (convention, region)."""
    pairs = tidy(records)[["convention", "region"]].drop_duplicates()
    by_convention = pairs.groupby("convention", sort=False)["region"]
    return {
        _label(name, region): (name, region)
        for name, regions in by_convention
        for region in regions
    }


def _label(convention: str, region: str) -> str:
    return convention if region == WHOLE else f"{convention}, {region.replace('_', ' ')}"


def subject_values(records: Sequence[Record]) -> dict[str, Any]:
    """Every number of every subject, for a table in the browser.

    Returns:
        `columns`: [target, metric, decimals]; `values`: place -> row -> subject -> a number, or
        None, for each column.
    """
    columns = [(t, metric) for t in targets_of(records) for metric in DECIMALS]
    rows = dict.fromkeys(name for record in records for name in record["rows"])
    values = {
        label: {
            row: {
                r["subject"]: [
                    _rounded(value(r, row, name, target, metric, region), metric)
                    for target, metric in columns
                ]
                for r in records
            }
            for row in rows
        }
        for label, (name, region) in places(records).items()
    }
    return {
        "columns": [[target, metric, DECIMALS[metric]] for target, metric in columns],
        "values": values,
    }


def subject_tables(record: Record) -> dict[str, pd.DataFrame]:
    """One subject's numbers as texts: a place's label to its table, a line a row."""
    numbers = tidy([record])
    numbers = numbers[numbers["metric"].isin(DECIMALS)]
    columns = [heading(t, metric) for t in targets_of([record]) for metric in DECIMALS]
    tables = {}
    for place, own in numbers.groupby(["convention", "region"], sort=False):
        texts = map(text, own["value"], own["metric"])
        table = grid(own["row"], map(heading, own["target"], own["metric"]), texts)
        table = table.reindex(index=record["rows"], columns=columns, fill_value=ABSENT)
        tables[_label(*place)] = table
    return tables


def text(number: float | None, metric: str) -> str:
    """A number with its metric's decimals, or a dash."""
    return ABSENT if pd.isna(number) else f"{number:.{DECIMALS[metric]}f}"


def _rounded(number: float | None, metric: str) -> float | None:
    return None if number is None else round(number, DECIMALS[metric])
