"""What the training patients' sources look like, as ranges, and what of a patient lies outside.

Statistics are of what a network is given: slices in its frame, by the intensity rule, so that the
prepared cache tells them. Each is of one modality or of two, so that it does not depend on which
others a patient has. Voxel sizes are not compared: slices are resized to the frame anyway.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Int, UInt16

from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.nifti import read_voxel_size
from cdm_jax.data.prepare import FULL_SCALE, Description
from cdm_jax.data.subjects import Subject

SLICES = 16  # of a patient that are measured, evenly spaced
PATIENTS = 200  # of the training that are measured at most, evenly spaced
FEWEST = 20  # patients, of whom a range can be told: of fewer one in ten others misses it
COVERED = (2.5, 97.5)  # percentiles of the patients between which a range lies
MARGIN = 0.7  # of a range's width by which a patient may miss it
DARKEST = 0.02  # what is brighter is brain: resizing leaves less around it
PERCENTILES = {"5th percentile": 5, "median": 50, "95th percentile": 95}
SHOWN = 3  # statistics that a sentence names

Ranges = Mapping[str, tuple[float, float]]
"""From a statistic, in words, to its lower and upper end in the training patients."""


def positions(subject: Description) -> Int[np.ndarray, "slice"]:
    """Which of a subject's stored slices are measured."""
    number = len(subject.slice_indices)
    return np.unique((np.arange(SLICES) + 0.5) * number // SLICES).astype(int)


def statistics(
    subject: Description,
    slices: UInt16[np.ndarray, "slice size size modality"],
    voxel_size: tuple[float, float, float],
) -> dict[str, float]:
    """Statistics of the sources that a subject has, by their names.

    Args:
        subject: Whose they are.
        slices: Those at `positions`.
        voxel_size: Along (z, y, x) in mm, in its files.
    """
    per_share = np.prod(voxel_size) * max(subject.native_shape[1:]) ** 2 / 1000  # ml a slice
    found: dict[str, float] = {}
    images = {}
    for channel, name in enumerate(subject.sources):
        image = slices[..., channel].astype(np.float32) / FULL_SCALE
        own = image[image > DARKEST]
        if not own.size:  # a modality that is missing
            continue
        images[name] = image
        areas = (image > DARKEST).mean(axis=(1, 2))
        found |= {
            f"volume of {name} in ml": float(areas.mean() * len(subject.slice_indices) * per_share),
            f"share of the frame of {name} in its largest slice": float(np.max(areas)),
            f"mean brightness of {name}": float(own.mean()),
        }
        for kind, percent in PERCENTILES.items():
            found[f"{kind} of {name}"] = float(np.percentile(own, percent))
    for one, other in combinations(images, 2):
        brain = (images[one] > DARKEST) | (images[other] > DARKEST)
        values = images[one][brain], images[other][brain]
        if min(map(np.ptp, values)) > 0:
            found[f"correlation of {one} and {other}"] = float(np.corrcoef(*values)[0, 1])
    return found


def training_ranges(
    prepared: Sequence[PreparedSubject], files: Mapping[str, Subject]
) -> dict[str, tuple[float, float]]:
    """The ranges in the training patients, read from their cache; `files` has them by subject id.

    Raises:
        UserError: A file of the cache or of a patient cannot be read.
    """
    if not prepared:
        return {}
    places = np.linspace(0, len(prepared) - 1, min(len(prepared), PATIENTS)).astype(int)
    measured = []
    for subject in (prepared[place] for place in places):
        size = read_voxel_size(next(iter(files[subject.subject_id].images.values())))
        measured.append(statistics(subject, subject.read_slices(positions(subject)), size))
    return ranges(measured)


def ranges(patients: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """The range of each statistic that enough patients have."""
    found = {}
    for name in dict.fromkeys(name for patient in patients for name in patient):
        values = [patient[name] for patient in patients if name in patient]
        if len(values) >= FEWEST:
            low, high = np.percentile(values, COVERED)
            found[name] = (float(f"{low:.4g}"), float(f"{high:.4g}"))
    return found


def outside(found: Mapping[str, float], known: Ranges) -> str:
    """What of a patient lies outside the training patients' ranges, in a sentence; or nothing."""
    misses = {}
    for name in found.keys() & known.keys():
        low, high = known[name]
        miss = max(low - found[name], found[name] - high)
        width = max(high - low, 0.05 * max(abs(low), abs(high)))
        if miss > MARGIN * width:
            misses[name] = miss / width
    if not misses:
        return ""
    first = sorted(misses, key=lambda name: -misses[name])[:SHOWN]
    told = [
        f"{name} {_short(found[name])} (theirs {' to '.join(map(_short, known[name]))})"
        for name in first
    ]
    more = f" and {len(misses) - len(told)} more" if len(misses) > len(told) else ""
    return (
        f"unlike the training patients: {', '.join(told)}{more}: check the images, or expect worse "
        "results"
    )


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{float(f'{value:.3g}'):g}"
