"""A healthy brain: the average brain deformed into one patient, with vessels added.

Positions are MNI coordinates in mm (right, front and head positive), one row a brain voxel.
"""

import numpy as np
from jaxtyping import Bool, Float32
from scipy import spatial, special

from cdm_jax.phantom.fields import FieldSampler, Grid, smooth_field
from cdm_jax.phantom.templates import Templates

_BRAIN_CENTER_MM = (0.0, -17.0, 5.0)
# The MNI152 brain is larger than the average brain (Allen et al. 2002); stripped brains of patients
# hold 1.1 to 1.6 l.
_MEAN_SIZE = 0.9


def deform(
    rng: np.random.Generator, grid: Grid, templates: Templates
) -> tuple[Float32[np.ndarray, "x y z 3"], Float32[np.ndarray, "x y z"]]:
    """Draws the map from a patient's voxels to MNI mm: an affine part and a smooth random part.

    Size varies by 3 % overall and 1.5 % an axis, rotation by 3 degrees, position by 1.5 mm, and
    the smooth part by 3 mm at a length of 40 mm, 2.6 mm at 15 mm and 1.2 mm at 7 mm (standard
    deviations), which moves and bends gyri: too little for the map to fold over itself. At the
    border, which a smooth skull holds, a third of the latter two is left. Ventricles are widened by
    up to 60 %, as those of the average, who is young, are narrow.

    Returns:
        The positions; and how many mm within the border of the brain they lie, from -3 to 12.
    """
    size = _MEAN_SIZE * np.exp(0.03 * rng.standard_normal() + 0.015 * rng.standard_normal(3))
    turn = spatial.transform.Rotation.from_euler("xyz", 3 * rng.standard_normal(3), degrees=True)
    center = np.array(_BRAIN_CENTER_MM) + 1.5 * rng.standard_normal(3)
    linear = turn.as_matrix() * (np.array([-1, -1, 1]) / size)
    x, y, z = np.meshgrid(*grid.axes_mm(), indexing="ij", sparse=True)
    positions = np.empty((*grid.shape, 3), np.float32)
    for axis, (row, middle) in enumerate(zip(linear, center, strict=True)):
        positions[..., axis] = row[0] * x + row[1] * y + row[2] * z + middle
        positions[..., axis] += np.float32(3.0) * smooth_field(rng, grid, 40.0)
    depth = templates.depth_mm(positions)
    free = np.float32(1 / 3) + np.clip(depth, 0, 12) / np.float32(18)
    for axis in range(3):
        for amount, length_mm in ((2.6, 15.0), (1.2, 7.0)):
            positions[..., axis] += np.float32(amount) * free * smooth_field(rng, grid, length_mm)
    offset = positions - np.array([0, -10, 15], np.float32)
    near = np.exp(
        -np.sum((offset / np.array([30, 45, 25], np.float32)) ** 2, axis=-1, keepdims=True)
    )
    return positions - np.float32(rng.uniform(0, 0.6)) * near * offset, depth


def strip(
    rng: np.random.Generator, grid: Grid, depth: Float32[np.ndarray, "x y z"]
) -> tuple[Bool[np.ndarray, "x y z"], Float32[np.ndarray, "n"]]:
    """Strips the skull: which voxels are left as brain, and their share of meninges.

    Programs cut close to the cortex here and leave CSF or even meninges there. How deep a cut is
    varies smoothly, and it is never deeper than 3 mm: so it makes neither holes nor dents.
    """
    cut = np.float32(rng.uniform(0.8, 1.8)) + np.float32(0.9) * smooth_field(rng, grid, 9.0)
    cut = np.clip(cut + np.float32(0.4) * smooth_field(rng, grid, 4.0), -0.8, 3)
    brain = depth > cut
    return brain, np.clip(np.float32(0.3) - depth[brain], 0, 1)


def tissue_fractions(
    rng: np.random.Generator,
    field: FieldSampler,
    templates: Templates,
    positions: Float32[np.ndarray, "n 3"],
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Draws the share of each tissue in each brain voxel; the shares sum to 1.

    The shares of the average brain are sharpened, as people differ less from each other than the
    average is blurred by their differences, and perturbed on the scale of a gyrus; the weight of
    CSF (atrophy) varies too.

    Returns:
        Fractions in [0, 1] of "white", "gray", "deep_gray", "csf", "blood" and "choroid".
    """
    white, gray = (templates.sample(part, positions) for part in (templates.white, templates.gray))
    fluid = np.clip(1 - white - gray, 0, 1)
    logits = np.log(np.stack([white, gray, fluid]) + np.float32(0.01))
    wavy = field(4.0)
    logits[0] += np.float32(0.3) * wavy
    logits[2] += np.float32(0.5) * field(4.0) + np.float32(rng.uniform(-0.3, 1.7))
    white, gray, fluid = special.softmax(np.float32(2.0) * logits, axis=0)
    deep = special.expit(8 * (1 - np.linalg.norm((positions - [0, -4, 6]) / [33, 32, 17], axis=-1)))
    deep = deep.astype(np.float32)
    tissues = {"white": white, "gray": gray * (1 - deep), "deep_gray": gray * deep, "csf": fluid}
    tufts = np.clip(np.float32(0.6) + np.float32(0.5) * wavy, 0, 1)
    choroid = np.float32(0.8) * fluid * tufts * templates.sample(templates.choroid, positions)
    tissues = insert(tissues, {"choroid": choroid})
    sinus = np.float32(0.95) * templates.sample(templates.sinus, positions)
    return insert(tissues, {"blood": np.maximum(sinus, _small_vessels(field, fluid))})


def insert(
    tissues: dict[str, Float32[np.ndarray, "n"]], added: dict[str, Float32[np.ndarray, "n"]]
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Adds tissues at the cost of all that were there, so the shares still sum to 1."""
    rest = 1 - np.sum(list(added.values()), axis=0)
    return {name: share * rest for name, share in tissues.items()} | added


def _small_vessels(
    field: FieldSampler, fluid: Float32[np.ndarray, "n"]
) -> Float32[np.ndarray, "n"]:
    """Random vessels that mostly run in the sulci."""
    # Two smooth fields vanish together along winding lines.
    squared = field(6.0) ** 2 + field(6.0) ** 2
    vessel = np.exp(squared * np.float32(-1 / 0.22**2))
    return np.float32(0.95) * vessel * np.clip(np.float32(2.5) * fluid + np.float32(0.05), 0, 1)
