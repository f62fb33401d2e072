"""Subjects in a folder: which files are which modality of whom, by the names of `layouts`."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from cdm_jax.data.formats import read_image, stem
from cdm_jax.data.layouts import LAYOUTS, SEGMENTATION, Match, alternatives, matches_of
from cdm_jax.data.walk import image_files, seen
from cdm_jax.errors import UserError

_logger = logging.getLogger(__name__)
Found = dict[str, list[Match]]
"""Modality to the files that may be its images."""


class NoSubjectError(UserError):
    """A folder has no subject of the names that were looked for."""


class LackingError(UserError):
    """A subject lacks modalities."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One examination of one patient.

    Attributes:
        subject_id: Unique name of the examination.
        patient_id: The patient, shared by the time-points of one patient.
        images: Modality to image file, in the order in which the modalities were asked for.
        segmentation: The tumor's segmentation, if there is one.
    """

    subject_id: str
    patient_id: str
    images: Mapping[str, Path]
    segmentation: Path | None = None


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
    Hidden files and folders are passed over, links to folders are followed.

    Where the folder names the subject, patients whose files share a folder are told apart by what
    `*` stands for, and those whose folders have one name by the folders above.

    Args:
        root: Folder to search.
        modalities: Names of the modalities wanted, such as ("t1", "t2").
        optional: Names of others, which are taken along where a subject has one file for them.
        patterns: Modality to pattern, see `layouts`; replaces `LAYOUTS`. Optional modalities and
            "segmentation" need none. The patient is `{patient}` where the pattern has it, else the
            subject without a BraTS or UPenn-GBM time-point.
        require_all: Leave out subjects that lack a modality, with a warning in the log, rather
            than keep them with what they have.

    Raises:
        NoSubjectError: No subject.
        UserError: No folder, no pattern for a modality, or two files for one modality of one
            subject.
    """
    subjects, faults = find_with_faults(
        root, modalities=modalities, optional=optional, patterns=patterns, require_all=require_all
    )
    for fault in faults.values():
        if not isinstance(fault, LackingError):
            raise fault
    if faults:
        _logger.warning(
            "%d of %d subjects in %s lack a modality and are left out; the first is %s",
            len(faults),
            len(faults) + len(subjects),
            Path(root).resolve(),
            next(iter(faults.values())),
        )
    return subjects


def find_with_faults(
    root: Path | str,
    *,
    modalities: Sequence[str],
    optional: Sequence[str] = (),
    patterns: Mapping[str, str] | None = None,
    require_all: bool = True,
) -> tuple[list[Subject], dict[str, UserError]]:
    """As `find_subjects`, and the subjects that cannot be used: name to what is wrong.

    Raises:
        NoSubjectError: No subject, or none that has all modalities, for want of files.
        UserError: No folder, or no pattern for a modality.
    """
    root = Path(root).resolve()
    files = image_files(root)
    names = [*modalities]
    names += [n for n in (*optional, SEGMENTATION) if not patterns or n in patterns]
    known = {name: alternatives(name, patterns) for name in names}
    found = {
        name: [match for path in files for match in matches_of(path, own)]
        for name, own in known.items()
    }
    found = _below_folders(_side_by_side(found), root)
    subject_ids = sorted({match.subject_id for name in modalities for match in found[name]})
    subjects: list[Subject] = []
    faults: dict[str, UserError] = {}
    for subject_id in subject_ids:
        try:
            subject = _subject(subject_id, found, optional)
            lacking = [name for name in modalities if name not in subject.images]
            if require_all and lacking:
                raise LackingError(f"{subject_id} without {', '.join(lacking)}")
            subjects.append(subject)
        except UserError as error:
            faults[subject_id] = error
    if not subjects and all(isinstance(fault, LackingError) for fault in faults.values()):
        lacks = str(next(iter(faults.values()), "")).replace(" without ", " has no ")
        raise NoSubjectError(_nothing_found(root, lacks or seen(root, files), modalities, patterns))
    return subjects, faults


def subject_of(path: Path | str, modality: str, patterns: Mapping[str, str] | None = None) -> str:
    """The subject to whom `find_subjects` would count a file; of any other name, its folder.

    Folders above the file's own are not looked at.
    """
    path = Path(path).resolve()
    known = alternatives(modality, patterns)
    if not matches_of(path, known):
        return path.parent.name
    beside = image_files(path.parent) if path.parent.is_dir() else []
    files = {path, *(other for other in beside if other.parent == path.parent)}
    found = {modality: [m for file in sorted(files) for m in matches_of(file, known)]}
    split = _side_by_side(found)[modality]
    return min((m for m in split if m.path == path), key=lambda m: m.rank).subject_id


