"""Subjects in a folder: which files are which modality of whom.

A dataset's naming is a row of patterns in `LAYOUTS`. A pattern describes the end of a file's
path: `*` stands for any characters but `/`, `?` for one of them, `{subject}` and `{patient}` for
a name, `|` parts alternatives, the preferred one first. `.nii` and `.nii.gz` are always both
accepted, written in the pattern or not. Without `{subject}` the subject is the folder that holds
the file.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdm_jax.errors import UserError

SEGMENTATION = "segmentation"

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "BraTS 2023 and later": {
        "t1": "{subject}-t1n",
        "t1c": "{subject}-t1c",
        "t2": "{subject}-t2w",
        "t2f": "{subject}-t2f",
        SEGMENTATION: "{subject}-seg",
    },
    "BraTS 2018 to 2021": {
        "t1": "{subject}/*_t1",
        "t1c": "{subject}/*_t1ce",
        "t2": "{subject}/*_t2",
        "t2f": "{subject}/*_flair",
        SEGMENTATION: "{subject}/*_seg",
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

_logger = logging.getLogger(__name__)


class NoSubjectError(UserError):
    """A folder has no subject of the names that were looked for."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One examination of one patient.

    Attributes:
        subject_id: Unique name of the examination.
        patient_id: The patient, shared by the time-points of one patient.
        images: Modality to NIfTI file, in the order in which the modalities were asked for.
        segmentation: The tumor's segmentation, if there is one.
    """

    subject_id: str
    patient_id: str
    images: Mapping[str, Path]
    segmentation: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A file that fits a pattern; `rank` is the pattern's place among the alternatives."""

    subject_id: str
    patient_id: str
    rank: int
    path: Path


def find_subjects(
    root: Path | str,
    *,
    modalities: Sequence[str],
    optional: Sequence[str] = (),
    patterns: Mapping[str, str] | None = None,
    require_all: bool = True,
) -> list[Subject]:
    """The subjects below a folder, sorted by name.

    All `LAYOUTS` are looked for at once, at any depth; the root may be one patient's folder.
    Hidden files and folders are passed over, and links to folders are not followed.

    Args:
        root: Folder to search.
        modalities: Names of the modalities wanted, such as ("t1", "t2").
        optional: Names of others, which are taken along where a subject has them.
        patterns: Modality to pattern, see the module's text; replaces `LAYOUTS`. Optional
            modalities and "segmentation" need none. The patient is `{patient}` where the pattern
            has it, else the subject without a BraTS or UPenn-GBM time-point.
        require_all: Leave out subjects that lack a modality, with a warning in the log, rather
            than keep them with what they have.

    Raises:
        NoSubjectError: No subject.
        UserError: No folder, no pattern for a modality, or two files for one modality of one
            subject.
    """
    root = Path(root).resolve()
    files = list(nifti_files(root))
    found = {name: _match(files, _alternatives(name, patterns)) for name in modalities}
    for name in (*optional, SEGMENTATION):
        if not patterns or name in patterns:
            found[name] = _match(files, _alternatives(name, patterns))
    subject_ids = sorted({subject for name in modalities for subject in found[name]})
    subjects = [_subject(subject_id, found) for subject_id in subject_ids]
    complete = [subject for subject in subjects if not _missing(subject, modalities)]
    if not subjects or (require_all and not complete):
        raise NoSubjectError(_nothing_found(root, files, subjects, modalities, patterns))
    if not require_all:
        return subjects
    if len(complete) < len(subjects):
        first = next(s for s in subjects if _missing(s, modalities))
        _logger.warning(
            "%d of %d subjects in %s lack a modality and are left out; the first is %s without %s",
            len(subjects) - len(complete),
            len(subjects),
            root,
            first.subject_id,
            _missing(first, modalities),
        )
    return complete


