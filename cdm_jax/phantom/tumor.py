"""A glioma and chronic white-matter lesions, grown in a healthy brain."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import special

from cdm_jax.phantom.fields import FieldSampler
from cdm_jax.phantom.templates import Templates

# Kinds of tumors and their share of patients. "cavity" is what a resection leaves: CSF in a thin
# rim that partly enhances.
KINDS = {
    "none": 0.12,
    "non_enhancing": 0.16,
    "solid": 0.12,
    "ring": 0.36,
    "multifocal": 0.12,
    "cavity": 0.12,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tumor:
    """Size and site of one focus of a tumor.

    Attributes:
        kind: "non_enhancing", "solid", "ring" or "cavity": what the core is made of.
        center_mm: MNI coordinates of the center.
        radius_mm: Mean radius of the core.
        inner_part: Radius of the necrosis or cavity as a part of that of the core.
        reach_mm: How far edema spreads along white matter.
        push: Mass effect: part of the radius by which the tissue at the center is pushed away.
    """

    kind: str
    center_mm: Float[np.ndarray, "3"]
    radius_mm: float
    inner_part: float
    reach_mm: float
    push: float


def draw_tumor(rng: np.random.Generator, templates: Templates) -> tuple[Tumor, ...]:
    """Draws a tumor's foci in cerebral white matter: none, one, or two to three small ones."""
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "none":
        return ()
    if kind != "multifocal":
        return (_focus(rng, str(kind), rng.choice(templates.white_positions_mm), (10.0, 27.0)),)
    first = rng.choice(templates.white_positions_mm)
    distance = np.linalg.norm(templates.white_positions_mm - first, axis=-1)
    near = templates.white_positions_mm[(distance > 18) & (distance < 60)]
    centers = [first, *rng.choice(near, rng.integers(1, 3))]
    return tuple(
        _focus(rng, str(rng.choice(["ring", "solid"])), center, (5.0, 14.0)) for center in centers
    )


def _focus(
    rng: np.random.Generator,
    kind: str,
    center_mm: Float[np.ndarray, "3"],
    radii_mm: tuple[float, float],
) -> Tumor:
    inner = {"ring": (0.45, 0.8), "cavity": (0.85, 0.97)}.get(kind, (0.0, 0.0))
    return Tumor(
        kind=kind,
        center_mm=center_mm,
        radius_mm=float(np.exp(rng.uniform(*np.log(radii_mm)))),
        inner_part=rng.uniform(*inner),
        reach_mm=rng.uniform(3, 28),
        # Where a tumor has been taken out, the brain sinks in rather than being pushed away.
        push=rng.uniform(0.0, 0.1) if kind == "cavity" else rng.uniform(0.1, 0.5),
    )


def displace(positions: Float32[np.ndarray, "n 3"], tumor: Tumor) -> Float32[np.ndarray, "n 3"]:
    """Mass effect: where the tissue that is now at `positions` was before the tumor grew."""
    offset = positions - tumor.center_mm.astype(np.float32)
    squared = np.sum(offset**2, axis=-1, keepdims=True) / np.float32(1.5 * tumor.radius_mm) ** 2
    return positions - np.float32(tumor.push) * np.exp(-squared) * offset


def lesion_fractions(
    field: FieldSampler,
    tumor: Tumor,
    positions: Float32[np.ndarray, "n 3"],
    tissues: dict[str, Float32[np.ndarray, "n"]],
    voxel_mm: float,
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Draws the share of each tissue of one focus in each brain voxel.

    The core is a ball with smooth noise on its radius; necrosis or a cavity lies inside it; edema
    spreads from it, several times farther in white matter than elsewhere.

    Args:
        field: Draws smooth random fields.
        tumor: Kind, size and site.
        positions: MNI mm of the brain voxels before `displace`.
        tissues: Shares of the tissues in the voxels so far.
        voxel_mm: Edge of a voxel, over which borders are blurred.

    Returns:
        Fractions in [0, 1]: "low_grade", or "enhancing" and "necrosis" or "cavity"; and "edema".
    """
    distance = np.linalg.norm(positions - tumor.center_mm.astype(np.float32), axis=-1)
    rough = np.float32(0.2) * field(9.0) + np.float32(0.1) * field(3.5)
    depth = np.float32(tumor.radius_mm) * (1 + rough) - distance  # mm inside the core's border
    softness = np.float32(0.25 * voxel_mm + 0.3)
    core = special.expit(depth / softness)
    reach = np.float32(tumor.reach_mm) * (np.float32(0.15) + np.float32(0.85) * tissues["white"])
    reach *= 1 + np.float32(0.3) * field(10.0)
    whole = np.maximum(core, special.expit((depth + reach) / (np.float32(1.5) * softness)))
    edema = {"edema": (whole - core) * (1 - tissues["csf"])}
    if tumor.kind == "non_enhancing":
        return {"low_grade": core} | edema
    if tumor.kind == "solid":
        return {"enhancing": core} | edema
    rim = np.float32(tumor.radius_mm * (1 - tumor.inner_part))
    rim = np.maximum(rim * (1 + np.float32(0.45) * field(5.0)), np.float32(0.8))
    inner = np.minimum(core, special.expit((depth - rim) / softness))
    name = "cavity" if tumor.kind == "cavity" else "necrosis"
    return {"enhancing": core - inner, name: inner} | edema


def chronic_lesions(
    rng: np.random.Generator,
    field: FieldSampler,
    positions: Float32[np.ndarray, "n 3"],
    white: Float32[np.ndarray, "n"],
) -> Float32[np.ndarray, "n"]:
    """Draws white-matter lesions of aging, mostly around the ventricles; few to many a patient."""
    burden = np.float32(rng.uniform(0.4, 1.8))
    center, radii = np.array([[0, -18, 22], [32, 55, 16]], np.float32)
    scaled = (positions - center) / radii
    central = np.exp(-np.sum(scaled**2, axis=-1))
    return white * special.expit(6 * (field(3.0) - np.float32(3.6) + burden + 1.5 * central))


def segment(tissues: dict[str, Float32[np.ndarray, "n"]]) -> UInt8[np.ndarray, "n"]:
    """Labels each brain voxel by what fills over half of it: 0, 1 (NCR), 2 (ED) or 3 (ET).

    As in BraTS, label 1 holds all tumor that does not enhance, a low-grade core included. A cavity
    is no tumor.
    """
    nothing = np.zeros_like(tissues["white"])
    not_enhancing = tissues.get("necrosis", nothing) + tissues.get("low_grade", nothing)
    core = not_enhancing + tissues.get("enhancing", nothing)
    whole = core + tissues.get("edema", nothing)
    levels = [not_enhancing > 0.5, core > 0.5, whole > 0.5]
    return np.select(levels, [1, 3, 2]).astype(np.uint8)
