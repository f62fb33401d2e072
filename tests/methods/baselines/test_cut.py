import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.cut import ProjectionHeads, patch_nce
from configs import common

EVERYWHERE = {"cut.patches": 10_000}  # more places than any layer here has
TINY = {
    "data.size": 32,
    "cut.patches": 8,
    "cut.optimizer.warmup_steps": 0,
    "cut.optimizer.schedule": "constant",
}


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _uneven(tree):
    """Parameters as they could be after training: no code is all alike, no bias is zero."""
    draws = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: np.float32(leaf + 0.2 * draws.standard_normal(leaf.shape)), tree
    )


@pytest.fixture(scope="module")
def begun(start):
    """CUT that compares all places, its state, and a batch of noise."""
    method, state, batch = start("cut", TINY | EVERYWHERE, number=2, size=32)
    generator = _uneven(state.params["generator"])
    return method, state.replace(params=state.params | {"generator": generator}), batch


@pytest.fixture(scope="module")
def update(begun):
    """Its compiled update."""
    return jax.jit(begun[0].update)


@pytest.fixture(scope="module")
def contrast(begun):
    """`contrast(images, synthetic, key)`, compiled."""
    method, state, _ = begun
    params = state.params["generator"]
    return jax.jit(lambda images, synthetic, key: method._contrast(params, images, synthetic, key))


# Its size at the scale of the publication.


def test_the_networks_are_those_of_the_publication():
    method = base.create(common.base("cut"))
    image = jax.ShapeDtypeStruct((1, 256, 256, 2), jnp.float32)
    batch = {"source": image, "target": image}
    state = jax.eval_shape(lambda b: method.init(jax.random.key(0), b, {}), batch)
    assert not method.paired
    assert _size(state.params["generator"]["network"]) == 11_371_906
    assert _size(state.params["generator"]["projection"]) == 560_128
    assert _size(state.params["discriminator"]) == 2_763_713
    features = jax.eval_shape(
        lambda p, x: base.apply(method.network, p, x, method="features"),
        state.params["generator"]["network"],
        image,
    )
    shapes = [layer.shape[1:] for layer in features]
    assert shapes == [(262, 262, 2), (256, 256, 128), (128, 128, 256), (64, 64, 256), (64, 64, 256)]


# PatchNCE.


def _unit_vectors(number, width):
    return jnp.eye(width)[None, :number]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_codes_at_right_angles_cost_the_logarithm_of_one_plus_the_others(temperature):
    """Own similarity 1, the n - 1 others 0: -log(e^(1/t) / (e^(1/t) + n - 1))."""
    codes = _unit_vectors(5, 8)
    expected = math.log(1 + 4 * math.exp(-1 / temperature))
    assert float(patch_nce(codes, codes, temperature)) == pytest.approx(expected, abs=1e-6)


def test_codes_that_point_at_another_place_cost_its_similarity_more():
    """Own similarity 0, one of the others 1: -log(1 / (n - 1 + e^(1/t)))."""
    codes = _unit_vectors(5, 8)
    expected = math.log(4 + math.exp(1 / 0.5))
    found = patch_nce(codes, jnp.roll(codes, 1, axis=1), 0.5)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_codes_that_are_all_alike_cost_a_guess():
    codes = jnp.tile(_unit_vectors(1, 4), (3, 7, 1))
    assert float(patch_nce(codes, codes, 0.07)) == pytest.approx(math.log(7), rel=1e-5)


def test_other_images_are_no_negatives():
    """Images of the same codes: were they negatives, each code would have a rival as near."""
    codes = _unit_vectors(5, 8)
    alone, twins = (float(patch_nce(x, x, 0.2)) for x in (codes, jnp.tile(codes, (2, 1, 1))))
    assert twins == pytest.approx(alone, rel=1e-5)


def test_keys_learn_nothing():
    queries, keys = jax.random.normal(jax.random.key(0), (2, 1, 4, 3))
    for_queries, for_keys = jax.grad(patch_nce, argnums=(0, 1))(queries, keys, 0.5)
    assert float(jnp.abs(for_queries).min()) > 0
    assert float(jnp.abs(for_keys).max()) == 0


