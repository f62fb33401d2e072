"""How a patient is scanned: sequences, noise and imperfections, fixed or drawn for each patient."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cdm_jax.phantom.physics import Sequence

PROTOCOLS = ("fixed", "random")
_SCANNER_UNITS = 3000.0

# Each scanner's four sequences. The TI of the T2-FLAIR nulls CSF.
# "mixed": T1 is a plain spin echo while T1c is prepared by an inversion, as where a quick native T1
# stands beside an inversion-prepared 3D scan after contrast agent.
# "mprage": the same inversion-prepared 3D scan before and after contrast agent, and other times of
# T2 and T2-FLAIR.
SCANNERS = {
    "mixed": {
        "t1": Sequence(repetition_ms=600.0, echo_ms=10.0),
        "t1c": Sequence(repetition_ms=2000.0, echo_ms=5.0, inversion_ms=900.0, inverted=0.7),
        "t2": Sequence(repetition_ms=6000.0, echo_ms=100.0, transfer=0.2),
        "t2f": Sequence(repetition_ms=9000.0, echo_ms=110.0, inversion_ms=2400.0),
    },
    "mprage": {
        "t1": Sequence(repetition_ms=1760.0, echo_ms=3.0, inversion_ms=950.0, inverted=0.7),
        "t1c": Sequence(repetition_ms=1760.0, echo_ms=3.0, inversion_ms=950.0, inverted=0.7),
        "t2": Sequence(repetition_ms=4680.0, echo_ms=85.0, transfer=0.2),
        "t2f": Sequence(repetition_ms=9420.0, echo_ms=125.0, inversion_ms=2450.0),
    },
}
# Noise of the fixed protocols, as a part of the brain's mean: with it, what is measured at 3 mm is
# the middle of what is measured in real patients (docs/results/realism.md).
NOISE = {"t1": 0.018, "t1c": 0.018, "t2": 0.022, "t2f": 0.027}

# White matter counts as edematous from a T1 of .85 s on, which is 75 % water ("In vivo estimation
# of water content in cerebral white matter of brain tumour patients and normal individuals"); at
# 1.5 T, healthy white matter has .66 s (Rooney et al. 2007).
_SWELLING = 1.3
# Where N4 ends by the usual settings: ITK divides a volume of BraTS into parts of 30 x 30 x 19 mm,
# ANTsR into parts of 25 mm.
_CORRECTION_MM = (20, 40)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acquisition:
    """One image: its sequence, and what is not perfect about it.

    Attributes:
        sequence: Pulses and times.
        noise: Standard deviation in each channel as a part of the brain's mean signal.
        bias: Standard deviation of the logarithm of the image's own bias field.
        blur_mm: Standard deviation of the point spread along x, y and z; a slice of thickness d
            has .42 d.
        ghost: Part of the signal that motion puts half a field of view away, along y.
        black: Part of the mean signal that is cut off below, as windows do; where negative, that is
            added to everything, as rescaling may.
        gamma: Power by which later processing bends intensities.
        gain: Scanner units of a signal of 1.
    """

    sequence: Sequence
    noise: float
    bias: float = 0.04
    blur_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ghost: float = 0.0
    black: float = 0.0
    gamma: float = 1.0
    gain: float = _SCANNER_UNITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One examination.

    Attributes:
        acquisitions: Modality to how it is acquired.
        tesla: Field strength.
        dose: Contrast agent beyond what varies between patients anyway, 1 for the standard dose.
        relaxation: Standard deviation of the logarithm of each tissue's T1 and T2.
        receive_bias: That of the bias field of the coil, which all images share.
        center: How much brighter the middle of the head is than its border, as a logarithm.
        correction_mm: Distance of the control points of the smooth field that was divided out
            afterwards, by which bias is corrected and some anatomy flattened; None for no
            correction.
        swelling: Least T1 of edema and of low-grade tumor over that of white matter; 0 for any.
    """

    acquisitions: Mapping[str, Acquisition]
    tesla: float = 3.0
    dose: float = 1.0
    relaxation: float = 0.03
    receive_bias: float = 0.1
    center: float = 0.0
    correction_mm: float | None = None
    swelling: float = 0.0


def fixed(rng: np.random.Generator, scanner: str) -> Protocol:
    """The sequences of a scanner; noise varies by a fifth between patients and gain by 25 %."""
    return Protocol(
        acquisitions={
            name: Acquisition(
                sequence=sequence,
                noise=NOISE[name] * rng.uniform(0.8, 1.2),
                gain=_SCANNER_UNITS * np.exp(0.25 * rng.standard_normal()),
            )
            for name, sequence in SCANNERS[scanner].items()
        }
    )


