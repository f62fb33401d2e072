import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdm_jax.diffusion.process import corrupt, split_prediction
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.cdm.mdn import explained_variance
from cdm_jax.methods.cdm.mdn_network import Denoiser, ResidualBlock
from cdm_jax.methods.cdm.source import SourceEncoder, disturb

CLEAN = {  # no augmentation: for tests that know what the sources say
    "mdn.augmentation.shift": 0,
    "mdn.augmentation.gain": 0.0,
    "mdn.augmentation.noise": 0.0,
    "mdn.encoder.dropout": 0.0,
}
DECOUPLINGS = ("streams", "merged", "none")


@pytest.fixture(scope="module")
def settle(start):
    """`settle(changes, batch)`: an MDN and its state, on an MRM that measured this batch."""
    measured = {}

    def build(changes, batch=None):
        for_mrm = {k: v for k, v in changes.items() if k.startswith("mrm")}
        name = repr(for_mrm), id(batch)
        if name not in measured:
            mrm, state, example = start("mrm", for_mrm)
            batch = batch or example
            state = mrm.finish(state, lambda: [batch], list, jax.random.key(0))
            measured[name] = {"params": state.params, "statistics": state.statistics}, batch
        model, batch = measured[name]
        method, state, _ = start("mdn", changes, {"mrm": model})
        return method, state, batch

    return build


@pytest.fixture(scope="module")
def toy(images):
    """Sixteen slices of even gray whose targets follow from their sources."""
    keys = jax.random.split(jax.random.key(5))
    gray = jax.random.uniform(keys[0], (16, 1, 1, 2), minval=-0.9, maxval=0.9)
    texture = 0.02 * images(3, number=16)["source"]
    return {"source": gray + texture, "target": jnp.tanh(2 * gray[..., ::-1]) + 0 * texture}


# What a sample knows of the patient.


def test_unconditional_samples_know_nothing_of_the_patient(settle, images, stir):
    method, state, batch = settle({"mdn.condition": "none"})
    model = {"params": stir(state.params)}
    sample, key = jax.jit(method.sample), jax.random.key(3)
    one = sample(model, batch["source"], key)
    np.testing.assert_array_equal(one, sample(model, images(9)["source"], key))
    assert (one != sample(model, batch["source"], jax.random.key(4))).all()
    jaxpr = jax.make_jaxpr(method.sample)(model, batch["source"], key).jaxpr
    used = {str(v) for equation in jaxpr.eqns for v in equation.invars}
    sources = jaxpr.invars[-2]
    assert sources.aval.shape == batch["source"].shape
    assert str(sources) not in used


def test_conditional_samples_depend_on_their_own_slice_alone(settle, images, stir):
    method, state, batch = settle({})
    model = {"params": stir(state.params)}
    sample, key = jax.jit(method.sample), jax.random.key(3)
    one = np.asarray(sample(model, batch["source"], key))
    mixed = batch["source"].at[1].set(images(9)["source"][1])
    changed = (np.asarray(sample(model, mixed, key)) != one).any(axis=1)
    np.testing.assert_array_equal(changed, [False, True, False, False])


def test_samples_differ_between_themselves_and_are_the_same_at_every_call(settle, stir):
    """Dropout and augmentation belong to training."""
    method, state, batch = settle({})
    model = {"params": stir(state.params)}
    samples = jax.jit(lambda key: method.samples(model, batch["source"], key, 5))
    drawn = np.asarray(samples(jax.random.key(1)))
    assert drawn.shape == (5, 4, method.representation.representation_width)
    assert len(np.unique(drawn[:, 0, 0])) == 5
    np.testing.assert_array_equal(drawn, samples(jax.random.key(1)))


# Training.


def _restored(method, model, batch, timestep=300):
    """The estimate of y from a y_t that is half noise."""
    y = method.representation.represent(model["frozen"]["mrm"], batch)
    t = jnp.full(len(y), timestep)
    signal = jnp.asarray(method.sampler.alpha_bar)[t]
    y_t = corrupt(y, jax.random.normal(jax.random.key(3), y.shape), signal)
    context = method.encoder.apply({"params": model["params"]["encoder"]}, batch["source"])
    prediction = method.denoiser.apply({"params": model["params"]["denoiser"]}, y_t, t, context)
    return y, split_prediction(method.sampler.prediction, prediction, y_t, signal)[0]


