"""One self-contained HTML page of a run: tables and pictures, no network, no script."""

import base64
import html
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from cdm_jax.report.tables import FIRST_HEADING, ResultsTable, cell_text, headings

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1, h2 { line-height: 1.2; }
figure { margin: 1rem 0; overflow-x: auto; }
img { max-width: 100%; min-width: 30rem; background: #000; }
figcaption, .footer { color: #4a4a4a; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #d5d5d5; }
th:first-child, td:first-child { text-align: left; }
.notice { border-left: .3rem solid #9a5b00; padding-left: .8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        path: PNG file, embedded whole.
        caption: what is to be seen; read out by screen readers as well.
    """

    path: pathlib.Path
    caption: str


def save_page(
    path: pathlib.Path,
    *,
    title: str,
    notice: str,
    pictures: Sequence[Picture],
    tables: Sequence[tuple[str, ResultsTable]],
) -> None:
    """Writes the page: the notice, pictures with captions, and named tables.

    Args:
        path: of the HTML file.
        title: heading and title of the window.
        notice: what a reader must know first.
        pictures: shown in order.
        tables: (heading, table) in order.
    """
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="notice">{html.escape(notice)}</p>',
        *(_figure(picture) for picture in pictures),
        *(f"<h2>{html.escape(heading)}</h2>{_table(table)}" for heading, table in tables),
    ]
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(document, encoding="utf-8")
    os.replace(temporary, path)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: ResultsTable) -> str:
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings(table))
    rows = [
        f'<tr><th scope="row">{html.escape(row.name)}</th>'
        + "".join(
            f"<td>{html.escape(cell_text(cell, metric, table.patients, ' '))}</td>"
            for (_, metric), cell in row.cells.items()
        )
        + "</tr>"
        for row in table.rows
    ]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{FIRST_HEADING} table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="footer">{html.escape(table.footer)}</p>'
    )
