"""From tissue to signal: relaxation, contrast agent, pulse sequences and noise.

Times are in ms, concentrations in mmol/l, signals in units of the signal of fully relaxed CSF.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

# Longitudinal relaxivity of gadobutrol in plasma at 3 T, 4.97 l/(mmol s) (Szomolanyi et al. 2019).
RELAXIVITY = 4.97e-3  # l/(mmol ms)
# T1 of white and gray matter grows as the field to the power of .38 (Rooney et al. 2007); T2 falls
# by a tenth from 1.5 to 3 T (Stanisz et al. 2005).
_T1_POWER, _T2_POWER = 0.38, -0.14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tissue:
    """What a tissue looks like to the scanner.

    Attributes:
        t1_ms: Longitudinal relaxation time without contrast agent.
        t2_ms: Transverse relaxation time.
        density: Proton density, 1 for CSF.
        uptake: Contrast agent in mmol/l after a standard dose.
    """

    t1_ms: float
    t2_ms: float
    density: float
    uptake: float


# T1 of white and gray matter: Wansapura et al. 1999, 3 T; their T2 and the T1 of blood: Stanisz et
# al. 2005, 3 T. T2 of blood is an effective one, as flowing blood loses the echo and looks dark at
# long TE.
# CSF: subarachnoid space, 3 T (PMC10696635). Proton densities of
# white and gray matter and CSF: BrainWeb (Kwan et al. 1999). Tumor: T1 rises from edema to solid
# tumor as in de Blank et al. 2019 (MR fingerprinting, 3 T). All else (deep gray matter, choroid
# plexus, meninges, chronic lesions, the tumor's T2, density and uptake) is chosen to give the
# contrasts that are seen in BraTS.
TISSUES = {
    "white": Tissue(t1_ms=832.0, t2_ms=69.0, density=0.77, uptake=0.015),
    "gray": Tissue(t1_ms=1331.0, t2_ms=99.0, density=0.86, uptake=0.03),
    "deep_gray": Tissue(t1_ms=1180.0, t2_ms=76.0, density=0.84, uptake=0.03),
    "csf": Tissue(t1_ms=4300.0, t2_ms=1900.0, density=1.0, uptake=0.0),
    "blood": Tissue(t1_ms=1932.0, t2_ms=40.0, density=0.85, uptake=1.0),
    "choroid": Tissue(t1_ms=2000.0, t2_ms=250.0, density=0.95, uptake=0.6),
    "meninges": Tissue(t1_ms=1000.0, t2_ms=60.0, density=0.8, uptake=0.35),
    "chronic_lesion": Tissue(t1_ms=1350.0, t2_ms=175.0, density=0.87, uptake=0.02),
    "edema": Tissue(t1_ms=1450.0, t2_ms=190.0, density=0.89, uptake=0.03),
    "low_grade": Tissue(t1_ms=1650.0, t2_ms=210.0, density=0.9, uptake=0.03),
    "enhancing": Tissue(t1_ms=1550.0, t2_ms=150.0, density=0.88, uptake=0.25),
    "necrosis": Tissue(t1_ms=2300.0, t2_ms=260.0, density=0.94, uptake=0.02),
    "cavity": Tissue(t1_ms=4000.0, t2_ms=1600.0, density=1.0, uptake=0.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """A spin-echo sequence, with an inversion pulse before it if `inversion_ms` is given.

    Attributes:
        repetition_ms: TR.
        echo_ms: TE.
        inversion_ms: TI.
        inverted: Effective part of the magnetization that is turned over, 1 for a full inversion;
            the readout trains of 3D sequences leave less.
        transfer: Part of the signal of all but fluids that is lost to magnetization transfer, as
            where a turbo spin echo excites many slices (Melki and Mulkern 1992).
        inflow: Signal of blood over that of blood at rest; in 3D gradient echoes, fresh blood that
            no pulse has reached yet is brighter.
    """

    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None
    inverted: float = 1.0
    transfer: float = 0.0
    inflow: float = 1.0


def is_fluid(tissue: Tissue) -> bool:
    """Whether it is water without macromolecules: CSF, or what fills a cavity."""
    return bool(tissue.t2_ms > 1000)


def at_field(tissue: Tissue, tesla: float) -> Tissue:
    """The tissue in another field than 3 T; fluids relax alike in every field."""
    if is_fluid(tissue):
        return tissue
    ratio = tesla / 3.0
    return dataclasses.replace(
        tissue,
        t1_ms=tissue.t1_ms * ratio**_T1_POWER,
        t2_ms=tissue.t2_ms * ratio**_T2_POWER,
    )


def signal(sequence: Sequence, t1_ms: Any, t2_ms: Any, density: Any) -> Any:
    """Magnitude of the spin-echo signal, for TE much shorter than TR; arguments broadcast.

    `density * |1 - exp(-TR/T1)| * exp(-TE/T2)`, or, after inversion of the part e,
    `density * |1 - (1 + e) exp(-TI/T1) + e exp(-TR/T1)| * exp(-TE/T2)` (Bernstein, King and Zhou
    2004, Handbook of MRI Pulse Sequences, chapter 14).
    """
    relaxed = np.exp(-sequence.repetition_ms / t1_ms)
    if sequence.inversion_ms is None:
        recovered = 1 - relaxed
    else:
        part = sequence.inverted
        recovered = np.abs(1 - (1 + part) * np.exp(-sequence.inversion_ms / t1_ms) + part * relaxed)
    return density * recovered * np.exp(-sequence.echo_ms / t2_ms)


def enhance(t1_ms: Any, concentration: Any) -> Any:
    """T1 in ms with contrast agent: 1/T1 = 1/T1_0 + r1 C; arguments broadcast."""
    return 1 / (1 / t1_ms + RELAXIVITY * concentration)


def rician(
    rng: np.random.Generator, magnitude: Float[np.ndarray, "*n"], sigma: float
) -> Float[np.ndarray, "*n"]:
    """The magnitude of a complex signal with noise `sigma` in each channel (Gudbjartsson 1995)."""
    real, imaginary = sigma * rng.standard_normal((2, *magnitude.shape), dtype=np.float32)
    return np.hypot(magnitude + real, imaginary)
