import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.cdm.cunet import synthesis_loss
from cdm_jax.methods.cdm.cunet_network import ConditionEmbedding, CUNet, UpSample

WIDTH = 16  # of the tiny y


def _network(**changes):
    settings = {
        "features": (8, 8, 16, 8),
        "num_targets": 2,
        "encoder": "hybrid",
        "condition": "on",
        "residual": True,
        "groups": 4,
        "source_skip": True,
    }
    return CUNet(**(settings | changes))


def _shapes(network, sources=(2, 16, 16, 2), y=True):
    shape = jax.ShapeDtypeStruct
    inputs = (shape(sources, jnp.float32), shape((sources[0], WIDTH), jnp.float32) if y else None)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return params["params"], jax.eval_shape(network.apply, params, *inputs)


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (2, 16, 16, 2)), jax.random.normal(keys[1], (2, WIDTH))


@pytest.fixture(scope="module")
def frozen(start, stir):
    """A finished MRM and an MDN with arbitrary parameters and a known error factor."""
    mrm, state, batch = start("mrm")
    state = mrm.finish(state, lambda: [batch], list, jax.random.key(0))
    models = {"mrm": {"params": state.params, "statistics": state.statistics}}
    _, state, _ = start("mdn", None, models)
    factor = 0.3 * jax.random.normal(jax.random.key(4), (WIDTH, WIDTH))
    statistics = state.statistics | {"error_factor": factor}
    return models | {"mdn": {"params": stir(state.params), "statistics": statistics}}


@pytest.fixture(scope="module")
def certain(frozen):
    """The same with an MDN whose samples depend on the sources alone, not on the noise."""
    mdn = frozen["mdn"]
    denoiser = {
        name: jax.tree.map(jnp.zeros_like, layer) if name.endswith("_decouple") else layer
        for name, layer in mdn["params"]["denoiser"].items()
    }
    return frozen | {"mdn": mdn | {"params": mdn["params"] | {"denoiser": denoiser}}}


# The network.


@pytest.mark.parametrize("encoder", ["hybrid", "printed"])
@pytest.mark.parametrize("features", [(8, 8, 8), (4, 8, 16, 32, 8), (4, 4, 8, 8, 16, 4)])
@pytest.mark.parametrize(("sources", "targets"), [(2, 2), (1, 3)])
def test_images_of_the_same_size_come_out(encoder, features, sources, targets):
    network = _network(encoder=encoder, features=features, num_targets=targets)
    _, output = _shapes(network, (3, 32, 16, sources))
    assert output.shape == (3, 32, 16, targets)


@pytest.mark.slow
def test_with_the_skip_the_output_layer_sees_each_pixels_own_sources(inputs, stir):
    """GroupNorm hides a shift of all intensities from the body, but not from the output layer."""
    sources, y = inputs
    for skip in (True, False):
        network = _network(source_skip=skip)
        params = {
            "params": stir(
                jax.jit(network.init)(jax.random.key(0), sources, y)["params"], scale=0.1
            )
        }
        body = {k: v for k, v in params["params"].items() if not k.startswith("Conv_")}
        body = jax.tree.map(jnp.zeros_like, body)  # all that is left is the way around the body
        left = {"params": params["params"] | body}
        changed = sources.at[0, 3, 5].add(1)
        difference = network.apply(left, changed, y) - network.apply(left, sources, y)
        places = np.argwhere(np.abs(difference).max(axis=-1) > 0).tolist()
        assert places == ([[0, 3, 5]] if skip else [])


def test_m1_has_no_condition_and_is_otherwise_the_same_network():
    m1, _ = _shapes(_network(condition="none"), y=False)
    full, _ = _shapes(_network())
    conditions = {name for name in full if name.startswith("ConditionEmbedding")}
    assert len(conditions) == 3
    assert set(full) - conditions == set(m1)
    for name in m1:
        assert jax.tree.map(jnp.shape, m1[name]) == jax.tree.map(jnp.shape, full[name])


