"""Scores of some of a subject's images, as a worker process computes them. Imports no JAX.

Processes and not threads: for about an eighth of the time that metrics take, Python itself is at
work, which would keep no more than eight cores busy.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.labels import read_segmentation
from cdm_jax.data.native import NativeImages, read_native
from cdm_jax.data.nifti import read_voxel_ml
from cdm_jax.data.prepare import FULL_SCALE, to_native
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions import Case, get_convention
from cdm_jax.metrics.enhancement import POSTCONTRAST, PRECONTRAST
from cdm_jax.metrics.regions import region_masks

Images = Mapping[str, Float[np.ndarray, "slice h w t"]]
"""Row to the synthetic targets of all slices of a subject, in [0, 1]."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""Row -> convention -> target -> metrics."""

# BraTS numbers its pediatric tumors and those after treatment in other ways.
LABEL_4 = (
    "label 4 of the segmentations is read as enhancing tumor, as in BraTS until 2021: where it "
    "means something else (edema of BraTS-PEDs, a cavity after treatment), relabel them"
)
ROWS_A_JOB = 4  # at least: a job reads the subject's own files, which takes as long as one image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Rows of a subject to score together, at the model's size and by its files' own grid."""

    subject: PreparedSubject
    files: Subject
    conventions: tuple[str, ...]
    images: Images


def most_jobs(subjects: int, rows: int) -> int:
    """As many jobs as so many rows of so many subjects can be shared out to."""
    return max(1, subjects * -(-rows // ROWS_A_JOB))


def jobs(
    subject: PreparedSubject,
    files: Subject,
    conventions: Sequence[str],
    images: Images,
    at_most: int,
) -> list[Job]:
    """Shares a subject's rows out to at most so many jobs, each row to one."""
    rows = list(images)
    each = max(ROWS_A_JOB, -(-len(rows) // at_most))
    return [
        Job(
            subject=subject,
            files=files,
            conventions=tuple(conventions),
            images={row: images[row] for row in rows[start : start + each]},
        )
        for start in range(0, len(rows), each)
    ]


def score(job: Job) -> tuple[Scores, str]:
    """Scores each row of a job under each convention for each target, once.

    Returns:
        The scores, and what is to be said of the subject's segmentation; nothing where it is empty.
    """
    subject, targets = job.subject, job.subject.targets
    truth = subject.slices[..., len(subject.sources) :].astype(np.float32) / FULL_SCALE
    conventions = {name: get_convention(name) for name in job.conventions}
    spaces = {convention.space for convention in conventions.values()}
    native, segmentation, remark = None, None, ""
    if "native" in spaces:
        native = read_native(job.files, subject.sources, subject.sources + targets)
        segmentation, remark = usable_segmentation(job.files, native.brain)

    def case(space: str, row: str, t: int) -> Case:
        """A row's image of the target number t beside the truth, in a convention's space."""
        target, predicted = targets[t], job.images[row][..., t]
        if native and space == "native":
            image = to_native(subject, predicted, native.brain)
            return native_case(job.files, native, subject.sources, target, image, segmentation)
        name = subject.subject_id
        return Case(subject=name, modality=target, prediction=predicted, truth=truth[..., t])

    scores: Scores = {
        row: {
            name: {
                target: convention.score(case(convention.space, row, t))
                for t, target in enumerate(targets)
            }
            for name, convention in conventions.items()
        }
        for row in job.images
    }
    return scores, remark


def native_case(
    files: Subject,
    native: NativeImages,
    sources: Sequence[str],
    target: str,
    image: Float[np.ndarray, "z y x"],
    segmentation: Int[np.ndarray, "z y x"] | None,
) -> Case:
    """A synthesis of the target beside the truth on the subject's own grid, in the same unit.

    T1c also has T1 beside it, where that is among the sources of the synthesis.
    """
    before, voxel_ml = None, math.nan
    if target == POSTCONTRAST and PRECONTRAST in sources:
        before = native.images[PRECONTRAST]
        voxel_ml = read_voxel_ml(files.images[PRECONTRAST])
    return Case(
        subject=files.subject_id,
        modality=target,
        prediction=image,
        truth=native.images[target],
        brain=native.brain,
        segmentation=segmentation,
        precontrast=before,
        voxel_ml=voxel_ml,
    )


def usable_segmentation(
    files: Subject, brain: Bool[np.ndarray, "z y x"]
) -> tuple[Int[np.ndarray, "z y x"] | None, str]:
    """The subject's labels; or None where they are none, of unknown meaning or on another grid.

    With them, what is to be told of them: why they are not usable, or what they were taken for.
    """
    if files.segmentation is None:
        return None, ""
    try:
        labels = check_segmentation(files, brain)
        return labels, LABEL_4 if (labels == 4).any() else ""
    except UserError as error:
        return None, f"{files.subject_id}: no tumor regions are scored: {error}"


def check_segmentation(
    files: Subject, brain: Bool[np.ndarray, "z y x"]
) -> Int[np.ndarray, "z y x"]:
    """The labels of a subject that has a segmentation.

    Raises:
        UserError: They cannot be read, lie on another grid or are of unknown meaning.
    """
    labels = read_segmentation(files)
    region_masks(labels, brain)
    return labels
