"""Checkpoints load without the run that wrote them."""

import subprocess
import sys
import types

import numpy as np
import pytest

from cdm_jax import checkpoint
from cdm_jax.errors import UserError
from configs import phantom


def test_a_config_survives_json():
    config = phantom.get_config("cdm,size=32")
    assert checkpoint.to_config(checkpoint.plain(config)) == config


def test_differences_name_the_values_that_changed():
    ours, saved = phantom.get_config("cdm"), phantom.get_config("cdm")
    ours.mdn.width = 7
    ours.mrm.width = 9
    assert checkpoint.differences(ours, saved, ["mdn"]) == ["mdn.width: 256 -> 7"]


def test_a_setting_that_is_new_differs_where_it_is_on():
    ours, saved = phantom.get_config("cdm"), phantom.get_config("cdm")
    del saved.data.simulated.share
    assert checkpoint.differences(ours, saved, ["data"]) == []
    ours.data.simulated.share = 0.5
    assert checkpoint.differences(ours, saved, ["data"]) == ["data.simulated.share: None -> 0.5"]


def test_loading_gives_numpy_arrays_and_where_they_come_from(finished_run):
    model, provenance = checkpoint.load_model(finished_run / "cunet")
    assert isinstance(model["params"]["null"], np.ndarray)
    assert provenance.config.stage == "cunet"
    assert set(provenance.scales) == {"t1", "t2", "t1c", "t2f"}
    assert set(model["frozen"]) == {"mrm", "mdn"}


def test_an_empty_folder_is_refused_by_name(tmp_path):
    assert not checkpoint.finished(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("told", [{}, {"format": checkpoint.FORMAT - 1}])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(told, tmp_path, monkeypatch):
    (tmp_path / checkpoint.FOLDER / "20").mkdir(parents=True)
    saved = types.SimpleNamespace(custom_metadata={"config": {}, "split": "x", **told})
    monkeypatch.setattr(checkpoint.ocp, "metadata", lambda *_, **__: saved)
    with pytest.raises(UserError, match=r"20 was written by another version.*train the stage anew"):
        checkpoint.provenance(tmp_path)


SAVE_ELSEWHERE = """
import jax, sys, pathlib
jax.config.update("jax_num_cpu_devices", 4)
sys.path.insert(0, {root!r})
from tests import helpers
workdir = pathlib.Path({workdir!r})
config = helpers.smoke_config("m1")
helpers.train("m1", workdir, config)
assert len(jax.devices()) == 4
"""


@pytest.mark.slow
def test_a_checkpoint_of_four_devices_loads_on_one(finished_run, tmp_path, pytestconfig):
    from tests.helpers import copy_run

    workdir = copy_run(finished_run, tmp_path / "run")
    code = SAVE_ELSEWHERE.format(root=str(pytestconfig.rootpath), workdir=str(workdir))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pytestconfig.rootpath)
    model, provenance = checkpoint.load_model(workdir / "m1")
    assert provenance.config.m1.train.batch_size_per_device == 4
    assert all(np.isfinite(leaf).all() for leaf in model["params"]["network"]["Conv_0"].values())