def draw(rng: np.random.Generator) -> Protocol:
    """Draws an examination as it may come from any hospital.

    Ranges are wider than those of single guidelines, as later processing (resampling, filters,
    intensity normalization) is among what they stand for; docs/results/realism.md says what they
    cover.
    """
    # BraTS has T1 mostly in 2D and T1c mostly in 3D (Menze et al. 2015).
    enhanced = _draw_prepared(rng) if rng.random() < 0.8 else _draw_spin_echo(rng)
    native = _draw_spin_echo(rng) if rng.random() < 0.7 else _draw_prepared(rng)
    sequences = {
        "t1": enhanced if rng.random() < 0.4 else native,
        "t1c": enhanced,
        "t2": Sequence(
            repetition_ms=rng.uniform(3000, 9000),
            echo_ms=rng.uniform(80, 120),
            transfer=rng.uniform(0.0, 0.35),
        ),
        "t2f": _draw_flair(rng),
    }
    left = 0.0 if rng.random() < 0.5 else 1.0  # of the bias, where it has been corrected
    distance_mm = float(np.exp(rng.uniform(*np.log(_CORRECTION_MM))))
    return Protocol(
        acquisitions={
            name: _draw(rng, name, sequence, left) for name, sequence in sequences.items()
        },
        tesla=float(rng.choice([1.5, 3.0])),
        dose=rng.uniform(0.6, 2.0),
        relaxation=rng.uniform(0.02, 0.14),
        receive_bias=left * rng.uniform(0.03, 0.42),
        center=left * rng.uniform(-0.1, 0.5),
        # The scanner has removed what it measured; what is corrected afterwards is mostly anatomy.
        correction_mm=None if left else distance_mm,
        swelling=_SWELLING,
    )


def _draw_spin_echo(rng: np.random.Generator) -> Sequence:
    """A T1-weighted spin echo, scanned slice by slice.

    TR of 518 to 700 ms is what a trial asks of three makers' scanners at 1.5 and 3 T (Connick et
    al. 2018, doi 10.1136/bmjopen-2018-021944, table 4), here with some more on both sides. With a
    longer TR, edema at 1.5 T has recovered and is as bright as white matter. The pulses of other
    slices transfer magnetization, as in T2.
    """
    return Sequence(
        repetition_ms=rng.uniform(400, 800),
        echo_ms=rng.uniform(7, 18),
        transfer=rng.uniform(0.0, 0.2),
    )


def _draw_prepared(rng: np.random.Generator) -> Sequence:
    """A T1-weighted 3D sequence after an inversion."""
    return Sequence(
        repetition_ms=rng.uniform(1500, 2500),
        echo_ms=rng.uniform(2, 5),
        inversion_ms=rng.uniform(670, 1000),
        inverted=rng.uniform(0.85, 1.0),
        inflow=rng.uniform(1.0, 1.5),
    )


def _draw_flair(rng: np.random.Generator) -> Sequence:
    """A TI that nulls CSF or comes near it: T1 of CSF is 4.3 s.

    The trial of `_draw_spin_echo` has a TE of 100 to 128 ms.
    """
    repetition = rng.uniform(7000, 11000)
    null = 4300 * np.log(2 / (1 + np.exp(-repetition / 4300)))
    return Sequence(
        repetition_ms=repetition,
        echo_ms=rng.uniform(80, 150),
        inversion_ms=float(null * rng.uniform(0.86, 1.04)),
    )


def _draw(rng: np.random.Generator, name: str, sequence: Sequence, left: float) -> Acquisition:
    """What is not perfect about one image, its own bias field times `left`."""
    blur = rng.uniform(0.0, 0.4, 3)
    in_3d = name in ("t1", "t1c") and sequence.inversion_ms is not None
    if rng.random() < (0.15 if in_3d else 0.5):  # thick slices, mostly axial
        axis = rng.choice(3, p=[0.05, 0.05, 0.9])
        blur[axis] = 0.42 * rng.uniform(2, 9 if axis == 2 else 5)
    # On T2, most of the brain is far below the mean, where a window or gamma bends contrasts most.
    dim = name == "t2"
    return Acquisition(
        sequence=sequence,
        noise=NOISE[name] * float(np.exp(rng.uniform(*np.log([0.25, 3.5])))),
        bias=left * rng.uniform(0.02, 0.4 if name == "t2f" else 0.26),  # as measured
        blur_mm=(float(blur[0]), float(blur[1]), float(blur[2])),
        ghost=max(0.0, rng.uniform(-0.03, 0.03)),
        black=rng.uniform(-0.2, 0.2 if dim else 0.35) if rng.random() < 0.5 else 0.0,
        gamma=float(np.exp((0.15 if dim else 0.2) * rng.standard_normal())),
        gain=_SCANNER_UNITS * float(np.exp(0.5 * rng.standard_normal())),
    )
