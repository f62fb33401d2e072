"""Anybody's synthetic NIfTI against the real ones, under every convention, without a config.

For users of other models as well: two folders in, one JSON record a subject and the tables out.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.progress import track

from cdm_jax.data.intensity import Intensity, brain_mask, measure
from cdm_jax.data.nifti import check_same_grid, read_volume
from cdm_jax.data.subjects import LAYOUTS, SEGMENTATION, Subject, find_subjects
from cdm_jax.errors import UserError
from cdm_jax.evaluate import show_tables, usable_segmentation
from cdm_jax.metrics.aggregate import Record
from cdm_jax.metrics.conventions import CONVENTIONS, Case, fingerprint, get_convention, json_ready
from cdm_jax.writer import console, write_json

MODALITIES = tuple(
    dict.fromkeys(n for names in LAYOUTS.values() for n in names if n != SEGMENTATION)
)
ROW = "prediction"
UNIT_LIMIT = 1.5  # images whose values stay below it are taken to be in [0, 1]

Volume = Float[np.ndarray, "z y x"]


def score_folders(
    predictions: pathlib.Path, truth: pathlib.Path, output: pathlib.Path
) -> list[Record]:
    """Scores each modality that a subject has in both folders; prints the tables.

    Conventions of slices, as `paper`, are applied to the axial slices of the files' own grid. The
    brain is where the modalities that were not predicted are not background (where there are none:
    the real images of those that were).

    Args:
      predictions: synthetic images, in any layout of `data.subjects.LAYOUTS`.
      truth: the real patients, in any of these layouts; other modalities and segmentations there
        are used as well.
      output: records and `tables.md` are written here.

    Returns:
      One record a subject.

    Raises:
      UserError: no subject is in both folders, or two images' grids differ.
    """
    found = {
        name: {s.subject_id: s for s in find_subjects(f, modalities=MODALITIES, require_all=False)}
        for name, f in (("predictions", predictions), ("truth", truth))
    }
    common = sorted(found["predictions"].keys() & found["truth"].keys())
    if not common:
        one, other = (next(iter(subjects)) for subjects in found.values())
        raise UserError(
            f"no subject is in both folders: the predictions have {one}, the truth has {other}; "
            "name files or folders of the predictions by the truth's subjects"
        )
    if missing := len(found["truth"]) - len(common):
        console.print(f"{missing} subjects of the truth have no prediction")
    output.mkdir(parents=True, exist_ok=True)
    records = []
    for subject_id in track(common, "scoring", console=console):
        record = _record(found["predictions"][subject_id], found["truth"][subject_id])
        write_json(output / f"{subject_id}.json", record)
        records.append(record)
    show_tables(records, tuple(CONVENTIONS), None, output)
    return records


def _record(predicted: Subject, real: Subject) -> Record:
    """All scores of one subject."""
    targets = [name for name in predicted.images if name in real.images]
    if not targets:
        raise UserError(
            f"{real.subject_id}: no modality is in both folders: the predictions have "
            f"{', '.join(predicted.images)}, the truth has {', '.join(real.images)}"
        )
    inputs = [name for name in real.images if name not in targets] or targets
    brain = brain_mask({name: read_volume(real.images[name]) for name in inputs})
    segmentation = usable_segmentation(real, brain)
    scores: dict[str, Any] = {name: {} for name in CONVENTIONS}
    scales = {}
    for target in targets:
        check_same_grid([predicted.images[target], real.images[target]])
        volume = read_volume(real.images[target])
        intensity = measure(volume, f"{real.subject_id} {target}")
        image, scales[target] = _in_unit_range(predicted.images[target], intensity)
        case = Case(
            subject=real.subject_id,
            modality=target,
            prediction=image,
            truth=intensity.apply(volume),
            brain=brain,
            segmentation=segmentation,
        )
        for name in CONVENTIONS:
            scores[name][target] = get_convention(name).score(case)
    return json_ready(
        {
            "subject": real.subject_id,
            "patient": real.patient_id,
            "split": "none",
            "conventions": {name: fingerprint(name) for name in CONVENTIONS},
            "scales": scales,
            "rows": {ROW: scores},
        }
    )


def _in_unit_range(path: pathlib.Path, intensity: Intensity) -> tuple[Volume, str]:
    """A prediction on the scale on which the truth's brightest brain voxels are 1, and how.

    A sidecar's `reference_scale` (which `synthesize` writes) is divided out; values that stay
    about within [0, 1] are taken as they are; all others are taken to be in the truth's unit. The
    prediction's own distribution decides nothing beyond that.
    """
    image = read_volume(path)
    scale = _sidecar(path).get("reference_scale")
    if scale:
        return image / np.float32(scale), "reference_scale of the sidecar"
    if float(image.max()) <= UNIT_LIMIT:
        return image, "taken as [0, 1]"
    shifted = (image - np.float32(intensity.offset)) / np.float32(intensity.scale)
    return shifted, "the truth's unit"


def _sidecar(path: pathlib.Path) -> Mapping[str, Any]:
    file = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    return json.loads(file.read_text()) if file.exists() else {}
