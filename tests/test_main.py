"""The command line as a user meets it: as a subprocess, with one line for each mistake."""

import shlex
import subprocess
import sys

import pytest

from cdm_jax import main as command_line
from tests.helpers import copy_run


def call(*arguments, capsys):
    code = command_line.main(["cdm_jax.main", *arguments])
    return code, capsys.readouterr().err


MISTAKES = {
    "unknown command": (["trian"], "unknown command 'trian': allowed are train, evaluate"),
    "unknown stage": (["--config=configs/brats.py:mnd"], "unknown stage 'mnd': allowed are mrm"),
    "unknown value": (["--config=configs/brats.py:mdn,sise=64"], "unknown value 'sise'"),
    "value of a wrong type": (["--config=configs/brats.py:mdn,size=big"], "size=<int>"),
    "no such config": (["--config=configs/brast.py:mdn"], "configs/brast.py"),
    "unknown key": (
        ["--config=configs/phantom.py:mdn", "--config.mdn.widht=3"],
        "widht",
    ),
    "key of a wrong type": (
        ["--config=configs/phantom.py:mdn", "--config.mdn.width=wide"],
        "wide",
    ),
    "a value after a space": (["--config", "configs/brats.py:mrm"], "data.root is empty"),
    "a file as folder": (
        ["--workdir=pyproject.toml"],
        "Not a directory: 'pyproject.toml/patients'",
    ),
    "no data": (["--config=configs/brats.py:mrm"], "data.root is empty"),
    "missing folder": (
        ["--config=configs/brats.py:mrm", "--config.data.root=nowhere"],
        "data.root nowhere is not a folder",
    ),
    "no run": (["evaluate", "--workdir=nowhere"], "no trained run in nowhere"),
    "no workdir": (["evaluate"], "evaluate needs --workdir"),
    "no input": (["synthesize", "--workdir=nowhere"], "--input=<folder"),
    "no phantom": (["phantom", "--config=configs/brats.py:mrm"], "has no phantom"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line(mistake, capsys, tmp_path, monkeypatch, pytestconfig):
    arguments, expected = MISTAKES[mistake]
    monkeypatch.chdir(pytestconfig.rootpath)
    if not any(a.startswith("--workdir") for a in arguments) and mistake != "no workdir":
        arguments = [*arguments, f"--workdir={tmp_path}"]
    code, error = call(*arguments, capsys=capsys)
    assert code in (1, 2)
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


UNFIT = {
    "--config.mrm.heads=3": "cannot divide mrm.width by mrm.heads: 32 / 3 leaves a remainder; use",
    "--config.mrm.patch=0": "mrm.patch 0 is too small: use 1 or more",
    "--config.cunet.groups=5": "cunet.groups 5 do not divide all of cunet.features (8, 8, 16, 8)",
    "--config.data.copies=('t1',)": "name one of the sources ('t1', 't2') for each of the targets",
}


@pytest.mark.parametrize("override", UNFIT)
def test_a_value_that_does_not_fit_is_answered_in_one_line(
    override, finished_run, capsys, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    config = f"--config=configs/phantom.py:{'cunet' if 'cunet' in override else 'mrm'},smoke"
    code, error = call(config, override, f"--workdir={finished_run}", capsys=capsys)
    assert code == 1
    assert UNFIT[override] in error
    assert error.count("\n") == 1


def test_a_missing_predecessor_is_named_with_the_same_command_for_its_stage(
    finished_run, tmp_path, capsys, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    workdir = copy_run(finished_run, tmp_path / "cunet", ("mrm",))
    others = [
        *("--workdir", str(workdir), f"--config.data.root={workdir / 'patients'}"),
        "--config.cunet.features=(8, 8, 16, 8)",
    ]
    for config in (["--config={}"], ["--config", "{}"]):
        given = [part.format("configs/phantom.py:cunet,smoke,size=32") for part in config]
        code, error = call("train", *given, "--config.pipeline=('cunet',)", *others, capsys=capsys)
        assert code == 1
        assert error.count("\n") == 1
        message, _, command = error.partition(" by ")
        assert message.startswith("error: stage cunet needs a finished mdn in ")
        asked = [part.format("configs/phantom.py:mdn,smoke,size=32") for part in config]
        assert shlex.split(command) == ["python", "-m", "cdm_jax.main", "train", *asked, *others]


@pytest.mark.slow
def test_the_whole_pipeline_runs_as_a_command_and_again_in_no_time(tmp_path, pytestconfig):
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:cdm,smoke"]
    command.append(f"--workdir={tmp_path}")
    first = subprocess.run(
        command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert "Convention volume" in first.stdout
    for row in ("copy", "brain_mean", "regression", "cunet/oracle", "cunet/shuffled", "m1"):
        assert row in first.stdout
    again = subprocess.run(
        command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert again.stdout.count("is finished") == 4
    assert "Traceback" not in first.stderr + again.stderr


@pytest.mark.slow
def test_a_mistake_in_a_subprocess_leaves_no_traceback(tmp_path, pytestconfig):
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:nothing"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