def subject_of(path: Path | str, modality: str, patterns: Mapping[str, str] | None = None) -> str:
    """The subject to whom `find_subjects` would count a file; of any other name, its folder.

    Args:
        path: Of the file.
        modality: Whose image it is.
        patterns: As for `find_subjects`.
    """
    path = Path(path).resolve()
    matches = (pattern.search(path.as_posix()) for pattern in _alternatives(modality, patterns))
    names = next((match.groupdict() for match in matches if match), {})
    return names.get("subject", path.parent.name)


def nifti_files(root: Path) -> Iterator[Path]:
    """The files below a folder, sorted; those that are hidden are passed over.

    Raises:
        UserError: No folder.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder that holds the patients")
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith((".nii", ".nii.gz")) and not name.startswith("."):
                yield Path(folder, name)


def _alternatives(name: str, patterns: Mapping[str, str] | None) -> list[re.Pattern[str]]:
    """The patterns for one modality, the preferred first."""
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


def _compile(pattern: str) -> re.Pattern[str]:
    stem = pattern.strip().removesuffix(".gz").removesuffix(".nii")
    regex = re.escape(stem).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    for group in ("subject", "patient"):
        placeholder = re.escape(f"{{{group}}}")
        regex = regex.replace(placeholder, f"(?P<{group}>[^/]+)", 1)
        regex = regex.replace(placeholder, f"(?P={group})")
    return re.compile(rf"/{regex}\.nii(\.gz)?$")


def _match(
    files: Sequence[Path], alternatives: Sequence[re.Pattern[str]]
) -> dict[str, list[_Match]]:
    """Subject to the files that may be its image of one modality."""
    found: dict[str, list[_Match]] = defaultdict(list)
    for path in files:
        # A file may fit several patterns, each naming another subject; images settle who exists.
        for rank, pattern in enumerate(alternatives):
            if match := pattern.search(path.as_posix()):
                groups = match.groupdict()
                subject_id = groups.get("subject", path.parent.name)
                patient_id = groups.get("patient") or _patient(subject_id)
                found[subject_id].append(
                    _Match(subject_id=subject_id, patient_id=patient_id, rank=rank, path=path)
                )
    return found


def _preferred(subject_id: str, name: str, matches: Sequence[_Match]) -> _Match:
    best, *others = sorted(matches, key=lambda match: match.rank)
    if others and others[0].rank == best.rank:
        raise UserError(
            f"subject {subject_id} has two files for {name}: {best.path} and {others[0].path}; "
            "keep one, give a smaller root, or tell them apart by a pattern with {subject}"
        )
    return best


def _patient(subject_id: str) -> str:
    match = _WITH_TIME_POINT.fullmatch(subject_id)
    return match[1] if match else subject_id


def _subject(subject_id: str, found: Mapping[str, Mapping[str, list[_Match]]]) -> Subject:
    matches = {
        name: _preferred(subject_id, name, subjects[subject_id])
        for name, subjects in found.items()
        if subject_id in subjects
    }
    images = {name: match.path for name, match in matches.items() if name != SEGMENTATION}
    return Subject(
        subject_id=subject_id,
        patient_id=matches[next(iter(images))].patient_id,
        images=images,
        segmentation=matches[SEGMENTATION].path if SEGMENTATION in matches else None,
    )


def _missing(subject: Subject, modalities: Sequence[str]) -> str:
    return ", ".join(name for name in modalities if name not in subject.images)


def _nothing_found(
    root: Path,
    files: Sequence[Path],
    subjects: Sequence[Subject],
    modalities: Sequence[str],
    patterns: Mapping[str, str] | None,
) -> str:
    if subjects:
        seen = f"{subjects[0].subject_id} has no {_missing(subjects[0], modalities)}"
    elif files:
        seen = f"saw {len(files)} NIfTI files such as {files[0].relative_to(root)}"
    else:
        seen = "saw no .nii or .nii.gz file at all (links to folders are not followed)"
    naming = "your patterns" if patterns else ", ".join(LAYOUTS)
    example = ", ".join(f'{name}="{{subject}}/*_{name}.nii.gz"' for name in modalities)
    return (
        f"no subject with {', '.join(modalities)} in {root}: looked for names of {naming}; {seen}; "
        f"for other names give each modality a pattern, such as {example}"
    )