@pytest.mark.parametrize(
    ("decouple", "prediction"),
    [
        ("streams", "x0"),
        *(
            pytest.param(*variant, marks=pytest.mark.slow)
            for variant in (("merged", "x0"), ("streams", "noise"), ("none", "x0"))
        ),
    ],
)
def test_samples_learn_to_explain_their_own_patient(settle, toy, train, same, decouple, prediction):
    changes = CLEAN | {"mdn.decouple": decouple, "mdn.prediction": prediction}
    method, state, batch = settle(changes, toy)
    trained, losses = train(method, state, batch, 300)
    assert losses[-30:].mean() < 0.7 * losses[:10].mean()
    assert same(trained.frozen, state.frozen)
    model, others = base.model_of(trained), jnp.roll(batch["source"], 5, axis=0)
    restored = jax.jit(functools.partial(_restored, method))
    right = explained_variance(*restored(model, batch))
    wrong = explained_variance(*restored(model, batch | {"source": others}))
    assert right > 0.4
    assert right > wrong + 0.01
    if prediction == "x0":  # errors in the noise grow 150 times in the first step of a sample
        validate, keys = jax.jit(method.validate), jax.random.split(jax.random.key(2), len(others))

        def explained(batch):
            values = jax.device_get(validate(model, batch, keys)[0])
            return method.summarize(values, np.arange(len(others)))["explained_one"]

        assert explained(batch) > 0.4
        assert explained(batch | {"source": others}) < 0


