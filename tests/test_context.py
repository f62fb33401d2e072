"""Systems that see a slice's neighbors: what they see, what they paint, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdm_jax
from benchmarks import networks
from cdm_jax import checkpoint, commands, inference, run, sampling, shapes
from cdm_jax.cards import JUDGED
from cdm_jax.data.native import read_native
from cdm_jax.errors import UserError
from cdm_jax.evaluate import evaluate_run
from cdm_jax.methods import base
from cdm_jax.preflight import check_settings
from cdm_jax.tasks import Task, given_in, task_of
from configs import brats, phantom
from tests import helpers

ALL = ("t1", "t1c", "t2", "t2f")
FIXED = Task(sources=("t1", "t2"), targets=("t1c", "t2f"), context=1)
ANY = Task(sources=ALL, targets=ALL, context=1)
SIDE = 32
INDICES = (2, 3, 4, 6, 7)  # z of the stored slices, with a gap


def config_of(argument, context=1):
    config = phantom.get_config(f"{argument},smoke")
    config.data.context = context
    return config


def system_of(argument, context=1):
    """A smoke system with parameters at random, without a training."""
    config = config_of(argument, context)
    state = shapes.start(config, config.stage, shapes.example(config, 4))
    draws = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: np.asarray(draws.normal(0, 0.1, leaf.shape), leaf.dtype), state
    )
    provenance = checkpoint.Provenance(config=config, batch_size=4, split="", scales={})
    return inference.system_of(base.model_of(state), provenance, 3)


def volume(modalities, seed=0, indices=INDICES):
    """Stored slices of noise, above the background everywhere."""
    shape = (len(indices), SIDE, SIDE, modalities)
    return np.random.default_rng(seed).integers(1, 2**16, shape, np.uint16)


def painted(system, slices, indices=INDICES):
    sampler = sampling.SubjectSampler(system, 1)
    stored = {"source": system.sources_of(slices, indices)}
    return sampler.volumes(stored, jax.random.key(0))["mean"]


def stored(task, number=64, seed=0):
    """A stored batch, every second slice mirrored, the neighbors those of other noise."""
    sources, draws = len(task.sources), np.random.default_rng(seed)
    size = (number, 4, 4)
    return {
        "images": draws.integers(1, 2**16, (*size, len(task.modalities)), np.uint16),
        "neighbors": draws.integers(1, 2**16, (*size, 2 * task.context * sources), np.uint16),
        "mirrored": np.arange(number) % 2 == 0,
        "known": np.ones((number, sources), bool),
    }


compiled_batch = jax.jit(Task.batch, static_argnums=0, static_argnames="training")


def batch_of(task, batch, key=1, **options):
    return jax.device_get(compiled_batch(task, batch, jax.random.key(key), **options))


@pytest.mark.parametrize("task", [FIXED, ANY], ids=["fixed", "any"])
def test_a_slice_and_its_neighbors_are_mirrored_varied_and_hidden_alike(task):
    """Where its neighbors are the slice itself, all three stay the same."""
    task = dataclasses.replace(task, gain=0.5, gamma=0.5)
    batch, number = stored(task), len(task.sources)
    batch["neighbors"] = np.tile(batch["images"][..., :number], 2)
    found = batch_of(task, batch, training=True)["source"]
    assert found.shape[-1] == 3 * number
    np.testing.assert_array_equal(found, np.tile(found[..., :number], 3))


@pytest.mark.parametrize("task", [FIXED, ANY], ids=["fixed", "any"])
def test_a_batch_is_that_without_context_and_the_neighbors(task):
    plain = dataclasses.replace(task, context=0)
    batch = stored(task)
    expected, found = (batch_of(one, batch, training=True) for one in (plain, task))
    number = len(task.sources)
    np.testing.assert_array_equal(found["source"][..., :number], expected["source"])
    for name in expected.keys() - {"source"}:
        np.testing.assert_array_equal(found[name], expected[name])
    beside = found["source"][1, ..., number:]  # of a slice that is not mirrored
    shown = np.rint((beside + 1) * 32767.5)
    np.testing.assert_array_equal(shown[shown > 0], batch["neighbors"][1][shown > 0])


def test_what_is_hidden_is_hidden_in_the_neighbors_too():
    batch = stored(ANY)
    found = batch_of(ANY, batch)
    given = found["weight"] == 0
    shown = (found["source"] > -1).all(axis=(1, 2))
    np.testing.assert_array_equal(shown, np.tile(given, 3))
    changed = dict(batch)
    for name, times in (("images", 1), ("neighbors", 2)):
        hidden = ~np.tile(given, times)[:, None, None]
        changed[name] = np.where(hidden, 65535 - batch[name], batch[name])
    again = batch_of(ANY, changed)
    np.testing.assert_array_equal(again["source"], found["source"])


@pytest.mark.parametrize("argument", ["mrm", "m1", "mrm,any", "m1,any"])
@pytest.mark.parametrize("context", [0, 1, 2])
def test_shapes_are_those_of_the_pipeline(argument, context):
    config = config_of(argument, context)
    task = task_of(config.data)
    made = jax.eval_shape(task.batch, shapes.stored_shapes(config, 5), jax.random.key(0))
    assert made == shapes.example(config, 5)
    assert shapes.source_channels(config.data) == made["source"].shape[-1]


# More channels of the first convolution, of the two 1x1 convolutions that see the sources, and of
# the means of the sources in MDN's encoder.
MORE = {
    ("mrm", "brats"): 0,
    ("m1", "brats"): 4 * (9 * 64 + 64 + 2),
    ("m1_1x1", "brats"): 4 * (9 * 64 + 64 + 2),
    ("cunet", "brats"): 4 * (9 * 64 + 64 + 2),
    ("mdn", "brats"): 4 * (9 * 32 + 384),
    ("m1", "any"): 8 * (9 * 64 + 64 + 4),
    ("mdn", "any"): 8 * (9 * 32 + 384),
    ("mrm", "any"): 0,
}


@pytest.mark.parametrize(("stage", "task"), MORE)
def test_parameters_are_more_by_the_channels_of_the_neighbors(stage, task):
    """Mask channels stay one a modality."""
    counts = []
    for context in (0, 1):
        config = brats.get_config(stage + (",any" if task == "any" else ""))
        config.data.context = context
        counts.append(sum(network.parameters() for network in networks.networks(config, stage)))
    assert counts[1] - counts[0] == MORE[stage, task]


@pytest.mark.parametrize("argument", ["m1", "cunet"])
@pytest.mark.parametrize("context", [0, 1])
def test_a_slice_changes_its_own_images_and_those_of_its_neighbors(argument, context):
    system, slices = system_of(argument, context), volume(4)
    before = painted(system, slices)
    changed = {1: (0, 1, 2), 2: (1, 2), 3: (3, 4)} if context else {n: (n,) for n in (1, 2, 3)}
    for place, others in changed.items():
        moved = slices.copy()
        moved[place, ..., :2] = 65535 - moved[place, ..., :2]
        after = painted(system, moved)
        differs = np.any(after != before, axis=(1, 2, 3))
        assert tuple(np.flatnonzero(differs)) == others
    moved = slices.copy()
    moved[..., 2:] = 0  # targets are not looked at
    np.testing.assert_array_equal(painted(system, moved), before)


def test_whole_volumes_are_painted_from_channels_put_together_by_hand():
    system, slices = system_of("m1"), volume(4)
    own = slices[..., :2].astype(np.float32) * np.float32(2 / 65535) - 1
    nothing = np.full_like(own[0], -1)
    below = np.stack([nothing, own[0], own[1], nothing, own[3]])
    above = np.stack([own[1], own[2], nothing, own[4], nothing])
    sources = jnp.asarray(np.concatenate([own, below, above], axis=-1))
    synthesize = jax.jit(system.method.synthesize, static_argnums=3)
    expected = synthesize(system.model, sources, jax.random.key(0), 1)[0]
    np.testing.assert_allclose(painted(system, slices), expected, atol=1e-5)


@pytest.mark.parametrize("argument", ["m1", "m1,any"])
def test_the_mask_is_that_of_the_slice_alone(argument):
    """In whole volumes and in validation: the neighbors show brain where the slice has none."""
    system = system_of(argument)
    if "any" in argument:
        system = inference.restricted(system, ("t1", "t2"), ("t1c", "t2f"))
    slices = volume(4)
    slices[1, :10, :, :2] = 0
    images = painted(system, slices)
    np.testing.assert_array_equal(images[1, :10], 0)
    assert images[1, 10:].any() and images[0, :10].any() and images[2, :10].any()
    sources = base.to_model_range(jnp.asarray(system.sources_of(slices, INDICES)))
    targets = base.to_model_range(jnp.asarray(slices[..., 2:]))
    keys = jax.random.split(jax.random.key(0), len(slices))
    batch = {"source": sources, "target": targets}
    values, pictures = jax.jit(system.method.validate)(system.model, batch, keys)
    np.testing.assert_allclose(pictures["synthesis"], images, atol=1e-5)
    np.testing.assert_array_equal(values["brain_pixels"][1], [22 * SIDE] * 2)
    np.testing.assert_allclose(pictures["source"] * 65535, slices[..., :2], atol=0.02)


@pytest.mark.parametrize("stage", ["m1", "cunet"])
def test_a_hidden_modality_influences_nothing_that_is_made(stage):
    """Neither in the slice nor in its neighbors, whatever the batch holds there."""
    system = system_of(f"{stage},any")
    assert task_of(system.provenance.config.data).is_any
    pattern = inference.restricted(system, ("t1", "t2"), ("t1c", "t2f"))
    slices = volume(4)
    given = slices[..., ::2]
    expected = painted(pattern, given)
    batch = {
        "images": slices,
        "neighbors": system.sources_of(slices, INDICES)[..., 4:],
        "mirrored": np.zeros(5, bool),
        "known": np.ones((5, 4), bool),
    }
    # A task of one pattern, which is drawn for every slice.
    task = dataclasses.replace(ANY, favored=("t1", "t2"), share=1.0)
    made, synthesize = [], jax.jit(system.method.synthesize, static_argnums=3)
    for change in (0, 12345):
        moved = dict(batch)
        for name in ("images", "neighbors"):
            moved[name] = batch[name].copy()
            moved[name][..., 1::2] ^= np.uint16(change)
        sources = jnp.asarray(batch_of(task, moved)["source"])
        np.testing.assert_array_equal(given_in(sources[..., :4]), [[True, False] * 2] * 5)
        keys = inference.slice_keys(jax.random.key(0), 0, 5)
        images = synthesize(system.model, sources, keys, 1)[0]
        made.append(np.asarray(images[..., 1::2]))
    np.testing.assert_array_equal(*made)
    np.testing.assert_allclose(made[0], expected, atol=1e-5)


def test_a_modality_that_a_slice_itself_lacks_is_hidden_in_its_neighbors_too():
    system = system_of("m1,any")
    sources = base.to_model_range(jnp.asarray(system.sources_of(volume(4), INDICES)))
    lacking = sources.at[..., 1].set(-1)  # only the slice's own T1c is empty
    whole = lacking.at[..., 5::4].set(-1)
    synthesize = jax.jit(system.method.synthesize, static_argnums=3)
    images = [synthesize(system.model, one, jax.random.key(0), 1) for one in (lacking, whole)]
    np.testing.assert_array_equal(*images)


def test_mrm_learns_the_same_with_neighbors_and_without():
    states = []
    for context in (0, 1):
        config = config_of("mrm", context)
        method, task = base.create(config), task_of(config.data)
        draws = np.random.default_rng(0)
        batch = {
            "images": draws.integers(0, 2**16, (4, SIDE, SIDE, 4), np.uint16),
            "neighbors": draws.integers(0, 2**16, (4, SIDE, SIDE, 4), np.uint16),
            "mirrored": np.ones(4, bool),
        }
        floats = batch_of(task, batch, training=True)
        state = jax.jit(method.init)(jax.random.key(0), floats, {})
        states.append(jax.jit(method.update)(state, floats, jax.random.key(1)))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("context", [-1, 0.5, True, "1"])
def test_a_context_that_is_no_number_of_slices_is_refused_in_one_line(context):
    config = phantom.get_config("m1,smoke")
    with config.unlocked(), config.ignore_type():
        config.data.context = context
    with pytest.raises(
        UserError, match=r"^data\.context .* is no number of slices: use 0 for .*1$"
    ):
        check_settings(config, "m1")


@pytest.mark.parametrize("stage", ["pix2pix", "resvit_cnn", "diffusion", "rdm", "segmenter"])
def test_systems_that_see_single_slices_refuse_neighbors(stage):
    config = phantom.get_config(f"{stage},smoke")
    check_settings(config, stage)
    config.data.context = 1
    with pytest.raises(UserError, match=rf"^{stage} sees single slices: .*data\.context=0 for it$"):
        check_settings(config, stage)


def test_runs_of_former_versions_have_no_context_and_go_on_without(tmp_path):
    saved, config = phantom.get_config("m1,smoke"), phantom.get_config("m1,smoke")
    with saved.unlocked():
        del saved.data.context
    assert task_of(saved.data).context == 0
    assert shapes.example(saved, 2) == shapes.example(config, 2)
    run.check_same(config, saved, ("data", "m1"), tmp_path)
    config.data.context = 1
    with pytest.raises(UserError, match=r"data\.context: None -> 1"):
        run.check_same(config, saved, ("data", "m1"), tmp_path)


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    """Config, workdir and patients of a tiny run that sees neighbors, and of its segmenter."""
    workdir = helpers.copy_run(finished_run, tmp_path_factory.mktemp("context") / "run")
    for stage in helpers.STAGES:
        config = helpers.smoke_config(stage, context=1)
        config.validation.share = 100.0  # every slice
        dataset = helpers.train(stage, workdir, config)
    helpers.train("segmenter", workdir)
    config = helpers.smoke_config("cdm", context=1)
    config.checkpoint.use = "last"
    return config, workdir, dataset


@pytest.mark.slow
def test_validation_and_evaluation_see_the_same_neighbors(trained):
    """Slices that are read one by one in training, and whole volumes."""
    config, workdir, dataset = trained
    config = config.copy_and_resolve_references()
    config.evaluate.update({"part": "validation", "systems": ("m1",), "conventions": ("paper",)})
    records = evaluate_run(config, workdir, dataset)
    lines = (workdir / "m1/metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines if "validation/loss" in line][-1]
    for target in ("t1c", "t2f"):
        expected = np.mean([r["rows"]["m1"]["paper"][target]["psnr"] for r in records])
        assert logged[f"validation/psnr_{target}"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_every_row_is_scored_and_judged_with_neighbors(trained):
    config, workdir, dataset = trained
    records = evaluate_run(config, workdir, dataset)
    assert len(records) == len(dataset.test)
    rows = {
        "copy",
        "regression",
        "m1",
        "cunet",
        "cunet/mean_of_2",
        "cunet/shuffled",
        "cunet/oracle",
    }
    assert all(rows <= set(record["rows"]) for record in records)
    assert len(list((workdir / "evaluation" / JUDGED.format("test")).glob("*.json"))) == len(
        records
    )
    assert "sources with 1 more to each side" in (workdir / "m1/MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_synthesis_is_what_the_system_makes_of_a_prepared_subject(trained):
    _, workdir, dataset = trained
    model, subject = cdm_jax.load(workdir / "m1"), dataset.test[0]
    files = dataset.subjects[subject.subject_id]
    made = model.synthesize({name: files.images[name] for name in ("t1", "t2")})
    brain = read_native(files, ("t1", "t2"), ("t1", "t2")).brain
    drawn = sampling.SubjectSampler(model.system, 1).draw(subject, subject.slices, brain)
    for target, volumes in drawn.items():
        scale = model.system.provenance.scales[target]
        image = np.moveaxis(made[target].get_fdata(), (0, 1, 2), (2, 1, 0))
        np.testing.assert_allclose(image, volumes["mean"] * scale, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_each_pattern_of_a_run_for_whatever_is_missing_is_scored(finished_run, tmp_path):
    workdir = helpers.copy_run(finished_run, tmp_path / "run")
    config = helpers.smoke_config("any", context=1)
    config.evaluate.update({"patterns": ("t1+t2", "t1"), "conventions": ("volume",), "rows": ()})
    commands.train(config=config, workdir=workdir)
    for pattern, missing in (("t1+t2", {"t1c", "t2f"}), ("t1", {"t1c", "t2", "t2f"})):
        (path, *_) = (workdir / "evaluation/test" / pattern).glob("*.json")
        rows = json.loads(path.read_text())["rows"]
        assert {"cunet", "cunet/shuffled", "cunet/oracle", "m1", "regression"} <= set(rows)
        assert all(set(scores["volume"]) == missing for scores in rows.values())
