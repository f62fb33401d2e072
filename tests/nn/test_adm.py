import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.nn.adm import (
    ADM,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    attention_levels,
    double,
    halve,
)

SHAPE = jax.ShapeDtypeStruct
PUBLISHED = {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "heads": 4}


def _stirred(module, *inputs):
    """Parameters at random, so that nothing is hidden behind initial zeros."""
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), jnp.float32), shapes
    )


def _small(**changes):
    settings = {"multipliers": (1, 2), "blocks": 1, "heads": 2, "attention": (1,)}
    settings |= {"outputs": 2, "width": 4, "resblock_updown": True}
    return ADM(**(settings | changes))


def _inputs(channels=3, size=8):
    x = jax.random.normal(jax.random.key(3), (2, size, size, channels))
    return x, jnp.asarray([10, 700])


# Counted by running the official code, see the sheet of architectures.
@pytest.mark.parametrize(
    ("width", "sides", "updown", "outputs", "parameters"),
    [
        (192, (32, 16, 8), True, 2, 311_017_538),
        (256, (32, 16, 8), True, 4, 552_811_780),
        (128, (16, 8), False, 2, 124_053_250),
        (64, (16,), True, 2, 32_964_034),
    ],
)
def test_published_networks_have_as_many_parameters(width, sides, updown, outputs, parameters):
    network = ADM(
        outputs=outputs,
        width=width,
        attention=attention_levels(256, 6, sides),
        resblock_updown=updown,
        **PUBLISHED,
    )
    images, t = SHAPE((1, 256, 256, 4), jnp.float32), SHAPE((1,), jnp.int32)
    output, params = jax.eval_shape(network.init_with_output, jax.random.key(0), images, t)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert output.shape == (1, 256, 256, outputs)


def test_a_condition_adds_one_linear_layer_which_starts_as_zero():
    network, (x, t) = _small(multipliers=(1,), attention=()), _inputs(size=4)
    y = jax.random.normal(jax.random.key(5), (2, 7))
    plain = jax.eval_shape(network.init, jax.random.key(0), x, t)["params"]
    stirred, run = _stirred(network, x, t, y)["params"], jax.jit(network.apply)
    (name,) = set(stirred) - set(plain)
    assert stirred[name]["kernel"].shape == (7, 4 * network.width)
    fresh = jax.jit(lambda key: network.init(key, x, t, y)["params"][name])(jax.random.key(0))
    assert not fresh["kernel"].any() and not fresh["bias"].any()
    still = run({"params": stirred | {name: fresh}}, x, t, y)
    without = run({"params": {key: stirred[key] for key in plain}}, x, t)
    np.testing.assert_allclose(still, without, rtol=1e-5, atol=1e-5)
    assert (run({"params": stirred}, x, t, y) != still).mean() > 0.9


@pytest.mark.parametrize("updown", [True, False])
def test_the_prediction_depends_on_the_timestep_and_on_its_own_image_alone(updown):
    network, (x, t) = _small(resblock_updown=updown), _inputs()
    run, params = jax.jit(network.apply), _stirred(network, x, t)
    before = run(params, x, t)
    assert before.shape == (2, 8, 8, 2)
    assert (run(params, x, t + 100) != before).mean() > 0.9
    changed = run(params, x.at[1].add(1.0), t) != before
    assert not changed[0].any() and changed[1].mean() > 0.9


def _children(network):
    x, t = _inputs(size=16)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t)["params"]
    return [sum(name.startswith(kind) for name in params) for kind in ("Res", "Self", "Conv")]


