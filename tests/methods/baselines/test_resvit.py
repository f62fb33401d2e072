import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.resvit_pretrained import (
    POSITIONS,
    resize_positions,
    with_pretrained,
)
from configs import common

SIZE = 32
RATE = 0.01


def _create(stage, changes=None):
    config = common.smoke(common.base(stage))
    small = {f"{stage}.blocks": 2, f"{stage}.transformer_blocks": (1, 2), f"{stage}.dropout": 0.5}
    config.update_from_flattened_dict(small | (changes or {}))
    return dataclasses.replace(base.create(config), optimizer=optax.sgd(RATE))


def _first_model(method, batch):
    state = jax.jit(method.init)(jax.random.key(1), batch, {})
    return {"params": state.params, "statistics": state.statistics}


@pytest.fixture(scope="module")
def batch(images):
    return images(0, size=SIZE)


@pytest.fixture(scope="module")
def first(batch):
    """The first stage's model, its running means moved from where they began."""
    model = _first_model(_create("resvit_cnn"), batch)
    # Variances small enough that differences of the sources are not lost on the way.
    means = jax.tree.map(lambda x: 0.1 * x + 0.01, model["statistics"])
    return {"params": model["params"], "statistics": means}


@pytest.fixture(scope="module")
def second(batch, first):
    method = _create("resvit")
    return method, jax.jit(method.init)(jax.random.key(2), batch, {"resvit_cnn": first})


@pytest.fixture(scope="module")
def begun(batch, second):
    """Both stages with a state."""
    method = _create("resvit_cnn")
    state = jax.jit(method.init)(jax.random.key(1), batch, {})
    return {"resvit_cnn": (method, state), "resvit": second}


@pytest.fixture(scope="module")
def updates(begun):
    """The compiled update of each stage."""
    return {stage: jax.jit(method.update) for stage, (method, _) in begun.items()}


