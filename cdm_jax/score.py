"""Anybody's synthetic NIfTI against the real ones, under every convention, without a config.

For users of other models as well: two folders in, one JSON record a subject and the tables out.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.progress import track

from cdm_jax.data.formats import stem
from cdm_jax.data.grids import oriented_like
from cdm_jax.data.intensity import Intensity
from cdm_jax.data.layouts import LAYOUTS, SEGMENTATION
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import volume_of
from cdm_jax.data.subjects import NoSubjectError, Subject, find_subjects
from cdm_jax.data.walk import image_files
from cdm_jax.errors import UserError, collected, report_failures
from cdm_jax.evaluate import show_tables
from cdm_jax.files import read_json
from cdm_jax.metrics.conventions import CONVENTIONS, fingerprint, get_convention
from cdm_jax.records import Record, read_record, write_record
from cdm_jax.scoring import native_case, usable_segmentation
from cdm_jax.writer import console, say, say_once

MODALITIES = tuple(
    dict.fromkeys(n for names in LAYOUTS.values() for n in names if n != SEGMENTATION)
)
ROW = "prediction"
IMAGE = "image"  # the modality of files whose names say none
UNIT_LIMIT = 1.5  # images whose values stay below it are taken to be in [0, 1]

Volume = Float[np.ndarray, "z y x"]


def score_folders(
    predictions: pathlib.Path, truth: pathlib.Path, output: pathlib.Path
) -> list[Record]:
    """Scores each modality that a subject has in both folders; prints the tables.

    Subjects are found by the names of `data.subjects.LAYOUTS`. Where these find nobody in both
    folders, files with the same path below them are pairs, and each pair counts as a patient.

    Conventions of slices, as `paper`, are applied to the axial slices of the files' own grid. The
    brain is where the modalities that were not predicted are not background (where there are none:
    the real images of those that were).

    Args:
      predictions: synthetic images.
      truth: the real patients; of known names, other modalities and segmentations are used as well.
      output: records and `tables.md` are written here.

    Returns:
      One record a subject.

    Raises:
      UserError: nothing is in both folders; or some subjects cannot be scored, all others are.
    """
    pairs = _pairs(predictions, truth)
    records: list[Record] = []
    failures: dict[str, UserError] = {}
    for predicted, real in track(pairs, "scoring", console=console):
        path = output / f"{real.subject_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with collected(failures, real.subject_id):
            write_record(path, _record(predicted, real))
            records.append(read_record(path))
    if records:
        show_tables(records, tuple(CONVENTIONS), None, output)
    report_failures(failures, len(pairs), say)
    return records


def _pairs(predictions: pathlib.Path, truth: pathlib.Path) -> list[tuple[Subject, Subject]]:
    """Subjects that are in both folders, by known names or else by their files' paths."""
    ambiguous = None
    try:
        pairs = _in_both(_by_names(predictions), _by_names(truth))
    except NoSubjectError:
        pairs = []
    except UserError as error:  # perhaps of names that only look known
        pairs, ambiguous = [], error
    if pairs:
        return pairs
    found = _by_paths(predictions), _by_paths(truth)
    if pairs := _in_both(*found):
        console.print(f"no subject by known names: {len(pairs)} files are paired by their paths")
        return pairs
    if ambiguous:
        raise ambiguous
    one, other = (next(iter(subjects), "no NIfTI file") for subjects in found)
    raise UserError(
        f"no subject is in both folders: the predictions have {one}, the truth has {other}; name "
        f"both by one of the layouts {', '.join(LAYOUTS)}, or give each prediction the path of its "
        "truth, such as case01.nii.gz in both folders"
    )


def _by_names(folder: pathlib.Path) -> dict[str, Subject]:
    subjects = find_subjects(folder, modalities=MODALITIES, require_all=False)
    return {subject.subject_id: subject for subject in subjects}


def _by_paths(folder: pathlib.Path) -> dict[str, Subject]:
    """Each file as a subject of one image, named by its path below the folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in image_files(folder)}
    return {
        name: Subject(subject_id=name, patient_id=name, images={IMAGE: path})
        for name, path in paths.items()
    }


def _in_both(
    predicted: Mapping[str, Subject], real: Mapping[str, Subject]
) -> list[tuple[Subject, Subject]]:
    common = sorted(predicted.keys() & real.keys())
    if common and len(common) < len(real):
        console.print(f"{len(real) - len(common)} subjects of the truth have no prediction")
    return [(predicted[name], real[name]) for name in common]


def _record(predicted: Subject, real: Subject) -> Record:
    """All scores of one subject."""
    targets = [name for name in predicted.images if name in real.images]
    if not targets:
        raise UserError(
            f"{real.subject_id}: no modality is in both folders: the predictions have "
            f"{', '.join(predicted.images)}, the truth has {', '.join(real.images)}"
        )
    sources = [name for name in real.images if name not in targets]
    inputs = sources or targets
    native = read_native(real, inputs, [*inputs, *(t for t in targets if t not in inputs)])
    segmentation, remark = usable_segmentation(real, native.brain)
    if remark:
        say_once(remark)
    scores: dict[str, Any] = {name: {} for name in CONVENTIONS}
    scales = {}
    for target in targets:
        path = predicted.images[target]
        values, _ = volume_of(oriented_like(path, real.images[target]), str(path))
        image, scales[target] = _in_unit_range(values, _sidecar(path), native.intensities[target])
        case = native_case(real, native, sources, target, image, segmentation)
        for name in CONVENTIONS:
            scores[name][target] = get_convention(name).score(case)
    return {
        "subject": real.subject_id,
        "patient": real.patient_id,
        "split": "none",
        "conventions": {name: _tag(name) for name in CONVENTIONS},
        "scales": scales,
        "rows": {ROW: scores},
    }


def _tag(name: str) -> str:
    """The fingerprint; with the grid where `evaluate` has another, lest the two be compared."""
    slices = get_convention(name).space == "slices"
    return f"{fingerprint(name)}{', slices of the own grid' * slices}"


def _in_unit_range(
    image: Volume, sidecar: Mapping[str, Any], intensity: Intensity
) -> tuple[Volume, str]:
    """A prediction on the scale on which the truth's brightest brain voxels are 1, and how.

    A sidecar's `reference_scale` (which `synthesize` writes) is divided out; values that stay
    about within [0, 1] are taken as they are, unless the truth's do as well or its background is
    not 0; all others are taken to be in the truth's unit. The prediction's own distribution
    decides nothing beyond that.
    """
    scale = sidecar.get("reference_scale")
    if scale:
        return image / np.float32(scale), "reference_scale of the sidecar"
    if float(image.max()) <= UNIT_LIMIT < intensity.scale and intensity.offset == 0:
        return image, "taken as [0, 1]"
    shifted = (image - np.float32(intensity.offset)) / np.float32(intensity.scale)
    return shifted, "the truth's unit"


def _sidecar(path: pathlib.Path) -> Mapping[str, Any]:
    """What the JSON file beside an image says; nothing where others wrote it as no mapping.

    Raises:
      UserError: it is damaged, so that the unit it may have stated is lost, or no number is there.
    """
    file = path.with_name(f"{stem(path)}.json")
    if not file.exists():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        return {}
    scale = content.get("reference_scale", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise UserError(f"{file} has reference_scale {scale!r}: it must be a number above 0")
    return content
