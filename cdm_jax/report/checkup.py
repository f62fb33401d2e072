"""The page of `doctor`: what was found in a data folder, in one file."""

from collections.abc import Mapping, Sequence
from typing import Any

from cdm_jax.report.page import asset, environment

NOTICE = "These are doubts of a program: only who has the originals can say what is meant."


def checkup_page(
    *,
    title: str,
    summary: str,
    kinds: Sequence[Mapping[str, Any]],
    findings: Sequence[Mapping[str, str]],
) -> str:
    """The page as HTML, with its style and scripts inside; all texts are escaped.

    Args:
        title: Heading and title of the window.
        summary: One line.
        kinds: Of each kind of finding: severity, code, meaning, number, examples and advice.
        findings: Severity, code, subject, about, file, found and advice of each.
    """
    return (
        environment()
        .get_template("checkup.html")
        .render(
            report={"title": title, "notice": NOTICE},
            root="",
            style=asset("report.css"),
            script=asset("report.js"),
            summary=summary,
            kinds=kinds,
            findings=findings,
        )
    )