# The networks.


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("targets", "published"), [(2, (11_377_154, 123_447_810)), (1, (None, 123_441_537))]
)
def test_both_stages_have_as_many_parameters_as_the_official_code(targets, published):
    names = ("t1c", "t2f")[:targets]
    images = jax.ShapeDtypeStruct((1, 256, 256, targets), jnp.float32)
    frozen = {}
    for stage, count in zip(("resvit_cnn", "resvit"), published, strict=True):
        config = common.base(stage)
        config.data.sources, config.data.targets = ("t1", "t2")[:targets], names
        config[stage].train.num_steps = 1
        method = base.create(config)
        state = jax.eval_shape(
            method.init, jax.random.key(0), {"source": images, "target": images}, frozen
        )
        if count:
            assert _count(state.params["generator"]) == count
        if targets == 2:
            assert _count(state.params["discriminator"]) == 2_766_657
        frozen = {stage: {"params": state.params, "statistics": state.statistics}}
    tokens = state.params["generator"]["aggregation_6"]["positions"]
    assert tokens.shape == ((256 // 16) ** 2, 768)
    assert _count(state.params["generator"]["transformer"]) == 85_056_000


def test_one_transformer_serves_every_block_that_has_one(second):
    _, state = second
    parts = state.params["generator"]
    assert [name for name in parts if name.startswith("transformer")] == ["transformer"]
    aggregations = {name for name in parts if name.startswith("aggregation")}
    assert aggregations == {"aggregation_1", "aggregation_2"}
    assert not any("ransformer" in "/".join(place) for place in flatten_dict(parts["residual_1"]))


def test_images_come_out_in_range_whatever_their_numbers(images):
    changes = {"data.sources": ("a", "b", "c"), "data.targets": ("d",)}
    method, batch = _create("resvit_cnn", changes), images(0, sources=3, targets=1, size=SIZE)
    model = _first_model(method, batch)
    translate = jax.jit(method.translate, static_argnums=3)
    result = translate(model, 5 * batch["source"], jax.random.key(0), 1)
    assert result.shape == (1, 4, SIZE, SIZE, 1)
    assert float(jnp.abs(result).max()) <= 1


# From one stage to the next.


def test_the_second_stage_begins_with_all_that_the_first_learned(first, second):
    method, state = second
    assert method.depends_on == ("resvit_cnn",)
    assert _create("resvit_cnn").depends_on == ()
    for ours, theirs in ((state.params, first["params"]), (state.statistics, first["statistics"])):
        ours = flatten_dict(ours["generator"])
        for place, value in flatten_dict(theirs["generator"]).items():
            np.testing.assert_array_equal(ours[place], value, str(place))
    assert state.frozen == {}
    kernels = [
        flatten_dict(networks["discriminator"])["Conv_0", "conv", "kernel"]
        for networks in (state.params, first["params"])
    ]
    assert not np.array_equal(*kernels)


def test_stages_that_do_not_fit_are_refused(batch, first):
    method = _create("resvit", {"resvit.width": 8})
    with pytest.raises(UserError, match=r"resvit_cnn's .* same width and blocks"):
        jax.eval_shape(method.init, jax.random.key(0), batch, {"resvit_cnn": first})


# Updates, on networks whose answers are known.


def _set(tree, changes):
    flat = flatten_dict(tree, sep="/")
    for name, value in changes.items():
        flat[name] = jnp.full_like(flat[name], value)
    return unflatten_dict(flat, sep="/")


def _known(state, score):
    """A generator that gives 0 everywhere, a discriminator that gives `score` everywhere."""
    generator, discriminator = state.params["generator"], state.params["discriminator"]
    last = {"Conv_1/conv/kernel": 0.0, "Conv_1/conv/bias": 0.0}
    silent = {"BatchNorm_0/scale": 0.0, "BatchNorm_0/bias": 0.0}
    silent = {f"Norm_2/{name}": value for name, value in silent.items()}
    silent |= {"Conv_4/conv/kernel": 0.0, "Conv_4/conv/bias": score}
    params = {"generator": _set(generator, last), "discriminator": _set(discriminator, silent)}
    return state.replace(params=params)


@pytest.mark.parametrize("stage", ["resvit_cnn", "resvit"])
def test_losses_are_least_squares_and_a_hundred_times_l1(begun, updates, batch, stage):
    _, state = begun[stage]
    old = 0.3
    after, metrics = updates[stage](_known(state, old), batch, jax.random.key(3))
    target = np.asarray(batch["target"])
    # Half of each; only the last bias can move, by the rate times the derivative.
    assert metrics["discriminator_loss"] == pytest.approx(((old - 1) ** 2 + old**2) / 2, abs=1e-6)
    new = old - RATE * (2 * old - 1)
    bias = flatten_dict(after.params["discriminator"])["Conv_4", "conv", "bias"]
    np.testing.assert_allclose(bias, new, atol=1e-6)
    # The generator meets the discriminator as it is after its step.
    assert metrics["adversarial"] == pytest.approx((new - 1) ** 2, abs=1e-6)
    assert metrics["l1"] == pytest.approx(np.abs(target).mean(), abs=1e-6)
    expected = (new - 1) ** 2 + 100 * np.abs(target).mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    pull = 100 * np.sign(target).mean(axis=(0, 1, 2)) / 2
    bias = flatten_dict(after.params["generator"])["Conv_1", "conv", "bias"]
    np.testing.assert_allclose(bias, RATE * pull, rtol=1e-4, atol=1e-6)
    assert int(after.step) == 1


def test_each_network_learns_and_every_part_of_the_generator_with_it(second, updates, batch):
    _, state = second
    random = np.random.default_rng(0)
    # Away from zero initial values, through which nothing flows back.
    stirred = jax.tree.map(
        lambda x: x + 0.05 * random.normal(size=x.shape).astype(np.float32), state.params
    )
    state = state.replace(params=stirred)
    after, _ = updates["resvit"](state, batch, jax.random.key(3))
    before = flatten_dict(state.params, sep="/")
    still = [
        name
        for name, value in flatten_dict(after.params, sep="/").items()
        if np.array_equal(value, before[name])
    ]
    # A key's bias adds the same to all of a query's scores: softmax takes it away.
    assert all(name.endswith("key/bias") for name in still)


def test_running_means_move_once_a_step_and_come_from_the_sources(begun, updates, batch):
    _, state = begun["resvit_cnn"]
    after, _ = updates["resvit_cnn"](state, batch, jax.random.key(3))
    padded = np.pad(np.asarray(batch["source"]), ((0, 0), (3, 3), (3, 3), (0, 0)), "reflect")
    kernel = np.asarray(state.params["generator"]["Conv_0"]["conv"]["kernel"])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))
    features = np.einsum("bhwcij,ijcf->bhwf", windows, kernel)
    norm = after.statistics["generator"]["Norm_0"]["BatchNorm_0"]
    np.testing.assert_allclose(norm["mean"], 0.1 * features.mean(axis=(0, 1, 2)), atol=1e-5)
    variance = 0.9 + 0.1 * features.var(axis=(0, 1, 2))
    np.testing.assert_allclose(norm["var"], variance, rtol=1e-5)


