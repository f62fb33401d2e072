"""Checkpoints load without the run that wrote them."""

import json
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from cdm_jax import checkpoint, parallel, seals
from cdm_jax.config import differences, plain, to_config
from cdm_jax.data import ranges
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.run import Run, stage_keys
from cdm_jax.train import train_stage
from configs import phantom
from tests.helpers import copy_run, smoke_config


def test_a_config_survives_json():
    config = phantom.get_config("cdm,size=32")
    assert to_config(plain(config)) == config


def test_differences_name_the_values_that_changed():
    ours, saved = phantom.get_config("cdm"), phantom.get_config("cdm")
    ours.mdn.width = 7
    ours.mrm.width = 9
    assert differences(ours, saved, ["mdn"]) == ["mdn.width: 256 -> 7"]


def test_a_setting_that_is_new_differs_where_it_is_on():
    ours, saved = phantom.get_config("cdm"), phantom.get_config("cdm")
    del saved.data.simulated.share
    assert differences(ours, saved, ["data"]) == []
    ours.data.simulated.share = 0.5
    assert differences(ours, saved, ["data"]) == ["data.simulated.share: None -> 0.5"]


def test_an_option_that_is_gone_differs_unless_it_had_the_value_that_is_left():
    ours, saved = phantom.get_config("cdm"), phantom.get_config("cdm")
    saved.mrm.mask_fill = "token"
    saved.mrm.foreground_only = False
    assert differences(ours, saved, ["mrm"]) == []
    saved.mrm.mask_fill = "zero"
    assert differences(ours, saved, ["mrm"]) == ["mrm.mask_fill: zero -> token"]
    saved.reggan.cycle = False  # its states had other trees
    assert differences(ours, saved, ["reggan"]) == ["reggan.cycle: False -> None"]


@pytest.mark.parametrize(
    ("key", "left", "gone"),
    [
        ("cunet.condition_decoder", False, True),
        ("cunet.fusion", "add", "film"),
        ("mrm.mask_fill", "token", "zero"),
        ("mrm.normalization", "zscore", "per_sample"),
    ],
)
def test_a_former_model_is_read_if_what_it_computes_is_left(key, left, gone):
    config, (stage, name) = phantom.get_config("cunet"), key.split(".")
    config[stage][name] = left
    base.create(config)
    config[stage][name] = gone
    with pytest.raises(UserError, match=f"trained with {key}={gone}, which this version cannot"):
        base.create(config)


def test_loading_gives_numpy_arrays_and_where_they_come_from(finished_run):
    model, provenance = checkpoint.load_model(finished_run / "cunet")
    assert isinstance(model["params"]["null"], np.ndarray)
    assert provenance.config.stage == "cunet"
    assert set(provenance.scales) == {"t1", "t2", "t1c", "t2f"}
    assert set(model["frozen"]) == {"mrm", "mdn"}


def test_a_run_says_the_ranges_of_its_training_patients(finished_run, monkeypatch):
    config = checkpoint.load_model(finished_run / "cunet")[1].config
    monkeypatch.setattr(ranges, "FEWEST", 1)
    run = Run(
        config=config,
        folder=finished_run / "cunet",
        dataset=load_dataset(config, finished_run),
        method=base.create(config),
        devices=parallel.all_devices(config.parallel),
        keys=stage_keys(config),
    )
    said = run.provenance()
    assert {"mean brightness of t1", "correlation of t1 and t2"} <= said.ranges.keys()
    assert not any("t1c" in name or "t2f" in name for name in said.ranges)  # it makes those
    described = json.loads(json.dumps(said.to_json()))
    assert checkpoint.Provenance.from_json(described) == said
    del described["ranges"]  # as in checkpoints of earlier versions
    assert checkpoint.Provenance.from_json(described).ranges == {}


def test_an_empty_folder_is_refused_by_name(tmp_path):
    assert not checkpoint.finished(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("told", [{}, {"format": checkpoint.FORMAT - 1}])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(told, tmp_path, monkeypatch):
    (tmp_path / checkpoint.FOLDER / "20").mkdir(parents=True)
    saved = types.SimpleNamespace(metadata={}, custom_metadata={"config": {}, "split": "x", **told})
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
    workdir = copy_run(finished_run, tmp_path / "run")
    code = SAVE_ELSEWHERE.format(root=str(pytestconfig.rootpath), workdir=str(workdir))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pytestconfig.rootpath)
    model, provenance = checkpoint.load_model(workdir / "m1")
    assert provenance.config.m1.train.batch_size_per_device == 4
    assert all(np.isfinite(leaf).all() for leaf in model["params"]["network"]["Conv_0"].values())


def damage(checkpoint_folder):
    """Flips a bit of the largest file of a checkpoint."""
    path = max(
        (p for p in checkpoint_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    finished_run, tmp_path, caplog
):
    workdir = copy_run(finished_run, tmp_path / "run")
    config = smoke_config("mrm")
    config.mrm.train.update({"num_steps": 4, "checkpoint_every": 2, "validate_every": 100})
    dataset = load_dataset(config, workdir)
    train_stage(config, workdir, dataset)
    stage = workdir / "mrm"
    final = (stage / "metrics.jsonl").read_text()
    model, _ = checkpoint.load_model(stage, "last")
    newest = stage / checkpoint.FOLDER / "4"
    damage(newest)
    caplog.clear()
    assert checkpoint.load_model(stage, "last")[1].config == checkpoint.provenance(stage).config
    assert f"{newest} is damaged" in caplog.text
    assert not checkpoint.finished(stage)  # that of step 2 is the newest that is intact
    train_stage(config, workdir, dataset)
    assert (stage / "damaged" / "checkpoints-4").is_dir()
    assert (stage / "metrics.jsonl").read_text() == final
    again, _ = checkpoint.load_model(stage, "last")
    jax.tree.map(np.testing.assert_array_equal, again, model)


def test_a_damaged_checkpoint_without_a_seal_is_refused_by_its_path(finished_run, tmp_path):
    stage = tmp_path / "m1"
    shutil.copytree(finished_run / "m1", stage)
    (stage / seals.FILE).unlink()
    newest = stage / checkpoint.FOLDER / str(checkpoint.latest_step(stage))
    shutil.rmtree(newest / "state")
    with pytest.raises(UserError, match=f"{newest} cannot be read .*: if its disk .* move it"):
        checkpoint.load_model(stage, "last")


@pytest.mark.parametrize("missing", ["metadata", "custom_metadata"])
def test_an_incomplete_description_is_refused_by_the_checkpoints_path(
    missing, tmp_path, monkeypatch
):
    """What Orbax gives, beside a warning, where parts of the arrays are gone."""
    (tmp_path / checkpoint.FOLDER / "20").mkdir(parents=True)
    whole = {"metadata": {}, "custom_metadata": {"format": checkpoint.FORMAT}}
    found = types.SimpleNamespace(**whole | {missing: None})
    monkeypatch.setattr(checkpoint.ocp, "metadata", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"20 cannot be read \(its description is incomplete\)"):
        checkpoint.model_shapes(tmp_path)


def test_a_cut_or_added_file_breaks_a_seal_and_an_unsealed_checkpoint_is_taken(tmp_path):
    folder = tmp_path / "checkpoints" / "7"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"1234")
    assert seals.is_intact(folder)
    seals.seal(folder)
    assert seals.is_intact(folder)
    (folder / "b").touch()
    assert not seals.is_intact(folder)
    (folder / "b").unlink()
    (folder / "a").write_bytes(b"123")
    assert not seals.is_intact(folder)
    seals.unseal(folder)
    assert seals.is_intact(folder)
