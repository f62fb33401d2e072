"""The report: a folder of pages that a browser opens from disk, without a server or a network.

Records, curves and arrays in, pages out: `index.html` with summary, tables and gallery, a page for
each patient, and for those whose images are shown a viewer of slices and 3D.
"""

import functools
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import pandas as pd

from cdm_jax.errors import UserError
from cdm_jax.records import Record
from cdm_jax.report import gallery, patients, rows, viewer
from cdm_jax.report.curves import Line, curves
from cdm_jax.report.gallery import Case, Gallery
from cdm_jax.report.site import Site
from cdm_jax.report.tables import ResultsTable, heading, results_table

ASSETS = ("report.css", "report.js", "viewer.js")
OWN_FOLDERS = ("assets", "curves", "patients", "sprites", "viewer", "volumes")
# Colors and ends of the overlays' scales.
COLORS = {
    "bright": gallery.TOO_BRIGHT,
    "dark": gallery.TOO_DARK,
    "deviation": gallery.DEVIATION,
    "interval": gallery.INTERVAL,
}
LEGEND: Mapping[str, Any] = {
    **{name: f"rgb({r} {g} {b})" for name, (r, g, b) in COLORS.items()},
    "error_limit": gallery.ERROR_LIMIT,
    "deviation_limit": gallery.DEVIATION_LIMIT,
    "interval_limit": gallery.INTERVAL_LIMIT,
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is told of a stage's training: terms with texts, and the lines of `metrics.jsonl`."""

    name: str
    facts: Mapping[str, str]
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A line of the map of patterns, where any modalities may be missing.

    Attributes:
        sources: what is given.
        system: whose images were scored.
        values: target to its mean PSNR in dB; None of what is given.
    """

    sources: str
    system: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report tells, apart from the images.

    Attributes:
        title: heading and title of the windows.
        notice: what a reader must know first.
        facts: term to text: data, split, modalities.
        records: one a subject.
        convention: under which the headline table stands.
        reference: the row against which the others are tested, where there is one.
        stages: in the order of their training.
        selection: how the patients shown were chosen.
        patterns: of an any-to-any run, what each system makes of each choice of sources.
        worth: of each system, what its numbers mean to a reader of the images: topic to sentences.
        remarks: further things that a reader must know, such as systems without images.
    """

    title: str
    notice: str
    facts: Mapping[str, str]
    records: Sequence[Record]
    convention: str
    reference: str | None
    stages: Sequence[Stage]
    selection: str
    patterns: Sequence[Pattern] = ()
    worth: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def save_report(folder: pathlib.Path, report: Report, cases: Iterable[Case]) -> pathlib.Path:
    """Writes the pages, and removes those of an earlier report; what else is in the folder stays.

    Of the cases, which are the patients shown, one is in memory at a time.

    Returns:
        The first page.

    Raises:
        UserError: there are no records, or they are not comparable.
    """
    site, records = Site(folder), report.records
    tables = {  # first: records that cannot be compared write nothing
        name: results_table(records, name, reference=report.reference)
        for name in dict.fromkeys(name for record in records for name in record["conventions"])
    }
    try:
        niivue, no_viewer = viewer.niivue_script(), ""
    except UserError as error:
        niivue, no_viewer = "", str(error)
    common = {
        "report": report,
        "no_viewer": no_viewer,
        "legend": LEGEND,
        "meaning": rows.meaning,
        "is_result": rows.is_result,
    }
    for name in ASSETS:
        site.write(f"assets/{name}", asset(name))
    if niivue:
        site.write("assets/niivue.js", niivue)
    galleries = {}
    for case in cases:
        galleries[case.subject] = gallery.save_gallery(site, case)
        if niivue:
            _save_viewer(site, case, common)
    _save_patients(site, report, galleries, common)
    page = template("index.html").render(
        common,
        root="",
        headline=_headline(report, tables[report.convention]),
        galleries=galleries.values(),
        tables=tables,
        stages=_stages(site, report),
        subjects=_subjects(report, galleries),
        shades=_shades(report.patterns),
    )
    site.write("index.html", page)
    site.prune(OWN_FOLDERS)
    return folder / "index.html"


def _shades(patterns: Sequence[Pattern]) -> list[dict[str, int]]:
    """For each line of the map, target to how strongly its cell is colored, 0 to 100."""
    known = [value for line in patterns for value in line.values.values() if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return [
        {
            name: round(100 * (value - low) / max(high - low, 1e-6))
            for name, value in line.values.items()
            if value is not None
        }
        for line in patterns
    ]


@functools.cache
def template(name: str) -> jinja2.Template:
    """A page's template, by which all that it shows is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cdm_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def asset(name: str) -> str:
    """The text of a style sheet or script that pages use."""
    file = importlib.resources.files("cdm_jax.report") / "templates" / name
    return file.read_text(encoding="utf-8")


def _headline(report: Report, table: ResultsTable) -> pd.DataFrame:
    """The rows by which a run is judged: those without training, and one for each system.

    PSNR and SSIM only, which a laptop's width holds; MAE is in the full tables.
    """
    texts = table.texts()
    trained = rows.headline_rows(report.records).values()
    kept = [name for name in texts.index if name in rows.NON_LEARNED]
    kept += trained or [name for name in texts.index if name not in kept]
    return texts.loc[kept, ~texts.columns.str.contains("MAE")]


def _stages(site: Site, report: Report) -> list[dict[str, Any]]:
    """Stages with their curves' files."""
    return [
        {
            "name": stage.name,
            "facts": stage.facts,
            "curves": [
                (site.write(f"curves/{stage.name}-{number}.svg", curve.svg), curve)
                for number, curve in enumerate(curves(stage.name, stage.lines))
            ],
        }
        for stage in report.stages
    ]


def _subjects(report: Report, galleries: Mapping[str, Gallery]) -> dict[str, Any]:
    """The table of patients, and the numbers from which the browser makes others."""
    values = patients.subject_values(report.records)
    trained = list(rows.headline_rows(report.records).values())
    names = list(next(iter(values["values"].values())))
    return {
        "columns": [heading(target, metric) for target, metric, _ in values["columns"]],
        "names": [record["subject"] for record in report.records],
        "shown": set(galleries),
        "rows": names,
        "row": (trained or names)[0],
        "place": report.convention,
        "data": values,
    }


def _save_patients(
    site: Site, report: Report, galleries: Mapping[str, Gallery], common: Mapping[str, Any]
) -> None:
    """A page for each subject of the records, with links to those before and after."""
    names = [None, *(record["subject"] for record in report.records), None]
    for record, before, after in zip(report.records, names, names[2:], strict=False):
        page = template("patient.html").render(
            common,
            root="../",
            subject=record["subject"],
            before=before,
            after=after,
            gallery=galleries.get(record["subject"]),
            tables=patients.subject_tables(record),
        )
        site.write(f"patients/{record['subject']}.html", page)


def _save_viewer(site: Site, case: Case, common: Mapping[str, Any]) -> None:
    """A case's volumes as scripts, and the page that shows them in slices and in 3D."""
    described = []
    for image in case.images:
        files = {kind: f"{case.subject}/{image.name}-{kind}" for kind in image.nifti}
        for kind, name in files.items():
            site.write(f"volumes/{name}.js", viewer.volume_script(name, image.nifti[kind]))
        shown = {name: getattr(image, name) for name in ("role", "modality", "system", "title")}
        described.append(shown | {"files": files})
    (z, y, x), (_, height, width) = case.focus, case.brain.shape
    page = template("viewer.html").render(
        common,
        root="../",
        subject=case.subject,
        images=described,
        has_intervals=any("interval" in image.nifti for image in case.images),
        # As NiiVue counts voxels: from the patient's left, back and bottom.
        focus=(width - 1 - x, height - 1 - y, z),
        colors=COLORS,
    )
    site.write(f"viewer/{case.subject}.html", page)
