"""Tables of results: pure functions of the records of single subjects."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text

from cdm_jax.errors import UserError
from cdm_jax.metrics.aggregate import (
    Comparison,
    Record,
    Summary,
    check_comparable,
    compare,
    per_patient,
    summarize,
)

DECIMALS = {"psnr": 2, "ssim": 3, "mae": 4}
AVERAGE = "Avg"
SIGNIFICANT = 0.05
FIRST_HEADING = "System"
MARK = "†"
ABSENT = "–"
LATEX = {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"} | {
    "±": r"$\pm$",
    MARK: r"$^\dagger$",
    ABSENT: "--",
    "<": "$<$",
}
CSV_COLUMNS = (
    *("convention", "system", "modality", "metric", "patients", "mean", "low", "high"),
    *("standard_deviation", "median", "difference", "p_value"),
)

Columns: TypeAlias = dict[tuple[str, str], Float[np.ndarray, " patients"]]
"""The values of one row: target modality (or ``Avg``) and metric to one value a patient."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one system.

    Attributes:
        summary: The metric over patients.
        comparison: The paired difference from the reference row, where there is one.
    """

    summary: Summary
    comparison: Comparison | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One system.

    Attributes:
        name: The row's name in the records.
        cells: A cell for each target modality (or ``Avg``) and metric, in the table's order.
    """

    name: str
    cells: dict[tuple[str, str], Cell]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """Systems against modalities.

    Attributes:
        convention: The convention's name.
        rows: The systems, in the records' order.
        patients: The number of patients in the records; a cell with fewer says so.
        footer: What the numbers mean: convention, region, patients, split, interval and test.
        printed: Further columns of text, such as another publication's numbers: heading to row's
            name to text.
    """

    convention: str
    rows: list[Row]
    patients: int
    footer: str
    printed: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


def results_table(
    records: Sequence[Record],
    convention: str,
    *,
    region: str | None = None,
    reference: str | None = None,
) -> ResultsTable:
    """Tabulates every system of the records under one convention.

    ``Avg`` is the arithmetic mean of the modalities, taken patient by patient; patients that lack
    one of them do not count there.

    Args:
        records: One record a subject.
        convention: The convention's name.
        region: A tumor region; the convention's main values where it is None.
        reference: The row against which all others are tested.

    Returns:
        The table.

    Raises:
        UserError: The records are not comparable, or none has the convention or the reference row.
    """
    check_comparable(records)
    targets = _targets(records, convention)
    names = dict.fromkeys(name for record in records for name in record["rows"])
    values = {name: _columns(records, name, convention, targets, region) for name in names}
    if reference is not None and reference not in values:
        raise UserError(f"no record has a row {reference!r}: choose from {', '.join(values)}")
    rows = []
    for name, columns in values.items():
        compared = None if reference in (None, name) else values[reference]
        rows.append(Row(name=name, cells=_cells(columns, compared)))
    footer = _footer(records, convention, region, reference)
    return ResultsTable(
        convention=convention, rows=rows, patients=_patients(records), footer=footer
    )


def _targets(records: Sequence[Record], convention: str) -> list[str]:
    scored = (row.get(convention, {}) for record in records for row in record["rows"].values())
    targets = list(dict.fromkeys(target for scores in scored for target in scores))
    if not targets:
        known = sorted({name for record in records for name in record["conventions"]})
        raise UserError(
            f"no record was scored by convention {convention!r}: choose from {', '.join(known)}, "
            "or evaluate with it first"
        )
    return targets


def _columns(
    records: Sequence[Record], row: str, convention: str, targets: list[str], region: str | None
) -> Columns:
    """One value a patient for each target and metric of a row, and the mean over the targets."""
    columns = {
        (target, metric): per_patient(records, row, convention, target, metric, region)[1]
        for target in targets
        for metric in DECIMALS
    }
    for metric in DECIMALS:
        columns[AVERAGE, metric] = np.mean([columns[t, metric] for t in targets], axis=0)
    return columns


def _cells(columns: Columns, reference: Columns | None) -> dict[tuple[str, str], Cell]:
    return {
        column: Cell(
            summary=summarize(values),
            comparison=None if reference is None else compare(values, reference[column]),
        )
        for column, values in columns.items()
    }


