"""The four images of a body: signals of its tissues, bias fields, blur, noise and processing."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from cdm_jax.phantom import physics
from cdm_jax.phantom.correction import correct_bias
from cdm_jax.phantom.fields import Grid, scatter, smooth_field
from cdm_jax.phantom.protocols import Acquisition, Protocol

_VARYING_FLAIR = ("edema", "low_grade", "chronic_lesion")
# Times the deviation within a tumor: necrosis holds fluid, debris and blood side by side.
_VARYING_RELAXATION = {"enhancing": 1.0, "necrosis": 1.6, "low_grade": 1.3, "edema": 0.8}
_SWOLLEN = ("edema", "low_grade")
_TUMORS_VARY = 2.5
_TABLE = np.linspace(-0.5, 1.0, 151, dtype=np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """What lies in the scanner: the brain's voxels, and what T1 and T2 do not tell about them.

    Attributes:
        brain: Which voxels are brain.
        tissues: Share of each tissue in each brain voxel; the shares sum to 1.
        texture: Relative deviation of T1 and T2 from those of the tissues.
        texture_t2: Further deviation of T2, of which T1 tells nothing.
        lesion: The same within a tumor and its edema.
        dose: Contrast agent given, 1 for the standard dose (0.1 mmol/kg).
        uptake: Local uptake of contrast agent by the tumor relative to its mean.
        flair: Local T2-FLAIR signal of edema and other lesions relative to the tissues' mean.
    """

    brain: Bool[np.ndarray, "x y z"]
    tissues: dict[str, Float32[np.ndarray, "n"]]
    texture: Float32[np.ndarray, "n"]
    texture_t2: Float32[np.ndarray, "n"]
    lesion: Float32[np.ndarray, "n"]
    dose: float
    uptake: Float32[np.ndarray, "n"]
    flair: Float32[np.ndarray, "n"]


def scan(
    seed: np.random.SeedSequence, body: Body, grid: Grid, protocol: Protocol
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Images the brain voxels by each acquisition of a protocol; at least 1 in every voxel."""
    tissue_seed, *seeds = seed.spawn(1 + len(protocol.acquisitions))
    rng = np.random.default_rng(tissue_seed)
    library = _vary_tissues(rng, protocol)
    coil = protocol.receive_bias * smooth_field(rng, grid, 60.0)[body.brain]
    coil += protocol.center * _middle(grid)[body.brain]
    images = {}
    for (name, acquisition), own in zip(protocol.acquisitions.items(), seeds, strict=True):
        rng = np.random.default_rng(own)
        clean = _clean_signal(name, acquisition.sequence, library, body, protocol.dose)
        own_bias = acquisition.bias * smooth_field(rng, grid, 60.0)[body.brain]
        clean *= np.exp(coil + own_bias).astype(np.float32)
        blurred = _blur(clean, body.brain, np.array(acquisition.blur_mm) / grid.voxel_mm)
        values = _finish(rng, _ghost(blurred, body.brain, acquisition.ghost), acquisition)
        if protocol.correction_mm is not None:
            corrected = correct_bias(values, body.brain, grid, protocol.correction_mm)
            values = np.maximum(corrected, 1)
        images[name] = values
    return images


def _middle(grid: Grid) -> Float32[np.ndarray, "x y z"]:
    """1 in the middle of the grid, falling with the square of the distance to 0 at 75 mm."""
    x, y, z = np.meshgrid(*grid.axes_mm(), indexing="ij", sparse=True)
    return (1 - (x**2 + y**2 + z**2) / 75**2).astype(np.float32)


