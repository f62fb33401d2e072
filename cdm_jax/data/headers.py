"""What headers and sizes of files show, without the voxels: cheap enough for thousands of patients.

`prepare` refuses by it before hours of work; `doctor` begins with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdm_jax.data.findings import ERROR, Finding
from cdm_jax.data.formats import (
    Image,
    ImageError,
    check_size,
    open_image,
    states_orientation,
)
from cdm_jax.data.grids import TOLERANCE, check_same_grid, farthest
from cdm_jax.data.nifti import Geometry, check_real, orientation, read_geometry
from cdm_jax.errors import UserError

SMALLEST, LARGEST = 0.1, 20.0  # mm, sides of voxels of a brain scan
MILLIMETER = ("mm", "unknown")
SCANNER = 1  # the code of a place in the scanner


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """What a file's header says.

    Attributes:
        geometry: Of the voxels, in the package's axis order.
        axes: The file's own order, such as "LPS": to where its axes point.
        orientation: Whether it states where the voxels are.
    """

    geometry: Geometry
    axes: str
    orientation: bool


def examine_headers(
    images: Mapping[str, Path], subject: str
) -> tuple[list[Finding], dict[str, Header]]:
    """What is found in the headers of a subject's files, and the headers that can be read."""
    found: list[Finding] = []
    opened: dict[str, Image] = {}
    for name, path in images.items():
        place = {"about": name, "subject": subject, "file": str(path)}
        try:
            check_size(path)
            image = open_image(path)
            check_real(image, str(path))
            opened[name] = image
            found += [Finding(code=code, found=text, **place) for code, text in _of_one(image)]
        except ImageError as error:
            found.append(finding_of(error, **place))
        except (UserError, OSError) as error:
            found.append(Finding(code="unreadable", found=str(error), **place))
    found += _orientation(images, opened, subject)
    if len(opened) > 1:
        try:
            check_same_grid(list(opened.values()))
        except ImageError as error:
            found.append(finding_of(error, about=", ".join(opened), subject=subject))
    headers = {
        name: Header(
            geometry=read_geometry(image),
            axes=orientation(image),
            orientation=states_orientation(image),
        )
        for name, image in opened.items()
    }
    return found, headers


def finding_of(error: ImageError, **place: str) -> Finding:
    """A finding from the error of a reader; its file's name is not repeated."""
    text = error.found.removeprefix(f"{place.get('file')} ")
    return Finding(code=error.code, found=text, advice=error.advice, **place)


def refuse_unusable(subjects: Mapping[str, Mapping[str, Path]]) -> None:
    """Refuses a cohort (name to modality to file) of which headers show that some are unusable.

    Raises:
        UserError: Some cannot be used; says why of the first three.
    """
    errors = []
    for name, images in subjects.items():
        found, _ = examine_headers(images, name)
        if wrong := next((finding for finding in found if finding.severity == ERROR), None):
            place = f"{wrong.file} " if wrong.file else ""
            errors.append(f"{name}: {wrong.about}: {place}{wrong.found}: {wrong.advice}")
    if not errors:
        return
    more = "; ..." if len(errors) > 3 else ""
    raise UserError(
        f"{len(errors)} of {len(subjects)} subjects cannot be prepared, and nothing was done: "
        f"{'; '.join(errors[:3])}{more}. `cdm-jax doctor --input=<folder>` lists everything; mend "
        "them, or leave patients out by --config.data.exclude='(...)'"
    )


def _of_one(image: Image) -> Iterable[tuple[str, str]]:
    """Codes and texts of what one header shows."""
    if text := _odd_spacing(image):
        yield "spacing", text
    s_code, q_code = (int(image.header[name]) for name in ("sform_code", "qform_code"))
    sform = image.get_sform(coded=True)[0]
    try:
        qform = image.get_qform(coded=True)[0]
    except ValueError:  # of a quaternion longer than 1
        qform = None
        yield "two-affines", "qform is no rotation"
    if sform is not None and qform is not None:
        moved = farthest(sform, qform, image.shape)
        if moved > TOLERANCE * min(read_geometry(image).voxel_size):
            yield "two-affines", f"sform and qform place voxels up to {moved:.3g} mm apart"
    if s_code + q_code and {s_code, q_code} != {SCANNER}:
        yield "codes", f"the code of sform is {s_code} and that of qform {q_code}, not 1 and 1"


def _odd_spacing(image: Image) -> str:
    """Doubts a voxel size; empty where it is that of a scan."""
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError:
        return "the header states no known unit of length; lengths are taken to be millimeters"
    if unit not in MILLIMETER:
        return f"lengths are in {unit}s by the header, and are taken to be millimeters"
    stated = np.array(image.header.get_zooms()[:3], np.float64)
    placed = np.linalg.norm(image.affine[:3, :3], axis=0)
    sizes = " x ".join(f"{size:.4g}" for size in placed)
    if placed.min() < SMALLEST or placed.max() > LARGEST:
        return f"voxels measure {sizes} mm"
    if not np.allclose(stated, placed, rtol=0.01):
        told = " x ".join(f"{size:.4g}" for size in stated)
        return f"voxels measure {told} mm by pixdim and {sizes} mm by the affine"
    return ""


def _orientation(
    images: Mapping[str, Path], opened: Mapping[str, Image], subject: str
) -> list[Finding]:
    """Files that do not say where their voxels are."""
    silent = [name for name, image in opened.items() if not states_orientation(image)]
    if not silent:
        return []
    anchor = next((name for name in opened if name not in silent), None)
    if anchor is None:
        text, about = "no orientation is stated, left and right may be swapped", ", ".join(silent)
        return [Finding(code="no-orientation", found=text, about=about, subject=subject)]
    text = f"states no orientation, taken to be stored as {anchor}"
    shared = {"code": "unstated-orientation", "found": text, "subject": subject}
    return [Finding(about=name, file=str(images[name]), **shared) for name in silent]
