"""One simulated patient: anatomy, tumor, and the four scans."""

import dataclasses
import hashlib
import json

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from cdm_jax.errors import UserError
from cdm_jax.phantom import anatomy, protocols, tumor
from cdm_jax.phantom.fields import FieldSampler, Grid, octaves, scatter, smooth_field
from cdm_jax.phantom.scan import Body, scan
from cdm_jax.phantom.templates import Templates, load_templates

# Of what is simulated from given settings, by protocol. 1 had T1 noise of 8.5 % of the mean, chosen
# without a measurement, and a blurred cortex; fixed 2 and random 4 still had holes or deep dents
# in four brains of ten. Random protocols of 2 bent intensities by gammas whose logarithms varied
# by .3: an image's level varied twice as much as in real patients. Those of 3 had as many spin
# echoes after contrast agent as before it, and vessels darker than real ones. Those of 5 knew no
# correction of bias but a perfect one; edema was as bright as white matter on some T1. Fixed 3 and
# random 6 had smooth tumors with round borders, edema of one shade, an unbroken rim of CSF around
# an angular brain, round white-matter lesions anywhere, no texture, and a salt of vessels; random 6
# also CSF as bright as the brain on T2-FLAIR, and black cortex on T1.
VERSIONS = {"fixed": 4, "random": 7}
LAYOUTS = ("brats2023", "upenn_gbm")


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
        protocol: "fixed": all patients on one scanner; "random": sequences, times, field strength,
            noise and imperfections are drawn for each patient.
        scanner: one of `protocols.SCANNERS`: the sequences and their times, where they are fixed.
        predictable: Part of the variance of a tumor's local enhancement that T1 and T2 tell, 0
            to 1.

    Raises:
        UserError: If a value is out of range.
    """

    num_patients: int = 100
    shape: tuple[int, int, int] = (64, 64, 48)
    voxel_mm: float = 3.0
    seed: int = 0
    layout: str = "brats2023"
    protocol: str = "fixed"
    scanner: str = "mixed"
    predictable: float = 0.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("scanner", self.scanner, tuple(protocols.SCANNERS)),
            ("layout", self.layout, LAYOUTS),
            ("protocol", self.protocol, protocols.PROTOCOLS),
        ):
            if value not in allowed:
                raise UserError(f"phantom {name} {value!r} is unknown: use one of {allowed}")
        if self.num_patients < 1 or self.voxel_mm <= 0 or self.seed < 0 or min(self.shape) < 8:
            raise UserError(
                f"{self} is out of range: give at least 1 patient and 8 voxels an axis, "
                "a voxel_mm above 0 and a seed of at least 0"
            )
        if not 0 <= self.predictable <= 1:
            raise UserError(f"phantom predictable {self.predictable} is not within 0 and 1")

    @property
    def version(self) -> int:
        """Of what is simulated from these settings."""
        return VERSIONS[self.protocol]

    def fingerprint(self) -> str:
        """Names what a patient of these settings looks like: equal for equal images."""
        told = dataclasses.asdict(self) | {"version": self.version, "num_patients": None}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """Skull-stripped scans of one patient, axes in LPS order, background exactly 0.

    Attributes:
        images: "t1", "t1c", "t2" and "t2f" in arbitrary scanner units, at least 1 in the brain.
        segmentation: 0, 1 (necrotic or non-enhancing core), 2 (edema), 3 (enhancing tumor).
        affine: Voxel indices to RAS mm.
    """

    images: dict[str, Float32[np.ndarray, "x y z"]]
    segmentation: UInt8[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]


def simulate_patient(
    settings: PhantomSettings, index: int, with_tumor: bool = True
) -> PhantomPatient:
    """Simulates patient `index` of a cohort.

    A pure function of the settings and the index: the number of patients and the order of the
    calls do not matter. Anatomy and tumor are the same at any resolution and in any protocol.

    Args:
        settings: Of the cohort.
        index: Of the patient.
        with_tumor: Without it, the same person on the same scanner before the tumor grew.
    """
    _, scan_seed, protocol_seed = _seeds(settings, index)
    grid = _grid(settings)
    body = simulate_body(settings, index, with_tumor)
    rng = np.random.default_rng(protocol_seed)
    fixed = settings.protocol == "fixed"
    protocol = protocols.fixed(rng, settings.scanner) if fixed else protocols.draw(rng)
    images = scan(scan_seed, body, grid, protocol)
    return PhantomPatient(
        images={name: scatter(body.brain, values) for name, values in images.items()},
        segmentation=scatter(body.brain, tumor.segment(body.tissues)),
        affine=grid.affine(),
    )


def simulate_body(settings: PhantomSettings, index: int, with_tumor: bool = True) -> Body:
    """What lies in the scanner where `simulate_patient` of the same arguments images it."""
    body_seed, *_ = _seeds(settings, index)
    return draw_body(body_seed, _grid(settings), settings.predictable, with_tumor)


def _seeds(settings: PhantomSettings, index: int) -> list[np.random.SeedSequence]:
    """Of a patient's body, scans and protocol."""
    return np.random.SeedSequence([settings.seed, index]).spawn(3)


