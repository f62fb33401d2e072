"""Trainings that are killed at random moments, 20 times: a short form of the long run."""

import random

import pytest

from tests.stress import kill


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills"), [("mrm", 6), ("m1", 7), ("cyclegan", 6), (kill.PAIR, 1)]
)
def test_killed_trainings_end_as_one_that_was_left_alone(kind, kills, tmp_path):
    counts = kill.stress(kind, kills, random.Random(1), tmp_path)
    assert counts["kills"] == kills and counts["runs"] >= 1