def _vary_tissues(rng: np.random.Generator, protocol: Protocol) -> dict[str, physics.Tissue]:
    """The tissues of one patient in the protocol's field; proton density varies by 1 %.

    Tumors differ more from each other than healthy tissue does: blood and protein shorten T1.
    """
    library = {}
    for name, usual in physics.TISSUES.items():
        relaxation = protocol.relaxation * (_TUMORS_VARY if name in _VARYING_RELAXATION else 1)
        spread = np.array([relaxation, relaxation, 0.01])
        t1, t2, density = np.exp(spread * rng.standard_normal(3))
        tissue = physics.at_field(usual, protocol.tesla)
        library[name] = dataclasses.replace(
            tissue,
            t1_ms=tissue.t1_ms * t1,
            t2_ms=tissue.t2_ms * t2,
            density=tissue.density * density,
        )
    least = protocol.swelling * library["white"].t1_ms
    for name in _SWOLLEN:
        wet = library[name]
        library[name] = dataclasses.replace(wet, t1_ms=max(wet.t1_ms, least))
    return library


def _clean_signal(
    name: str,
    sequence: physics.Sequence,
    library: Mapping[str, physics.Tissue],
    body: Body,
    dose: float,
) -> Float32[np.ndarray, "n"]:
    """Signal of the brain voxels: the tissues' signals, weighted by their shares."""
    total = np.zeros_like(body.texture)
    for tissue_name, share in body.tissues.items():
        held = np.flatnonzero(share > 1e-3)
        tissue, deviation = library[tissue_name], body.texture[held]
        if tissue_name in _VARYING_RELAXATION:
            varies = np.float32(_VARYING_RELAXATION[tissue_name])
            deviation = np.clip(deviation + varies * body.lesion[held], -0.5, 1.0)
        # Where nothing but this deviation varies, a table of it saves most of the exponentials.
        local = name == "t1c" and tissue_name == "enhancing"
        rate = np.float32(sequence.echo_ms / tissue.t2_ms)  # d log signal / d log T2
        scale = 1 + (deviation if local else _TABLE)
        t1, t2 = tissue.t1_ms * scale, tissue.t2_ms * scale
        if name == "t1c":
            agent = tissue.uptake * body.dose * dose
            t1 = physics.enhance(t1, agent * (body.uptake[held] if local else 1.0))
        part = physics.signal(sequence, t1, t2, tissue.density)
        if not physics.is_fluid(tissue):
            part = part * (1 - sequence.transfer)
        if tissue_name == "blood":
            part = part * sequence.inflow
        if not local:
            part = np.interp(deviation, _TABLE, part)
        part = part * np.exp(rate * body.texture_t2[held])
        if name == "t2f" and tissue_name in _VARYING_FLAIR:
            part = part * body.flair[held]
        total[held] += (share[held] * part).astype(np.float32)
    return total


def _blur(
    values: Float32[np.ndarray, "n"], brain: Bool[np.ndarray, "x y z"], sigmas: np.ndarray
) -> Float32[np.ndarray, "n"]:
    """Point spread within the brain: what lies outside it has been stripped, and is not seen."""
    if (sigmas < 0.15).all():
        return values
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(brain))
    inside = brain[box]
    blurred, share = (
        ndimage.gaussian_filter(part, sigmas, truncate=3, mode="constant")[inside]
        for part in (scatter(inside, values), inside.astype(np.float32))
    )
    return blurred / share


def _ghost(
    values: Float32[np.ndarray, "n"], brain: Bool[np.ndarray, "x y z"], amount: float
) -> Float32[np.ndarray, "n"]:
    """Adds the image once more, weak and half a field of view away."""
    if not amount:
        return values
    return values + amount * np.roll(scatter(brain, values), brain.shape[1] // 2, axis=1)[brain]


def _finish(
    rng: np.random.Generator, clean: Float32[np.ndarray, "n"], acquisition: Acquisition
) -> Float32[np.ndarray, "n"]:
    """Noise, a windowed black level, gamma and gain."""
    mean = clean.mean()
    noisy = physics.rician(rng, clean, float(acquisition.noise * mean))
    noisy = np.maximum(noisy - np.float32(acquisition.black * mean), 0)
    if acquisition.gamma != 1:
        noisy = mean * (noisy / mean) ** np.float32(acquisition.gamma)
    return np.maximum(np.float32(acquisition.gain) * noisy, 1)