def test_every_part_stands_as_often_as_published():
    """Three levels, two blocks each down and three up; attention at one level and in the middle."""
    settings = {"multipliers": (1, 1, 2), "blocks": 2, "attention": (1,)}
    assert _children(_small(**settings)) == [2 * 3 + 2 + 3 * 3 + 2 * 2, 2 + 1 + 3, 1 + 0 + 1]
    assert _children(_small(resblock_updown=False, **settings)) == [17, 6, 1 + 2 * 2 + 1]


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (192, 32), (48, 12), (16, 4), (6, 1)])
def test_norms_are_of_32_groups_or_of_four_channels_each_in_narrow_networks(channels, groups):
    x = jnp.arange(32.0 * channels).reshape(2, 4, 4, channels) ** 2 % 7
    found, _ = GroupNorm().init_with_output(jax.random.key(0), x)
    grouped = np.asarray(x, np.float64).reshape(2, 16, groups, channels // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resize", ["", "down", "up"])
def test_a_fresh_residual_block_only_resizes(resize):
    x, embedding = _inputs(4)[0], jnp.ones((2, 5))
    found, _ = ResidualBlock(4, 0.0, resize).init_with_output(
        jax.random.key(0), x, embedding, False
    )
    x = np.asarray(x)
    expected = {
        "": x,
        "down": (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4,
        "up": np.kron(x, np.ones((1, 2, 2, 1))),
    }[resize]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(halve(double(jnp.asarray(x))), x, atol=1e-6)


def test_time_scales_by_one_plus_and_shifts_after_the_second_norm():
    """With the last convolution set to pass its input on, the block is known in closed form."""
    x, embedding = _inputs(4)[0], jax.random.normal(jax.random.key(2), (2, 5))
    block = ResidualBlock(4, 0.0)
    params = _stirred(block, x, embedding, False)["params"]
    passes = np.zeros((3, 3, 4, 4))
    passes[1, 1] = np.eye(4)
    params["Conv_1"] = {"kernel": jnp.asarray(passes, jnp.float32), "bias": jnp.zeros(4)}
    norm = params["GroupNorm_1"]["GroupNorm_0"]
    params["GroupNorm_1"]["GroupNorm_0"] = jax.tree.map(jnp.zeros_like, norm)  # normalized: 0
    found = block.apply({"params": params}, x, embedding, False) - x
    linear = params["Linear_0"]["Conv_0"]["conv"]
    code = jax.nn.silu(embedding) @ linear["kernel"][0, 0] + linear["bias"][None]
    expected = jnp.broadcast_to(jax.nn.silu(code[:, None, None, 4:]), x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    params["GroupNorm_1"]["GroupNorm_0"]["bias"] = jnp.full(4, 0.7)  # normalized: 0.7
    found = block.apply({"params": params}, x, embedding, False) - x
    expected = jax.nn.silu(0.7 * (1 + code[:, None, None, :4]) + code[:, None, None, 4:])
    np.testing.assert_allclose(found, jnp.broadcast_to(expected, x.shape), atol=1e-5)


def test_attention_is_that_of_each_head_by_itself():
    """Against explicit loops; each head's channels are its queries, then keys, then values."""
    x, heads, width = _inputs(8, size=4)[0], 2, 4
    layer = SelfAttention(heads)
    params = _stirred(layer, x)["params"]
    found = layer.apply({"params": params}, x)
    normed = np.asarray(GroupNorm().apply({"params": params["GroupNorm_0"]}, x)).reshape(2, 16, 8)
    mixing, output = params["Conv_0"]["conv"], params["Conv_1"]
    combined = normed @ np.asarray(mixing["kernel"])[0, 0] + np.asarray(mixing["bias"])
    result = np.zeros((2, 16, 8))
    for b in range(2):
        for head in range(heads):
            own = np.asarray(combined[b, :, 3 * width * head : 3 * width * (head + 1)], np.float64)
            query, key, value = own[:, :width], own[:, width : 2 * width], own[:, 2 * width :]
            weights = np.exp(query @ key.T / np.sqrt(width))
            weights /= weights.sum(axis=1, keepdims=True)
            result[b, :, width * head : width * (head + 1)] = weights @ value
    expected = result @ np.asarray(output["kernel"][0, 0]) + np.asarray(output["bias"])
    np.testing.assert_allclose(found, x + expected.reshape(x.shape), rtol=1e-3, atol=1e-3)


def test_fresh_attention_adds_nothing():
    x = _inputs(4)[0]
    np.testing.assert_array_equal(SelfAttention(2).init_with_output(jax.random.key(0), x)[0], x)


def test_dropout_is_of_training_alone():
    network, (x, t) = _small(dropout=0.5), _inputs()
    params = _stirred(network, x, t)
    still = jax.jit(network.apply)(params, x, t)
    np.testing.assert_allclose(still, jax.jit(_small().apply)(params, x, t), rtol=1e-6)
    train = jax.jit(lambda key: network.apply(params, x, t, train=True, rngs={"dropout": key}))
    for seed in range(2):
        dropped = train(jax.random.key(seed))
        assert (dropped != still).mean() > 0.9
        still = dropped


def _loss(x, t, **settings):
    """The loss of a network with dropout, as a function of parameters, and these at random."""
    network = _small(dropout=0.3, **settings)
    params = _stirred(network, x, t)

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.mean(network.apply(params, x, t, train=True, rngs=rngs) ** 2)

    return loss, params


def test_rematerialization_changes_neither_names_nor_values():
    inputs, settings = _inputs(size=4), {"multipliers": (1,), "attention": (0,)}
    (plain, params), (leaner, same) = (
        _loss(*inputs, remat=remat, **settings) for remat in (False, True)
    )
    assert jax.tree.structure(params) == jax.tree.structure(same)
    expected, found = (jax.jit(jax.value_and_grad(f))(params) for f in (plain, leaner))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * float(jnp.abs(one).max()))


def test_rematerialization_keeps_less_for_the_gradient():
    # What the backward pass is given, whatever a version of XLA makes of it: that of JAX 0.10 drops
    # the barriers on the CPU and plans as much memory as before, that of JAX 0.12 plans a third.
    def kept(remat):
        loss, params = _loss(*_inputs(size=32), width=8, remat=remat)
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    assert kept(remat=True) < 0.6 * kept(remat=False)


def test_attention_is_named_by_the_side_of_feature_maps():
    assert attention_levels(256, 6, (32, 16, 8)) == (3, 4, 5)
    assert attention_levels(256, 6, (16, 8)) == (4, 5)
    assert attention_levels(64, 6, (16,)) == (2,)
    assert attention_levels(64, 3, ()) == ()


def test_sizes_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UserError, match=r"of 48 pixels cannot be halved 5 times.*multiple of 32"):
        attention_levels(48, 6, (16,))
    with pytest.raises(UserError, match=r"maps of 16 pixels.*128 pixels.*have 128, 64, 32; choose"):
        attention_levels(128, 3, (16,))
