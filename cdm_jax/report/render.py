"""A table of texts as Markdown, as LaTeX and for the terminal.

The table's index holds the first column, and the index's name heads it.
"""

from collections.abc import Callable

import pandas as pd
from rich.table import Table
from rich.text import Text

LATEX = {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"} | {
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
    "<": "$<$",
}


def to_markdown(table: pd.DataFrame, footer: str = "") -> str:
    """Lays texts out in Markdown, the footer below them."""
    escaped = _mapped(table, lambda text: text.replace("|", "\\|"))
    sides = ["left", *["right"] * len(table.columns)]
    lines = escaped.to_markdown(index=False, colalign=sides, disable_numparse=True)
    return f"{lines}\n\n{footer}\n" if footer else lines


def to_latex(table: pd.DataFrame, footer: str = "") -> str:
    """Lays texts out in LaTeX with the package booktabs, the footer below them."""
    columns = "l" + "r" * len(table.columns)
    lines = _mapped(table, _latex).to_latex(index=False, escape=False, column_format=columns)
    return f"{lines}\\par\\footnotesize {_latex(footer)}\n" if footer else lines


def to_rich(table: pd.DataFrame, footer: str = "") -> Table:
    """Lays texts out for the terminal, the footer as the caption."""
    shown = Table(caption=Text(footer), caption_justify="left", show_lines=True)
    shown.add_column(Text(table.index.name))
    for heading in table.columns:
        shown.add_column(Text(heading), justify="right")
    for name, texts in table.iterrows():
        shown.add_row(Text(name), *map(Text, texts))
    return shown


def _mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """All texts changed, those of the index as the first column."""
    return table.reset_index().map(change).rename(columns=change)


def _latex(text: str) -> str:
    """Escapes what LaTeX would read as its own."""
    for plain, escaped in LATEX.items():
        text = text.replace(plain, escaped)
    return text
