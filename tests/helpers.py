"""What several test files need: a tiny run of every stage, and a way to change its config."""

import contextlib
import logging
import pathlib
import shutil
from collections.abc import Iterator

import jax
import pytest
from ml_collections import ConfigDict

from cdm_jax.data.dataset import Dataset, load_dataset
from cdm_jax.evaluate import evaluate_run
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


@contextlib.contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What JAX says of each function that it compiles within, known at the end."""
    lines: list[str] = []
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lines
    messages = [record.getMessage() for record in caplog.records]
    lines += [message for message in messages if "Finished XLA comp" in message]


def evaluated(run: pathlib.Path, workdir: pathlib.Path) -> tuple[ConfigDict, pathlib.Path, Dataset]:
    """A run's C-UNet and M1 scored in a workdir of their own: what `publish_run` takes."""
    copy_run(run, workdir, STAGES)
    config = smoke_config("cunet")
    config.evaluate.systems = ("cunet", "m1")
    dataset = load_dataset(config, workdir)
    evaluate_run(config, workdir, dataset)
    return config, workdir, dataset
