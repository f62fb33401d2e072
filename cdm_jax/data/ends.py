"""How far a mean may be off once the scale of its volume is corrected.

The ends that a quantile head predicts are those of a slice by itself. A good part of its error is
the scale of the whole volume, by which a brain is off at once; where that is corrected
(`volume_scale.py`), what is left of the error lies elsewhere, and the ends do not say where. The
distances from the corrected mean to both ends are therefore predicted again, by a cubic in what is
known of a voxel: the mean, the distances that the head predicts, the sources, and the volume's top.

It is fitted to training patients by quantile regression (Koenker and Bassett 1978), to the levels
of the head. Validation patients have no part in it, so that they can calibrate the result.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt16

from cdm_jax.data.polynomials import products
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import Volume, tops

DEGREE = 3
LEAST_SCANS = 8  # with fewer, a network's own ends stay
VOXELS = 1000  # of a scan that they are fitted to
STEPS = 30  # of reweighted least squares
NEAR = 2e-3  # a residual counts as this one at least: its weight is its inverse
RIDGE = 1e-9  # of the mean square of a product: keeps the equations solvable
LEAST_SHARE = 0.1  # of the mean error: no end comes nearer, as a polynomial may be negative

Voxels = Float[np.ndarray, " voxel"]
Known = Float[np.ndarray, "voxel _"]
"""Of each voxel mean, distances to the lower and upper end, each source, and the volume's top."""
Scan = tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_"]]
"""What is known of a scan's voxels, and the truth; scans have different numbers of voxels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """From what is known of a voxel to the distances of its interval's ends from the mean.

    Attributes:
        below: weight of each product of what is known, see `polynomials.products`, for the distance
            to the lower end.
        above: the same for the upper end.
        least: the smallest distance to either.
        lowest: of each known value in the scans that it was fitted to; a lower one counts as this.
        highest: the same at the other end.
        scans: to how many it was fitted.
    """

    below: Sequence[float]
    above: Sequence[float]
    least: float
    lowest: Sequence[float]
    highest: Sequence[float]
    scans: int

    def distances(self, known: Known) -> tuple[Voxels, Voxels]:
        """From the mean to the lower and to the upper end, positive."""
        low, high = (np.asarray(ones, known.dtype) for ones in (self.lowest, self.highest))
        made = products(np.clip(known, low, high), DEGREE)
        lower, upper = (
            np.maximum(made @ np.asarray(weights, made.dtype), self.least)
            for weights in (self.below, self.above)
        )
        return lower, upper


AllEnds = Mapping[str, Ends]
"""Target -> its ends; those of a target without stay as the network predicts them."""


def scans_of(
    truth: Volume,
    volumes: Mapping[str, Volume],
    stored: UInt16[np.ndarray, "slice h w s"],
) -> list[Scan]:
    """For each target what `fit_ends` takes of a corrected volume: evenly spaced voxels.

    Args:
        truth: in [0, 1].
        volumes: "mean", "lower" and "upper" in [0, 1].
        stored: the sources' slices.
    """
    brain = np.any(stored > 0, axis=-1)
    step = max(1, np.count_nonzero(brain) // VOXELS)
    chosen = np.zeros_like(brain)
    chosen[tuple(index[::step] for index in np.nonzero(brain))] = True
    return [
        (
            _known(volumes, stored, chosen, channel, top).astype(np.float64),
            truth[..., channel][chosen].astype(np.float64),
        )
        for channel, top in enumerate(tops(volumes["mean"], brain))
    ]


def _known(
    volumes: Mapping[str, Float[np.ndarray, "*slices t"]],
    stored: UInt16[np.ndarray, "*slices s"],
    where: Bool[np.ndarray, "*slices"],
    channel: int,
    top: float,
) -> Known:
    """What is known of a target's voxels, in this order."""
    mean, lower, upper = (volumes[name][..., channel][where] for name in ("mean", "lower", "upper"))
    sources = (stored[where] / np.float32(FULL_SCALE)).T
    known = [mean, mean - lower, upper - mean, *sources, np.full_like(mean, top)]
    return np.stack(known, axis=-1)


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
    for channel, (target, top) in enumerate(zip(targets, tops(found["mean"], brain), strict=True)):
        if target not in ends:
            continue
        for number, where in enumerate(brain):  # a slice at a time: a voxel has many products
            own = {name: volume[number] for name, volume in volumes.items()}
            known = _known(own, stored[number], where, channel, top)
            lower, upper = ends[target].distances(known)
            found["lower"][number, where, channel] = np.clip(known[:, 0] - lower, 0, 1)
            found["upper"][number, where, channel] = np.clip(known[:, 0] + upper, 0, 1)
    return found


def fit_ends(scans: Sequence[Scan], levels: Sequence[float]) -> Ends | None:
    """Fits the distances to scans, each of which counts alike.

    Args:
        scans: of training patients.
        levels: shares of the truth that are to lie below the lower and below the upper end.

    Returns:
        None of fewer than `LEAST_SCANS`.
    """
    if len(scans) < LEAST_SCANS:
        return None
    known = np.concatenate([values for values, _ in scans])
    off = np.concatenate([truth - values[:, 0] for values, truth in scans])
    weight = np.concatenate([np.full(truth.size, 1 / truth.size) for _, truth in scans])
    made = products(known, DEGREE)
    return Ends(
        below=_quantile(made, -off, 1 - levels[0], weight).tolist(),
        above=_quantile(made, off, levels[1], weight).tolist(),
        least=LEAST_SHARE * float(np.average(np.abs(off), weights=weight)),
        lowest=known.min(axis=0).tolist(),
        highest=known.max(axis=0).tolist(),
        scans=len(scans),
    )


def _quantile(
    made: Float[np.ndarray, "voxel p"], values: Voxels, level: float, weight: Voxels
) -> Float[np.ndarray, "p"]:
    """The combination of products that is a quantile of the values, by reweighted least squares."""
    fitted = np.zeros(made.shape[1])
    fitted[0] = np.quantile(values, level)  # the first product is 1
    for _ in range(STEPS):
        rest = values - made @ fitted
        pull = weight * np.where(rest > 0, level, 1 - level) / np.maximum(np.abs(rest), NEAR)
        pulled = made * pull[:, None]
        squares = pulled.T @ made
        ridge = RIDGE * np.trace(squares) / len(squares) * np.eye(len(squares))
        fitted = np.linalg.solve(squares + ridge, pulled.T @ values)
    return fitted
