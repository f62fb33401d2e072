"""From tissue to signal: relaxation at 3 T, contrast agent, pulse sequences and noise.

Times are in ms, concentrations in mmol/l, signals in units of the signal of fully relaxed CSF.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

# Longitudinal relaxivity of gadobutrol in plasma at 3 T, 4.97 l/(mmol s) (Szomolanyi et al. 2019).
RELAXIVITY = 4.97e-3  # l/(mmol ms)


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


# T1 and T2 of white and gray matter: Wansapura et al. 1999, 3 T. T1 of blood: Stanisz et al. 2005,
# 3 T; its T2 is an effective one, as flowing blood loses the echo and looks dark at long TE.
# CSF: subarachnoid space, 3 T (PMC10696635). Proton densities of
# white and gray matter and CSF: BrainWeb (Kwan et al. 1999). Tumor: T1 rises from edema to solid
# tumor as in de Blank et al. 2019 (MR fingerprinting, 3 T). All else (deep gray matter, choroid
# plexus, chronic lesions, the tumor's T2, density and uptake) is chosen to give the contrasts that
# are seen in BraTS.
TISSUES = {
    "white": Tissue(t1_ms=832.0, t2_ms=79.6, density=0.77, uptake=0.015),
    "gray": Tissue(t1_ms=1331.0, t2_ms=110.0, density=0.86, uptake=0.03),
    "deep_gray": Tissue(t1_ms=1180.0, t2_ms=85.0, density=0.84, uptake=0.03),
    "csf": Tissue(t1_ms=4300.0, t2_ms=1900.0, density=1.0, uptake=0.0),
    "blood": Tissue(t1_ms=1932.0, t2_ms=40.0, density=0.85, uptake=1.0),
    "choroid": Tissue(t1_ms=2000.0, t2_ms=250.0, density=0.95, uptake=0.6),
    "chronic_lesion": Tissue(t1_ms=1350.0, t2_ms=175.0, density=0.87, uptake=0.02),
    "edema": Tissue(t1_ms=1450.0, t2_ms=190.0, density=0.89, uptake=0.03),
    "low_grade": Tissue(t1_ms=1650.0, t2_ms=210.0, density=0.9, uptake=0.03),
    "enhancing": Tissue(t1_ms=1550.0, t2_ms=150.0, density=0.88, uptake=0.25),
    "necrosis": Tissue(t1_ms=2300.0, t2_ms=260.0, density=0.94, uptake=0.02),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """A spin-echo sequence, with an inversion pulse before it if `inversion_ms` is given.

    Attributes:
        repetition_ms: TR.
        echo_ms: TE.
        inversion_ms: TI.
        noise: Typical noise as a part of the brain's mean signal.
    """

    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None
    noise: float = 0.04


# Each scanner's four sequences. The TI of the T2-FLAIR nulls CSF.
# "mixed": T1 is a plain spin echo while T1c is prepared by an inversion, as where a quick native T1
# stands beside an inversion-prepared 3D scan after contrast agent.
# "mprage": the same inversion-prepared 3D scan before and after contrast agent, other times of T2
# and T2-FLAIR, and the noise that real patients have at 1 mm (the middle of what second differences
# within the brain give for T1, T2, T1c and T2-FLAIR of eight patients).
SCANNERS = {
    "mixed": {
        "t1": Sequence(repetition_ms=600.0, echo_ms=10.0, noise=0.085),
        "t1c": Sequence(repetition_ms=2000.0, echo_ms=10.0, inversion_ms=900.0),
        "t2": Sequence(repetition_ms=5000.0, echo_ms=100.0),
        "t2f": Sequence(repetition_ms=9000.0, echo_ms=100.0, inversion_ms=2480.0),
    },
    "mprage": {
        "t1": Sequence(repetition_ms=1760.0, echo_ms=3.0, inversion_ms=950.0, noise=0.013),
        "t1c": Sequence(repetition_ms=1760.0, echo_ms=3.0, inversion_ms=950.0, noise=0.023),
        "t2": Sequence(repetition_ms=4680.0, echo_ms=85.0, noise=0.025),
        "t2f": Sequence(repetition_ms=9420.0, echo_ms=141.0, inversion_ms=2500.0, noise=0.018),
    },
}


def signal(sequence: Sequence, t1_ms: Any, t2_ms: Any, density: Any) -> Any:
    """Magnitude of the spin-echo signal, for TE much shorter than TR; arguments broadcast.

    `density * |1 - exp(-TR/T1)| * exp(-TE/T2)`, or, after inversion,
    `density * |1 - 2 exp(-TI/T1) + exp(-TR/T1)| * exp(-TE/T2)` (Bernstein, King and Zhou 2004,
    Handbook of MRI Pulse Sequences, chapter 14).
    """
    relaxed = np.exp(-sequence.repetition_ms / t1_ms)
    if sequence.inversion_ms is None:
        recovered = 1 - relaxed
    else:
        recovered = np.abs(1 - 2 * np.exp(-sequence.inversion_ms / t1_ms) + relaxed)
    return density * recovered * np.exp(-sequence.echo_ms / t2_ms)


def enhance(t1_ms: Any, concentration: Any) -> Any:
    """T1 in ms with contrast agent: 1/T1 = 1/T1_0 + r1 C; arguments broadcast."""
    return 1 / (1 / t1_ms + RELAXIVITY * concentration)


def rician(
    rng: np.random.Generator, magnitude: Float[np.ndarray, "*n"], sigma: float
) -> Float[np.ndarray, "*n"]:
    """The magnitude of a complex signal with noise `sigma` in each channel (Gudbjartsson 1995)."""
    real = magnitude + sigma * rng.standard_normal(magnitude.shape)
    return np.hypot(real, sigma * rng.standard_normal(magnitude.shape))
