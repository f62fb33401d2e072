"""What a training starts from."""

import jax
import numpy as np
import pytest

from cdm_jax import checkpoint, shipped
from cdm_jax.data import ranges
from cdm_jax.data.dataset import random_protocols
from cdm_jax.errors import UserError
from cdm_jax.initial import find_initial
from cdm_jax.phantom import PhantomSettings
from configs import brats
from configs import shipped as recipe
from experiments import shipped as recipe_of_shipped
from tests.helpers import copy_run, smoke_config, train

STAGES = ("mrm", "mdn", "cunet")


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """A finished C-UNet as a shipped model."""
    folder = tmp_path_factory.mktemp("shipped")
    shipped.export(finished_run / "cunet", folder)
    return folder


def leaves(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def test_an_exported_model_is_the_trained_one_to_eight_bits(finished_run, exported):
    model, provenance = shipped.load_model(exported)
    trained, saved = checkpoint.load_model(finished_run / "cunet")
    assert provenance == saved
    found, expected = leaves(model), leaves(trained)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], leaf, rtol=2**-8, atol=1e-7, err_msg=name)
        if "statistics" in name:
            np.testing.assert_array_equal(found[name], leaf)


def test_an_export_has_the_same_bytes_each_time(finished_run, exported, tmp_path):
    shipped.export(finished_run / "cunet", tmp_path)
    for name in (shipped.WEIGHTS, shipped.DESCRIPTION):
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


def test_an_export_says_the_ranges_that_its_checkpoint_does_not(
    finished_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(ranges, "FEWEST", 1)
    assert not checkpoint.load_model(finished_run / "cunet")[1].ranges  # of so few patients
    recipe_of_shipped.export(finished_run, tmp_path)
    low, high = shipped.load_model(tmp_path)[1].ranges["mean brightness of t1"]
    assert 0 < low <= high < 1


def test_damaged_weights_are_named(exported, tmp_path):
    with pytest.raises(UserError, match=r"model\.json is missing: install cdm_jax again"):
        shipped.load_model(tmp_path)
    content = (exported / shipped.WEIGHTS).read_bytes()
    (tmp_path / shipped.WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / shipped.DESCRIPTION).write_bytes((exported / shipped.DESCRIPTION).read_bytes())
    with pytest.raises(UserError, match=r"weights\.npz and model\.json are not those of one model"):
        shipped.load_model(tmp_path)


@pytest.mark.parametrize("stage", ["mrm", "cunet"])
def test_a_stage_starts_from_that_of_a_finished_run(finished_run, tmp_path, stage):
    config = smoke_config(stage)
    config.init_from = str(finished_run)
    # So small a rate that the parameters stay where they start from.
    config[stage].optimizer.update({"learning_rate": 1e-12, "weight_decay": 0.0})
    copy_run(finished_run, tmp_path / "run", STAGES[: STAGES.index(stage)])
    train(stage, tmp_path / "run", config)
    found, _ = checkpoint.load_model(tmp_path / "run" / stage, "last")
    expected, _ = checkpoint.load_model(finished_run / stage)
    for name, leaf in leaves(expected["params"]).items():
        np.testing.assert_allclose(leaves(found["params"])[name], leaf, atol=1e-6, err_msg=name)


def test_the_start_is_refused_where_there_is_none_or_another(finished_run, tmp_path):
    assert find_initial("", "mrm") is None
    with pytest.raises(UserError, match=r"no checkpoint in .*train this stage first"):
        find_initial(str(tmp_path), "mrm")
    config = smoke_config("mrm")
    config.init_from = str(finished_run)
    config.mrm.width = 64
    copy_run(finished_run, tmp_path / "run")
    with pytest.raises(UserError, match=r"has other networks \(.* there, .* here"):
        train("mrm", tmp_path / "run", config)


def test_the_shipped_model_has_the_stages_that_fine_tuning_takes():
    for stage in STAGES:
        config = brats.get_config(f"{stage},finetune")
        assert config.init_from == shipped.NAME
        described = recipe.get_config(stage)
        for name in ("patch", "width", "depth", "blocks", "encoder", "features", "mask_cell"):
            assert config[stage].get(name) == described[stage].get(name)
    with pytest.raises(UserError, match="the shipped model has no stage m1, only cunet, mdn, mrm"):
        find_initial(shipped.NAME, "m1")


def test_simulated_patients_to_mix_in_are_those_that_the_shipped_model_saw():
    config = recipe.get_config("any")
    assert PhantomSettings(**config.phantom.to_dict()) == random_protocols(
        config.data.size, config.phantom.num_patients
    )
