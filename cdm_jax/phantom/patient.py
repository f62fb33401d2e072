"""One simulated patient: anatomy, tumor, and the four scans."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cdm_jax.errors import UserError
from cdm_jax.phantom import anatomy, physics, tumor
from cdm_jax.phantom.fields import FieldSampler, Grid, smooth_field
from cdm_jax.phantom.templates import Templates, load_templates

LAYOUTS = ("brats2023", "upenn_gbm")

_VARYING_FLAIR = ("edema", "low_grade", "chronic_lesion")
_SCANNER_UNITS = 3000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What a cohort is made of.

    Attributes:
        num_patients: How many patients.
        shape: Voxels along x, y and z; 240, 240, 155 at 1 mm is the grid of BraTS.
        voxel_mm: Edge of a voxel in mm.
        seed: Seed of the cohort, at least 0.
        layout: "brats2023" or "upenn_gbm": names of folders and files, and label of the
            enhancing tumor (3 or 4).
        scanner: one of `physics.SCANNERS`: the sequences, their times and noise.

    Raises:
        UserError: If a value is out of range.
    """

    num_patients: int = 100
    shape: tuple[int, int, int] = (64, 64, 48)
    voxel_mm: float = 3.0
    seed: int = 0
    layout: str = "brats2023"
    scanner: str = "mixed"

    def __post_init__(self) -> None:
        if self.scanner not in physics.SCANNERS:
            allowed = ", ".join(physics.SCANNERS)
            raise UserError(f"phantom scanner {self.scanner!r} is unknown: use one of {allowed}")
        if self.layout not in LAYOUTS:
            raise UserError(f"phantom layout {self.layout!r} is unknown: use one of {LAYOUTS}")
        if self.num_patients < 1 or self.voxel_mm <= 0 or self.seed < 0 or min(self.shape) < 8:
            raise UserError(
                f"{self} is out of range: give at least 1 patient and 8 voxels an axis, "
                "a voxel_mm above 0 and a seed of at least 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """Skull-stripped scans of one patient, axes in LPS order, background exactly 0.

    Attributes:
        images: "t1", "t1c", "t2" and "t2f" in arbitrary scanner units, at least 1 in the brain.
        segmentation: 0, 1 (necrotic or non-enhancing core), 2 (edema), 3 (enhancing tumor).
        affine: Voxel indices to RAS mm.
    """

    images: dict[str, Float[np.ndarray, "x y z"]]
    segmentation: UInt8[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """What lies in the scanner: the brain's voxels, and what T1 and T2 do not tell about them.

    Attributes:
        brain: Which voxels are brain.
        tissues: Share of each tissue in each brain voxel; the shares sum to 1.
        texture: Relative deviation of T1 and T2 from those of the tissues.
        dose: Contrast agent given, 1 for the standard dose (0.1 mmol/kg).
        uptake: Local uptake of contrast agent by the tumor relative to its mean.
        flair: Local T2-FLAIR signal of edema and other lesions relative to the tissues' mean.
    """

    brain: Bool[np.ndarray, "x y z"]
    tissues: dict[str, Float[np.ndarray, "n"]]
    texture: Float[np.ndarray, "n"]
    dose: float
    uptake: Float[np.ndarray, "n"]
    flair: Float[np.ndarray, "n"]


def simulate_patient(settings: PhantomSettings, index: int) -> PhantomPatient:
    """Simulates patient `index` of a cohort.

    A pure function of the grid, the seed and the index: the number of patients and the order of
    the calls do not matter. Anatomy and tumor are the same at any resolution.
    """
    body_seed, scan_seed = np.random.SeedSequence([settings.seed, index]).spawn(2)
    grid = Grid(shape=settings.shape, voxel_mm=settings.voxel_mm)
    body = draw_body(body_seed, grid)
    values = scan(scan_seed, body, grid, physics.SCANNERS[settings.scanner])
    images = {
        name: _scatter(body.brain, value.astype(np.float32)) for name, value in values.items()
    }
    segmentation = _scatter(body.brain, tumor.segment(body.tissues))
    return PhantomPatient(images=images, segmentation=segmentation, affine=grid.affine())


def draw_body(seed: np.random.SeedSequence, grid: Grid) -> Body:
    """Draws a patient: anatomy, tumor, lesions, and uptake of contrast agent."""
    templates = load_templates(grid.voxel_mm)
    shape_rng, tissue_rng, tumor_rng, hidden_rng = map(np.random.default_rng, seed.spawn(4))
    positions = anatomy.deform(shape_rng, grid)
    brain = templates.sample(templates.brain, positions) > 0.7
    tissues = _draw_tissues(tissue_rng, tumor_rng, templates, grid, brain, positions[brain])
    field = _sampler(hidden_rng, grid, brain)
    return Body(
        brain=brain,
        tissues=tissues,
        texture=0.03 * field(2.0) + 0.02 * field(25.0),
        dose=hidden_rng.uniform(0.75, 1.25),
        uptake=hidden_rng.uniform(0.4, 1.5) * np.exp(0.4 * field(6.0)),
        flair=hidden_rng.uniform(0.92, 1.08) * np.exp(0.08 * field(8.0)),
    )


def scan(
    seed: np.random.SeedSequence,
    body: Body,
    grid: Grid,
    sequences: Mapping[str, physics.Sequence],
) -> dict[str, Float[np.ndarray, "n"]]:
    """Images the brain voxels with each sequence: signal, bias field, gain and Rician noise.

    Relaxation times vary by 3 % between patients, gains by 25 %. The bias field of the receive
    coil, which all sequences of an examination share, varies by 6 %, that of each sequence by 2 %
    (standard deviations), and noise by a fifth around what is typical of the sequence.
    """
    tissue_seed, *seeds = seed.spawn(1 + len(sequences))
    patient_rng = np.random.default_rng(tissue_seed)
    library = _vary_tissues(patient_rng)
    receive = np.exp(0.06 * _sampler(patient_rng, grid, body.brain)(60.0))
    images = {}
    for (name, sequence), sequence_seed in zip(sequences.items(), seeds, strict=True):
        rng = np.random.default_rng(sequence_seed)
        clean = _clean_signal(name, sequence, library, body)
        clean *= receive * np.exp(0.02 * _sampler(rng, grid, body.brain)(60.0))
        sigma = rng.uniform(0.8, 1.2) * sequence.noise * clean.mean()
        noisy = physics.rician(rng, clean, sigma)
        gain = _SCANNER_UNITS * np.exp(0.25 * rng.standard_normal())
        images[name] = np.maximum(gain * noisy, 1.0)
    return images


def _draw_tissues(
    rng: np.random.Generator,
    tumor_rng: np.random.Generator,
    templates: Templates,
    grid: Grid,
    brain: Bool[np.ndarray, "x y z"],
    positions: Float[np.ndarray, "n 3"],
) -> dict[str, Float[np.ndarray, "n"]]:
    """Shares of healthy tissues, chronic lesions and tumor in the brain voxels."""
    field, tumor_field = _sampler(rng, grid, brain), _sampler(tumor_rng, grid, brain)
    growth = tumor.draw_tumor(tumor_rng, templates)
    before = positions if growth is None else tumor.displace(positions, growth)
    tissues = anatomy.tissue_fractions(rng, field, templates, before)
    chronic = tumor.chronic_lesions(rng, field, before, tissues["white"])
    tissues = anatomy.insert(tissues, {"chronic_lesion": chronic})
    if growth is None:
        return tissues
    lesions = tumor.lesion_fractions(tumor_field, growth, positions, tissues, grid.voxel_mm)
    return anatomy.insert(tissues, lesions)


def _vary_tissues(rng: np.random.Generator) -> dict[str, physics.Tissue]:
    """The tissues of one patient: T1 and T2 vary by 3 %, proton density by 1 %."""
    library = {}
    for name, tissue in physics.TISSUES.items():
        t1, t2, density = np.exp([0.03, 0.03, 0.01] * rng.standard_normal(3))
        library[name] = dataclasses.replace(
            tissue,
            t1_ms=tissue.t1_ms * t1,
            t2_ms=tissue.t2_ms * t2,
            density=tissue.density * density,
        )
    return library


def _clean_signal(
    name: str, sequence: physics.Sequence, library: Mapping[str, physics.Tissue], body: Body
) -> Float[np.ndarray, "n"]:
    """Signal of the brain voxels: the tissues' signals, weighted by their shares."""
    total = np.zeros_like(body.texture)
    for tissue_name, share in body.tissues.items():
        tissue = library[tissue_name]
        t1 = tissue.t1_ms * (1 + body.texture)
        if name == "t1c":
            local = body.uptake if tissue_name == "enhancing" else 1.0
            t1 = physics.enhance(t1, tissue.uptake * body.dose * local)
        t2 = tissue.t2_ms * (1 + body.texture)
        part = share * physics.signal(sequence, t1, t2, tissue.density)
        total += part * body.flair if name == "t2f" and tissue_name in _VARYING_FLAIR else part
    return total


def _sampler(
    rng: np.random.Generator, grid: Grid, brain: Bool[np.ndarray, "x y z"]
) -> FieldSampler:
    return lambda length_mm: smooth_field(rng, grid, length_mm)[brain]


def _scatter(brain: Bool[np.ndarray, "x y z"], values: np.ndarray) -> np.ndarray:
    """Puts the values of the brain voxels into a volume of zeros."""
    volume = np.zeros(brain.shape, dtype=values.dtype)
    volume[brain] = values
    return volume