def test_m1_ignores_y(inputs, stir):
    network, (sources, y) = _network(condition="none"), inputs
    params = {"params": stir(jax.jit(network.init)(jax.random.key(0), sources, None)["params"])}
    apply = jax.jit(network.apply)
    np.testing.assert_array_equal(apply(params, sources, y), apply(params, sources, None))


def test_the_capacity_control_keeps_everything_but_the_path_of_y():
    control, _ = _shapes(_network(condition="keep_1x1"), y=False)
    full, _ = _shapes(_network())
    perceptrons = [(WIDTH * c + c) + (c * c + c) for c in (8, 8, 16)]
    assert _size(full) - _size(control) == sum(perceptrons)
    m1, _ = _shapes(_network(condition="none"), y=False)
    branches = [2 * c + (c * c + c) for c in (8, 8, 16)]  # LayerNorm and the 1x1 convolution
    assert _size(control) - _size(m1) == sum(branches)


@pytest.mark.parametrize("encoder", ["hybrid", "printed"])
def test_y_reaches_every_scale(inputs, stir, encoder):
    """With y cut off at all scales but one, the output still depends on it."""
    network = _network(encoder=encoder)
    sources, y = inputs
    params = stir(jax.jit(network.init)(jax.random.key(0), sources, y)["params"], scale=0.1)
    scales = [name for name in params if name.startswith("ConditionEmbedding")]
    assert len(scales) == 3

    @jax.jit
    def influence(params):
        _, change = jax.jvp(
            lambda y: network.apply({"params": params}, sources, y), (y,), (jnp.ones_like(y),)
        )
        return jnp.abs(change).max(axis=(1, 2))

    def without(names):
        cut = {
            scale: params[scale]
            | {"Dense_0": jax.tree.map(jnp.zeros_like, params[scale]["Dense_0"])}
            for scale in names
        }
        return influence(params | cut)

    assert (without(scales) == 0).all()
    for scale in scales:
        assert (without([s for s in scales if s != scale]) > 1e-6).all()


def test_training_starts_where_no_y_changes_anything(inputs):
    network, (sources, y) = _network(), inputs
    params = jax.jit(network.init)(jax.random.key(0), sources, y)["params"]
    apply = jax.jit(network.apply)
    np.testing.assert_array_equal(
        apply({"params": params}, sources, y), apply({"params": params}, sources, 3 - 2 * y)
    )


def test_the_condition_reaches_every_pixel_alike_at_the_first_scale(inputs, stir):
    """y is a vector a slice: it is added to all places of a feature map."""
    module, y = ConditionEmbedding(), inputs[1]
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
    params = stir(jax.jit(module.init)(jax.random.key(0), x, y))
    difference = module.apply(params, x, y) - module.apply(params, x, y + 1)
    np.testing.assert_allclose(
        difference, jnp.broadcast_to(difference[:, :1, :1], x.shape), atol=1e-5
    )
    assert jnp.abs(difference).max() > 1e-3


def test_without_the_residual_only_normalized_features_are_left(inputs, stir):
    """LayerNorm takes each pixel's mean and scale away, so that no shift or gain comes through."""
    y = inputs[1]
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
    with_residual, without = (ConditionEmbedding(kept) for kept in (True, False))
    params = stir(jax.jit(with_residual.init)(jax.random.key(0), x, y))
    np.testing.assert_allclose(
        with_residual.apply(params, x, y), x + without.apply(params, x, y), atol=1e-5
    )
    np.testing.assert_allclose(
        without.apply(params, x, y), without.apply(params, 3 * x + 5, y), atol=1e-4
    )


def test_the_printed_loss_is_the_norm_of_each_slice():
    truth = jnp.zeros((2, 4, 4, 2))
    synthesis = jnp.stack([jnp.full((4, 4, 2), 3.0), jnp.full((4, 4, 2), 1.0)])
    norms = [np.linalg.norm(image) for image in synthesis]
    assert synthesis_loss(synthesis, truth, "l2norm") == pytest.approx(np.mean(norms), rel=1e-6)
    assert synthesis_loss(synthesis, truth, "mse") == pytest.approx(5)