def _side_by_side(found: Found) -> Found:
    """Renames the subjects in a folder that holds several patients' images by their files."""
    names: dict[tuple[str, int, Path | None], set[str]] = defaultdict(set)
    for modality, matches in found.items():
        for match in matches:
            if modality != SEGMENTATION and match.folder is not None:
                names[modality, match.rank, match.folder].add(match.name)
    shared = {folder for (_, _, folder), several in names.items() if len(several) > 1}
    return _renamed(found, lambda m: (m.name, m.name) if m.folder in shared and m.name else None)


def _below_folders(found: Found, root: Path) -> Found:
    """Renames subjects by the folders above theirs where several folders have one name.

    Not where the files repeat the folder's name: then they are two copies of one patient.
    """
    places: dict[str, set[Path]] = defaultdict(set)
    for modality, matches in found.items():
        for match in matches:
            if modality != SEGMENTATION and _is_place(match):
                places[match.subject_id].add(match.folder)  # type: ignore[arg-type]
    if all(len(folders) == 1 for folders in places.values()):
        return found
    folders = set().union(*places.values())
    parts = {folder: folder.relative_to(root).parts for folder in folders}
    depth = next(n for n in count(2) if len({p[-n:] for p in parts.values()}) == len(parts))

    def rename(match: Match) -> tuple[str, str] | None:
        own = parts.get(match.folder, ())[-depth:] if match.folder and _is_place(match) else ()
        return ("_".join(own), "_".join(own[:-1]) or own[0]) if own else None

    return _renamed(found, rename)


def _is_place(match: Match) -> bool:
    """Whether only the folder says whose file it is."""
    return (
        match.folder is not None
        and match.subject_id == match.folder.name
        and not match.name.startswith(match.folder.name)
    )


def _renamed(found: Found, rename: Callable[[Match], tuple[str, str] | None]) -> Found:
    """The matches under new names of subject and patient, where `rename` gives some."""

    def changed(match: Match) -> Match:
        names = rename(match)
        return replace(match, subject_id=names[0], patient_id=names[1]) if names else match

    return {modality: [changed(match) for match in matches] for modality, matches in found.items()}


def _subject(subject_id: str, found: Found, optional: Iterable[str]) -> Subject:
    chosen = {}
    for name, matches in found.items():
        try:
            if own := [match for match in matches if match.subject_id == subject_id]:
                chosen[name] = _preferred(subject_id, name, own)
        except UserError:
            if name not in optional:
                raise
    images = {name: match.path for name, match in chosen.items() if name != SEGMENTATION}
    return Subject(
        subject_id=subject_id,
        patient_id=chosen[next(iter(images))].patient_id,
        images=images,
        segmentation=chosen[SEGMENTATION].path if SEGMENTATION in chosen else None,
    )


def _preferred(subject_id: str, name: str, matches: Sequence[Match]) -> Match:
    best, *others = sorted(matches, key=lambda match: match.rank)
    for other in others:
        if other.rank == best.rank and not _same_content(best.path, other.path):
            raise UserError(
                f"subject {subject_id} has two files for {name}: {best.path} and {other.path}; "
                "keep one, give a smaller root, or tell them apart by a pattern with {subject}"
            )
    return best


def _same_content(one: Path, other: Path) -> bool:
    """Whether two files of one name hold one image, such as a .nii.gz and what it unpacks to."""
    if one.parent != other.parent or stem(one) != stem(other):
        return False
    try:
        first, second = (read_image(path) for path in (one, other))
        same_place = first.shape == second.shape and np.allclose(first.affine, second.affine)
        return same_place and np.array_equal(first.get_fdata(), second.get_fdata(), equal_nan=True)
    except (UserError, OSError, ValueError, TypeError):
        return False  # which one is meant cannot be seen


def _nothing_found(
    root: Path, found: str, modalities: Sequence[str], patterns: Mapping[str, str] | None
) -> str:
    naming = "your patterns" if patterns else ", ".join(LAYOUTS)
    example = ", ".join(f'{name}="{{subject}}/*_{name}.nii.gz"' for name in modalities)
    return (
        f"no subject with {', '.join(modalities)} in {root}: looked for names of {naming}; "
        f"{found}; for other names give each modality a pattern, such as {example}"
    )
