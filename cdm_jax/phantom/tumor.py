"""A glioma and chronic white-matter lesions, grown in a healthy brain."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import special

from cdm_jax.phantom.anatomy import insert
from cdm_jax.phantom.fields import FieldSampler, octaves
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


# Edema replaces these tissues, and spreads by all of its reach in the first, which it follows.
_SPREAD = {"white": 1.0, "chronic_lesion": 1.0, "gray": 0.15, "deep_gray": 0.15}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tumor:
    """Size and site of one focus of a tumor.

    Attributes:
        kind: "non_enhancing", "solid", "ring" or "cavity": what the core is made of.
        center_mm: MNI coordinates of the center.
        radius_mm: Mean radius of the core.
        stretch: Matrix that turns the core's ellipsoid into a ball of the same volume.
        infiltration_mm: Over which the core fades into its surroundings.
        inner_part: Radius of the necrosis or cavity as a part of that of the core.
        reach_mm: How far edema spreads along white matter.
        push: Mass effect: part of the radius by which the tissue at the center is pushed away.
    """

    kind: str
    center_mm: Float[np.ndarray, "3"]
    radius_mm: float
    stretch: Float[np.ndarray, "3 3"]
    infiltration_mm: float
    inner_part: float
    reach_mm: float
    push: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roughness:
    """Smooth random fields that make a tumor's borders uneven, one value a brain voxel.

    Attributes:
        core: Of the core's radius, relative.
        rim: Of the thickness of the enhancing rim, as a logarithm.
        reach: Of the reach of edema, as a logarithm.
    """

    core: Float32[np.ndarray, "n"]
    rim: Float32[np.ndarray, "n"]
    reach: Float32[np.ndarray, "n"]


def draw_roughness(field: FieldSampler) -> Roughness:
    """Draws it once for all foci, as they lie at different places."""
    return Roughness(
        core=octaves(field, (0.22, 10.0), (0.14, 5.0), (0.06, 2.5)),
        rim=octaves(field, (0.45, 6.0), (0.4, 2.5)),
        reach=octaves(field, (0.35, 10.0), (0.25, 4.0)),
    )


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
        stretch=_draw_stretch(rng),
        # Without a rim, gliomas of low grade have no border but a gradual one.
        infiltration_mm=rng.uniform(0.5, 1.8) if kind == "non_enhancing" else rng.uniform(0, 0.5),
        inner_part=rng.uniform(*inner),
        reach_mm=rng.uniform(3, 28),
        # Where a tumor has been taken out, the brain sinks in rather than being pushed away.
        push=rng.uniform(0.0, 0.1) if kind == "cavity" else rng.uniform(0.1, 0.5),
    )


def _draw_stretch(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Axes whose lengths vary by a fifth, in any direction."""
    logs = 0.2 * rng.standard_normal(3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    stretch: Float[np.ndarray, "3 3"] = turn @ np.diag(np.exp(logs - logs.mean())) @ turn.T
    return stretch


def displace(positions: Float32[np.ndarray, "n 3"], tumor: Tumor) -> Float32[np.ndarray, "n 3"]:
    """Mass effect: where the tissue that is now at `positions` was before the tumor grew."""
    offset = positions - tumor.center_mm.astype(np.float32)
    squared = np.sum(offset**2, axis=-1, keepdims=True) / np.float32(1.5 * tumor.radius_mm) ** 2
    return positions - np.float32(tumor.push) * np.exp(-squared) * offset


def grow(
    rough: Roughness,
    tumor: Tumor,
    positions: Float32[np.ndarray, "n 3"],
    tissues: dict[str, Float32[np.ndarray, "n"]],
    voxel_mm: float,
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Grows one focus in each brain voxel, at the cost of what was there.

    The core is an ellipsoid with noise on its radius, necrosis or a cavity lies inside it, behind a
    rim of uneven thickness. Edema spreads from it, several times farther in white matter than
    elsewhere and less beyond the midline. It is densest near the core.

    Args:
        rough: Noise on all borders.
        tumor: Kind, size and site.
        positions: MNI mm of the brain voxels before `displace`.
        tissues: Shares of the tissues in the voxels so far.
        voxel_mm: Edge of a voxel, over which borders are blurred.

    Returns:
        Shares of the tissues that were there; of "edema"; and of "low_grade", or of "enhancing" and
        "necrosis" or "cavity".
    """
    offset = positions - tumor.center_mm.astype(np.float32)
    distance = np.linalg.norm(offset @ tumor.stretch.astype(np.float32).T, axis=-1)
    # The falx hinders what would spread to the other hemisphere.
    distance += np.maximum(-np.sign(np.float32(tumor.center_mm[0])) * positions[:, 0], 0)
    depth = np.float32(tumor.radius_mm) * (1 + rough.core) - distance  # mm inside the core
    sharp = np.float32(0.25 * voxel_mm + 0.3)
    core = special.expit(depth / (sharp + np.float32(tumor.infiltration_mm)))
    tissues = _swell(rough, tumor, depth, tissues, sharp)
    if tumor.kind == "non_enhancing":
        return _add(tissues, {"low_grade": core})
    if tumor.kind == "solid":
        return _add(tissues, {"enhancing": core})
    rim = np.float32(tumor.radius_mm * (1 - tumor.inner_part)) * np.exp(rough.rim)
    inner = np.minimum(core, special.expit((depth - np.maximum(rim, np.float32(0.8))) / sharp))
    name = "cavity" if tumor.kind == "cavity" else "necrosis"
    return _add(tissues, {"enhancing": core - inner, name: inner})


def _swell(
    rough: Roughness,
    tumor: Tumor,
    depth: Float32[np.ndarray, "n"],
    tissues: dict[str, Float32[np.ndarray, "n"]],
    sharp: np.float32,
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Edema in place of part of each tissue: all of it by the core, two thirds where it ends."""
    reach = np.float32(tumor.reach_mm) * np.exp(rough.reach)
    outside = np.maximum(-depth, 0)
    swollen = dict(tissues)
    edema = np.zeros_like(depth) + tissues.get("edema", np.float32(0))
    for name, part in _SPREAD.items():  # in this order, as sums of floats depend on it
        if name not in tissues:
            continue
        farthest = np.float32(part) * reach
        falling = np.float32(1.2) - np.float32(0.5) * outside / farthest
        border = special.expit((farthest - outside) / sharp)
        taken = tissues[name] * np.clip(falling, 0, 1) * border
        swollen[name] = tissues[name] - taken
        edema += taken
    return swollen | {"edema": edema}


def _add(
    tissues: dict[str, Float32[np.ndarray, "n"]], added: dict[str, Float32[np.ndarray, "n"]]
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Inserts a focus; what an earlier one has left of a tissue and what it adds are one."""
    kept = 1 - np.sum(list(added.values()), axis=0)
    grown = insert(tissues, added)
    for name in added.keys() & tissues.keys():
        grown[name] = grown[name] + kept * tissues[name]
    return grown


def chronic_lesions(
    rng: np.random.Generator,
    field: FieldSampler,
    near: Float32[np.ndarray, "n"],
    white: Float32[np.ndarray, "n"],
) -> Float32[np.ndarray, "n"]:
    """Draws white-matter lesions of aging: bands and caps along the ventricles, and few deep ones.

    Two patients of five are too young for any.

    Args:
        rng: Draws how many lesions there are.
        field: Draws smooth random fields.
        near: mm to the lateral ventricles.
        white: Share of white matter.
    """
    burden = np.float32(max(rng.uniform(-0.6, 0.9), 0))
    if not burden:
        return np.zeros_like(white)
    wide = field(7.0)
    # Bands of up to 6 mm that widen to caps and end where the wide field is low.
    band = special.expit((burden * (3 + 3 * wide + field(2.5)) - 1 - near) / np.float32(1.2))
    # A narrow field where a wide one is high, too: in groups, not anywhere.
    deep = special.expit(5 * (field(2.2) + np.float32(0.6) * wide - 4 + burden))
    return white * np.maximum(band, np.float32(0.8) * deep)


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
