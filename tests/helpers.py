"""What several test files need: a tiny run of every stage, and a way to change its config."""

import contextlib
import logging
import pathlib
import shutil
from collections.abc import Iterator

import jax
import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdm_jax import inference, intervals, sampling
from cdm_jax.data.dataset import Dataset, load_dataset
from cdm_jax.data.subjects import find_subjects
from cdm_jax.evaluate import evaluate_run
from cdm_jax.records import Record
from cdm_jax.train import train_stage
from configs import phantom
from configs.common import SYSTEMS

STAGES = ("mrm", "mdn", "cunet", "m1")


def smoke_config(stage: str, **data) -> ConfigDict:
    """The phantom's smallest config, logging every step so that a test may stop anywhere."""
    config = phantom.get_config(f"{stage},smoke")
    config.data.update(data)
    config.data.num_workers = 1
    for name in SYSTEMS["all"]:
        config[name].train.log_every = 1
    return config


def train(stage: str, workdir: pathlib.Path, config: ConfigDict | None = None) -> Dataset:
    """Trains one stage of the smoke config."""
    config = config or smoke_config(stage)
    dataset = load_dataset(config, workdir)
    train_stage(config, workdir, dataset)
    return dataset


def copy_run(
    run: pathlib.Path, workdir: pathlib.Path, stages: tuple[str, ...] = ()
) -> pathlib.Path:
    """A new workdir with a run's patients, split, cache and finished stages."""
    for name in ("patients", "cache", *stages):
        shutil.copytree(run / name, workdir / name)
    shutil.copy(run / "split.json", workdir / "split.json")
    return workdir


def oblique_patient(run: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """A run's first patient with T1 and T2 alone, in a folder of its name, on an oblique grid."""
    subject = find_subjects(run / "patients", modalities=("t1", "t2"))[0]
    folder = root / subject.subject_id
    folder.mkdir(parents=True)
    affine = np.array([[0, 4.5, 0.3, -70], [-5, 0, 0, 90], [0, 0.4, 5.5, -60], [0, 0, 0, 1.0]])
    for code, path in enumerate(subject.images.values(), start=2):
        volume = np.asanyarray(nib.load(path).dataobj)[:, ::-1].transpose(1, 0, 2)
        image = nib.Nifti1Image(volume, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=code)  # so that T1 and T2 can be told apart
        nib.save(image, folder / path.name)
    return folder


def save_wide_intervals(stage_folder: pathlib.Path, samples: int) -> intervals.Intervals:
    """Calibrated intervals of a stage, made up."""
    system = inference.load_system(stage_folder, 8)
    made = intervals.Intervals(
        checkpoint=system.fingerprint,
        split=system.provenance.split,
        samples=samples,
        level=0.9,
        method="conformal",
        guarantee="guaranteed: at least 90.0%",
        guaranteed_level=0.9,
        patients=9,
        patients_needed=9,
        floor=0.01,
        multipliers={"t1c": 3.0, "t2f": 5.0},
    )
    intervals.save_intervals(stage_folder, made)
    return made


def drawn_subjects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects whom samplers draw from now on, as they are drawn."""
    seen, original = [], sampling.SubjectSampler.draw

    def watched(self, subject, slices, brain):
        seen.append(subject.subject_id)
        return original(self, subject, slices, brain)

    monkeypatch.setattr(sampling.SubjectSampler, "draw", watched)
    return seen


@contextlib.contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What JAX says of each function that it compiles within, known at the end."""
    lines: list[str] = []
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lines
    messages = [record.getMessage() for record in caplog.records]
    lines += [message for message in messages if "Finished XLA comp" in message]


def evaluate(workdir: pathlib.Path) -> tuple[Dataset, list[Record]]:
    """Scores every row of C-UNet and M1 where that was not done; the patients and their records."""
    config = smoke_config("cdm")
    dataset = load_dataset(config, workdir)
    return dataset, evaluate_run(config, workdir, dataset)


def evaluated(run: pathlib.Path, workdir: pathlib.Path) -> tuple[ConfigDict, pathlib.Path, Dataset]:
    """A copy of an evaluated run: what `publish_run` takes."""
    copy_run(run, workdir, (*STAGES, "evaluation"))
    config = smoke_config("cdm")
    return config, workdir, load_dataset(config, workdir)
