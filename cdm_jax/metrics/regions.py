"""The regions of a brain in which a synthesis is scored."""

import numpy as np
from jaxtyping import Bool, Num
from scipy.ndimage import find_objects

from cdm_jax.errors import UserError

NECROTIC_CORE, EDEMA = 1, 2
ENHANCING_TUMOR = (3, 4)  # BraTS up to 2021 wrote 4, later editions write 3.


def region_masks(
    segmentation: Num[np.ndarray, "z y x"] | None, brain: Bool[np.ndarray, "z y x"]
) -> dict[str, Bool[np.ndarray, "z y x"]]:
    """Divides a brain by its tumor segmentation.

    Tumor voxels outside the brain mask are left out: images are zero there. A region that the
    tumor lacks is an empty mask.

    Args:
        segmentation: BraTS labels: 0 none, 1 necrotic core, 2 edema, 3 or 4 enhancing tumor;
            None where there is no segmentation.
        brain: The brain mask.

    Returns:
        The masks ``brain``, ``healthy`` (brain without the whole tumor), ``whole_tumor``,
        ``tumor_core`` (necrotic core and enhancing tumor) and ``enhancing_tumor``; only
        ``brain`` without a segmentation.

    Raises:
        UserError: The segmentation has other labels, or both 3 and 4, of which one must then mean
            something other than enhancing tumor.
    """
    if segmentation is None:
        return {"brain": brain}
    _check_labels(segmentation)
    whole_tumor = (segmentation > 0) & brain
    return {
        "brain": brain,
        "healthy": brain & ~whole_tumor,
        "whole_tumor": whole_tumor,
        "tumor_core": whole_tumor & (segmentation != EDEMA),
        "enhancing_tumor": whole_tumor & np.isin(segmentation, ENHANCING_TUMOR),
    }


def _check_labels(segmentation: Num[np.ndarray, "z y x"]) -> None:
    # Only a small part of a volume is labeled, and sorting all of it would take long.
    labels = {0.0, *np.unique(segmentation[segmentation != 0]).astype(float).tolist()}
    allowed = {0, NECROTIC_CORE, EDEMA, *ENHANCING_TUMOR}
    if not labels <= allowed or labels >= set(ENHANCING_TUMOR):
        raise UserError(
            f"segmentation has labels {', '.join(f'{label:g}' for label in sorted(labels))}; "
            "allowed are 0, 1 necrotic core, 2 edema and either 3 or 4 enhancing tumor: "
            "relabel it, or leave it out"
        )


def bounding_box(mask: Bool[np.ndarray, "*space"], margin: int) -> tuple[slice, ...]:
    """Finds the smallest box around a mask that has a voxel, one slice an axis.

    It is widened by `margin` voxels on each side, but kept inside the frame.
    """
    tight = find_objects(mask.astype(np.int8))[0]
    return tuple(slice(max(0, side.start - margin), side.stop + margin) for side in tight)
