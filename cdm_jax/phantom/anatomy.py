"""A healthy brain: the MNI152 maps deformed into one patient, with vessels added.

Positions are MNI coordinates in mm (right, front and head positive), one row a brain voxel.
"""

import numpy as np
from jaxtyping import Float
from scipy import spatial, special

from cdm_jax.phantom.fields import FieldSampler, Grid, smooth_field
from cdm_jax.phantom.templates import Templates

_BRAIN_CENTER_MM = (0.0, -17.0, 5.0)
# The MNI152 brain is larger than the average brain (Allen et al. 2002).
_MEAN_SIZE = 0.93

# Course of the dural sinuses and sites of the choroid plexus in MNI mm, read off the template.
_SAGITTAL_SINUS = (
    *((0, 60, 31), (0, 45, 48), (0, 29, 58), (0, 12, 66), (0, -5, 70), (0, -23, 73), (0, -41, 71)),
    *((0, -58, 63), (0, -73, 52), (0, -84, 36), (0, -94, 19), (0, -95, -2)),
)
_STRAIGHT_SINUS = ((0, -42, 8), (0, -58, 6), (0, -76, 1), (0, -94, -4))
_TRANSVERSE_SINUS = ((-62, -46, -28), (-48, -74, -22), (-24, -90, -14), (0, -94, -4))
_CHOROID_PLEXUS = ((17, -33, 21), (22, -40, 17), (26, -42, 12), (28, -47, 10))


def deform(rng: np.random.Generator, grid: Grid) -> Float[np.ndarray, "x y z 3"]:
    """Draws the map from a patient's voxels to MNI mm: an affine part and a smooth random part.

    Size varies by 4 % overall and 2 % an axis, rotation by 3 degrees, position by 2 mm, and
    the smooth part by 3 mm at a length of 40 mm and 1 mm at 15 mm (standard deviations): too
    little for the brain to fold.
    """
    size = _MEAN_SIZE * np.exp(0.04 * rng.standard_normal() + 0.02 * rng.standard_normal(3))
    turn = spatial.transform.Rotation.from_euler("xyz", 3 * rng.standard_normal(3), degrees=True)
    center = np.array(_BRAIN_CENTER_MM) + 2 * rng.standard_normal(3)
    lps = np.stack(np.meshgrid(*grid.axes_mm(), indexing="ij"), axis=-1)
    linear = turn.as_matrix() * (np.array([-1, -1, 1]) / size)
    positions = lps @ linear.T + center
    for axis in range(3):
        positions[..., axis] += 3 * smooth_field(rng, grid, 40.0) + smooth_field(rng, grid, 15.0)
    return positions


def tissue_fractions(
    rng: np.random.Generator,
    field: FieldSampler,
    templates: Templates,
    positions: Float[np.ndarray, "n 3"],
) -> dict[str, Float[np.ndarray, "n"]]:
    """Draws the share of each tissue in each brain voxel; the shares sum to 1.

    The probabilities of the average brain are sharpened and perturbed on the scale of a gyrus, so
    that each patient has folds of their own; the weight of CSF (atrophy) varies too.

    Returns:
        Fractions in [0, 1] of "white", "gray", "deep_gray", "csf", "blood" and "choroid".
    """
    white = templates.sample(templates.white, positions)
    gray = templates.sample(templates.gray, positions)
    fluid = np.clip(1 - white - gray, 0, 1)
    logits = np.log(np.stack([white, gray, fluid]) + 0.01)
    logits[0] += 0.3 * field(4.0)
    logits[2] += 0.5 * field(4.0) + rng.uniform(-0.3, 0.6)
    white, gray, fluid = special.softmax(2 * logits, axis=0)
    deep = special.expit(8 * (1 - np.linalg.norm((positions - [0, -4, 6]) / [33, 32, 17], axis=-1)))
    tissues = {"white": white, "gray": gray * (1 - deep), "deep_gray": gray * deep, "csf": fluid}
    choroid = 0.8 * fluid * _tube(positions, [_CHOROID_PLEXUS, _mirror(_CHOROID_PLEXUS)], 3.0)
    tissues = insert(tissues, {"choroid": choroid})
    return insert(tissues, {"blood": _vessels(field, positions, fluid)})


def insert(
    tissues: dict[str, Float[np.ndarray, "n"]], added: dict[str, Float[np.ndarray, "n"]]
) -> dict[str, Float[np.ndarray, "n"]]:
    """Adds tissues at the cost of all that were there, so the shares still sum to 1."""
    rest = 1 - np.sum(list(added.values()), axis=0)
    return {name: share * rest for name, share in tissues.items()} | added


def _vessels(
    field: FieldSampler, positions: Float[np.ndarray, "n 3"], fluid: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Dural sinuses, and random vessels that mostly run in the sulci."""
    lateral = [_TRANSVERSE_SINUS, _mirror(_TRANSVERSE_SINUS)]
    sinuses = _tube(positions, [_SAGITTAL_SINUS, *lateral], 3.5)
    straight = _tube(positions, [_STRAIGHT_SINUS], 2.0)
    # Two smooth fields vanish together along winding lines.
    distance = np.hypot(field(5.0), field(5.0))
    small = np.exp(-((distance / 0.32) ** 2)) * np.clip(fluid + 0.04, 0, 1)
    return np.max([0.9 * sinuses, 0.9 * straight, 0.9 * small], axis=0)


def _tube(
    positions: Float[np.ndarray, "n 3"], lines: list[tuple[tuple[int, ...], ...]], radius_mm: float
) -> Float[np.ndarray, "n"]:
    """1 within `radius_mm` of any of the lines, falling softly to 0 outside."""
    points = []
    for line in lines:
        corners = np.array(line, dtype=float)
        steps = np.linspace(0, len(corners) - 1, 40 * len(corners))
        points += [np.stack([np.interp(steps, range(len(corners)), c) for c in corners.T], -1)]
    tree = spatial.cKDTree(np.concatenate(points))
    distance, _ = tree.query(positions, distance_upper_bound=4 * radius_mm)
    return special.expit((radius_mm - distance) / 0.8)


def _mirror(line: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((-x, y, z) for x, y, z in line)
