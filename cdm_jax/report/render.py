"""Tables of texts as Markdown, as LaTeX and for the terminal."""

import abc
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


class TextTable(abc.ABC):
    """A table to print.

    Attributes:
        footer: What stands below it.
    """

    footer: str

    @abc.abstractmethod
    def texts(self, separator: str = " ") -> pd.DataFrame:
        """The cells; the index holds the first column, and the index's name heads it.

        Args:
            separator: Between the parts of a cell.
        """

    def markdown(self) -> str:
        """In Markdown."""
        return to_markdown(self.texts(), self.footer)

    def latex(self) -> str:
        """In LaTeX with the package booktabs."""
        escaped = _mapped(self.texts(), _latex)
        columns = "l" + "r" * (len(escaped.columns) - 1)
        lines = escaped.to_latex(index=False, escape=False, column_format=columns)
        return f"{lines}\\par\\footnotesize {_latex(self.footer)}\n"

    def rich(self) -> Table:
        """For the terminal, the footer as the caption."""
        texts = self.texts("\n")
        shown = Table(caption=Text(self.footer), caption_justify="left", show_lines=True)
        shown.add_column(Text(texts.index.name))
        for heading in texts.columns:
            shown.add_column(Text(heading), justify="right")
        for name, cells in texts.iterrows():
            shown.add_row(Text(name), *map(Text, cells))
        return shown


def to_markdown(table: pd.DataFrame, footer: str = "") -> str:
    """Lays texts out in Markdown; the index is the first column, its name that column's head."""
    escaped = _mapped(table, lambda text: text.replace("|", "\\|"))
    sides = ["left", *["right"] * len(table.columns)]
    lines = escaped.to_markdown(index=False, colalign=sides, disable_numparse=True)
    return f"{lines}\n\n{footer}\n" if footer else lines


def _mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """All texts changed, those of the index as the first column."""
    return table.reset_index().map(change).rename(columns=change)


def _latex(text: str) -> str:
    """Escapes what LaTeX would read as its own."""
    for plain, escaped in LATEX.items():
        text = text.replace(plain, escaped)
    return text