# The representation in training.


def _training_y(method, frozen, batch, keys):
    """y of every key [k, b, d], with a null that is easy to recognize."""
    params = {"null": jnp.full(WIDTH, 7.0)}
    draw = jax.jit(jax.vmap(lambda key: method._training_y(frozen, params, batch, key)))
    return np.asarray(draw(jax.random.split(jax.random.key(0), keys)))


def _truth(method, frozen, batch):
    representation = method.mdn.representation
    return np.asarray(jax.jit(representation.represent)(frozen["mrm"], batch))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_encoders_recipe_is_the_true_representation_with_white_noise(start, frozen, noise):
    changes = {
        "cunet.training_y": "encoder",
        "cunet.noise": noise,
        "cunet.condition_dropout": 0.0,
    }
    method, _, batch = start("cunet", changes)
    error = _training_y(method, frozen, batch, 2000) - _truth(method, frozen, batch)
    covariance = np.cov(error.reshape(-1, WIDTH).T)
    np.testing.assert_allclose(covariance, noise**2 * np.eye(WIDTH), atol=0.03 * noise + 1e-9)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=0.15 * noise + 1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_noised_recipe_errs_as_mdn_errs(start, frozen, scale):
    """Around the true y with covariance F F^T, F being what MDN's `finish` measured, scaled."""
    changes = {
        "cunet.training_y": "noised",
        "cunet.condition_dropout": 0.0,
    }
    method, _, batch = start("cunet", changes | {"cunet.error_scale": scale})
    error = _training_y(method, frozen, batch, 8000) - _truth(method, frozen, batch)
    factor = np.asarray(frozen["mdn"]["statistics"]["error_factor"])
    expected = factor @ factor.T
    error = error.reshape(-1, WIDTH) / scale
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(error.T @ error / len(error), expected, atol=0.05)
    assert np.abs(expected - factor.T @ factor).max() > 0.5  # the transpose would be noticed


def test_the_sampled_recipe_is_mdns_answer_to_the_sources(start, certain):
    changes = {
        "cunet.training_y": "sampled",
        "cunet.condition_dropout": 0.0,
    }
    method, _, batch = start("cunet", changes)
    y = _training_y(method, certain, batch, 2)
    expected = jax.jit(method.mdn.sample)(certain["mdn"], batch["source"], jax.random.key(77))
    np.testing.assert_allclose(y, np.stack([expected] * 2), atol=1e-4)


def test_the_null_replaces_y_at_the_stated_share(start, frozen):
    method, _, batch = start("cunet", {"cunet.condition_dropout": 0.2})
    dropped = (_training_y(method, frozen, batch, 2000) == 7).all(axis=-1)
    np.testing.assert_allclose(dropped.mean(axis=0), 0.2, atol=5 * np.sqrt(0.16 / 2000))
    assert abs(np.corrcoef(dropped[:, 0], dropped[:, 1])[0, 1]) < 0.12
    never, _, _ = start("cunet", {"cunet.condition_dropout": 1.0})
    assert (_training_y(never, frozen, batch, 3) == 7).all()


# Training.


def test_the_loss_is_the_mean_square_distance_to_the_targets(start, frozen, stir):
    changes = {"cunet.training_y": "encoder", "cunet.condition_dropout": 0.0}
    method, state, batch = start("cunet", changes, frozen)
    state = state.replace(params=stir(state.params, scale=0.05))
    y = jnp.asarray(_truth(method, frozen, batch))
    apply = jax.jit(method.network.apply)
    prediction = apply({"params": state.params["network"]}, batch["source"], y)
    loss = jax.jit(lambda *a: method.update(*a)[1]["loss"])(state, batch, jax.random.key(0))
    expected = np.square(np.asarray(prediction - batch["target"])).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_training_learns_one_batch_and_leaves_mrm_and_mdn_as_they_are(start, frozen, train, same):
    changes = {"cunet.average_decay": 0.9, "cunet.condition_dropout": 0.5}
    method, state, batch = start("cunet", changes, frozen)
    batch["target"] = 0.5 * batch["source"][..., ::-1] - 0.2
    trained, losses = train(method, state, batch, 60)
    assert losses[-5:].mean() < 0.3 * losses[0]
    assert same(trained.frozen, frozen)
    assert (trained.params["null"] != 0).any()
    assert not same(trained.average, trained.params)


