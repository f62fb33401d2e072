"""Two modalities that look swapped: swaps are found, and odd contrasts are not taken for swaps."""

import functools
from itertools import combinations

import pytest

from cdm_jax.data import contrast, grids
from cdm_jax.data.dataset import random_protocols
from cdm_jax.data.subjects import find_subjects
from cdm_jax.phantom import PhantomSettings, simulate_patient
from tests.test_doctor import REAL, SMALL

# Under version 3 of the random protocols some of these were told to look swapped at one time: T1
# and T1c of different sequences, or T1 like T2.
ODD = [
    (random_protocols(64, 400), 85),
    (PhantomSettings(seed=5, protocol="random", shape=(48, 54, 43), voxel_mm=4.0), 63),
    (PhantomSettings(seed=6, protocol="random", shape=(48, 54, 43), voxel_mm=4.0), 465),
    (PhantomSettings(seed=11, protocol="random", **SMALL), 287),
]
CLEAR = PhantomSettings(seed=31, protocol="random", shape=(48, 54, 43), voxel_mm=4.0)


@functools.cache
def images(settings, index):
    simulated = simulate_patient(settings, index).images
    return {name: image.T for name, image in simulated.items()}


def after_swap(volumes, one, other):
    return volumes | {one: volumes[other], other: volumes[one]}


@pytest.mark.parametrize(("settings", "index"), ODD)
def test_an_odd_contrast_is_no_swap(settings, index):
    volumes = images(settings, index)
    assert contrast.swapped(volumes) is None
    for number in (2, 3):
        for names in combinations(volumes, number):
            assert contrast.swapped({name: volumes[name] for name in names}) is None


@pytest.mark.parametrize("pair", list(combinations(("t1", "t1c", "t2", "t2f"), 2)))
def test_each_swap_is_found(pair):
    volumes = images(CLEAR, 4)
    assert contrast.swapped(volumes) is None
    assert contrast.swapped(after_swap(volumes, *pair)) == pair


@pytest.mark.slow
def test_swaps_of_real_patients_are_found(real_data):
    names = ("t1", "t1c", "t2", "t2f")
    patterns = {name: REAL[name] for name in names}
    subjects = find_subjects(real_data, modalities=names, patterns=patterns)
    assert len(subjects) == 4
    for subject in subjects:
        volumes = grids.read_on_one_grid({name: subject.images[name] for name in names}).volumes
        assert contrast.swapped(volumes) is None
        for pair in (("t1", "t2"), ("t2", "t2f"), ("t1", "t1c"), ("t1c", "t2")):
            assert contrast.swapped(after_swap(volumes, *pair)) == pair
