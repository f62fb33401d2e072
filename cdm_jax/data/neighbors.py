"""The slices beside a slice, which a network may see too: `data.context` to each side.

They are further source channels: the slice's own sources come first, then those of its neighbors
from the lowest to the highest. All are of one subject.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt16


def neighbor_places(
    slice_indices: Sequence[int], context: int
) -> Int[np.ndarray, "slice 2*{context}"]:
    """Where the neighbors of each stored slice are stored, from the lowest to the highest.

    Args:
        slice_indices: z index of each stored slice, ascending.
        context: neighbors to each side.

    Returns:
        Places among the stored slices; -1 of a neighbor that is not stored, which shows no brain
        or lies outside the volume.
    """
    stored = np.asarray(slice_indices)
    steps = [step for step in range(-context, context + 1) if step]
    wanted = stored[:, None] + np.array(steps, int)[None]
    places = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    return np.where(stored[places] == wanted, places, -1)


def with_neighbors(
    sources: UInt16[np.ndarray, "slice h w _"], slice_indices: Sequence[int], context: int
) -> UInt16[np.ndarray, "slice h w _"]:
    """All stored slices of a subject, each with its neighbors' sources behind its own.

    A neighbor that is not stored is 0, the background. Arguments as those of `neighbor_places`.
    """
    if not context:
        return sources
    parts = [sources]
    for places in neighbor_places(slice_indices, context).T:
        part = sources[places]
        part[places < 0] = 0
        parts.append(part)
    return np.concatenate(parts, axis=-1)
