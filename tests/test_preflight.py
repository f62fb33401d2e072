"""What can be refused is refused before any patient is simulated or prepared."""

import shutil

import pytest

from cdm_jax import commands
from cdm_jax import main as command_line
from cdm_jax.data.splits import Split, save_split
from cdm_jax.preflight import check_evaluation, check_training
from configs import brats
from tests.helpers import smoke_config


class PreparedError(Exception):
    """The command came as far as the patients."""


@pytest.fixture
def call(tmp_path, monkeypatch, pytestconfig, capsys):
    """`call(*arguments)`: what a command says that must end before the patients."""
    monkeypatch.chdir(pytestconfig.rootpath)

    def prepared(*_):
        raise PreparedError

    monkeypatch.setattr(commands, "_dataset", prepared)

    def run(*arguments, workdir=tmp_path):
        code = command_line.main(["cdm_jax.main", *arguments, f"--workdir={workdir}"])
        error = capsys.readouterr().err
        assert (code, error.count("\n"), error[:7]) == (1, 1, "error: ")
        return error

    return run


TRAINING = {
    "a stage before it": ("mdn", (), "stage mdn needs a finished mrm in "),
    "stages in a wrong order": (
        "cdm",
        ("--config.pipeline=('mdn', 'mrm')",),
        "stage mdn needs a finished mrm in ",
    ),
    "a stage that there is not": (
        "cdm",
        ("--config.pipeline=('mrm', 'mnd')",),
        "the config has no stage mnd (did you mean mdn?)",
    ),
    "an option of the first stage": ("cdm", ("--config.mrm.loss=l3",), "unknown mrm.loss 'l3'"),
    "an option of the last stage": ("cdm", ("--config.m1.groups=5",), "m1.groups 5 do not divide"),
    "a size": ("m1", ("--config.data.size=33",), "data.size 33 cannot be halved"),
    "a size of patches": ("mrm", ("--config.data.size=36",), "cannot divide data.size by mrm.mask"),
    "neighbors": ("m1", ("--config.data.context=-1",), "data.context -1 is no number of slices"),
    "neighbors of a compared system": (
        "pix2pix",
        ("--config.data.context=1",),
        "pix2pix sees single slices: only CDM's stages",
    ),
    "an optimizer": (
        "mrm",
        ("--config.mrm.optimizer.schedule=linaer",),
        "unknown schedule 'linaer'",
    ),
    "devices": ("mrm", ("--config.parallel=jitt",), "unknown parallel 'jitt'"),
    "a batch of nothing": (
        "mrm",
        ("--config.mrm.train.batch_size_per_device=0",),
        "mrm.train.batch_size_per_device is 0: use 1 or more",
    ),
    "no steps": (
        "mrm",
        ("--config.mrm.train.num_steps=0", "--config.mrm.train.num_epochs=0"),
        "num_steps and num_epochs are 0",
    ),
}
EVALUATION = {
    "a row": (("--config.evaluate.rows=('cunett',)",), "no row is called cunett"),
    "a part": (("--config.evaluate.part=tset",), "evaluate.part is one of train, validation, test"),
    "a convention": (("--config.evaluate.conventions=('vol',)",), "no convention is called 'vol'"),
    "a stage that is no system": (
        ("--config.evaluate.systems=('mrm',)",),
        "evaluate.systems: mrm makes no images",
    ),
    "a system that there is not": (
        ("--config.evaluate.systems=('cunett',)",),
        "the config has no stage cunett (did you mean cunet?)",
    ),
    "a batch": (("--config.evaluate.batch_size=0",), "evaluate.batch_size is 0: use 1 or more"),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_training_is_refused_before_the_patients(kind, call):
    stage, overrides, expected = TRAINING[kind]
    assert expected in call("train", f"--config=configs/phantom.py:{stage},smoke", *overrides)


@pytest.mark.parametrize("kind", EVALUATION)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_evaluation_is_refused_before_the_patients(command, kind, call):
    overrides, expected = EVALUATION[kind]
    assert expected in call(command, "--config=configs/phantom.py:cdm,smoke", *overrides)


def test_preparing_is_refused_where_the_networks_do_not_fit_the_size(call):
    given = ["--config=configs/phantom.py:cdm,smoke", "--config.data.size=36"]
    assert "cannot divide data.size by mrm.mask_cell" in call("prepare", *given)


NOTHING_TRAINED = {
    "evaluate": ([], "cunet has not been trained to its end in "),
    "calibrate": ([], "no checkpoint in "),
    "report": ([], "nothing has been evaluated in "),
}


@pytest.mark.parametrize("command", NOTHING_TRAINED)
def test_without_a_trained_system_it_is_said_before_the_patients(command, call):
    flags, expected = NOTHING_TRAINED[command]
    assert expected in call(command, "--config=configs/phantom.py:cdm,smoke", *flags)


def test_a_level_that_is_none_is_said_before_the_patients(call):
    assert "level" in call("calibrate", "--config=configs/phantom.py:cdm,smoke", "--level=2")


SETTINGS = {
    "of its own": ("mrm", "mrm.mask_ratio=0.3", "was made with other settings (mrm.mask_ratio"),
    "of a stage before it": ("mdn", "mrm.mask_ratio=0.3", "other settings (mrm.mask_ratio"),
    "of the data": ("m1", "data.minimum_brain=0.3", "other settings (data.minimum_brain"),
    "of the batch": (
        "mrm",
        "mrm.train.batch_size_per_device=3",
        "was trained with batches of",
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_was_trained_with_other_settings_is_refused_before_the_patients(
    kind, finished_run, call
):
    stage, override, expected = SETTINGS[kind]
    given = [f"--config=configs/phantom.py:{stage},smoke", f"--config.{override}"]
    assert expected in call("train", *given, workdir=finished_run)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_another_split_is_refused_before_the_patients(command, finished_run, call, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run / "m1", workdir / "m1")
    save_split(Split(train=("a", "b"), validation=("c",), test=("d",)), workdir / "split.json")
    given = "--config=configs/phantom.py:m1,smoke"
    assert "m1 was trained on split" in call(command, given, workdir=workdir)


def test_what_fits_comes_to_the_patients(finished_run, call, tmp_path):
    for command, stage, workdir in (
        ("train", "cdm", tmp_path),
        ("train", "cunet", finished_run),
        ("evaluate", "cdm", finished_run),
        ("calibrate", "cdm", finished_run),
        ("prepare", "cdm", tmp_path),
    ):
        with pytest.raises(PreparedError):
            call(command, f"--config=configs/phantom.py:{stage},smoke", workdir=workdir)


def test_the_papers_setting_of_every_system_passes(tmp_path):
    config = brats.get_config("all")
    check_training(config, config.pipeline, tmp_path)
    check_evaluation(config, tmp_path, planned=config.pipeline)


def test_a_config_may_leave_systems_out_that_are_not_trained(finished_run):
    config = smoke_config("all")
    config.evaluate.systems = ("cunet", "m1")
    check_evaluation(config, finished_run)
