"""A data folder examined: every file of every subject, on all cores; a table, JSON and a page.

`data/findings.py` lists what can be found.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import cdm_jax
from cdm_jax import workers
from cdm_jax.data.findings import KINDS, SEVERITIES, Finding
from cdm_jax.data.layouts import LAYOUTS, SEGMENTATION, alternatives, matches_of
from cdm_jax.data.subjects import NoSubjectError, Subject, find_with_faults
from cdm_jax.data.walk import image_files
from cdm_jax.examination import Examination, compare, examine_subject, overlaps
from cdm_jax.files import write_json
from cdm_jax.report.page import asset, template
from cdm_jax.report.site import Site

MODALITIES = tuple(LAYOUTS["BIDS"])
FORMAT = 1  # of the JSON file
NOTICE = "These are doubts of a program: only who has the originals can say what is meant."
COLORS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found in a folder.

    Attributes:
        folder: The folder.
        subjects: Number of subjects in it.
        images: Number of their images.
        findings: The severe ones first.
        against: The folder that it was compared with, and how many subjects that has.
    """

    folder: Path
    subjects: int
    images: int
    findings: tuple[Finding, ...]
    against: tuple[Path, int] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Severity to the number of findings."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        counts = ", ".join(_plural(number, name) for name, number in self.counts.items())
        found = f"{_plural(self.subjects, 'subject')}, {_plural(self.images, 'image')}"
        if self.against:
            found += f", compared with {self.against[1]} subjects in {self.against[0]}"
        return f"{self.folder}: {found}: {counts}"


def told(finding: Finding) -> dict[str, str]:
    """A finding as JSON has it."""
    return {"severity": finding.severity, **dataclasses.asdict(finding)}


def diagnose(
    folder: Path,
    *,
    modalities: Sequence[str] = MODALITIES,
    patterns: Mapping[str, str] | None = None,
    against: Path | None = None,
    num_workers: int = 0,
) -> Diagnosis:
    """Examines a folder of patients.

    Args:
        folder: To examine.
        modalities: Which to look for.
        patterns: Modality to names of files, see `data.layouts`; None: the known data sets'.
        against: Another folder, whose patients this one should not hold.
        num_workers: Subjects examined side by side, each by a process that holds one in memory;
            0: one a core.

    Raises:
        UserError: There is no such folder, or no pattern for a modality.
    """
    number = num_workers or workers.cores()
    subjects, found = _find(folder, modalities, patterns)
    examinations = _examine(subjects, number, "Examining subjects")
    found += [finding for one in examinations for finding in one.findings]
    found += compare(examinations)
    compared = None
    if against is not None:
        others, _ = _find(against, modalities, patterns)
        theirs = _examine(others, number, "Examining the other folder")
        found += overlaps(examinations, theirs, against)
        compared = (against, len(theirs))
    ranks = {code: rank for rank, code in enumerate(KINDS)}
    return Diagnosis(
        folder=folder,
        subjects=len(subjects),
        images=sum(len(subject.images) for subject in subjects),
        findings=tuple(sorted(found, key=lambda f: (ranks[f.code], f.subject, f.about, f.file))),
        against=compared,
    )


def _find(
    folder: Path, modalities: Sequence[str], patterns: Mapping[str, str] | None
) -> tuple[list[Subject], list[Finding]]:
    """The subjects of a folder, and what their files' names show."""
    try:
        subjects, faults = find_with_faults(
            folder, modalities=modalities, patterns=patterns, require_all=False
        )
        found = []
    except NoSubjectError as error:
        subjects, faults = [], {}
        found = [Finding(code="no-subject", found=str(error), file=str(folder))]
    found += [
        Finding(code="ambiguous", found=str(error), subject=name) for name, error in faults.items()
    ]
    for subject in subjects:
        if lacking := [name for name in modalities if name not in subject.images]:
            text = f"has no {', '.join(lacking)}"
            found.append(Finding(code="incomplete", found=text, subject=subject.subject_id))
    return subjects, found + _strangers(folder, modalities, patterns)


def _strangers(
    folder: Path, modalities: Sequence[str], patterns: Mapping[str, str] | None
) -> list[Finding]:
    """Images that no pattern names."""
    names = [*modalities]
    names += [SEGMENTATION] if not patterns or SEGMENTATION in patterns else []
    known = [pattern for name in names for pattern in alternatives(name, patterns)]
    return [
        Finding(code="unknown-name", found="no modality has such a name", file=str(path))
        for path in image_files(folder.resolve())
        if not matches_of(path, known)
    ]


def _examine(subjects: Sequence[Subject], number: int, text: str) -> list[Examination]:
    """Examines subjects side by side, with a progress bar."""
    with workers.pool(min(number, len(subjects))) as pool:
        return list(track(pool.map(examine_subject, subjects), text, total=len(subjects)))


def show(diagnosis: Diagnosis) -> None:
    """Prints a line for each kind of finding, and a summary."""
    console = get_console()
    if diagnosis.findings:
        table = Table(show_lines=True)
        for heading in ("Severity", "Code", "Number", "What was found", "What to do"):
            table.add_column(heading, overflow="fold")
        for group in grouped(diagnosis.findings):
            severity, examples = group["severity"], "\n".join(group["examples"])
            texts = (group["code"], str(group["number"]), examples, group["advice"])
            table.add_row(Text(severity, style=COLORS[severity]), *map(Text, texts))
        console.print(table)
    console.print(Text(diagnosis.summary), soft_wrap=True)


def grouped(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings by kind, in their order: its number, the first two in words, and what to do."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.code, []).append(finding)
    return [
        {
            "severity": found[0].severity,
            "code": code,
            "meaning": KINDS[code].meaning,
            "number": len(found),
            "examples": [*map(_example, found[:2]), *(["..."] if len(found) > 2 else [])],
            "advice": found[0].advice,
        }
        for code, found in kinds.items()
    ]


def _example(finding: Finding) -> str:
    """Of what, and what was found."""
    place = " ".join(part for part in (finding.subject, finding.about) if part)
    return f"{place or finding.file}: {finding.found}"


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Writes the findings as one HTML file, with its style and script inside."""
    page = template("checkup.html").render(
        report={"title": f"Data of {diagnosis.folder}", "notice": NOTICE},
        root="",
        style=asset("report.css"),
        script=asset("report.js"),
        summary=diagnosis.summary,
        kinds=grouped(diagnosis.findings),
        findings=[told(finding) for finding in diagnosis.findings],
    )
    Site(path.parent).write(path.name, page)


def write_findings(diagnosis: Diagnosis, path: Path) -> None:
    """Writes the findings as JSON."""
    content = {
        "format": FORMAT,
        "software": f"cdm_jax {cdm_jax.__version__}",
        "folder": str(diagnosis.folder),
        "against": str(diagnosis.against[0]) if diagnosis.against else None,
        "subjects": diagnosis.subjects,
        "images": diagnosis.images,
        "counts": diagnosis.counts,
        "findings": [told(finding) for finding in diagnosis.findings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _plural(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
