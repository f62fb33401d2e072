"""Every config: what it states, what it refuses, and that it builds, compiles and runs."""

import functools
import importlib
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from cdm_jax import run
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.optim import average_decay
from configs.common import SYSTEMS

FILES = ("brats", "upenn_gbm", "phantom", "phantom_upenn", "real")
STAGES = ("mrm", "mdn", "cunet", "m1")
OTHERS = [stage for stage in SYSTEMS["all"] if stage not in STAGES]
SECTIONS = ("mrm", "mdn", "cunet", "m1", "sampler")
PAPER = "small=false"  # the two configs for a CPU are small by default


def _get(file, argument=None):
    get_config = importlib.import_module(f"configs.{file}").get_config
    return get_config() if argument is None else get_config(argument)


# Arguments.


@pytest.mark.parametrize("file", FILES)
def test_every_file_knows_every_stage(file):
    for stage in {*SYSTEMS["all"], *SYSTEMS}:
        config = _get(file, stage)
        assert config.stage == stage
        assert config.data.name == file
        assert json.loads(config.to_json_best_effort())["stage"] == stage


@pytest.mark.parametrize("file", FILES)
def test_without_an_argument_everything_is_trained(file):
    assert _get(file).stage == "cdm"
    assert _get(file).to_dict() == _get(file, "cdm").to_dict()


@pytest.mark.parametrize("file", FILES)
def test_size_and_seed_change_nothing_else(file):
    config, plain = _get(file, "mdn, size=128, seed=7"), _get(file, "mdn")
    assert (config.data.size, config.seed) == (128, 7)
    config.data.size, config.seed = plain.data.size, plain.seed
    if file.startswith("phantom"):  # simulated at the size that is asked for
        assert config.phantom.shape == (128, 128, 96)
        config.phantom = plain.phantom
    assert config.to_dict() == plain.to_dict()


