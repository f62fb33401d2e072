"""Simulated patients of BraTS' grid, for metrics and loaders: made once for all processes."""

import dataclasses
import pathlib

from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.phantom import PhantomSettings, write_cohort

GRID = PhantomSettings(num_patients=2, shape=(240, 240, 155), voxel_mm=1.0)
SMOKE = dataclasses.replace(GRID, shape=(48, 48, 36), voxel_mm=4.0)
SOURCES, TARGETS = ("t1", "t2"), ("t1c", "t2f")


def simulate(workdir: pathlib.Path, smoke: bool) -> pathlib.Path:
    """Writes the patients, unless they are there; returns their folder."""
    folder = workdir / "patients"
    write_cohort(folder, SMOKE if smoke else GRID, 1 if smoke else 0)
    return folder


def found(folder: str) -> list[Subject]:
    """The patients, with their files."""
    return find_subjects(pathlib.Path(folder), modalities=SOURCES + TARGETS)
