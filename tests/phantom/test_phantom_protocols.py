"""What is drawn for a random protocol, and what a fixed one holds."""

import dataclasses

import numpy as np
import pytest

from cdm_jax.phantom import protocols
from cdm_jax.phantom import scan as scanning

MIXED = protocols.fixed(np.random.default_rng(0), "mixed")


def drawn_protocols(count):
    return [protocols.draw(np.random.default_rng(seed)) for seed in range(count)]


def test_random_protocols_vary_and_the_fixed_one_does_not():
    drawn = [protocols.draw(np.random.default_rng(seed)) for seed in range(40)]
    assert {protocol.tesla for protocol in drawn} == {1.5, 3.0}
    for name in MIXED.acquisitions:
        acquisitions = [protocol.acquisitions[name] for protocol in drawn]
        for value in ("noise", "gamma", "gain", "bias"):
            assert np.ptp([getattr(one, value) for one in acquisitions]) > 0, (name, value)
        assert len({one.sequence for one in acquisitions}) == 40
    prepared = [p.acquisitions["t1"].sequence.inversion_ms is not None for p in drawn]
    assert 5 < sum(prepared) < 35
    same = [p.acquisitions["t1c"].sequence == p.acquisitions["t1"].sequence for p in drawn]
    assert 5 < sum(same) < 38
    fixed = [protocols.fixed(np.random.default_rng(seed), "mixed") for seed in range(4)]
    for name, sequence in protocols.SCANNERS["mixed"].items():
        assert {p.acquisitions[name].sequence for p in fixed} == {sequence}


def test_t1c_is_mostly_prepared_and_t1_mostly_not():
    drawn = [protocols.draw(np.random.default_rng(seed)).acquisitions for seed in range(400)]
    prepared = {
        name: np.mean([one[name].sequence.inversion_ms is not None for one in drawn])
        for name in ("t1", "t1c")
    }
    assert prepared["t1c"] == pytest.approx(0.8, abs=0.06)
    assert prepared["t1"] == pytest.approx(0.4 * 0.8 + 0.6 * 0.3, abs=0.07)


def test_random_sequences_have_times_that_radiologists_use():
    for protocol in drawn_protocols(60):
        for name in ("t1", "t1c"):
            sequence = protocol.acquisitions[name].sequence
            if sequence.inversion_ms is None:
                assert 400 <= sequence.repetition_ms <= 800
        assert 80 <= protocol.acquisitions["t2f"].sequence.echo_ms <= 150


def test_swollen_tissue_relaxes_slower_than_white_matter():
    wild = dataclasses.replace(drawn_protocols(1)[0], relaxation=0.14)
    ratios = {}
    for name, protocol in (("drawn", wild), ("any", dataclasses.replace(wild, swelling=0.0))):
        libraries = [
            scanning._vary_tissues(np.random.default_rng(seed), protocol) for seed in range(100)
        ]
        ratios[name] = np.array(
            [
                [one[wet].t1_ms / one["white"].t1_ms for wet in ("edema", "low_grade")]
                for one in libraries
            ]
        )
    assert ratios["drawn"].min() == pytest.approx(1.3)
    assert ratios["any"].min() < 1
    held = ratios["any"] >= 1.3
    np.testing.assert_array_equal(ratios["drawn"][held], ratios["any"][held])


def test_bias_is_left_or_corrected_in_random_patients_and_left_in_fixed_ones():
    drawn = drawn_protocols(200)
    left = [protocol for protocol in drawn if protocol.receive_bias]
    corrected = [protocol.correction_mm for protocol in drawn if not protocol.receive_bias]
    assert len(left) / 200 == pytest.approx(1 / 2, abs=0.1)
    assert all(protocol.correction_mm is None for protocol in [*left, MIXED])
    assert 20 <= min(corrected) < 22 and 36 < max(corrected) <= 40
