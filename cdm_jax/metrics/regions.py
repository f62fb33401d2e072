"""The regions of a brain in which a synthesis is scored."""

import numpy as np
from jaxtyping import Bool, Num
from scipy.ndimage import find_objects

from cdm_jax.errors import UserError

NECROTIC_CORE = 1
OEDEMA = 2
ENHANCING_TUMOUR = (3, 4)  # BraTS up to 2021 wrote 4, later editions write 3.


def region_masks(
    segmentation: Num[np.ndarray, "z y x"] | None, brain: Bool[np.ndarray, "z y x"]
) -> dict[str, Bool[np.ndarray, "z y x"]]:
    """Divides a brain by its tumour segmentation.

    Tumour voxels outside the brain mask are left out: images are zero there. A region that the
    tumour lacks is an empty mask.

    Args:
        segmentation: BraTS labels: 0 none, 1 necrotic core, 2 oedema, 3 or 4 enhancing tumour;
            None where there is no segmentation.
        brain: The brain mask.

    Returns:
        The masks ``brain``, ``healthy`` (brain without the whole tumour), ``whole_tumour``,
        ``tumour_core`` (necrotic core and enhancing tumour) and ``enhancing_tumour``; only
        ``brain`` without a segmentation.

    Raises:
        UserError: The segmentation has other labels, or both 3 and 4, of which one must then mean
            something other than enhancing tumour.
    """
    if segmentation is None:
        return {"brain": brain}
    _check_labels(segmentation)
    whole_tumour = (segmentation > 0) & brain
    return {
        "brain": brain,
        "healthy": brain & ~whole_tumour,
        "whole_tumour": whole_tumour,
        "tumour_core": whole_tumour & (segmentation != OEDEMA),
        "enhancing_tumour": whole_tumour & np.isin(segmentation, ENHANCING_TUMOUR),
    }


def _check_labels(segmentation: Num[np.ndarray, "z y x"]) -> None:
    # Only a small part of a volume is labelled, and sorting all of it would take long.
    labels = {0.0, *np.unique(segmentation[segmentation != 0]).astype(float).tolist()}
    allowed = {0, NECROTIC_CORE, OEDEMA, *ENHANCING_TUMOUR}
    if not labels <= allowed or labels >= set(ENHANCING_TUMOUR):
        raise UserError(
            f"segmentation has labels {', '.join(f'{label:g}' for label in sorted(labels))}; "
            "allowed are 0, 1 necrotic core, 2 oedema and either 3 or 4 enhancing tumour: "
            "relabel it, or leave it out"
        )


def bounding_box(mask: Bool[np.ndarray, "*space"], margin: int) -> tuple[slice, ...]:
    """Finds the smallest box around a mask, widened by a margin but kept inside the frame.

    Args:
        mask: A mask with at least one voxel.
        margin: The number of voxels added on each side.

    Returns:
        One slice an axis.
    """
    tight = find_objects(mask.astype(np.int8))[0]
    return tuple(slice(max(0, side.start - margin), side.stop + margin) for side in tight)
