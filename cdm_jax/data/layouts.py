"""Datasets' names of files, as patterns.

A dataset's naming is a row of patterns in `LAYOUTS`. A pattern describes the end of a file's
path: `*` stands for any characters but `/`, `?` for one of them, `{subject}` and `{patient}` for
a name, `|` parts alternatives, the preferred one first. All endings of images are accepted,
written in the pattern or not. Without `{subject}` the subject is the folder that holds the file.
`{bids}` stands for the entities of a BIDS name without a contrast agent; they name the subject.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdm_jax.data.formats import ENDING
from cdm_jax.data.walk import named
from cdm_jax.errors import UserError

SEGMENTATION = "segmentation"

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "BIDS": {
        "t1": "{bids}_T1w",
        "t1c": "{bids}_ce-*_T1w",
        "t2": "{bids}_T2w",
        "t2f": "{bids}_FLAIR",
    },
    "BraTS 2023 and later": {
        "t1": "{subject}-t1n",
        "t1c": "{subject}-t1c",
        "t2": "{subject}-t2w",
        "t2f": "{subject}-t2f",
        SEGMENTATION: "{subject}-seg",
    },
    "BraTS 2018 to 2021": {
        "t1": "*_t1",
        "t1c": "*_t1ce",
        "t2": "*_t2",
        "t2f": "*_flair",
        SEGMENTATION: "*_seg|*_Segm",
    },
    "UPenn-GBM": {
        "t1": "{subject}_T1",
        "t1c": "{subject}_T1GD",
        "t2": "{subject}_T2",
        "t2f": "{subject}_FLAIR",
        SEGMENTATION: "{subject}_segm|{subject}_automated_approx_segm",
    },
}

# Subjects' names that end in a time-point: BraTS-GLI-00020-001, UPENN-GBM-00001_11.
_WITH_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d{4,5}|UPENN-GBM-\d{5})[-_]\d{1,3}")
_BIDS = (
    r"(?P<subject>(?P<patient>(?P<bids>sub-[A-Za-z0-9+]+))(?:_ses-[A-Za-z0-9+]+)?)"
    r"(?:_(?!ce-)[a-z]+-[A-Za-z0-9+]+)*"
)


@dataclass(frozen=True, kw_only=True)
class Match:
    """A file that fits a pattern.

    Attributes:
        subject_id: Subject that the file's path says.
        patient_id: Patient.
        rank: The pattern's place among the alternatives.
        path: The file.
        folder: Folder that named the subject; None where the pattern says the subject.
        name: What stood for the pattern's `*`.
    """

    subject_id: str
    patient_id: str
    rank: int
    path: Path
    folder: Path | None
    name: str


def alternatives(name: str, patterns: Mapping[str, str] | None) -> list[re.Pattern[str]]:
    """The patterns for one modality, the preferred first.

    Raises:
        UserError: There is none.
    """
    if not patterns:
        listed = [layout[name] for layout in LAYOUTS.values() if name in layout]
    elif name in patterns:
        listed = [patterns[name]]
    else:
        raise UserError(
            f"no pattern for the modality {name!r}: patterns are given for {sorted(patterns)}; "
            f'add one, such as {name}="*_{name}.nii.gz"'
        )
    return [_compile(pattern) for line in listed for pattern in line.split("|")]


def matches_of(path: Path, patterns: list[re.Pattern[str]]) -> list[Match]:
    """How a file fits: several patterns may, each naming another subject; a BIDS name fits one."""
    found = []
    shown = named(path)
    for rank, pattern in enumerate(patterns):
        if match := pattern.search(shown.as_posix()):
            groups = match.groupdict()
            subject = groups.get("subject") or shown.parent.name
            wildcards = [value for key, value in groups.items() if key.startswith("any")]
            found.append(
                Match(
                    subject_id=subject,
                    patient_id=groups.get("patient") or patient_of(subject),
                    rank=rank,
                    path=path,
                    folder=None if "subject" in groups else shown.parent,
                    name="".join(wildcards).strip("-_. "),
                )
            )
            if "bids" in groups:
                break
    return found


def patient_of(subject_id: str) -> str:
    """The subject without a BraTS or UPenn-GBM time-point."""
    match = _WITH_TIME_POINT.fullmatch(subject_id)
    return match[1] if match else subject_id


def _compile(pattern: str) -> re.Pattern[str]:
    stem = ENDING.sub("", pattern.strip())
    regex = re.escape(stem).replace(r"\?", "[^/]").replace(re.escape("{bids}"), _BIDS)
    parts = regex.split(r"\*")
    regex = parts[0] + "".join(f"(?P<any{n}>[^/]*){part}" for n, part in enumerate(parts[1:]))
    for group in ("subject", "patient"):
        placeholder = re.escape(f"{{{group}}}")
        regex = regex.replace(placeholder, f"(?P<{group}>[^/]+)", 1)
        regex = regex.replace(placeholder, f"(?P={group})")
    return re.compile(rf"/{regex}(?i:{ENDING.pattern})")
