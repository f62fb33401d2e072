"""A healthy brain: the average brain deformed into one patient, with vessels added.

Positions are MNI coordinates in mm (right, front and head positive), one row a brain voxel.
"""

import numpy as np
from jaxtyping import Float32
from scipy import spatial, special

from cdm_jax.phantom.fields import FieldSampler, Grid, smooth_field
from cdm_jax.phantom.templates import Templates

_BRAIN_CENTER_MM = (0.0, -17.0, 5.0)
# The MNI152 brain is larger than the average brain (Allen et al. 2002); stripped brains of patients
# hold 1.1 to 1.6 l.
_MEAN_SIZE = 0.9


def deform(rng: np.random.Generator, grid: Grid) -> Float32[np.ndarray, "x y z 3"]:
    """Draws the map from a patient's voxels to MNI mm: an affine part and a smooth random part.

    Size varies by 3 % overall and 1.5 % an axis, rotation by 3 degrees, position by 1.5 mm, and
    the smooth part by 3 mm at a length of 40 mm, 1.8 mm at 15 mm and 0.6 mm at 7 mm (standard
    deviations), which moves gyri against each other: too little for the brain to fold.
    """
    size = _MEAN_SIZE * np.exp(0.03 * rng.standard_normal() + 0.015 * rng.standard_normal(3))
    turn = spatial.transform.Rotation.from_euler("xyz", 3 * rng.standard_normal(3), degrees=True)
    center = np.array(_BRAIN_CENTER_MM) + 1.5 * rng.standard_normal(3)
    linear = turn.as_matrix() * (np.array([-1, -1, 1]) / size)
    x, y, z = np.meshgrid(*grid.axes_mm(), indexing="ij", sparse=True)
    positions = np.empty((*grid.shape, 3), np.float32)
    for axis, (row, middle) in enumerate(zip(linear, center, strict=True)):
        positions[..., axis] = row[0] * x + row[1] * y + row[2] * z + middle
        for amount, length_mm in ((3.0, 40.0), (1.8, 15.0), (0.6, 7.0)):
            positions[..., axis] += np.float32(amount) * smooth_field(rng, grid, length_mm)
    return positions


def tissue_fractions(
    rng: np.random.Generator,
    field: FieldSampler,
    templates: Templates,
    positions: Float32[np.ndarray, "n 3"],
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Draws the share of each tissue in each brain voxel; the shares sum to 1.

    The shares of the average brain are sharpened and perturbed on the scale of a gyrus, so that
    each patient has folds of their own; the weight of CSF (atrophy) varies too.

    Returns:
        Fractions in [0, 1] of "white", "gray", "deep_gray", "csf", "blood" and "choroid".
    """
    # The average has lost the small folds: a fine warp of the cortex makes others.
    warp = np.stack([field(4.5) for _ in range(3)], axis=-1)
    folded = positions + np.float32(2.0) * warp
    white, gray = (templates.sample(part, folded) for part in (templates.white, templates.gray))
    fluid = np.clip(1 - white - gray, 0, 1)
    logits = np.log(np.stack([white, gray, fluid]) + np.float32(0.01))
    logits[0] += np.float32(0.3) * field(4.0)
    logits[2] += np.float32(0.5) * field(4.0) + np.float32(rng.uniform(-3.0, -0.4))
    white, gray, fluid = special.softmax(np.float32(1.7) * logits, axis=0)
    white, gray = _small_sulci(
        field(5.5), templates.sample(templates.shell, positions), white, gray
    )
    fluid = 1 - white - gray
    deep = special.expit(8 * (1 - np.linalg.norm((positions - [0, -4, 6]) / [33, 32, 17], axis=-1)))
    deep = deep.astype(np.float32)
    tissues = {"white": white, "gray": gray * (1 - deep), "deep_gray": gray * deep, "csf": fluid}
    choroid = np.float32(0.8) * fluid * templates.sample(templates.choroid, positions)
    tissues = insert(tissues, {"choroid": choroid})
    sinus = np.float32(0.9) * templates.sample(templates.sinus, positions)
    return insert(tissues, {"blood": np.maximum(sinus, _small_vessels(field, fluid))})


def _small_sulci(
    sheet: Float32[np.ndarray, "n"],
    shell: Float32[np.ndarray, "n"],
    white: Float32[np.ndarray, "n"],
    gray: Float32[np.ndarray, "n"],
) -> tuple[Float32[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """Folds that no other brain has: cortex and a valley of CSF where a smooth field is near 0.

    The field's slope is about .13 a mm, so that the cortex beside a valley is some 3 mm thick.
    """
    height = np.abs(sheet)
    bank = shell * special.expit((np.float32(0.4) - height) / np.float32(0.06))
    valley = np.float32(0.9) * shell * np.exp(-((height / np.float32(0.13)) ** 2))
    return white * (1 - bank) * (1 - valley), (gray + white * bank) * (1 - valley)


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
    squared = field(5.0) ** 2 + field(5.0) ** 2
    vessel = np.exp(squared * np.float32(-1 / 0.28**2))
    return np.float32(0.9) * vessel * np.clip(fluid + np.float32(0.03), 0, 1)
