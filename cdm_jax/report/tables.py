"""Tables of results: pure functions of the records of single subjects."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from cdm_jax.errors import UserError
from cdm_jax.metrics.aggregate import Summary, Values, compare, summarize
from cdm_jax.records import AVERAGE, WHOLE, Record, per_patient, tidy
from cdm_jax.report.render import TextTable

DECIMALS = {"psnr": 2, "ssim": 3, "mae": 4}  # of what every convention measures
FURTHER = {"psnr_best_gain": 2, "gmsd": 4, "z_gradient": 4}  # of what `volume` measures beside
HEADINGS = {"psnr_best_gain": "PSNR, best gain", "z_gradient": "step error in z"}
FURTHER_FOOTER = (
    " Best gain: after the factor for each patient and target that makes its PSNR in the brain "
    "highest. GMSD (edges) and the error of the step to the next slice: lower is better."
)
SIGNIFICANT = 0.05
MARK = "†"
ABSENT = "–"
COLUMNS = (
    *("convention", "system", "modality", "metric", "patients", "mean", "low", "high"),
    *("standard_deviation", "median", "difference", "p_value"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultsTable(TextTable):
    """Systems against modalities.

    Attributes:
        numbers: A line for each system, modality (also `records.AVERAGE`) and metric, with
            `COLUMNS`: over patients, with the paired difference from the reference row and its p
            value (NaN without one). Further columns hold texts, the same in all lines of a system.
        patients: The number of patients in the records; a cell with fewer says so.
        footer: What the numbers mean: convention, region, patients, split, interval and test.
    """

    numbers: pd.DataFrame
    patients: int
    footer: str

    def print_beside(self, heading: str, texts: Mapping[str, str]) -> None:
        """Adds a column of texts by system, such as another publication's numbers."""
        self.numbers[heading] = [texts.get(name, "") for name in self.numbers["system"]]

    def texts(self, separator: str = " ") -> pd.DataFrame:
        """A line a system, a column for each modality and metric, then texts."""
        measured = grid(
            self.numbers["system"],
            map(heading, self.numbers["modality"], self.numbers["metric"]),
            (self._cell(line, separator) for line in self.numbers.to_dict("records")),
        )
        beside = self.numbers.set_index("system").drop(columns=[*COLUMNS[:1], *COLUMNS[2:]])
        beside = beside[~beside.index.duplicated()].replace("", ABSENT)
        return measured.join(beside)

    def _cell(self, line: Mapping[str, Any], separator: str) -> str:
        """A cell as "mean ± half interval", with the mark of a significant difference."""
        decimals = (DECIMALS | FURTHER)[line["metric"]]
        if not line["patients"]:
            return ABSENT
        mark = MARK if line["p_value"] < SIGNIFICANT else ""
        parts = [f"{line['mean']:.{decimals}f}{mark}"]
        if pd.notna(line["low"]):
            parts.append(f"± {(line['high'] - line['low']) / 2:.{decimals}f}")
        if line["patients"] < self.patients:
            parts.append(f"(n={line['patients']})")
        return separator.join(parts)

    def csv(self) -> str:
        """All numbers at full precision."""
        return self.numbers.to_csv(index=False, lineterminator="\n")


def results_table(
    records: Sequence[Record],
    convention: str,
    *,
    region: str = WHOLE,
    reference: str | None = None,
    metrics: Iterable[str] = DECIMALS,
) -> ResultsTable:
    """Tabulates every system of the records under one convention.

    Args:
        records: One record a subject.
        convention: The convention's name.
        region: A tumor region; by default the convention's main values.
        reference: The row against which all others are tested.
        metrics: Of `DECIMALS` and `FURTHER`; one that no record has is shown as missing.

    Raises:
        UserError: The records are not comparable, or none has the convention or the reference row.
    """
    values, numbers = per_patient(records, convention), tidy(records)
    rows = numbers["row"].unique()
    targets = numbers.loc[numbers["convention"] == convention, "target"].unique()
    if reference is not None and reference not in rows:
        raise UserError(f"no record has a row {reference!r}: choose from {', '.join(rows)}")
    columns = pd.MultiIndex.from_product([rows, [*targets, AVERAGE], [region], [*metrics]])
    values = values.reindex(columns=columns)
    lines = []
    for row, target, _, metric in columns:
        compared = None if reference in (None, row) else values[reference, target, region, metric]
        statistics = _statistics(values[row, target, region, metric], compared)
        lines.append((convention, row, target, metric, *statistics))
    return ResultsTable(
        numbers=pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[5:], float)),
        patients=len(values),
        footer=_footer(records, convention, region, reference)
        + FURTHER_FOOTER * (not FURTHER.keys().isdisjoint(metrics)),
    )


def _statistics(values: Values, reference: Values | None) -> tuple[int | float | None, ...]:
    """Of one metric of a row, in the order of `COLUMNS`."""
    found = summarize(values)
    compared: tuple[float | None, float | None] = (None, None)
    if reference is not None:
        paired = compare(values, reference)
        compared = paired.difference, paired.p_value
    interval = found.interval or (None, None)
    return found.n, found.mean, *interval, found.standard_deviation, found.median, *compared


def _footer(records: Sequence[Record], convention: str, region: str, reference: str | None) -> str:
    tag = next(filter(None, (record["conventions"].get(convention) for record in records)))
    place = "" if region == WHOLE else f", inside {region.replace('_', ' ')}"
    test = (
        f" {MARK} differs from {reference}: Wilcoxon signed-rank, p < {SIGNIFICANT}, uncorrected."
    )
    patients = len({record["patient"] for record in records})
    # Records of a run name its checkpoints; those of anybody's images do not.
    cut = " Every synthesis is set to 0 outside the sources' brain."
    return (
        f"Convention {convention} ({tag}){place}; {patients} patients; "
        f"split {records[0]['split']}.{cut if 'checkpoint' in records[0] else ''} PSNR in dB. Mean "
        "± half the width of the 95 % bootstrap interval over patients."
        f"{'' if reference is None else test}"
    )


def grid(rows: Iterable[str], headings: Iterable[str], texts: Iterable[str]) -> pd.DataFrame:
    """Lays texts out: a line a row and a column a heading, each in the order of appearance."""
    cells = pd.DataFrame({"System": list(rows), "heading": list(headings), "text": list(texts)})
    wide = cells.pivot(index="System", columns="heading", values="text")
    wide = wide.reindex(index=cells["System"].unique(), columns=cells["heading"].unique())
    return wide.fillna(ABSENT).rename_axis(columns=None)


def heading(target: str, metric: str) -> str:
    """Head of a column."""
    return f"{target[:1].upper()}{target[1:]} {HEADINGS.get(metric, metric.upper())}"


def with_interval(found: Summary, form: str, unit: str = "") -> str:
    """A mean over patients with its interval, such as "24.10 dB [23.55, 24.61]".

    Args:
        found: The mean and its interval; a dash where there is none.
        form: Format of the numbers, such as ".2f".
        unit: What stands behind the mean.
    """
    if not found.n:
        return ABSENT
    text = f"{found.mean:{form}}{unit}"
    if found.interval is None:
        return text
    low, high = found.interval
    return f"{text} [{low:{form}}, {high:{form}}]"