def _footer(
    records: Sequence[Record], convention: str, region: str | None, reference: str | None
) -> str:
    tagged = (record["conventions"].get(convention) for record in records)
    tag = next(tag for tag in tagged if tag is not None)
    place = "" if region is None else f", inside {region.replace('_', ' ')}"
    test = (
        f" {MARK} differs from {reference}: Wilcoxon signed-rank, p < {SIGNIFICANT}, uncorrected."
    )
    # Records of a run name its checkpoints; those of anybody's images do not.
    cut = " Every synthesis is set to 0 outside the sources' brain."
    return (
        f"Convention {convention} ({tag}){place}; {_patients(records)} patients; "
        f"split {records[0]['split']}.{cut if 'checkpoint' in records[0] else ''} PSNR in dB. Mean "
        "± half the width of the 95 % bootstrap interval over patients."
        f"{'' if reference is None else test}"
    )


def _patients(records: Sequence[Record]) -> int:
    return len({record["patient"] for record in records})


def to_rich(table: ResultsTable) -> Table:
    """Lays a table out for the terminal: a line a system, the footer as its caption."""
    shown = Table(caption=Text(table.footer), caption_justify="left", show_lines=True)
    for heading in headings(table):
        shown.add_column(Text(heading), justify="left" if heading == FIRST_HEADING else "right")
    for row in table.rows:
        shown.add_row(Text(row.name), *map(Text, texts(table, row, "\n")))
    return shown


def to_markdown(table: ResultsTable) -> str:
    """Lays a table out in Markdown, the footer below it."""
    lines = [headings(table), ["---", *["---:"] * (len(headings(table)) - 1)]]
    for row in table.rows:
        lines.append([row.name.replace("|", "\\|"), *texts(table, row, " ")])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", table.footer, ""])


def to_latex(table: ResultsTable) -> str:
    """Lays a table out in LaTeX with the package booktabs, the footer below it."""
    lines = [headings(table), *([row.name, *texts(table, row, " ")] for row in table.rows)]
    head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}",
            rf"\par\footnotesize {_latex(table.footer)}",
            "",
        ]
    )


def _latex(text: str) -> str:
    """Escapes what LaTeX would read as its own."""
    for plain, escaped in LATEX.items():
        text = text.replace(plain, escaped)
    return text


def to_csv(table: ResultsTable) -> str:
    """Every number of a table at full precision, a line for each system, modality and metric.

    A printed column is one here too; its text stands in all lines of its system.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*CSV_COLUMNS, *table.printed])
    for row in table.rows:
        printed = [column.get(row.name, "") for column in table.printed.values()]
        for (target, metric), cell in row.cells.items():
            summary, compared = cell.summary, cell.comparison
            low, high = summary.interval or ("", "")
            difference = [compared.difference, compared.p_value] if compared else ["", ""]
            numbers = [summary.mean, low, high, summary.standard_deviation, summary.median]
            names = [table.convention, row.name, target, metric]
            lines.writerow([*names, summary.n, *numbers, *difference, *printed])
    return text.getvalue()


def headings(table: ResultsTable) -> list[str]:
    """Heads of the columns, the systems' first."""
    columns = table.rows[0].cells
    measured = [f"{t[:1].upper()}{t[1:]} {m.upper()}" for t, m in columns]
    return [FIRST_HEADING, *measured, *table.printed]


def texts(table: ResultsTable, row: Row, separator: str) -> list[str]:
    """What stands in a row's cells, the name's apart."""
    cells = [
        cell_text(cell, metric, table.patients, separator)
        for (_, metric), cell in row.cells.items()
    ]
    return [*cells, *(column.get(row.name, ABSENT) for column in table.printed.values())]


def cell_text(cell: Cell, metric: str, patients: int, separator: str) -> str:
    """A cell as "mean ± half interval", with the mark of a significant difference."""
    summary, decimals = cell.summary, DECIMALS[metric]
    if summary.n == 0:
        return ABSENT
    parts = [f"{summary.mean:.{decimals}f}"]
    if summary.interval is not None:
        low, high = summary.interval
        parts.append(f"± {(high - low) / 2:.{decimals}f}")
    if summary.n < patients:
        parts.append(f"(n={summary.n})")
    p_value = None if cell.comparison is None else cell.comparison.p_value
    if p_value is not None and p_value < SIGNIFICANT:
        parts[0] += MARK
    return separator.join(parts)