@pytest.mark.parametrize("file", FILES)
def test_small_and_smoke_are_smaller_and_can_be_turned_off(file):
    paper, small, smoke = (_get(file, f"cdm,{v}") for v in (PAPER, "small", "smoke"))
    assert paper.data.size > small.data.size > smoke.data.size
    assert paper.mrm.depth > small.mrm.depth > smoke.mrm.depth
    assert paper.cunet.features > small.cunet.features > smoke.cunet.features
    assert _get(file, "cdm,small=1,smoke=false").to_dict() == small.to_dict()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "gan",
            r"unknown stage 'gan' \(did you mean gcgan\?\): allowed are mrm, .*, cdm, .*, all$",
        ),
        ("", "unknown stage ''"),
        ("mrm,width=3", "unknown value 'width': allowed are size, seed, length, small, smoke"),
        ("mrm,size=big", "'size=big' should be size=<int>"),
        ("mrm,size", "'size' should be size=<int>"),
        ("mrm,seed=-1", "'seed=-1' should be seed=<int>"),
        (
            "mrm,small,length=long",
            "unknown length 'long': allowed are small, study, demo, shipped, finetune, real",
        ),
        ("mrm,length=demo", "'length' is of small networks: add 'small'"),
        ("mrm,small=2", "'small=2' should be small=<bool>"),
    ],
)
def test_bad_arguments_are_refused_by_name(argument, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        _get("brats", argument)


def test_two_configs_share_nothing():
    one, two = _get("brats", "m1"), _get("brats", "m1")
    one.m1.optimizer.learning_rate = 1.0
    assert two.m1.optimizer.learning_rate == one.cunet.optimizer.learning_rate == 1e-4


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_single_values_are_changed_on_the_command_line(monkeypatch):
    line = [
        "program",
        "--config=configs/brats.py:cunet,size=128",
        "--config.cunet.optimizer.learning_rate=3e-4",
        "--config.mdn.decouple=none",
        "--config.data.targets=('t1c',)",
        "--config.cunet.features=(8, 8, 8)",
    ]
    monkeypatch.setattr(sys, "argv", line)  # where the flag looks for what is overridden
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(line)
    config = values.config
    assert (config.stage, config.data.size) == ("cunet", 128)
    assert config.cunet.optimizer.learning_rate == 3e-4
    assert base.create(config).mdn.denoiser.decouple == "none"
    assert base.create(config).network.features == (8, 8, 8)
    assert base.create(config).network.num_targets == 1


# The paper's scale.


@pytest.mark.parametrize("file", ["brats", "upenn_gbm"])
def test_the_defaults_are_what_the_paper_states(file):
    """Section III-A, "Implementation details", and Table IV."""
    config = _get(file)
    assert config.data.size == 256
    assert set(config.data.sources) == {"t1", "t2"}
    assert set(config.data.targets) == {"t1c", "t2f"}
    assert config.data.test_fraction == 0.3
    assert config.sampler.num_steps == 30
    assert config.mdn.num_timesteps == 1000
    assert config.mdn.prediction == "x0"
    for stage in STAGES:
        assert config[stage].train.batch_size_per_device == 12
        assert config[stage].train.num_epochs == 100
        assert config[stage].train.num_steps == 0  # as many as the epochs take
        assert config[stage].optimizer.learning_rate == 1e-4
        assert config[stage].optimizer.weight_decay == 1e-5
        assert config[stage].optimizer.schedule == "constant"
    assert config.mrm.loss == config.cunet.loss == "mse"


@pytest.mark.parametrize("file", FILES)
def test_every_system_has_the_papers_batch_and_length(file):
    """But for ResViT's second stage, which officially takes half of the first one's epochs."""
    config = _get(file, f"all,{PAPER}")
    for stage in SYSTEMS["all"]:
        assert config[stage].train.batch_size_per_device == 12
        assert config[stage].train.num_epochs == (50 if stage == "resvit" else 100)


@pytest.mark.parametrize("stage", ["diffusion", "rcg"])
def test_the_large_unets_are_rematerialized_at_the_papers_scale_alone(stage):
    for variant, expected in ((PAPER, True), ("small", False), ("smoke", False)):
        config = _get("brats", f"{stage},{variant}")
        assert base.create(config).network.remat is expected


def test_half_batches_train_for_as_many_updates():
    """What is advised where memory does not reach: the length and the average stay as they are."""
    config = _get("brats", f"diffusion,{PAPER}")
    whole = run.resolve(config, 1200)
    config.diffusion.train.batch_size_per_device //= 2
    config.diffusion.optimizer.accumulate *= 2
    half = run.resolve(config, 1200)
    batches = [c.diffusion.train.num_steps for c in (whole, half)]
    assert batches == [100 * 1200 // 12 // jax.device_count() * n for n in (1, 2)]
    once, twice = (average_decay(c.diffusion) for c in (whole, half))
    assert twice**2 == pytest.approx(once)


def test_the_ablations_are_as_large_as_what_they_are_compared_with():
    """M2's single tower has as many parameters as MDN's two, at both scales (Table III)."""
    for variant in (PAPER, "small"):
        counts = {}
        for stage in ("mdn", "mdn_joint"):
            config = _get("brats", f"{stage},{variant}")
            method = base.create(config)
            y = jnp.zeros((1, method.representation.representation_width))
            context = jnp.zeros((1, config[stage].encoder.width))
            shapes = jax.eval_shape(
                method.denoiser.init, jax.random.key(0), y, jnp.zeros(1, jnp.int32), context
            )
            counts[stage] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert counts["mdn_joint"] == pytest.approx(counts["mdn"], rel=0.01)


def test_m1_is_c_unet_without_the_condition_and_nothing_else():
    config = _get("brats")
    without = config.cunet.copy_and_resolve_references()
    without.condition = "none"
    assert config.m1.to_dict() == without.to_dict()


def test_the_second_phantom_differs_from_the_first_in_its_patients_alone():
    first, second = _get("phantom"), _get("phantom_upenn")
    changed = {k for k, v in second.phantom.items() if v != first.phantom[k]}
    assert changed == {"layout", "seed", "scanner", "predictable"}
    second.phantom, second.data.name = first.phantom, first.data.name
    assert second.to_dict() == first.to_dict()


@pytest.mark.parametrize("variant", [PAPER, "small", "smoke"])
def test_all_files_train_the_same_networks(variant):
    """So that what is tested of one file holds for all; how long they train may differ."""
    first, *others = (_get(file, f"cdm,{variant}").to_dict() for file in FILES)
    for section in SECTIONS:
        for config in (first, *others):
            config[section].pop("train", None)
            config[section].pop("optimizer", None)
        for other in others:
            assert other[section] == first[section]


def _abstract_batch(config):
    length, size = config[config.stage].train.batch_size_per_device, config.data.size
    return {
        name: jax.ShapeDtypeStruct((length, size, size, len(modalities)), jnp.float32)
        for name, modalities in (("source", config.data.sources), ("target", config.data.targets))
    }


@functools.cache
def _abstract(file, stage):
    """A stage at paper scale, its batch and its state: shapes alone, which take no memory."""
    config = _get(file, f"{stage},{PAPER}")
    config[stage].train.num_steps = 1000
    method, batch = base.create(config), _abstract_batch(config)
    frozen = {}
    for needed in method.depends_on:
        state = _abstract(file, needed)[2]
        frozen[needed] = {"params": state.params, "statistics": state.statistics}
    return method, batch, jax.eval_shape(method.init, jax.random.key(0), batch, frozen)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_built_at_the_papers_scale(stage):
    _, batch, state = _abstract("brats", stage)
    assert batch["source"].shape == (12, 256, 256, 2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    "stage",
    [*STAGES, *(pytest.param(stage, marks=pytest.mark.slow) for stage in OTHERS)],
)
def test_an_update_of_every_stage_is_lowered_at_the_papers_scale(stage):
    method, batch, state = _abstract("brats", stage)
    lowered = jax.jit(method.update).lower(state, batch, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, lowered.out_info[0])
    assert jax.tree.leaves(shapes) == jax.tree.leaves(jax.tree.map(jnp.shape, state))
    assert all(value.shape == () for value in lowered.out_info[1].values())


@pytest.mark.parametrize("stage", ["cunet", "m1"])
def test_a_translation_is_lowered_at_the_papers_scale(stage):
    method, batch, state = _abstract("brats", stage)
    lowered = jax.jit(method.translate, static_argnums=3).lower(
        base.model_of(state), batch["source"], jax.random.key(0), 8
    )
    assert lowered.out_info.shape == (8 if stage == "cunet" else 1, 12, 256, 256, 2)


def _parameters(stage, part=None):
    params = _abstract("brats", stage)[2].params
    return sum(leaf.size for leaf in jax.tree.leaves(params[part] if part else params))


def _conv(side, inputs, outputs, bias=True):
    return side * side * inputs * outputs + bias * outputs


def test_mrm_is_a_small_vision_transformer_with_a_linear_head():
    """ViT-S/16 of Dosovitskiy et al., here with two modalities and fixed positions."""
    width, pixels = 384, 16 * 16
    attention = 4 * (width * width + width)
    perceptron = width * 4 * width + 4 * width + 4 * width * width + width
    blocks = 12 * (attention + perceptron + 2 * 2 * width)
    embedding = 2 * pixels * width + width + 2 * width  # patches, one bias, two mask tokens
    head = width * 2 * pixels + 2 * pixels
    assert _parameters("mrm") == blocks + embedding + 2 * width + head == 21_689_216


def test_m1_is_monais_basic_unet_but_for_biases_and_the_output_layer():
    """MONAI's BasicUNet for 2D images, two in and two out, has 7 904 002 parameters.

    It has biases before its norms, which cancel them; and one bias an output channel where
    `UpSample` has one for each of the four places. Its output layer does not see the two sources.
    """
    canceled = 2 * (64 + 64 + 128 + 256 + 512) + 2 * (256 + 128 + 64 + 64)
    places = 3 * (256 + 128 + 64 + 64)
    skip = _conv(1, 64 + 2, 64) + 2 * 2
    assert _parameters("m1") == 7_904_002 - canceled + places + skip == 7_906_758


def test_c_unet_adds_a_condition_embedding_a_scale_and_the_null():
    """LayerNorm and 1x1 convolution of the features, two linear layers of y."""
    added = sum(
        2 * c + _conv(1, c, c) + (384 * c + c) + (c * c + c) for c in (64, 64, 128, 256, 512)
    )
    assert added == 1_102_848
    assert _parameters("cunet", "network") == _parameters("m1") + added
    assert _parameters("cunet") == 9_009_990


def test_mdn_is_light_and_its_source_encoder_small():
    channels = (2, 32, 64, 128, 256, 256)
    convolutions = sum(_conv(3, i, o) + 2 * o for i, o in itertools.pairwise(channels))
    assert _parameters("mdn", "encoder") == convolutions + (256 + 2) * 384 + 384
    assert _parameters("mdn", "denoiser") == 9_226_624  # by arithmetic in tests/methods/test_mdn
    assert _parameters("mdn") == 10_305_760


def test_the_condition_makes_cdm_little_larger_than_a_plain_unet():
    inference = _parameters("cunet") + _parameters("mdn")  # MRM's encoder is not needed then
    assert 15e6 < inference < 20e6


# Smoke variants.


def _images(config, seed):
    keys = jax.random.split(jax.random.key(seed))
    return {
        name: jax.random.uniform(key, shape.shape, minval=-1.0)
        for key, (name, shape) in zip(keys, _abstract_batch(config).items(), strict=True)
    }


def _run(file):
    """All stages in order, two updates each: steps, metrics of training and of validation."""
    finished, results = {}, {}
    for stage in STAGES:
        config = _get(file, f"{stage},smoke")
        method, batch = base.create(config), _images(config, 0)
        frozen = {needed: finished[needed] for needed in method.depends_on}
        state = jax.jit(method.init)(jax.random.key(0), batch, frozen)
        update = jax.jit(method.update)
        for step in range(2):
            state, metrics = update(state, batch, jax.random.key(step))
        state = method.finish(
            state, lambda b=batch: [b], lambda c=config: [_images(c, 1)], jax.random.key(2)
        )
        model = base.model_of(state)
        finished[stage] = {"params": model["params"], "statistics": model["statistics"]}
        slices = len(batch["source"])
        keys = jax.random.split(jax.random.key(3), slices)
        values, pictures = jax.jit(method.validate)(model, batch, keys)
        validation = method.summarize(jax.device_get(values), np.zeros(slices, int))
        results[stage] = int(state.step), metrics, validation, pictures
    return results


@pytest.fixture(scope="module")
def runs():
    """Finished runs by their settings: files that state the same share one."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_smoke_variant_of_every_stage_runs(file, runs):
    config = _get(file, "cdm,smoke")
    settings = json.dumps([config[s].to_dict() for s in SECTIONS] + [config.data.size])
    if settings not in runs:
        runs[settings] = _run(file)
    assert set(runs[settings]) == set(STAGES)
    for stage, (steps, metrics, validation, pictures) in runs[settings].items():
        assert steps == 2, stage
        assert {"loss", "gradient_norm"} <= set(metrics)
        assert "loss" in validation
        for values in (metrics, validation):
            assert all(np.isfinite(value).all() for value in values.values()), stage
        for rows in pictures.values():
            assert rows.ndim in (3, 4)
            assert 0 <= float(rows.min()) <= float(rows.max()) <= 1


# What does not fit.


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("mrm", {"data.size": 250}),
        ("m1", {"data.size": 250}),
        ("mrm", {"mrm.patch": 0}),
        ("mrm", {"mrm.heads": 7}),
        ("mrm", {"mrm.width": 6, "mrm.heads": 3}),
        ("cunet", {"cunet.groups": 6}),
        ("m1", {"m1.groups": 0}),
        ("resvit", {"resvit.heads": 0}),
        ("diffusion", {"diffusion.heads": 0}),
        ("cunet", {"mdn.decouple": "halves"}),
        ("mdn", {"mdn.condition": "age"}),
        ("mdn", {"mdn.schedule": "sigmoid"}),
        ("cunet", {"cunet.loss": "l1"}),
        ("m1", {"m1.encoder": "residual"}),
        ("m1", {"m1.optimizer.schedule": "step"}),
        ("m1", {"m1.optimizer.decay": "none"}),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(stage, changes):
    config = _get("brats", f"{stage},{PAPER}")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=r"allowed are|divide|halved|too small"):
        base.create(config)
