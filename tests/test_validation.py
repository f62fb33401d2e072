"""Validation while training: whom it measures, and what follows from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax import checkpoint, inference, run, validation
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from cdm_jax.evaluate import evaluate_run
from cdm_jax.methods import base
from tests import helpers
from tests.helpers import copy_run, smoke_config


def config_of(**train):
    """M1 with two patients to validate on, of whom every slice is measured."""
    config = smoke_config("m1", validation_fraction=0.4)
    config.validation.share = 1e3
    config.m1.train.update(train)
    return config


def fresh_split(finished_run, workdir):
    copy_run(finished_run, workdir)
    (workdir / "split.json").unlink()
    return workdir


@pytest.fixture(scope="module")
def diverged(finished_run, tmp_path_factory):
    """A run whose rate rises far too high: nothing is as good as the first step's parameters."""
    workdir = fresh_split(finished_run, tmp_path_factory.mktemp("diverged"))
    config = config_of(validate_every=1, num_steps=5)
    config.m1.optimizer.update({"learning_rate": 100.0, "warmup_steps": 5, "clip": 0.0})
    config.m1.average_decay = 0.0
    return config, workdir, helpers.train("m1", workdir, config)


def logged(workdir):
    lines = (workdir / "m1/metrics.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        found.setdefault(line["step"], {}).update(line)
    return found


def brain_psnr(line):
    return np.mean([line[f"validation/psnr_brain_{t}"] for t in ("t1c", "t2f")])


def test_every_validation_patient_and_slice_counts_as_in_the_evaluation(diverged):
    """The last validation, against the convention `paper` over the part "validation"."""
    config, workdir, dataset = diverged
    assert len(dataset.validation) == 2
    config = config.copy_and_resolve_references()
    config.evaluate.update({"part": "validation", "systems": ("m1",), "conventions": ("paper",)})
    config.checkpoint.use = "last"
    records = evaluate_run(config, workdir, dataset)
    assert len(records) == 2
    for target in ("t1c", "t2f"):
        expected = np.mean([r["rows"]["m1"]["paper"][target]["psnr"] for r in records])
        found = logged(workdir)[5][f"validation/psnr_{target}"]
        assert found == pytest.approx(expected, abs=2e-3)


def test_the_brain_psnr_is_that_of_each_patients_voxels(diverged):
    """Against NumPy over the volumes that the last checkpoint makes of each patient."""
    _, workdir, dataset = diverged
    system = inference.load_system(workdir / "m1", 4, which="last")
    translate = system.compile(
        lambda model, batch, key: {
            "m1": system.method.synthesize(model, batch["source"], key, 1)[0]
        }
    )
    each = []
    for subject in dataset.validation:
        slices = np.asarray(subject.slices)
        made = system.volumes(translate, {"source": slices[..., :2]}, jax.random.key(0))["m1"]
        brain = (slices[..., :2] > 0).any(axis=-1)
        error = (made.astype(np.float64) - slices[..., 2:] / 65535)[brain] ** 2
        each.append(-10 * np.log10(error.mean(axis=0)).mean())
    assert brain_psnr(logged(workdir)[5]) == pytest.approx(np.mean(each), abs=1e-3)


def test_the_first_validation_comes_before_the_first_step(diverged):
    lines = logged(diverged[1])
    assert "validation/loss" in lines[0] and "loss" not in lines[0]


def test_the_best_checkpoint_differs_from_the_last_and_is_what_an_evaluation_uses(diverged):
    config, workdir, dataset = diverged
    lines = logged(workdir)
    best = max(range(1, 6), key=lambda step: brain_psnr(lines[step]))
    assert best < 5
    found = checkpoint.best(workdir / "m1")
    assert (found.step, found.metric) == (best, "psnr_brain")
    assert found.value == pytest.approx(brain_psnr(lines[best]))
    config = config.copy_and_resolve_references()
    config.evaluate.update({"part": "validation", "systems": ("m1",), "conventions": ("paper",)})
    prints, scores = {}, {}
    for which in checkpoint.CHOICES:
        config.checkpoint.use = which
        records = evaluate_run(config, workdir, dataset, name=which)
        prints[which] = records[0]["checkpoint"]["m1"]
        scores[which] = np.mean([r["rows"]["m1"]["paper"]["t1c"]["psnr"] for r in records])
    assert scores["best"] == pytest.approx(lines[best]["validation/psnr_t1c"], abs=2e-3)
    assert scores["last"] == pytest.approx(lines[5]["validation/psnr_t1c"], abs=2e-3)
    assert prints["best"] == inference.load_system(workdir / "m1", 4).fingerprint != prints["last"]


def test_training_stops_when_patience_is_spent_and_is_finished_then(diverged, tmp_path, capsys):
    config, workdir, _ = diverged
    lines = logged(workdir)
    best = max(range(1, 4), key=lambda step: brain_psnr(lines[step]))
    config = config.copy_and_resolve_references()
    config.m1.train.update({"patience": 1, "num_steps": 50})
    copy_run(workdir, tmp_path / "run")
    helpers.train("m1", tmp_path / "run", config)
    end = max(logged(tmp_path / "run"))
    assert end == best + 1
    assert f"stops early at step {end} of 50" in capsys.readouterr().out
    assert checkpoint.finished(tmp_path / "run/m1")
    helpers.train("m1", tmp_path / "run", config)
    assert "m1 is finished" in capsys.readouterr().out
    assert max(logged(tmp_path / "run")) == end


def test_an_unknown_metric_is_refused_before_the_first_step(finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "run")
    config = smoke_config("m1")
    config.m1.train.best_by = "fid"
    with pytest.raises(UserError, match="best_by='fid' is not measured here: use loss, psnr_t1c"):
        helpers.train("m1", tmp_path / "run", config)
    assert not checkpoint.latest_step(tmp_path / "run/m1")


def test_what_a_slice_is_worth_does_not_depend_on_its_batch(finished_run):
    """C-UNet draws samples: alone or with others, a slice has the same ones."""
    model, saved = checkpoint.load_model(finished_run / "cunet")
    dataset = load_dataset(smoke_config("cunet"), finished_run)
    method = base.create(saved.config)
    stored = np.asarray(dataset.test[0].slices)[4:8]
    floats = base.to_model_range(jnp.asarray(stored))
    batch = {"source": floats[..., :2], "target": floats[..., 2:]}
    keys = jax.random.split(jax.random.key(1), 4)
    whole, _ = jax.jit(method.validate)(model, batch, keys)
    part = {name: values[2:] for name, values in batch.items()}
    half, _ = jax.jit(method.validate)(model, part, keys[2:])
    for name in whole:
        np.testing.assert_allclose(half[name], whole[name][2:], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("metric", "value", "better"),
    [
        ("psnr_brain", 21.0, True),
        ("psnr_brain", 20.0, False),
        ("loss", 21.0, False),
        ("loss", 19.0, True),
    ],
)
def test_more_is_better_of_psnr_and_less_of_a_loss(metric, value, better):
    best = checkpoint.Best(step=1, metric=metric, value=20.0)
    assert validation.better(metric, value, best) == better


def test_a_metric_is_of_one_modality_or_the_mean_over_the_targets():
    metrics = {"loss": np.array(1.0), "psnr_t1c": np.array(20.0), "psnr_t2f": np.array(24.0)}
    targets = ("t1c", "t2f")
    assert validation.judged(metrics, "psnr", targets) == 22
    assert validation.judged(metrics, "psnr_t2f", targets) == 24
    assert validation.judged(metrics, "loss", targets) == 1


def test_a_validation_takes_a_bounded_share_of_the_steps_between_two(finished_run):
    length = smoke_config("m1").m1.train
    length.update({"validate_every": 100})
    # 100 steps of 8 slices pass 2400 times through the network; a tenth is shared by 4 scans.
    assert validation.slices_per_patient(0.1, length, 8, 4, passes=1) == 60
    assert validation.slices_per_patient(0.1, length, 8, 4, passes=30) == 2
    assert validation.slices_per_patient(0.1, length, 8, 400, passes=30) == 1


def test_the_slices_of_a_patient_are_drawn_by_name_and_seed(finished_run):
    one, other = load_dataset(smoke_config("m1"), finished_run).train[:2]
    total = len(one.slice_indices)
    assert validation.chosen_slices(one, total, 0) == list(range(total))
    some = validation.chosen_slices(one, 5, 0)
    assert len(set(some)) == 5 and some == sorted(some) and max(some) < total
    assert validation.chosen_slices(one, 5, 0) == some
    assert validation.chosen_slices(one, 5, 1) != some
    assert validation.chosen_slices(other, 5, 0) != some


def test_validation_settings_may_change_on_the_way(finished_run, tmp_path):
    saved = smoke_config("m1")
    config = smoke_config("m1")
    config.m1.train.update({"best_by": "loss", "patience": 3, "validate_every": 7})
    run.check_same(config, saved, ("m1",), tmp_path)
