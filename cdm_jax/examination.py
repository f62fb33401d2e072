"""What `doctor` finds in one subject, and between subjects. Imports no JAX: worker processes do."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cdm_jax.data.checks import examine
from cdm_jax.data.findings import Finding
from cdm_jax.data.formats import ImageError, read_image
from cdm_jax.data.grids import oriented_like
from cdm_jax.data.headers import Header, examine_headers, finding_of
from cdm_jax.data.intensity import background, brain_mask, without_residue
from cdm_jax.data.nifti import volume_of
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.metrics.regions import bounding_box
from cdm_jax.scoring import check_segmentation

Volumes = dict[str, Float[np.ndarray, "_ _ _"]]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is known of a subject after its files were read.

    Attributes:
        subject_id: Its name.
        patient_id: The patient.
        folder: Of its first file.
        findings: In its files.
        hashes: Modality to a hash of its voxels, without the empty space around the brain.
        traits: What can be compared between subjects, in words: "other-shape", "other-spacing" and
            "other-axes" to that of its first readable file.
    """

    subject_id: str
    patient_id: str
    folder: str
    findings: tuple[Finding, ...]
    hashes: Mapping[str, str]
    traits: Mapping[str, str]


def examine_subject(subject: Subject) -> Examination:
    """Reads all files of a subject, whatever is wrong with some of them."""
    found, headers = examine_headers(subject.images, subject.subject_id)
    volumes, damaged = _read(subject, headers)
    one_grid = all(finding.code != "grid" for finding in found)
    groups = [volumes] if one_grid else [{name: volume} for name, volume in volumes.items()]
    found += damaged
    for group in filter(None, groups):
        for finding in examine(group, headers[next(iter(group))].geometry.voxel_size):
            file = str(subject.images.get(finding.about, ""))  # where it is of one modality
            found.append(dataclasses.replace(finding, subject=subject.subject_id, file=file))
    if one_grid and volumes:
        found += _labels(subject, volumes)
    first = next(iter(subject.images.values()))
    return Examination(
        subject_id=subject.subject_id,
        patient_id=subject.patient_id,
        folder=str(first.parent),
        findings=tuple(found),
        hashes=_hashes(volumes),
        traits=_traits(next(iter(headers.values()))) if headers else {},
    )


def _read(subject: Subject, headers: Mapping[str, Header]) -> tuple[Volumes, list[Finding]]:
    """The volumes that can be read, and what is wrong with the others."""
    anchor = next((name for name, header in headers.items() if header.orientation), None)
    volumes, found = {}, []
    for name in headers:
        path = subject.images[name]
        place = {"about": name, "subject": subject.subject_id, "file": str(path)}
        try:
            image = read_image(path)
            if anchor and not headers[name].orientation:
                image = oriented_like(path, subject.images[anchor])
            volume, said = volume_of(image, str(path))
        except ImageError as error:
            if error.code != "grid":  # which the headers have shown
                found.append(finding_of(error, **place))
            continue
        found += [Finding(code="nan-background", found=line, **place) for line in said]
        volumes[name] = without_residue(volume)
    return volumes, found


def _labels(subject: Subject, volumes: Volumes) -> list[Finding]:
    """What is wrong with the segmentation, if there is one."""
    if subject.segmentation is None:
        return []
    readable = {name: subject.images[name] for name in volumes}
    try:
        check_segmentation(dataclasses.replace(subject, images=readable), brain_mask(volumes))
    except UserError as error:
        text = error.found if isinstance(error, ImageError) else str(error)
        place = {"about": "segmentation", "subject": subject.subject_id}
        return [Finding(code="labels", found=text, file=str(subject.segmentation), **place)]
    return []


def _hashes(volumes: Volumes) -> dict[str, str]:
    """A hash of the brain of each volume; none where it has none."""
    hashes = {}
    for name, volume in volumes.items():
        zero = background(volume)
        brain = volume != zero
        if brain.any():
            shown = np.ascontiguousarray(volume[bounding_box(brain, 0)] - np.float32(zero))
            content = str(shown.shape).encode() + shown.tobytes()
            hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def _traits(header: Header) -> dict[str, str]:
    """What subjects of one data set have in common."""
    z, y, x = header.geometry.shape
    sizes = [f"{size:.2f}" for size in reversed(header.geometry.voxel_size)]
    return {
        "other-shape": f"{x} x {y} x {z} voxels",
        "other-spacing": f"{' x '.join(sizes)} mm",
        "other-axes": header.axes,
    }


def compare(examinations: Sequence[Examination]) -> list[Finding]:
    """What is found between the subjects of one folder."""
    return [*_time_points(examinations), *_twins(examinations), *_odd_ones(examinations)]


def _time_points(examinations: Sequence[Examination]) -> list[Finding]:
    patients: dict[str, list[str]] = defaultdict(list)
    for one in examinations:
        patients[one.patient_id].append(one.subject_id)
    return [
        Finding(
            code="time-points", found=f"patient {patient}: {', '.join(names)}", subject=names[0]
        )
        for patient, names in patients.items()
        if len(names) > 1
    ]


def _twins(examinations: Sequence[Examination]) -> list[Finding]:
    """Subjects that hold an image of an earlier one."""
    owners: dict[str, tuple[Examination, str]] = {}
    found = []
    for one in examinations:
        same: dict[str, list[str]] = defaultdict(list)
        for name, code in one.hashes.items():
            owner, theirs = owners.setdefault(code, (one, name))
            if owner is not one:
                same[owner.subject_id].append(name if name == theirs else f"{name} as {theirs}")
        for other, names in same.items():
            text = f"{', '.join(names)}: the same voxels as subject {other}"
            found.append(
                Finding(code="same-voxels", found=text, subject=one.subject_id, file=one.folder)
            )
    return found


def _odd_ones(examinations: Sequence[Examination]) -> list[Finding]:
    """Subjects that differ from most others."""
    found = []
    for code in ("other-shape", "other-spacing", "other-axes"):
        values = {one.subject_id: one.traits[code] for one in examinations if one.traits}
        if not values:
            continue
        usual, number = Counter(values.values()).most_common(1)[0]
        if 2 * number < len(values):
            continue
        found += [
            Finding(
                code=code,
                found=f"{value}, where {number} of {len(values)} subjects have {usual}",
                subject=subject,
            )
            for subject, value in values.items()
            if value != usual
        ]
    return found


def overlaps(
    examinations: Sequence[Examination], others: Sequence[Examination], folder: Path
) -> list[Finding]:
    """What the subjects of a folder have in common with the others, those of another folder."""
    owners = {code: one.subject_id for one in others for code in one.hashes.values()}
    patients = {one.patient_id.casefold() for one in others}
    found = []
    for one in examinations:
        place = {"subject": one.subject_id, "file": one.folder}
        same = sorted({owners[code] for code in one.hashes.values() if code in owners})
        if same:
            text = f"the same voxels as {', '.join(same)} in {folder}"
            found.append(Finding(code="overlap", found=text, **place))
        elif one.patient_id.casefold() in patients:
            text = f"patient {one.patient_id} is in {folder} too"
            found.append(Finding(code="same-name", found=text, **place))
    return found
