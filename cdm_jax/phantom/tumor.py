"""A glioma and chronic white-matter lesions, grown in a healthy brain."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from scipy import special

from cdm_jax.phantom.fields import FieldSampler
from cdm_jax.phantom.templates import Templates

_NO_TUMOR = 0.12  # Share of patients.
_LOW_GRADE = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tumor:
    """Size and site of one tumor.

    Attributes:
        center_mm: MNI coordinates of the center.
        radius_mm: Mean radius of the core (necrosis and enhancing rim).
        necrotic_part: Radius of the necrosis as a part of that of the core.
        reach_mm: How far edema spreads along white matter.
        push: Mass effect: part of the radius by which the tissue at the center is pushed away.
        low_grade: Whether the core is uniform and takes up no contrast agent.
    """

    center_mm: Float[np.ndarray, "3"]
    radius_mm: float
    necrotic_part: float
    reach_mm: float
    push: float
    low_grade: bool


def draw_tumor(rng: np.random.Generator, templates: Templates) -> Tumor | None:
    """Draws a tumor centered in cerebral white matter, or none for some of the patients."""
    kind = rng.random()
    if kind < _NO_TUMOR:
        return None
    return Tumor(
        center_mm=rng.choice(templates.white_positions_mm),
        radius_mm=float(np.exp(rng.uniform(np.log(10), np.log(27)))),
        necrotic_part=rng.uniform(0.45, 0.75),
        reach_mm=rng.uniform(5, 28),
        push=rng.uniform(0.1, 0.5),
        low_grade=kind < _NO_TUMOR + _LOW_GRADE,
    )


def displace(positions: Float[np.ndarray, "n 3"], tumor: Tumor) -> Float[np.ndarray, "n 3"]:
    """Mass effect: where the tissue that is now at `positions` was before the tumor grew."""
    offset = positions - tumor.center_mm
    squared = np.sum(offset**2, axis=-1, keepdims=True) / (1.5 * tumor.radius_mm) ** 2
    return positions - tumor.push * np.exp(-squared) * offset


def lesion_fractions(
    field: FieldSampler,
    tumor: Tumor,
    positions: Float[np.ndarray, "n 3"],
    tissues: dict[str, Float[np.ndarray, "n"]],
    voxel_mm: float,
) -> dict[str, Float[np.ndarray, "n"]]:
    """Draws the share of each tissue of the tumor in each brain voxel.

    The core is a ball with smooth noise on its radius; the necrosis lies inside it; edema spreads
    from it, several times farther in white matter than elsewhere.

    Args:
        field: Draws smooth random fields.
        tumor: Size and site.
        positions: MNI mm of the brain voxels before `displace`.
        tissues: Shares of the healthy tissues in the voxels.
        voxel_mm: Edge of a voxel, over which borders are blurred.

    Returns:
        Fractions in [0, 1]: "necrosis" and "enhancing", or "low_grade"; and "edema".
    """
    distance = np.linalg.norm(positions - tumor.center_mm, axis=-1)
    rough = 0.2 * field(9.0) + 0.08 * field(3.5)
    depth = tumor.radius_mm * (1 + rough) - distance  # mm inside the core's border
    softness = 0.25 * voxel_mm + 0.3
    core = special.expit(depth / softness)
    reach = tumor.reach_mm * (0.15 + 0.85 * tissues["white"]) * (1 + 0.3 * field(10.0))
    whole = np.maximum(core, special.expit((depth + reach) / (1.5 * softness)))
    edema = {"edema": (whole - core) * (1 - tissues["csf"])}
    if tumor.low_grade:
        return {"low_grade": core} | edema
    rim = tumor.radius_mm * (1 - tumor.necrotic_part) * (1 + 0.35 * field(5.0))
    necrosis = np.minimum(core, special.expit((depth - np.maximum(rim, 1.5)) / softness))
    return {"enhancing": core - necrosis, "necrosis": necrosis} | edema


def chronic_lesions(
    rng: np.random.Generator,
    field: FieldSampler,
    positions: Float[np.ndarray, "n 3"],
    white: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
    """Draws white-matter lesions of aging, mostly around the ventricles; few to many a patient."""
    burden = rng.uniform(0.7, 1.6)
    central = np.exp(-np.sum(((positions - [0, -18, 22]) / [32, 55, 16]) ** 2, axis=-1))
    return white * special.expit(6 * (field(3.0) - 3.6 + burden + 1.5 * central))


def segment(tissues: dict[str, Float[np.ndarray, "n"]]) -> UInt8[np.ndarray, "n"]:
    """Labels each brain voxel by what fills over half of it: 0, 1 (NCR), 2 (ED) or 3 (ET).

    As in BraTS, label 1 holds all tumor that does not enhance, a low-grade core included.
    """
    nothing = np.zeros_like(tissues["white"])
    not_enhancing = tissues.get("necrosis", nothing) + tissues.get("low_grade", nothing)
    core = not_enhancing + tissues.get("enhancing", nothing)
    whole = core + tissues.get("edema", nothing)
    levels = [not_enhancing > 0.5, core > 0.5, whole > 0.5]
    return np.select(levels, [1, 3, 2]).astype(np.uint8)
