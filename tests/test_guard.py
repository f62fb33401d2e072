"""Numbers that are not finite stop a training at their step, or are skipped and counted."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.metrics import Average

from cdm_jax import checkpoint, guard, preflight, train
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.pipeline import subjects_of_batch, training_batches
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.run import resolve
from tests.helpers import copy_run, smoke_config

BAD = 3  # the step


@pytest.fixture
def broken(finished_run, tmp_path, monkeypatch):
    """Trains M1 where one step gives a NaN: `run(where, **train settings)`, and the workdir."""
    workdir = copy_run(finished_run, tmp_path / "run")
    config = smoke_config("m1")
    dataset = load_dataset(config, workdir)
    kind = type(base.create(resolve(config, 1)))
    update = kind.update

    def run(change, **settings):
        def changed(self, state, batch, key):
            after, metrics = update(self, state, batch, key)
            return change(state.step == BAD - 1, state, after, metrics)

        monkeypatch.setattr(kind, "update", changed)
        config.m1.train.update({"log_every": 2, "num_steps": 6} | settings)
        train.train_stage(config, workdir, dataset)

    return run, workdir, dataset


def in_the_loss(bad, before, after, metrics):
    return after, metrics | {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}


def in_a_parameter(bad, before, after, metrics):
    leaves, tree = jax.tree.flatten(after.params)
    leaves[-1] = jnp.where(bad, jnp.inf, leaves[-1])
    return after.replace(params=tree.unflatten(leaves)), metrics


def nothing_happens(bad, before, after, metrics):
    kept = before.replace(step=after.step)
    return jax.tree.map(lambda old, new: jnp.where(bad, old, new), kept, after), metrics


@pytest.mark.parametrize(("where", "every"), [(in_the_loss, 100), (in_a_parameter, 1)])
def test_it_stops_with_step_subjects_and_last_good_checkpoint(broken, where, every):
    run, workdir, dataset = broken
    saved = "the last good checkpoint is 2" if every == 1 else "there is no checkpoint yet"
    with pytest.raises(
        UserError, match=rf"^m1: .* not finite at step 3 \(slices of .*{saved}"
    ) as e:
        run(where, checkpoint_every=every, validate_every=every)
    assert checkpoint.latest_step(workdir / "m1") == (2 if every == 1 else None)
    best = checkpoint.best(workdir / "m1")
    assert best is None or best.step <= 2
    named = str(e.value).partition("(slices of ")[2].partition(")")[0].split(", ")
    assert 0 < len(named) <= 4 and set(named) <= {s.subject_id for s in dataset.train}
    steps = [json.loads(x)["step"] for x in (workdir / "m1/metrics.jsonl").read_text().splitlines()]
    assert max(steps) <= 2


def leaves_of(workdir):
    return jax.tree.leaves(checkpoint.load_model(workdir / "m1", "last")[0])


def test_a_skipped_step_changes_nothing_and_is_counted(broken, tmp_path):
    run, workdir, _ = broken
    run(in_the_loss, non_finite="skip")
    lines = [json.loads(x) for x in (workdir / "m1/metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line["skipped"] for line in lines if "skipped" in line}
    assert skipped == {2: 0, 4: 1, 6: 0}
    assert all(np.isfinite(value) for line in lines for value in line.values())
    found = leaves_of(workdir)
    (workdir / "m1").rename(tmp_path / "skipped")
    run(nothing_happens)
    for ours, theirs in zip(found, leaves_of(workdir), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # another program


def test_nothing_but_skipped_steps_stops(broken):
    run, _, _ = broken
    with pytest.raises(UserError, match=r"not finite at step 3 .*all 1 steps up to 3 were skipped"):
        run(in_the_loss, non_finite="skip", log_every=1)


def test_subjects_of_a_batch_are_those_whose_slices_it_holds(finished_run):
    train_part = load_dataset(smoke_config("m1"), finished_run).train
    order = {"batch_size": 4, "seed": 3, "flips": True, "paired": True, "any_to_any": False}
    stored = list(itertools.islice(iter(training_batches(train_part, **order)), 5))
    for number, batch in enumerate(stored):
        owners = {
            subject.subject_id
            for subject in train_part
            for image in batch["images"]
            if (subject.slices == image).all(axis=(1, 2, 3)).any()
        }
        assert subjects_of_batch(train_part, number, **order) == sorted(owners)


def test_the_first_of_several_bad_steps_is_named():
    state = base.State(*[jnp.zeros(())] * 7)
    totals = {name: Average.empty() for name in ("loss", guard.FINITE)}
    for loss in (1.0, jnp.inf, 1.0, jnp.nan):
        _, totals = guard.merged(state, state, totals, {"loss": jnp.float32(loss)}, skip=False)
    with pytest.raises(UserError, match=r"at step 98 \(slices of 98\)"):
        guard.check(totals, 100, skip=False, stage="m1", subjects=lambda n: [str(n)], saved=None)


def test_other_answers_are_refused_before_patients_are_prepared():
    config = smoke_config("m1")
    config.m1.train.non_finite = "ignore"
    with pytest.raises(UserError, match="non_finite='ignore': use stop or skip"):
        preflight.check_settings(config, "m1")
