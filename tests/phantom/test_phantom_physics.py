"""Signal equations, contrast agent and noise, against simulation and closed forms."""

import numpy as np
import pytest
from scipy import integrate, stats

from cdm_jax.phantom import physics
from cdm_jax.phantom.physics import TISSUES, Sequence
from cdm_jax.phantom.protocols import SCANNERS


def relax(start, duration, t1):
    """Longitudinal magnetization after `duration`, by integrating the Bloch equation."""
    solution = integrate.solve_ivp(
        lambda _, m: (1 - m) / t1, (0, duration), [start], rtol=1e-9, atol=1e-12
    )
    return solution.y[0, -1]


def tissue_signal(scanner, modality, name):
    tissue = TISSUES[name]
    return physics.signal(SCANNERS[scanner][modality], tissue.t1_ms, tissue.t2_ms, tissue.density)


@pytest.mark.parametrize("t1", [500.0, 1300.0, 4000.0])
def test_spin_echo_agrees_with_the_bloch_equation(t1):
    # A 90 degree pulse leaves nothing along the field; the next comes TR later.
    expected = 0.8 * relax(0, 600, t1) * np.exp(-20 / 90)
    actual = physics.signal(Sequence(repetition_ms=600.0, echo_ms=20.0), t1, 90.0, 0.8)
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t1", [500.0, 1300.0, 4000.0])
def test_inversion_recovery_agrees_with_the_bloch_equation(t1):
    before_inversion = relax(0, 9000 - 2400, t1)
    expected = abs(relax(-before_inversion, 2400, t1)) * np.exp(-100 / 90)
    sequence = Sequence(repetition_ms=9000.0, echo_ms=100.0, inversion_ms=2400.0)
    assert physics.signal(sequence, t1, 90.0, 1.0) == pytest.approx(expected, rel=1e-6)


def test_half_an_inversion_leaves_half_the_magnetization_to_turn_over():
    sequence = Sequence(repetition_ms=1e9, echo_ms=0.0, inversion_ms=500.0, inverted=0.5)
    expected = relax(-0.5, 500, 900.0)
    assert physics.signal(sequence, 900.0, 80.0, 1.0) == pytest.approx(expected, rel=1e-6)


def test_tissue_relaxes_faster_in_a_weaker_field_and_fluid_does_not():
    white, csf = (physics.at_field(TISSUES[name], 1.5) for name in ("white", "csf"))
    # Rooney et al. 2007 measured 656 ms in white matter at 1.5 T.
    assert white.t1_ms == pytest.approx(640, rel=0.05)
    assert white.t2_ms == pytest.approx(1.1 * TISSUES["white"].t2_ms, rel=0.02)
    assert csf == TISSUES["csf"]
    assert physics.at_field(TISSUES["gray"], 3.0) == TISSUES["gray"]


def test_limits_of_the_signal():
    proton_density = Sequence(repetition_ms=1e9, echo_ms=0.0)
    assert physics.signal(proton_density, 1000.0, 80.0, 0.7) == pytest.approx(0.7)
    nulling = Sequence(repetition_ms=1e9, echo_ms=0.0, inversion_ms=1000 * np.log(2))
    assert physics.signal(nulling, 1000.0, 80.0, 0.7) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scanner", SCANNERS)
def test_normal_tissue_has_the_contrasts_of_each_modality(scanner):
    t1, t2, t2f = (
        {name: tissue_signal(scanner, modality, name) for name in TISSUES}
        for modality in ("t1", "t2", "t2f")
    )
    assert t1["white"] > 1.1 * t1["gray"] > 1.5 * t1["csf"]
    assert t2["csf"] > 1.5 * t2["gray"] > 1.8 * t2["white"]
    assert t2f["csf"] < 0.2 * t2f["white"]
    assert t2f["edema"] > 1.3 * t2f["gray"] > 1.3 * t2f["white"]
    assert t1["necrosis"] < t1["edema"] < t1["white"]


def test_contrast_agent_adds_to_the_relaxation_rate():
    assert physics.enhance(1500.0, 0.0) == pytest.approx(1500)
    # At 1 mmol/l gadobutrol alone relaxes in 1 / 4.97 s.
    assert physics.enhance(1e12, 1.0) == pytest.approx(1000 / 4.97)
    rates = 1 / physics.enhance(1500.0, np.array([0.0, 0.2, 0.4]))
    assert np.diff(rates, 2)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("magnitude", [0.0, 1.0, 5.0])
def test_noise_has_the_rice_distribution(magnitude):
    noisy = physics.rician(np.random.default_rng(0), np.full(100_000, magnitude), 0.5)
    expected = stats.rice(magnitude / 0.5, scale=0.5)
    assert noisy.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert stats.kstest(noisy, expected.cdf).pvalue > 1e-3


def test_noise_alone_has_the_mean_of_rayleigh():
    noisy = physics.rician(np.random.default_rng(0), np.zeros(100_000), 2.0)
    assert noisy.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)