def _grid(settings: PhantomSettings) -> Grid:
    return Grid(shape=settings.shape, voxel_mm=settings.voxel_mm)


def draw_body(
    seed: np.random.SeedSequence, grid: Grid, predictable: float = 0.0, with_tumor: bool = True
) -> Body:
    """Draws a patient: anatomy, tumor, lesions, and uptake of contrast agent.

    `predictable` is as of `PhantomSettings`, `with_tumor` as of `simulate_patient`.
    """
    templates = load_templates(grid.voxel_mm)
    shape_rng, tissue_rng, tumor_rng, hidden_rng = map(np.random.default_rng, seed.spawn(4))
    positions, depth = anatomy.deform(shape_rng, grid, templates)
    brain, meninges = anatomy.strip(shape_rng, grid, depth)
    foci = tumor.draw_tumor(tumor_rng, templates) if with_tumor else ()
    tissues = _draw_tissues(tissue_rng, tumor_rng, templates, grid, brain, positions[brain], foci)
    tissues = anatomy.insert(tissues, {"meninges": meninges})
    field = _sampler(hidden_rng, grid, brain)
    # Unit variance on scales of 1.5 to 8 mm, as a tumor's inside differs from place to place.
    scales = ((0.7, 8.0), (0.6, 3.5), (0.39, 1.7))
    visible, hidden = octaves(field, *scales), octaves(field, *scales)
    mixed = np.float32(predictable**0.5) * visible + np.float32((1 - predictable) ** 0.5) * hidden
    return Body(
        brain=brain,
        tissues=tissues,
        # R2 in one region of the white matter of six people has a standard deviation of 7 %
        # (Gelman et al. 1999, doi 10.1148/radiology.210.3.r99fe41759). Within a person, T2 is given
        # 3.1 % and T1, whose contrasts are weaker, 2.2 %, on scales too short to pass for bias.
        texture=octaves(field, (0.012, 1.6), (0.018, 2.5)),
        texture_t2=np.float32(0.022) * field(2.5),
        lesion=np.float32(0.1) * np.clip(visible, -3, 3),
        dose=hidden_rng.uniform(0.75, 1.25),
        uptake=np.float32(hidden_rng.uniform(0.25, 1.5)) * np.exp(np.float32(0.5) * mixed),
        flair=np.float32(hidden_rng.uniform(0.92, 1.08)) * np.exp(np.float32(0.08) * field(8.0)),
    )


def _draw_tissues(
    rng: np.random.Generator,
    tumor_rng: np.random.Generator,
    templates: Templates,
    grid: Grid,
    brain: Bool[np.ndarray, "x y z"],
    positions: Float32[np.ndarray, "n 3"],
    foci: tuple[tumor.Tumor, ...],
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Shares of healthy tissues, chronic lesions and tumor in the brain voxels."""
    field, tumor_field = _sampler(rng, grid, brain), _sampler(tumor_rng, grid, brain)
    before = positions
    for focus in foci:
        before = tumor.displace(before, focus)
    tissues = anatomy.tissue_fractions(rng, field, templates, before)
    near = templates.ventricle_mm(before)
    chronic = tumor.chronic_lesions(rng, field, near, tissues["white"])
    tissues = anatomy.insert(tissues, {"chronic_lesion": chronic})
    if foci:
        rough = tumor.draw_roughness(tumor_field)
        for focus in foci:
            tissues = tumor.grow(rough, focus, positions, tissues, grid.voxel_mm)
    return tissues


def _sampler(
    rng: np.random.Generator, grid: Grid, brain: Bool[np.ndarray, "x y z"]
) -> FieldSampler:
    return lambda length_mm: smooth_field(rng, grid, length_mm)[brain]
