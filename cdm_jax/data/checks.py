"""What looks wrong in readable images: told, never refused.

A network takes such images without an error and makes images of the same size; only the person who
has the originals can say whether they are meant to be so.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

from cdm_jax.data import contrast
from cdm_jax.data.findings import NOTE, Finding
from cdm_jax.data.intensity import background, brightness, has_background

DARK_SHARE = 0.1  # of the brain; more below the background than rounding and ringing leave there
OVERLAP = 0.5  # Dice of two modalities' brains, below which they are hardly registered
HEAD_ML = 2500  # more than any brain has, with its fluid; a whole head has 3500 and more
CUT = 0.5  # of the largest slice: a brain ends in slices of less than a fourth of it
LACKING = 0.1  # of the slices with brain in other modalities
INSIDE = 0.05  # of the largest slice: a gap lies between larger ones
AXES = ("axial", "coronal", "sagittal")  # slices along z, y and x

Volume = Float[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Areas = Int[np.ndarray, "slice"]
Sizes = tuple[float, float, float]


def doubts(volumes: Mapping[str, Volume], voxel_size: Sizes | None = None) -> tuple[str, ...]:
    """What looks wrong in the images of one subject, notes left out.

    Args:
        volumes: Modality to values as in the files, on one grid.
        voxel_size: Along (z, y, x) in mm, where it is known.

    Returns:
        Lines that begin with the modality; none where nothing is found.
    """
    found = examine(volumes, voxel_size)
    return tuple(finding.line for finding in found if finding.severity != NOTE)


def examine(volumes: Mapping[str, Volume], voxel_size: Sizes | None = None) -> list[Finding]:
    """All that is found in the images of one subject; arguments as for `doubts`."""
    brains = {name: volume != background(volume) for name, volume in volumes.items()}
    found = [
        Finding(code=code, found=text, about=name)
        for name, volume in volumes.items()
        for code, text in _of_one(volume, brains[name], voxel_size)
    ]
    empties = {finding.about for finding in found if finding.code == "empty"}
    volumes = {name: volume for name, volume in volumes.items() if name not in empties}
    found += _slabs({name: brains[name] for name in volumes if has_background(volumes[name])})
    unstripped = {finding.about for finding in found if finding.code == "skull"}
    for one, other in combinations(volumes, 2):
        if text := same_image(volumes[one], volumes[other]):
            found.append(Finding(code="same-image", found=text, about=f"{one}, {other}"))
        elif unstripped.isdisjoint((one, other)) and (text := apart(brains[one], brains[other])):
            found.append(Finding(code="apart", found=text, about=f"{one}, {other}"))
    if pair := contrast.swapped(volumes):
        text = "look swapped by their contrast"
        found.append(Finding(code="swapped", found=text, about=", ".join(pair)))
    return found


def _of_one(volume: Volume, brain: Mask, voxel_size: Sizes | None) -> Iterator[tuple[str, str]]:
    """Codes and texts of what one image shows."""
    zero, scale = brightness(volume)
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        yield "empty", f"all voxels are {low:g}"
        return
    if not scale > 0:
        yield "empty", f"nothing is brighter than the background ({zero:g})"
        return
    milliliters = np.count_nonzero(brain) * np.prod(voxel_size or 0) / 1000
    if not has_background(volume):
        yield "skull", "no constant background, so that all counts as brain"
    elif milliliters > HEAD_ML:
        yield "skull", f"{milliliters:.0f} ml are not background, which is more than a brain"
    inside = volume[brain]
    below = np.count_nonzero(inside < zero)
    if (share := below / inside.size) > DARK_SHARE:
        text = f"{share:.0%} of the brain is darker than the background and becomes 0 (a z-score?)"
        yield "z-score", text
    elif below:
        yield "negative", f"{below} voxels are below the background, down to {low:g}, and become 0"
    # A scanner's values are whole numbers, also where they are few.
    if low >= -1.001 and high <= 1.001 and not np.array_equal(volume, np.rint(volume)):
        yield "scaled", f"values lie in [{low:.3g}, {high:.3g}]: scaled already"
    top, usual = float(inside.max()), float(np.percentile(inside, 99))
    if top - zero > 2 * (usual - zero) > 0:
        yield "outlier", f"the maximum is {top:g}, and 99 % of the brain are below {usual:g}"


def same_image(one: Volume, other: Volume) -> str:
    """Doubts two modalities of the same values."""
    return "hold the same image" if np.array_equal(one, other) else ""


def apart(one: Mask, other: Mask) -> str:
    """Doubts two brains that hardly overlap."""
    dice = 2 * np.count_nonzero(one & other) / max(1, one.sum() + other.sum())
    return "" if dice >= OVERLAP else f"the brains overlap by {dice:.0%} (Dice)"


def _slabs(brains: Mapping[str, Mask]) -> list[Finding]:
    """Images of which a part is missing."""
    found = []
    for axis, direction in enumerate(AXES):
        others = tuple(other for other in range(3) if other != axis)
        areas = {name: brain.sum(axis=others) for name, brain in brains.items()}
        for name, area in areas.items():
            text = cut(area) or lacking(area, [areas[other] for other in areas if other != name])
            if text:
                text = f"{text} ({direction} slices)"
                found.append(Finding(code="slab", found=text, about=name))
    return found


def cut(areas: Areas) -> str:
    """Doubts a brain that ends abruptly, or that has a gap, by its voxels in each slice."""
    if len(areas) < 8 or not areas.any():
        return ""
    shares = areas / areas.max()
    inside = np.flatnonzero(shares > INSIDE)
    gaps = np.count_nonzero(shares[inside[0] : inside[-1]] == 0)
    if gaps:
        return f"{gaps} empty slices within the brain"
    first, last = np.flatnonzero(areas)[[0, -1]]
    share = float(max(shares[first], shares[last]))
    return f"the brain is cut where it has {share:.0%} of its largest slice" if share > CUT else ""


def lacking(areas: Areas, others: Sequence[Areas]) -> str:
    """Doubts an image that is empty where the other modalities show brain."""
    if not others or not areas.any():
        return ""
    shown = np.median([area > 0 for area in others], axis=0) > 0.5
    number, missing = int(shown.sum()), int((shown & (areas == 0)).sum())
    if missing <= LACKING * max(1, number):
        return ""
    return f"{missing} of the {number} slices that others show are empty"