@pytest.mark.slow
def test_one_source_three_targets_and_every_other_option_train(start, train, same, stir):
    changes = {
        "data.sources": ("t2",),
        "data.targets": ("a", "b", "c"),
        "cunet.training_y": "sampled",
        "cunet.encoder": "printed",
    }
    shape = {"sources": 1, "targets": 3}
    _, mrm_state, _ = start("mrm", changes, **shape)
    models = {"mrm": {"params": mrm_state.params, "statistics": mrm_state.statistics}}
    _, mdn_state, _ = start("mdn", changes, models, **shape)
    models["mdn"] = {"params": stir(mdn_state.params), "statistics": mdn_state.statistics}
    method, state, batch = start("cunet", changes, models, **shape)
    batch["target"] = jnp.tile(0.5 * batch["source"], 3)
    state, losses = train(method, state, batch, 60)
    assert losses[-5:].mean() < 0.5 * losses[0]
    assert same(state.frozen, models)
    model = base.model_of(state)
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), 4)
    drawn = jax.eval_shape(lambda *a: method.translate(*a, 2), model, batch["source"], key)
    assert drawn.shape == (2, 4, 16, 16, 3)
    values, pictures = jax.eval_shape(method.validate, model, batch, keys)
    assert values["psnr"].shape == (4, 3)
    assert pictures["source"].shape == (4, 16, 16, 1)
    assert pictures["truth"].shape == pictures["synthesis"].shape == (4, 16, 16, 3)


def test_m1_learns_without_chance_and_its_average_equals_a_loop_by_hand(start, same):
    method, state, batch = start("m1", {"m1.average_decay": 0.15})
    update = jax.jit(method.update)
    expected, losses = np.asarray(state.params["network"]["Conv_0"]["kernel"], np.float64), []
    for n in range(4):
        before = state
        state, metrics = update(before, batch, jax.random.key(n))
        losses.append(float(metrics["loss"]))
        rate = min(0.15, (1 + n) / (10 + n))
        new = np.asarray(state.params["network"]["Conv_0"]["kernel"], np.float64)
        expected = rate * expected + (1 - rate) * new
        found = base.model_of(state)["params"]["network"]["Conv_0"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert losses[-1] < losses[0]
    assert same(state, update(before, batch, jax.random.key(99))[0])


@pytest.mark.parametrize("condition", ["none", "keep_1x1"])
def test_without_the_condition_nothing_is_needed_and_nothing_is_random(start, same, condition):
    method, state, batch = start("m1", {"m1.condition": condition})
    assert method.depends_on == ()
    assert not method.stochastic
    assert set(state.params) == {"network"}
    assert method.audits(3) == {}
    model = base.model_of(state)
    one, two = (method.translate(model, batch["source"], jax.random.key(k), 4) for k in (0, 1))
    assert one.shape == (1, 4, 16, 16, 2)
    assert same(one, two)


# Translation.


@pytest.fixture(scope="module")
def painter(start, frozen, stir):
    """A C-UNet with arbitrary parameters, its model, and a batch with another patient's sources."""
    method, state, batch = start("cunet", None, frozen)
    state = state.replace(params=stir(state.params, scale=0.1))
    return method, base.model_of(state), batch | {"other": jnp.roll(batch["source"], 1, axis=0)}


@pytest.fixture(scope="module")
def audits(painter):
    method, _, _ = painter
    return {name: jax.jit(translate) for name, translate in method.audits(3).items()}


def test_samples_differ_between_themselves_and_keys_but_not_between_calls(painter):
    method, model, batch = painter
    translate = jax.jit(method.translate, static_argnums=3)
    one, again, other = (
        np.asarray(translate(model, batch["source"], jax.random.key(k), 3)) for k in (0, 0, 1)
    )
    assert one.shape == (3, 4, 16, 16, 2)
    np.testing.assert_array_equal(one, again)
    results = [*one, *other]
    for i, result in enumerate(results):
        for different in results[:i]:
            assert (result != different).mean() > 0.9


def test_every_audit_is_there_and_only_the_oracle_sees_the_targets(painter, audits, images):
    _, model, batch = painter
    assert set(audits) == {"mean_representation", "oracle", "null", "mean", "shuffled"}
    for name, translate in audits.items():
        one = translate(model, batch, jax.random.key(0))
        two = translate(model, batch | {"target": images(8)["target"]}, jax.random.key(0))
        assert one.shape == (4, 16, 16, 2)
        assert ((one != two).mean() > 0.9) == (name == "oracle")
        if name != "oracle":
            np.testing.assert_array_equal(one, two)


def test_translation_does_not_see_the_targets(painter):
    """It is not given them; nor is the frozen MRM, the only part that could encode them, used."""
    method, model, batch = painter
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model["frozen"]["mrm"])
    without = model | {"frozen": model["frozen"] | {"mrm": broken}}
    translate = jax.jit(method.translate, static_argnums=3)
    one, two = (translate(m, batch["source"], jax.random.key(0), 1) for m in (model, without))
    np.testing.assert_array_equal(one, two)


