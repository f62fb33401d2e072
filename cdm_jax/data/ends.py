"""How far a mean may be off once the scale of its volume is corrected.

The ends that a quantile head predicts are those of a slice by itself. A good part of its error is
the scale of the whole volume, by which a brain is off at once; where that is corrected
(`volume_scale.py`), what is left of the error lies elsewhere, and the ends do not say where. The
distances from the corrected mean to both ends are therefore predicted again, by a small network
from what is known of a voxel: the mean, the distances that the head predicts, the sources, what
surrounds the voxel in mean and sources, and the volume's top. `end_fitting.py` trains the network;
here it is evaluated, with NumPy alone.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt16
from scipy import ndimage

from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import Volume, tops

VOXELS = 1000  # of a scan that they are fitted to, at least where it has as many
AROUND = (1.5, 1.0, 1.0)  # deviation of the Gaussian of what surrounds a voxel: z, y, x in voxels
CHUNK = 2**16  # voxels at once: hidden values take room
UNIT = 0.1  # of a distance: what the network's output of one stands for

Voxels = Float[np.ndarray, " voxel"]
Known = Float[np.ndarray, "voxel _"]
"""Of each voxel, see `known_of`."""
Layer = Mapping[str, Sequence[Any]]
"""Name of a parameter -> its values, row by row."""
Scan = tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_"]]
"""What is known of a scan's voxels, and the truth; scans have different numbers of voxels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """From what is known of a voxel to the distances of its interval's ends from the mean.

    Attributes:
        layers: of the network, each a "kernel" and a "bias". ReLU follows all but the last, whose
            two outputs become the distances to the lower and upper end by softplus.
        lowest: of each known value in the scans that it was fitted to; a lower one counts as this.
        highest: the same at the other end.
        scans: to how many it was fitted.
    """

    layers: Sequence[Layer]
    lowest: Sequence[float]
    highest: Sequence[float]
    scans: int

    def distances(self, known: Known) -> tuple[Voxels, Voxels]:
        """From the mean to the lower and to the upper end, positive."""
        low, high = (np.asarray(ones, known.dtype) for ones in (self.lowest, self.highest))
        chunks = np.array_split(known, math.ceil(len(known) / CHUNK))
        found = np.concatenate([self._output(np.clip(chunk, low, high)) for chunk in chunks])
        lower, upper = UNIT * np.logaddexp(0, found).T
        return lower, upper

    def _output(self, known: Known) -> Float[np.ndarray, "voxel 2"]:
        for number, layer in enumerate(self.layers):
            kernel, bias = (np.asarray(layer[name], known.dtype) for name in ("kernel", "bias"))
            known = (np.maximum(known, 0) if number else known) @ kernel + bias
        return known


AllEnds = Mapping[str, Ends]
"""Target -> its ends; those of a target without stay as the network predicts them."""


def scans_of(
    truth: Volume,
    volumes: Mapping[str, Volume],
    stored: UInt16[np.ndarray, "slice h w s"],
) -> list[Scan]:
    """For each target what `end_fitting.fit_ends` takes of a volume: evenly spaced voxels.

    Args:
        truth: in [0, 1].
        volumes: "mean", "lower" and "upper" in [0, 1], corrected.
        stored: the sources' slices.
    """
    brain = np.any(stored > 0, axis=-1)
    step = max(1, np.count_nonzero(brain) // VOXELS)
    return [
        (known[::step].astype(np.float64), truth[brain][::step, channel].astype(np.float64))
        for channel, known in enumerate(known_of(volumes, stored, brain))
    ]


def known_of(
    volumes: Mapping[str, Volume],
    stored: UInt16[np.ndarray, "slice h w s"],
    brain: Bool[np.ndarray, "slice h w"],
) -> Iterator[Known]:
    """For each target what is known of the brain's voxels.

    In this order: its mean, the distances to its lower and upper end, the sources; what surrounds
    it, in the mean and in each source, by mean and deviation; and the top of the volume.
    """
    sources = np.moveaxis(stored / np.float32(FULL_SCALE), -1, 0)
    in_sources = [image[brain] for image in sources]
    around_sources = [found for image in sources for found in _around(image, brain)]
    for channel, top in enumerate(tops(volumes["mean"], brain)):
        images = (volumes[name][..., channel] for name in ("mean", "lower", "upper"))
        mean, lower, upper = (image[brain] for image in images)
        known = [mean, mean - lower, upper - mean, *in_sources]
        around_mean = _around(volumes["mean"][..., channel], brain)
        known += [*around_mean, *around_sources, np.full_like(mean, top)]
        yield np.stack(known, axis=-1)


def _around(
    image: Float[np.ndarray, "slice h w"], brain: Bool[np.ndarray, "slice h w"]
) -> tuple[Voxels, Voxels]:
    """Mean and deviation of the brain around each of its voxels, weighted by a Gaussian."""
    inside = brain.astype(np.float32)
    weight, total, squares = (
        ndimage.gaussian_filter(one * inside, AROUND, mode="constant")[brain]
        for one in (inside, image, np.square(image))
    )
    mean = total / weight
    return mean, np.sqrt(np.maximum(squares / weight - np.square(mean), 0))


def with_ends(
    volumes: Mapping[str, Volume],
    stored: UInt16[np.ndarray, "slice h w s"],
    brain: Bool[np.ndarray, "slice h w"],
    ends: AllEnds,
    targets: Sequence[str],
) -> dict[str, Volume]:
    """Corrected volumes in [0, 1] with the ends that belong to them, where a network predicts any.

    Args:
        volumes: by name, from one subject's slices; without a "lower" nothing changes.
        stored: the sources' slices.
        brain: of these slices.
        ends: by target.
        targets: of the volumes' channels.
    """
    found = dict(volumes)
    if "lower" not in found or not brain.any() or ends.keys().isdisjoint(targets):
        return found
    found |= {name: found[name].copy() for name in ("lower", "upper")}
    for channel, known in enumerate(known_of(volumes, stored, brain)):
        if targets[channel] in ends:
            lower, upper = ends[targets[channel]].distances(known)
            found["lower"][brain, channel] = np.clip(known[:, 0] - lower, 0, 1)
            found["upper"][brain, channel] = np.clip(known[:, 0] + upper, 0, 1)
    return found