def test_dropout_is_for_training_with_the_transformer_alone(begun, updates, batch):
    keys = jax.random.split(jax.random.key(4))
    losses = {
        stage: [float(updates[stage](state, batch, key)[1]["l1"]) for key in keys]
        for stage, (_, state) in begun.items()
    }
    assert losses["resvit_cnn"][0] == losses["resvit_cnn"][1]
    assert losses["resvit"][0] != losses["resvit"][1]
    method, state = begun["resvit"]
    model = base.model_of(state)
    translate = jax.jit(method.translate, static_argnums=3)
    results = [translate(model, batch["source"], key, 1) for key in keys]
    np.testing.assert_array_equal(*results)


def test_synthesis_uses_running_means_and_not_the_batch(second, batch):
    method, state = second
    model = base.model_of(state)
    generate = jax.jit(method.generate)
    result = generate(model, batch["source"])
    assert float(result.std()) > 1e-3
    # Another second slice changes the second result alone.
    other = generate(model, batch["source"].at[1].set(0.9))
    np.testing.assert_array_equal(result[0], other[0])
    assert float(jnp.abs(result[1] - other[1]).max()) > 1e-3
    means = jax.tree.map(lambda x: x + 0.1, model["statistics"])
    changed = generate(model | {"statistics": means}, batch["source"])
    assert float(jnp.abs(changed - result).max()) > 1e-3


# The transformer's public weights.

GRID, HIDDEN, HEADS, LAYERS, CHANNELS = 3, 16, 2, 1, 64