def test_the_oracle_is_the_network_given_the_true_representation(painter, audits, frozen):
    method, model, batch = painter
    y = jnp.asarray(_truth(method, frozen, batch))
    expected = method.network.apply({"params": model["params"]["network"]}, batch["source"], y)
    found = audits["oracle"](model, batch, jax.random.key(0))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_shuffled_is_the_translation_with_the_representation_of_the_other(painter, audits, certain):
    """With an MDN that is certain: own sources painted with what it says of the other's."""
    method, model, batch = painter
    model = model | {"frozen": certain}
    key, translate = jax.random.key(0), jax.jit(method.translate, static_argnums=3)
    y = method.mdn.sample(certain["mdn"], batch["other"], key)
    expected = method.network.apply({"params": model["params"]["network"]}, batch["source"], y)
    found = audits["shuffled"](model, batch, key)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    own = translate(model, batch["source"], key, 1)[0]
    assert (jnp.abs(found - own) > 1e-4).mean() > 0.5
    themselves = audits["shuffled"](model, batch | {"other": batch["source"]}, key)
    np.testing.assert_allclose(themselves, own, atol=1e-4)


@pytest.mark.parametrize("name", ["null", "mean"])
def test_null_and_mean_say_the_same_of_every_patient(painter, audits, images, name):
    _, model, batch = painter
    key, noise = jax.random.key(0), images(8)
    found = audits[name](model, batch, key)
    others = batch | {"target": noise["target"], "other": noise["source"]}
    np.testing.assert_array_equal(found, audits[name](model, others, jax.random.key(5)))
    twins = batch | {"source": jnp.broadcast_to(batch["source"][:1], batch["source"].shape)}
    alike = np.asarray(audits[name](model, twins, key))
    np.testing.assert_allclose(alike, np.broadcast_to(alike[:1], alike.shape), atol=1e-5)


def test_with_the_null_in_synthesis_nothing_is_random_and_mdn_is_not_asked(painter, audits):
    method, model, batch = painter
    plain = dataclasses.replace(method, null_y=True)
    assert method.stochastic and not plain.stochastic
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model["frozen"])
    translate = jax.jit(plain.translate, static_argnums=3)
    found = translate(model | {"frozen": broken}, batch["source"], jax.random.key(1), 8)
    assert found.shape == (1, 4, 16, 16, 2)
    expected = audits["null"](model, batch, jax.random.key(0))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert "sampler" in method.facts() and "sampler" not in plain.facts()


