"""A tumor's segmentation as one channel of a slice, for a network to learn.

The regions of BraTS are nested: enhancing tumor in the tumor's core in the whole tumor. So one
number says all, in how many of them a voxel lies, whichever label the data set has for each.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from cdm_jax.data.formats import check_file
from cdm_jax.data.grids import oriented_like
from cdm_jax.data.nifti import read_labels
from cdm_jax.data.resample import to_frame
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.metrics.regions import region_masks

REGIONS = ("whole_tumor", "tumor_core", "enhancing_tumor")  # each within the one before


def read_segmentation(subject: Subject) -> Int[np.ndarray, "z y x"]:
    """The labels of a subject that has a segmentation.

    Raises:
        UserError: There is none, it cannot be read or lies on another grid.
    """
    if subject.segmentation is None:
        raise UserError(f"{subject.subject_id} has no segmentation: add its file")
    check_file(subject.segmentation)
    image = oriented_like(subject.segmentation, next(iter(subject.images.values())))
    return read_labels(subject.segmentation, image)


def tumor_depth(labels: Int[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
    """In how many of `REGIONS` each voxel lies, over their number: 0, 1/3, 2/3 or 1.

    Raises:
        UserError: The labels are not those of BraTS.
    """
    masks = region_masks(labels, np.ones(labels.shape, bool))
    return _depth([masks[name] for name in REGIONS])


def depth_to_frame(
    depth: Float[np.ndarray, "z y x"], size: int
) -> Float[np.ndarray, "z {size} {size}"]:
    """The depth in the model's frame.

    A pixel is in a region where half of it is, if it is in the regions around that one too.
    """
    inside = np.rint(depth * len(REGIONS))
    masks = [(inside > level).astype(np.float32) for level in range(len(REGIONS))]
    framed = [to_frame(mask, size) >= 0.5 for mask in masks]
    return _depth(np.cumprod(framed, axis=0))


def _depth(masks: Sequence[np.ndarray] | np.ndarray) -> Float[np.ndarray, "z y x"]:
    return np.sum(masks, axis=0).astype(np.float32) / len(REGIONS)