def test_heads_return_codes_of_unit_length_and_stand_zeros():
    heads = ProjectionHeads(6)
    layers = [jax.random.normal(jax.random.key(n), (2, 5, n)) for n in (2, 3)]
    params = _uneven(jax.jit(heads.init)(jax.random.key(0), layers)["params"])
    for codes in base.apply(heads, params, layers):
        assert codes.shape == (2, 5, 6)
        np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, atol=1e-5)
    silent = jax.tree.map(jnp.zeros_like, params)
    slopes = jax.jit(jax.grad(lambda p: base.apply(heads, p, layers)[0].sum()))(silent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


# Places.


def test_queries_and_keys_are_of_the_same_places_of_all_images(begun, contrast):
    """With every place taken their order is of no account, unless queries' and keys' differ."""
    images = begun[2]["source"], begun[2]["target"]
    one, two = (float(contrast(*images, jax.random.key(k))) for k in (0, 1))
    assert one == pytest.approx(two, rel=1e-5)


def test_places_are_drawn_anew_without_repeats_and_as_many_as_there_are(create):
    method = create("cut", TINY)
    features = [jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 2, 2, 3))]
    draws = [method._draw(features, jax.random.key(k)) for k in (0, 1)]
    for large, small in draws:
        assert len(set(large.tolist())) == len(large) == 8
        assert set(large.tolist()) <= set(range(16))
        assert sorted(small.tolist()) == [0, 1, 2, 3]
    assert draws[0][0].tolist() != draws[1][0].tolist()


# One step.


@pytest.fixture(scope="module")
def step(begun, update):
    """The state after one, and its metrics."""
    _, state, batch = begun
    return update(state, batch, jax.random.key(3))


def test_the_discriminator_moves_first_and_the_generator_faces_the_new_one(begun, step):
    (method, before, batch), (after, metrics) = begun, step
    apply = jax.jit(base.apply, static_argnums=0)

    def scores(params, images):
        return np.asarray(apply(method.discriminator, params, images))

    synthetic = jax.jit(method.generate)(base.model_of(before), batch["source"])
    old, new = before.params["discriminator"], after.params["discriminator"]
    real, made = scores(old, batch["target"]), scores(old, synthetic)
    expected = ((real - 1) ** 2).mean() / 2 + (made**2).mean() / 2
    assert float(metrics["discriminator_loss"]) == pytest.approx(expected, rel=1e-4)
    expected = ((scores(new, synthetic) - 1) ** 2).mean()
    assert float(metrics["adversarial"]) == pytest.approx(expected, rel=1e-4)
    assert abs(float(metrics["adversarial"]) - ((made - 1) ** 2).mean()) > 1e-3 * expected


def test_generator_heads_and_discriminator_all_move(begun, step):
    (_, before, _), (after, metrics) = begun, step
    assert int(after.step) == 1
    assert set(metrics) == {"loss", "discriminator_loss", "adversarial", "contrast"}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    kernels = [
        value
        for path, value in jax.tree_util.tree_leaves_with_path(moved)
        if path[-1].key == "kernel"
    ]
    assert len(kernels) > 20
    assert all(kernels)


def test_the_total_has_the_mean_of_both_contrasts(begun, step, contrast):
    (method, before, batch), (_, metrics) = begun, step
    model, key = base.model_of(before), jax.random.key(0)
    of_sources, of_targets = (
        float(contrast(batch[kind], method.generate(model, batch[kind]), key))
        for kind in ("source", "target")
    )
    assert of_sources != pytest.approx(of_targets, rel=1e-3)
    assert float(metrics["contrast"]) == pytest.approx((of_sources + of_targets) / 2, rel=1e-3)
    expected = float(metrics["adversarial"]) + float(metrics["contrast"])
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_chance_only_chooses_places(begun, update, step):
    _, state, batch = begun
    loss = float(update(state, batch, jax.random.key(9))[1]["loss"])
    assert loss == pytest.approx(float(step[1]["loss"]), rel=1e-4)


# Translation and settings.


def test_translation_is_the_generator_alone(begun):
    method, state, batch = begun
    model = base.model_of(state)
    found = method.translate(model, batch["source"], jax.random.key(0), 3)
    expected = base.apply(method.network, model["params"]["generator"]["network"], batch["source"])
    np.testing.assert_array_equal(found[0], expected)
    assert found.shape == (1, 2, 32, 32, 2)
    assert not method.stochastic


@pytest.mark.parametrize(
    "changes",
    [
        {"data.size": 20},
        {"data.size": 30},
        {"data.targets": ("t1c",)},
        {"cut.blocks": 4},
        {"cut.patches": 1},
        {"cut.projection": 0},
        {"cut.temperature": 0.0},
    ],
)
def test_what_does_not_fit_is_refused(create, changes):
    with pytest.raises(UserError, match=r"too small|multiple of|as many source|above 0"):
        create("cut", TINY | changes)