def _public_shapes():
    """Names and shapes as in the public file, at the smoke config's sizes."""
    attention = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/"
    shapes = {
        "embedding/kernel": (1, 1, CHANNELS, HIDDEN),
        "embedding/bias": (HIDDEN,),
        "cls": (1, 1, HIDDEN),
        POSITIONS: (1, GRID**2 + 1, HIDDEN),
        "Transformer/encoder_norm/scale": (HIDDEN,),
        "Transformer/encoder_norm/bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        block = f"Transformer/encoderblock_{layer}/"
        for part in ("query", "key", "value"):
            shapes[attention.format(layer) + f"{part}/kernel"] = (HIDDEN, HEADS, HIDDEN // HEADS)
            shapes[attention.format(layer) + f"{part}/bias"] = (HEADS, HIDDEN // HEADS)
        shapes[attention.format(layer) + "out/kernel"] = (HEADS, HIDDEN // HEADS, HIDDEN)
        shapes[attention.format(layer) + "out/bias"] = (HIDDEN,)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/{leaf}": (HIDDEN,) for leaf in ("scale", "bias")}
        for dense, sizes in (("Dense_0", (HIDDEN, 4 * HIDDEN)), ("Dense_1", (4 * HIDDEN, HIDDEN))):
            shapes[f"{block}MlpBlock_3/{dense}/kernel"] = sizes
            shapes[f"{block}MlpBlock_3/{dense}/bias"] = sizes[1:]
    return shapes


@pytest.fixture
def public(tmp_path):
    """Writes the file, with changes, and gives its path and values."""

    def write(**changes):
        random = np.random.default_rng(0)
        values = {n: random.normal(size=s).astype(np.float32) for n, s in _public_shapes().items()}
        values = {n: v for n, v in (values | changes).items() if v is not None}
        path = tmp_path / "R50+ViT-B_16.npz"
        np.savez(path, **values)
        return str(path), values

    return write


def test_the_public_weights_reach_every_part_of_the_transformer(public, batch, first):
    path, values = public()
    method = _create("resvit", {"resvit.pretrained": path})
    state = jax.jit(method.init)(jax.random.key(2), batch, {"resvit_cnn": first})
    generator = state.params["generator"]
    block = generator["transformer"]["TransformerBlock_0"]
    pairs = {
        "MultiHeadDotProductAttention_1": block["MultiHeadDotProductAttention_0"],
        "LayerNorm_0": block["LayerNorm_0"],
        "LayerNorm_2": block["LayerNorm_1"],
        "MlpBlock_3": {name: block[name] for name in ("Dense_0", "Dense_1")},
    }
    taken = {f"Transformer/encoderblock_0/{n}": v for n, v in flatten_dict(pairs, sep="/").items()}
    norm = generator["transformer"]["LayerNorm_0"]
    taken |= {f"Transformer/encoder_norm/{leaf}": norm[leaf] for leaf in ("scale", "bias")}
    assert len(taken) == len(jax.tree.leaves(generator["transformer"]))
    for number in (1, 2):
        aggregation = generator[f"aggregation_{number}"]
        for leaf in ("kernel", "bias"):
            taken[f"embedding/{leaf}"] = aggregation["embedding"]["conv"][leaf]
        # Two by two tokens of three by three: the corners, without the class token.
        corners = values[POSITIONS][0, 1:].reshape(GRID, GRID, HIDDEN)[::2, ::2]
        np.testing.assert_allclose(aggregation["positions"], corners.reshape(4, -1), atol=1e-6)
        for name, value in taken.items():
            np.testing.assert_array_equal(value, values[name], name)
    assert set(taken) == set(values) - {"cls", POSITIONS}


def test_the_first_stages_weights_stay_beside_the_public_ones(public, batch, first):
    method = _create("resvit", {"resvit.pretrained": public()[0]})
    state = jax.jit(method.init)(jax.random.key(2), batch, {"resvit_cnn": first})
    ours = flatten_dict(state.params["generator"])
    for place, value in flatten_dict(first["params"]["generator"]).items():
        np.testing.assert_array_equal(ours[place], value, str(place))


def test_positions_are_resized_linearly_from_corner_to_corner():
    rows, columns = np.meshgrid(np.arange(14.0), np.arange(14.0), indexing="ij")
    grid = np.stack([rows, 5 * columns], axis=-1).reshape(1, 196, 2)
    given = np.concatenate([np.full((1, 1, 2), 1e6), grid], axis=1)
    resized = resize_positions(given, 256).reshape(16, 16, 2)
    line = np.linspace(0, 13, 16)
    np.testing.assert_allclose(resized[..., 0], np.tile(line[:, None], (1, 16)), atol=1e-9)
    np.testing.assert_allclose(resized[..., 1], np.tile(5 * line[None], (16, 1)), atol=1e-9)
    np.testing.assert_array_equal(resize_positions(given, 196), grid[0])


KERNEL = "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KERNEL: None}, r"has no Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel \(1 of"),
        ({"embedding/kernel": np.zeros((1, 1, 8, 16))}, r"embedding/kernel .*\(1, 1, 8, 16\)"),
        ({POSITIONS: np.zeros((1, 7, HIDDEN))}, r"pos_embedding has shape \(1, 7, 16\)"),
        ({POSITIONS: np.zeros((1, 10, 8))}, r"pos_embedding has shape \(1, 10, 8\)"),
    ],
)
def test_a_file_of_another_network_is_refused(public, second, changes, message):
    path, _ = public(**changes)
    with pytest.raises(UserError, match=message):
        with_pretrained(second[1].params["generator"], path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file"), (b"no weights", r"is no \.npz"), (b"PK\x03\x04", r"is no \.npz")],
)
def test_no_file_and_no_weights_are_told_apart(tmp_path, second, content, message):
    path = tmp_path / "weights.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{message}.*leave resvit.pretrained empty"):
        with_pretrained(second[1].params["generator"], str(path))


def test_a_run_says_that_its_transformer_starts_from_random_weights(batch, first, caplog):
    with caplog.at_level(logging.WARNING):
        jax.eval_shape(_create("resvit_cnn").init, jax.random.key(0), batch, {})
        assert "random" not in caplog.text
        jax.eval_shape(_create("resvit").init, jax.random.key(0), batch, {"resvit_cnn": first})
    assert "starts from random weights" in caplog.text


def test_a_run_with_public_weights_says_nothing(public, batch, first, caplog):
    method = _create("resvit", {"resvit.pretrained": public()[0]})
    with caplog.at_level(logging.WARNING):
        jax.eval_shape(method.init, jax.random.key(0), batch, {"resvit_cnn": first})
    assert "random" not in caplog.text


def test_a_model_is_rebuilt_where_the_public_file_is_not():
    assert _create("resvit", {"resvit.pretrained": "nowhere.npz"}).pretrained == "nowhere.npz"


# Settings.


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("resvit", {"data.size": 40}, "multiple of 16"),
        ("resvit_cnn", {"data.size": 42}, "multiple of 4"),
        ("resvit_cnn", {"data.size": 16}, "too small"),
        ("resvit_cnn", {"resvit_cnn.blocks": 0}, "1 or more"),
        ("resvit", {"resvit.transformer_blocks": ()}, "one or more of 1 to 2"),
        ("resvit", {"resvit.transformer_blocks": (0, 1)}, "one or more of 1 to 2"),
        ("resvit", {"resvit.heads": 3}, "multiple of 3"),
        ("resvit", {"resvit.dropout": 1.0}, "must be in"),
    ],
)
def test_settings_that_build_no_network_are_refused(stage, changes, message):
    with pytest.raises(UserError, match=message):
        _create(stage, changes)