def test_the_first_prediction_is_zero_so_the_first_loss_is_the_targets_power(settle, toy):
    """y is standardized: an x0 network that answers 0 errs by exactly 1 on average."""
    method, state, batch = settle(CLEAN, toy)
    _, metrics = jax.jit(method.update)(state, batch, jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(1, abs=0.02)
    assert float(metrics["y_error"]) == pytest.approx(1, abs=0.02)


# The network.


def _denoiser(decouple, *, stir=None, modalities=2, width=8):
    network = Denoiser(
        representation_width=6 * modalities,
        num_modalities=modalities,
        width=width,
        blocks=2,
        decouple=decouple,
    )
    y_t = jax.random.normal(jax.random.key(0), (3, 6 * modalities))
    t, context = jnp.asarray([0, 500, 999]), jax.random.normal(jax.random.key(2), (3, 5))
    params = jax.jit(network.init)(jax.random.key(1), y_t, t, context)["params"]
    if stir:
        params = stir(params)
    return network, params, (y_t, t, context)


@pytest.mark.parametrize("context", [None, jnp.ones((2, 3))])
def test_a_fresh_residual_block_is_the_identity(context):
    x, time = jnp.ones((2, 8)).at[0].set(-2), jnp.linspace(-1, 1, 12).reshape(2, 6)
    block = ResidualBlock()
    params = jax.jit(block.init)(jax.random.key(0), x, time, context)
    np.testing.assert_array_equal(block.apply(params, x, time, context), x)


@pytest.mark.parametrize("decouple", DECOUPLINGS)
def test_the_prediction_depends_on_everything_that_it_is_given(stir, decouple):
    network, params, inputs = _denoiser(decouple, stir=stir)
    apply = jax.jit(network.apply)
    before = apply({"params": params}, *inputs)
    changed = [(inputs[0] + 1, *inputs[1:]), (inputs[0], inputs[1] // 2, inputs[2])]
    changed.append((*inputs[:2], -inputs[2]))
    for other in changed:
        assert (np.abs(apply({"params": params}, *other) - before)[1:] > 1e-6).mean() > 0.9


def _blocks(network, params, inputs):
    _, captured = network.apply({"params": params}, *inputs, capture_intermediates=True)
    return {k: v for k, v in captured["intermediates"].items() if "_block_" in k}


def test_streams_do_not_see_each_other_before_the_join(stir, same):
    """With the parameters of one modality changed, the towers of the other compute the same."""
    network, params, inputs = _denoiser("streams", stir=stir)
    before = _blocks(network, params, inputs)
    assert len(before) == 4
    for m in range(2):
        own = {name for name in params if name.startswith(f"modality_{m}")}
        assert own
        moved = params | {name: stir(params[name], seed=1) for name in own}
        after = _blocks(network, moved, inputs)
        for name in before:
            assert same(after[name], before[name]) == (name not in own)


def test_merged_modalities_share_one_tower(stir):
    network, params, inputs = _denoiser("merged", stir=stir)
    assert len(_blocks(network, params, inputs)) == 2
    assert {name for name in params if name.endswith("decouple")} == {
        "modality_0_decouple",
        "modality_1_decouple",
    }


@pytest.mark.parametrize("decouple", DECOUPLINGS)
def test_every_entry_of_y_influences_every_entry_of_the_prediction(stir, decouple):
    network, params, (y_t, t, context) = _denoiser(decouple, stir=stir, modalities=3)
    influence = jax.jacrev(
        lambda y: network.apply({"params": params}, y[None], t[1:2], context[1:2])[0]
    )
    jacobian = jax.jit(influence)(y_t[1])
    assert (np.asarray(jacobian) != 0).all()


# Parameters at d = 384, width 512, 4 blocks, by arithmetic.


def _count(decouple, context=None, width=512):
    network = Denoiser(
        representation_width=384, num_modalities=2, width=width, blocks=4, decouple=decouple
    )
    shape = jax.ShapeDtypeStruct
    params = jax.eval_shape(
        network.init,
        jax.random.key(0),
        shape((1, 384), jnp.float32),
        shape((1,), jnp.int32),
        context and shape((1, context), jnp.float32),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _linear(inputs, outputs):
    return inputs * outputs + outputs


def _layer(inputs, outputs):
    return 2 * inputs + _linear(inputs, outputs)  # LayerNorm's scale and bias, then linear


def _by_hand(entries, towers, join, time=512, context=None):
    """Entries, blocks of input, timestep, source and output layers, the join, the time MLP."""
    block = 2 * _layer(512, 512) + _layer(time, 512) + (_layer(context, 512) if context else 0)
    embedding = _linear(512, time) + _linear(time, time)
    return entries * _linear(384, 512) + 4 * towers * block + _layer(join, 384) + embedding


@pytest.mark.parametrize("context", [None, 384])
def test_parameters_are_those_of_the_described_layers(context):
    assert _count("streams", context) == _by_hand(2, 2, 1024, context=context)
    assert _count("merged", context) == _by_hand(2, 1, 512, context=context)
    assert _count("none", context) == _by_hand(1, 1, 512, context=context)


def test_the_parameters_are_of_the_size_that_a_light_network_should_have():
    """A timestep embedding of 256 would make 6.26 M; here it is as wide as the network."""
    assert _by_hand(2, 2, 1024, time=256) == 6_262_656
    assert _count("streams") == 7_643_520


# What is measured at the end.


def _blind(params, stir):
    """Parameters with which the prediction no longer depends on y_t: a deterministic sampler."""
    moved = stir(params)
    denoiser = {
        name: jax.tree.map(jnp.zeros_like, layer) if name.endswith("_decouple") else layer
        for name, layer in moved["denoiser"].items()
    }
    return moved | {"denoiser": denoiser}


def test_finish_measures_the_second_moment_of_the_error_on_validation_patients(
    settle, images, stir
):
    method, state, batch = settle({})
    state = state.replace(params=_blind(state.params, stir))
    training, validation = [batch], [images(11), images(12)]
    finished = method.finish(state, lambda: training, lambda: validation, jax.random.key(0))

    represent, sample = jax.jit(method.representation.represent), jax.jit(method.sample)

    def explained(batches):
        pairs = []
        for b in batches:
            y = represent(state.frozen["mrm"], b)
            drawn = sample({"params": state.params}, b["source"], jax.random.key(99))
            pairs.append((np.asarray(y, np.float64), np.asarray(drawn, np.float64)))
        y, drawn = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return y, drawn, 1 - ((y - drawn) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()

    y, drawn, share = explained(validation)
    factor = np.asarray(finished.statistics["error_factor"], np.float64)
    expected = (drawn - y).T @ (drawn - y) / len(y)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-2, atol=1e-3 * expected.max())
    for part, batches in (("train", training), ("validation", validation)):
        expected = explained(batches)[2]
        for what in ("one", "mean"):
            found = float(finished.statistics[f"explained_{what}_{part}"])
            assert found == pytest.approx(expected, rel=1e-3)
    assert share != pytest.approx(explained(training)[2], rel=1e-2)


def test_finish_keeps_the_structure_of_the_state(settle):
    """A checkpoint of the end is restored into a fresh state."""
    method, state, batch = settle({"mdn.condition": "none"})
    finished = method.finish(state, lambda: [batch], lambda: [batch], jax.random.key(0))
    shapes = [jax.tree.map(jnp.shape, s.statistics) for s in (state, finished)]
    assert shapes[0] == shapes[1]


def test_a_mean_of_samples_is_not_taken_for_one_sample(settle, toy, stir):
    """Independent noise averages out, so the mean of samples errs less than one of them."""
    method, state, batch = settle({"evaluate.num_samples": 8}, toy)
    state = state.replace(params=stir(state.params, scale=0.1))
    number = len(batch["target"])
    keys = jax.random.split(jax.random.key(0), number)
    values, _ = jax.jit(method.validate)(base.model_of(state), batch, keys)
    metrics = method.summarize(jax.device_get(values), np.arange(number))
    assert metrics["explained_mean"] > metrics["explained_one"]


def test_explained_variance_by_hand():
    truth = np.asarray([[1.0, 5.0], [3.0, 9.0]])  # spread: 2 * 1 + 2 * 4 = 10
    estimate = np.asarray([[1.0, 6.0], [2.0, 7.0]])  # error: 1 + 1 + 4 = 6
    mean = np.asarray([[2.0, 7.0], [2.0, 7.0]])
    for found, expected in ((estimate, 0.4), (truth, 1.0), (mean, 0.0), (truth[::-1], -3.0)):
        value = explained_variance(jnp.asarray(truth), jnp.asarray(found))
        assert float(value) == pytest.approx(expected, abs=1e-6)


# The sources.


def _strength(shift=0, gain=0.0, noise=0.0):
    return ConfigDict({"shift": shift, "gain": gain, "noise": noise})


def test_shifts_are_whole_pixels_both_ways_and_differ_between_slices():
    image = jnp.full((64, 8, 8, 1), -1.0).at[:, 4, 4].set(1.0)
    moved = np.asarray(disturb(jax.random.key(0), image, _strength(shift=2), 1))
    _, rows, columns, _ = np.nonzero(moved > 0)
    assert len(rows) == 64
    assert set(rows) == set(columns) == {2, 3, 4, 5, 6}
    assert set(np.unique(moved)) == {-1.0, 1.0}


def test_gain_scales_each_modality_around_the_background():
    image = jnp.zeros((500, 2, 2, 2)).at[:, 0].set(-1)
    scaled = np.asarray(disturb(jax.random.key(0), image, _strength(gain=0.2), 2))
    assert (scaled[:, 0] == -1).all()
    factor = scaled[:, 1, 0] + 1
    np.testing.assert_array_equal(scaled[:, 1, 1] + 1, factor)
    assert factor.min() == pytest.approx(0.8, abs=0.01)
    assert factor.max() == pytest.approx(1.2, abs=0.01)
    assert abs(np.corrcoef(factor.T)[0, 1]) < 0.2


def test_a_slice_and_its_neighbors_are_disturbed_alike():
    """Where all three are the same images, they stay the same."""
    image = jax.random.uniform(jax.random.key(1), (8, 6, 6, 2), minval=-1.0)
    moved = disturb(jax.random.key(0), jnp.tile(image, 3), _strength(shift=2, gain=0.2), 2)
    own = disturb(jax.random.key(0), image, _strength(shift=2, gain=0.2), 2)
    np.testing.assert_array_equal(moved, np.tile(own, 3))


def test_noise_has_the_stated_deviation_and_nothing_asked_is_nothing_done():
    image = jax.random.uniform(jax.random.key(1), (4, 32, 32, 2), minval=-1.0)
    noise = np.asarray(disturb(jax.random.key(0), image, _strength(noise=0.05), 2) - image)
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    same = disturb(jax.random.key(0), image, _strength(), 2)
    np.testing.assert_allclose(same, image, atol=1e-6)


def test_dropout_is_for_training_and_absolute_intensity_reaches_the_code():
    encoder = SourceEncoder(features=(8, 8), width=6, dropout=0.5)
    image = jnp.full((2, 16, 16, 2), 0.5).at[1].set(-0.5)
    params = jax.jit(encoder.init)(jax.random.key(0), image)
    code = jax.jit(encoder.apply)(params, image)
    assert (jnp.abs(code[0] - code[1]) > 1e-3).mean() > 0.5
    trained = encoder.apply(params, image, train=True, rngs={"dropout": jax.random.key(1)})
    assert (trained != code).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"mdn.condition": "target"},
        {"mdn.decouple": "halves"},
        {"mdn.schedule": "cosine"},
        {"mdn.num_timesteps": 10},
        {"mdn.optimizer.schedule": "step"},
    ],
)
def test_what_does_not_fit_is_refused(create, changes):
    with pytest.raises(UserError, match=r"allowed are|too few"):
        create("mdn", changes)
