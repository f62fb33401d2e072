"""What looks wrong in readable images: told in a line each, never refused.

A network takes such images without an error and makes images of the same size; only the person who
has the originals can say whether they are meant to be so.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.intensity import background, has_background

DARK_SHARE = 0.1  # of the brain; more below the background than rounding and ringing leave there
SWAPPED = 0.5  # by which the skewness of T1 is above that of T2; properly it is 0.5 to 2.5 below
ENOUGH = 50_000  # voxels to measure a histogram by
OVERLAP = 0.5  # Dice of two modalities' brains, below which they are hardly registered

Volume = Float[np.ndarray, "z y x"]


def doubts(volumes: Mapping[str, Volume]) -> tuple[str, ...]:
    """What looks wrong in the images of one subject.

    Args:
        volumes: Modality to values as in the files, on one grid.

    Returns:
        Lines that begin with the modality; none where nothing is found.
    """
    brains = {name: volume != background(volume) for name, volume in volumes.items()}
    lines = [
        f"{name}: {line}"
        for name, volume in volumes.items()
        for line in (no_background(volume), below_background(volume, brains[name]))
        if line
    ]
    for one, other in combinations(volumes, 2):
        line = same_image(volumes[one], volumes[other]) or apart(brains[one], brains[other])
        if line:
            lines.append(f"{one}, {other}: {line}")
    if {"t1", "t2"} <= volumes.keys() and (line := swapped(volumes["t1"], volumes["t2"])):
        lines.append(f"t1, t2: {line}")
    return tuple(lines)


def no_background(volume: Volume) -> str:
    """Doubts a volume whose border is not of one value, as it is around a stripped brain."""
    if has_background(volume):
        return ""
    return "no constant background, so that all counts as brain: strip the skull, set the rest to 0"


def below_background(volume: Volume, brain: Bool[np.ndarray, "z y x"]) -> str:
    """Doubts a volume whose brain is partly darker than the background, where all is cut to 0."""
    if not brain.any():
        return ""
    share = float(np.mean(volume[brain] < background(volume)))
    if share <= DARK_SHARE:
        return ""
    return (
        f"{share:.0%} of the brain is darker than the background and becomes 0 (a z-score?): give "
        "the image as it was before"
    )


def same_image(one: Volume, other: Volume) -> str:
    """Doubts two modalities of the same values."""
    return "hold the same image" if np.array_equal(one, other) else ""


def apart(one: Bool[np.ndarray, "z y x"], other: Bool[np.ndarray, "z y x"]) -> str:
    """Doubts two brains that hardly overlap."""
    dice = 2 * np.count_nonzero(one & other) / max(1, one.sum() + other.sum())
    if dice >= OVERLAP:
        return ""
    return f"the brains overlap by {dice:.0%} (Dice): register the images"


def swapped(t1: Volume, t2: Volume) -> str:
    """Doubts a T1 that looks like a T2 beside a T2 that looks like a T1.

    Fluid is the dark tail of T1's histogram and the bright tail of T2's: the skewness of a T2 is
    above that of the same brain's T1.
    """
    difference = _skewness(t1) - _skewness(t2)
    return "look swapped by their histograms: check the names" if difference > SWAPPED else ""


def _skewness(volume: Volume) -> float:
    """Of the brain's values, less the extreme hundredths; 0 where all are equal."""
    brain = volume[volume != background(volume)]
    brain = brain[:: 1 + len(brain) // ENOUGH].astype(np.float64)
    if not brain.size:
        return 0.0
    brain = np.clip(brain, *np.percentile(brain, [1, 99]))
    spread = float(brain.std())
    return float(np.mean((brain - brain.mean()) ** 3)) / spread**3 if spread > 0 else 0.0