def test_null_is_learned_and_mean_is_not(painter, audits):
    _, model, batch = painter
    key = jax.random.key(0)
    moved = model | {"params": model["params"] | {"null": model["params"]["null"] + 1}}
    changed = {
        name: bool((audits[name](model, batch, key) != audits[name](moved, batch, key)).any())
        for name in audits
    }
    assert changed.pop("null")
    assert not any(changed.values())


def test_validation_reports_the_error_of_the_honest_translation(painter):
    method, model, batch = painter
    keys = jax.random.split(jax.random.key(3), 4)
    values, pictures = jax.jit(method.validate)(model, batch, keys)
    metrics = method.summarize(jax.device_get(values), np.zeros(4, int))
    drawn = jax.jit(method.translate, static_argnums=3)(model, batch["source"], keys, 1)
    drawn = np.clip((np.asarray(drawn[0]) + 1) / 2, 0, 1)
    truth = (np.asarray(batch["target"]) + 1) / 2
    assert float(metrics["loss"]) == pytest.approx(((drawn - truth) ** 2).mean(), rel=1e-4)
    for t in range(2):
        errors = [((drawn[b, ..., t] - truth[b, ..., t]) ** 2).mean() for b in range(4)]
        expected = np.mean([10 * np.log10(1 / error) for error in errors])
        assert float(metrics["psnr"][t]) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(pictures["synthesis"], drawn, atol=1e-5)
    np.testing.assert_allclose(pictures["truth"], truth, atol=1e-6)


def test_validation_sees_what_inference_gives_outside_the_brain(painter):
    method, model, batch = painter
    outside = np.zeros((4, *batch["source"].shape[1:3]), bool)
    outside[:, :5] = True
    batch = {k: jnp.where(outside[..., None], -1.0, images) for k, images in batch.items()}
    keys = jax.random.split(jax.random.key(3), 4)
    values, pictures = jax.jit(method.validate)(model, batch, keys)
    synthesis = np.asarray(pictures["synthesis"])
    assert (synthesis[outside] == 0).all() and (synthesis[~outside] != 0).any()
    truth = (np.asarray(batch["target"]) + 1) / 2
    assert values["loss"].mean() == pytest.approx(((synthesis - truth) ** 2).mean(), rel=1e-4)
    one_source = batch | {"source": batch["source"].at[0, 0, 0, 1].set(-0.9)}
    _, pictures = jax.jit(method.validate)(model, one_source, keys)
    assert np.argwhere([pictures["synthesis"][0, :5, :, 0] != 0]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"cunet.encoder": "plain"},
        {"cunet.condition": "off"},
        {"cunet.training_y": "target"},
        {"cunet.loss": "huber"},
        {"cunet.features": (8, 8, 8, 8, 8, 8, 8)},  # six scales need a multiple of 32
        {"mdn.decouple": "halves"},
        {"cunet.null_y": True, "cunet.condition_dropout": 0.0},
    ],
)
def test_what_does_not_fit_is_refused(create, changes):
    with pytest.raises(
        UserError, match=r"allowed are|cannot be halved|takes a null that was trained"
    ):
        create("cunet", changes)


def test_upsampling_is_the_gradient_of_a_strided_convolution():
    """A transposed convolution is by definition the adjoint of the convolution with its kernel."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    module = UpSample(4)
    params = module.init(jax.random.key(1), x)["params"]
    kernel = params["Dense_0"]["kernel"].reshape(2, 2, 2, 4).transpose(1, 2, 3, 0)  # h w in out

    def convolve(image):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    _, adjoint = jax.vjp(convolve, jnp.zeros((1, 6, 6, 4)))
    assert float(jnp.abs(params["Dense_0"]["bias"]).max()) == 0
    np.testing.assert_allclose(module.apply({"params": params}, x), adjoint(x)[0], atol=1e-5)
