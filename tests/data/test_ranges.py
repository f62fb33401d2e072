"""What the training patients look like: unseen patients seldom lie outside, other images do."""

import functools

import numpy as np
import pytest

from cdm_jax.data import ranges
from cdm_jax.data.cache import write_prepared
from cdm_jax.data.native import scale_volumes
from cdm_jax.data.prepare import PrepareSettings, prepare_images
from cdm_jax.phantom import PhantomSettings, simulate_patient

GIVEN = ("t1", "t2")
VOXEL = (6.0, 6.0, 6.0)
COHORT = PhantomSettings(shape=(34, 38, 30), voxel_mm=6.0, seed=3)
TRAINING = range(20)
UNSEEN = range(40, 80)


@functools.cache
def images(index):
    simulated = simulate_patient(COHORT, index).images
    return {name: image.T.astype(np.float32) for name, image in simulated.items()}


def prepared(volumes):
    native = scale_volumes(volumes, tuple(volumes), "patient", VOXEL)
    settings = PrepareSettings(sources=tuple(volumes), targets=(), size=48, minimum_brain=0.01)
    return prepare_images(native, settings, "patient", "patient")


def statistics(volumes):
    subject = prepared(volumes)
    return ranges.statistics(subject, subject.slices[ranges.positions(subject)], VOXEL)


@pytest.fixture(scope="module")
def known():
    """The ranges of 20 simulated patients with four modalities."""
    return ranges.ranges([statistics(images(index)) for index in TRAINING])


def inside(change):
    """Changes the brain of T2; 0 stays around it."""

    def changed(volumes):
        values = volumes["t2"].copy()
        values[values > 0] = change(values[values > 0])
        return volumes | {"t2": values}

    return changed


def half(volumes):
    return {
        name: np.where(np.arange(image.shape[2]) < image.shape[2] // 2, image, 0)
        for name, image in volumes.items()
    }


# Change of T1 and T2, and a statistic that lies outside then.
OTHERS = {
    "another contrast": (lambda v: v | {"t2": v["t1"] ** 0.9}, "correlation of t1 and t2"),
    "inverted": (inside(lambda x: x.max() + 1 - x), "mean brightness of t2"),
    "z-scored": (inside(lambda x: (x - x.mean()) / x.std()), "volume of t2 in ml"),
    "half a brain": (half, "volume of t1 in ml"),
    "squared": (inside(lambda x: (x / 1000) ** 2), "median of t2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("names", [("t1",), GIVEN, ("t1", "t1c", "t2", "t2f")])
def test_few_unseen_patients_of_the_same_kind_lie_outside(known, names):
    """Also those who lack modalities that the training patients had."""
    told = []
    for index in UNSEEN:
        volumes = images(index)
        given = {name: volumes[name] for name in names}
        told.append(ranges.outside(statistics(given), known))
    assert np.mean([bool(line) for line in told]) < 0.05, told


@pytest.mark.parametrize("change", OTHERS)
def test_what_is_clearly_another_image_lies_outside(known, change):
    change, statistic = OTHERS[change]
    for index in UNSEEN[:3]:
        volumes = images(index)
        given = {name: volumes[name] for name in GIVEN}
        assert ranges.outside(statistics(given), known) == ""
        found = statistics(change(given))
        assert ranges.outside({statistic: found[statistic]}, known)
        said = ranges.outside(found, known)
        assert said.startswith("unlike the training patients: ")
        assert said.endswith(": check the images, or expect worse results")


def test_the_sentence_says_what_was_got_and_what_they_have_the_worst_first():
    known = {"a": (0.2, 0.4), "b": (1000.0, 1700.0), "c": (0.0, 1.0), "d": (0.0, 1.0)}
    found = {"a": 0.6, "b": 345.678, "c": 9.0, "d": 5.0, "of no training patient": 7.0}
    assert ranges.outside(found, known) == (
        "unlike the training patients: c 9 (theirs 0 to 1), d 5 (theirs 0 to 1), a 0.6 (theirs 0.2 "
        "to 0.4) and 1 more: check the images, or expect worse results"
    )
    assert ranges.outside({"a": 0.5, "b": 1700, "c": -0.6}, known) == ""


def test_values_are_those_of_the_brain_and_of_the_files_voxels():
    cube = np.zeros((40, 48, 48), np.float32)  # which need not be resized
    cube[8:32, 12:36, 12:36] = 500
    cube[8:32, 12:36, 12:24] = 250
    found = statistics({"t1": cube})
    assert found["volume of t1 in ml"] == pytest.approx(24**3 * 6**3 / 1000)
    assert found["share of the frame of t1 in its largest slice"] == pytest.approx(0.25)
    assert found["mean brightness of t1"] == pytest.approx(0.75, abs=1e-4)
    assert found["5th percentile of t1"] == pytest.approx(0.5, abs=1e-4)
    assert found["95th percentile of t1"] == pytest.approx(1, abs=1e-4)


def test_the_cache_tells_the_same_as_memory(tmp_path):
    subject = prepared(images(0))
    cached = write_prepared(subject, tmp_path / "patient.npy")
    shown = cached.read_slices(ranges.positions(cached))
    assert ranges.statistics(cached, shown, VOXEL) == statistics(images(0))


def test_too_few_patients_have_no_range():
    patients = [{"rare": 1.0, "common": float(n)} for n in range(ranges.FEWEST)]
    patients += [{"common": 0.5}]
    del patients[0]["rare"]
    assert ranges.ranges(patients).keys() == {"common"}
    assert ranges.ranges(patients[:5]) == {}
