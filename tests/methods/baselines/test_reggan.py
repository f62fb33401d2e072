import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines.reggan_network import (
    RandomAffine,
    RegistrationNetwork,
    affine,
    smoothness,
    warp,
)
from configs import common

STILL = {f"reggan.misalignment.{name}": 0.0 for name in ("degrees", "shift", "scale")}
TINY = {
    "data.size": 32,
    "reggan.optimizer.warmup_steps": 0,
    "reggan.optimizer.schedule": "constant",
}


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _noise(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0)


# Its size at the scale of the publication.


def test_the_networks_are_those_of_the_publication():
    method = base.create(common.base("reggan"))
    image = jax.ShapeDtypeStruct((1, 256, 256, 2), jnp.float32)
    batch = {"source": image, "target": image}
    state = jax.eval_shape(lambda b: method.init(jax.random.key(0), b, {}), batch)
    assert method.paired
    generator = {name: _size(tree) for name, tree in state.params["generator"].items()}
    assert generator == {"network": 11_371_906, "registration": 2_058_594}
    assert _size(state.params["discriminator"]) == 2_763_713


def test_a_registration_of_single_modalities_has_the_published_size():
    network = RegistrationNetwork((32, 64, 64, 64, 64, 64, 64))
    image = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image, image)
    assert _size(params) == 2_058_018
    assert jax.eval_shape(network.apply, params, image, image).shape == (1, 256, 256, 2)


# The registration and what it moves.


def test_a_fresh_registration_almost_stays_where_it_is_and_can_learn():
    network, images = RegistrationNetwork((4, 4)), _noise(0, 2, 2, 16, 16, 2)
    params = jax.jit(network.init)(jax.random.key(0), *images)["params"]
    displacement = jax.jit(network.apply)({"params": params}, *images)
    assert 0 < float(jnp.abs(displacement).max()) < 1e-2  # pixels
    np.testing.assert_allclose(warp(images[0], displacement), images[0], atol=2e-2)

    def error(params):
        moved = warp(images[0], base.apply(network, params, *images))
        return jnp.abs(moved - images[1]).mean()

    gradient = jax.jit(jax.grad(error))(params)
    assert float(jnp.abs(gradient["Conv_0"]["kernel"]).max()) > 0


def test_a_registrations_odd_sizes_come_back():
    network, images = RegistrationNetwork((4, 4)), _noise(0, 2, 1, 14, 11, 1)
    found, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), *images)
    assert found.shape == (1, 14, 11, 2)


def test_initial_kernels_keep_the_variance_of_what_passes_through():
    """He et al. 2015: deviation sqrt(2 / fan-in) before ReLU, less before a leaky one."""
    network, images = RegistrationNetwork((32, 64)), _noise(0, 2, 1, 8, 8, 2)
    params = jax.jit(network.init)(jax.random.key(0), *images)["params"]
    block = params["RegistrationBlock_1"]["Conv_0"]
    assert float(block["kernel"].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    down = params["Conv_1"]
    assert down["kernel"].shape == (3, 3, 32, 64)
    assert float(down["kernel"].std()) == pytest.approx((2 / 1.04 / (9 * 32)) ** 0.5, rel=0.02)
    biases = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"
    ]
    assert max(float(jnp.abs(bias).max()) for bias in biases) == 0


def test_no_displacement_changes_nothing():
    images = _noise(0, 2, 6, 5, 3)
    np.testing.assert_array_equal(warp(images, jnp.zeros((2, 6, 5, 2))), images)


@pytest.mark.parametrize(("rows", "columns"), [(2, 0), (0, -3), (-1, 1), (20, -20)])
def test_a_displacement_of_whole_pixels_is_a_shift_with_a_repeated_border(rows, columns):
    images = _noise(0, 2, 6, 5, 3)
    displacement = jnp.tile(jnp.array([rows, columns], jnp.float32), (2, 6, 5, 1))
    down = np.clip(np.arange(6) + rows, 0, 5)
    along = np.clip(np.arange(5) + columns, 0, 4)
    expected = np.asarray(images)[:, down][:, :, along]
    np.testing.assert_array_equal(warp(images, displacement), expected)


def test_any_displacement_agrees_with_scipy():
    images, displacement = _noise(0, 2, 7, 9, 2), 3 * _noise(1, 2, 7, 9, 2)
    found = warp(images, displacement)
    for b in range(2):
        places = np.moveaxis(np.asarray(displacement[b]), -1, 0) + np.indices((7, 9))
        for c in range(2):
            expected = ndimage.map_coordinates(images[b, ..., c], places, order=1, mode="nearest")
            np.testing.assert_allclose(found[b, ..., c], expected, atol=1e-5)


def test_the_smoothness_of_a_slope_is_its_square():
    rows, columns = jnp.meshgrid(jnp.arange(6.0), jnp.arange(9.0), indexing="ij")
    slope = jnp.stack([2 * rows - 3 * columns, 2 * rows + 3 * columns], axis=-1)[None]
    assert float(smoothness(slope)) == pytest.approx(2**2 + 3**2)
    one_axis = slope * jnp.array([[[[1.0, 0.0]]]])
    assert float(smoothness(one_axis)) == pytest.approx((2**2 + 3**2) / 2)
    assert float(smoothness(jnp.full((1, 4, 4, 2), 7.0))) == 0


# Misalignment.


def _affine(images, angle=0.0, shift=(0.0, 0.0), scale=1.0):
    b = len(images)
    return jax.jit(affine)(
        images, jnp.full(b, angle), jnp.tile(jnp.array([shift]), (b, 1)), jnp.full(b, scale)
    )


def test_a_quarter_turn_a_shift_and_an_enlargement_are_what_they_say():
    images = _noise(0, 2, 6, 6, 2)
    quarter = _affine(images, angle=np.pi / 2)
    np.testing.assert_array_equal(quarter, np.rot90(images, axes=(1, 2)))
    shifted = np.full(images.shape, -1, np.float32)
    shifted[:, 1:, :-2] = images[:, :-1, 2:]
    np.testing.assert_array_equal(_affine(images, shift=(1.0, -2.0)), shifted)
    # Threefold about the center of 9 pixels: the middle ones, each three times.
    tripled = np.repeat(np.repeat(images[:, :3, :3], 3, axis=1), 3, axis=2)
    framed = jnp.pad(images[:, :3, :3], ((0, 0), (3, 3), (3, 3), (0, 0)))
    np.testing.assert_array_equal(_affine(framed, scale=3.0), tripled)


def test_a_shift_comes_after_the_turn():
    images = _noise(0, 1, 6, 6, 1)
    both = _affine(images, angle=np.pi / 2, shift=(2.0, 0.0))
    one_by_one = _affine(_affine(images, angle=np.pi / 2), shift=(2.0, 0.0))
    np.testing.assert_array_equal(both, one_by_one)


def test_random_moves_differ_between_images_and_stay_in_their_range():
    """Seen by images whose value is their row: the shift is how much it changes."""
    rows = jnp.tile(jnp.arange(100.0)[None, :, None, None], (64, 1, 100, 2))
    key = jax.random.key(0)
    moved = RandomAffine(degrees=0.0, shift=0.1, scale=0.0)(key, rows)
    shifts = 50 - np.asarray(moved)[:, 50, 50]
    np.testing.assert_array_equal(shifts[:, 0], shifts[:, 1])
    assert -10 <= shifts.min() < -8
    assert 8 < shifts.max() <= 10
    assert abs(shifts.mean()) < 3
    scaled = RandomAffine(degrees=0.0, shift=0.0, scale=0.2)(key, rows)
    assert float(jnp.abs(scaled[:, 49, 50] - 49).max()) <= 1  # the center stays
    turned = RandomAffine(degrees=5.0, shift=0.0, scale=0.0)(key, rows)
    rise = np.asarray(turned)[:, 50, 95, 0] - np.asarray(turned)[:, 50, 5, 0]
    assert np.abs(rise).max() <= 90 * np.sin(np.deg2rad(5)) + 1
    assert rise.std() > 2


def test_no_misalignment_changes_nothing():
    images = _noise(0, 2, 6, 6, 2)
    still = RandomAffine(degrees=0.0, shift=0.0, scale=0.0)
    np.testing.assert_array_equal(still(jax.random.key(0), images), images)


def test_sources_and_targets_are_moved_independently_at_every_step(create, images):
    method, sources = create("reggan", TINY), images(0, size=32)["source"]
    twins = {"source": sources, "target": sources}
    moved = [method._misalign(twins, jax.random.key(k))[kind] for k in (0, 1) for kind in twins]
    for i, one in enumerate(moved):
        assert all((one != other).mean() > 0.2 for other in [sources, *moved[:i]])


# One step.


@pytest.fixture(scope="module")
def step(start, stir):
    """A method, a state, the one after it, the metrics and the batch."""
    method, state, batch = start("reggan", TINY | STILL, number=2, size=32)
    # A fresh registration moves nothing.
    generator = state.params["generator"]
    generator = generator | {"registration": stir(generator["registration"], scale=0.1)}
    state = state.replace(params=state.params | {"generator": generator})
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(3))
    return method, state, after, metrics, batch


def _scores(method, params, images):
    """The mean of an image's map of scores."""
    scores = jax.jit(base.apply, static_argnums=0)(method.discriminator, params, images)
    return np.asarray(scores).mean(axis=(1, 2, 3))


def test_the_generators_loss_is_the_published_sum_over_averaged_scores(step):
    method, before, _, metrics, batch = step
    generator = before.params["generator"]
    apply = jax.jit(base.apply, static_argnums=0)
    made = np.asarray(apply(method.network, generator["network"], batch["source"]))
    displacement = np.asarray(
        apply(method.registration, generator["registration"], made, batch["target"])
    )
    discriminator = before.params["discriminator"]
    adversarial = ((_scores(method, discriminator, made) - 1) ** 2).mean()
    places = np.moveaxis(displacement, -1, 1) + np.indices((32, 32))
    warped = np.stack(
        [
            [
                ndimage.map_coordinates(made[b, ..., c], places[b], order=1, mode="nearest")
                for c in range(2)
            ]
            for b in range(2)
        ]
    )
    correction = np.abs(np.moveaxis(warped, 1, -1) - batch["target"]).mean()
    assert 0.5 < np.abs(displacement).mean() < 10
    slopes = [np.diff(displacement, axis=axis) for axis in (1, 2)]
    smooth = sum((slope**2).mean() for slope in slopes)
    assert float(metrics["adversarial"]) == pytest.approx(adversarial, rel=1e-4)
    assert float(metrics["correction"]) == pytest.approx(correction, rel=1e-3)
    assert float(metrics["smoothness"]) == pytest.approx(smooth, rel=1e-3)
    expected = adversarial + 20 * correction + 10 * smooth
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-3)


def test_the_discriminator_scores_what_the_new_generator_makes_and_is_not_halved(step):
    method, before, after, metrics, batch = step
    discriminator = before.params["discriminator"]
    real = ((_scores(method, discriminator, batch["target"]) - 1) ** 2).mean()
    old, new = (
        (
            _scores(method, discriminator, method.generate(base.model_of(s), batch["source"])) ** 2
        ).mean()
        for s in (before, after)
    )
    assert float(metrics["discriminator_loss"]) == pytest.approx(real + new, rel=1e-4)
    assert abs(old - new) > 1e-3 * (real + new)


@pytest.mark.slow
def test_every_network_moves(step):
    _, before, after, metrics, _ = step
    assert int(after.step) == 1
    names = {"loss", "discriminator_loss", "adversarial", "correction", "smoothness"}
    assert set(metrics) == names
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    kernels = [
        value
        for path, value in jax.tree_util.tree_leaves_with_path(moved)
        if path[-1].key == "kernel"
    ]
    assert len(kernels) > 30
    assert all(kernels)


# Translation and settings.


def test_translation_is_the_generator_alone_on_images_as_they_lie(create, step):
    _, state, _, _, batch = step
    method = create("reggan", TINY)
    model = base.model_of(state)
    found = method.translate(model, batch["source"], jax.random.key(0), 3)
    network = model["params"]["generator"]["network"]
    np.testing.assert_array_equal(found[0], base.apply(method.network, network, batch["source"]))
    assert found.shape == (1, 2, 32, 32, 2)
    assert not method.stochastic


def test_one_source_gives_three_targets(create, images):
    modalities = {"data.sources": ("t1",), "data.targets": ("t1c", "t2", "t2f")}
    method = create("reggan", TINY | modalities)
    batch = images(0, sources=1, targets=3, size=32)
    state = jax.eval_shape(lambda b: method.init(jax.random.key(0), b, {}), batch)
    after = jax.eval_shape(method.update, state, batch, jax.random.key(0))[0]
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.eval_shape(method.generate, base.model_of(state), batch["source"]).shape[-1] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"data.size": 20},
        {"data.size": 30},
        {"reggan.blocks": 0},
        {"reggan.registration": ()},
        {"reggan.registration": (4, 4, 4, 4, 4)},  # of 32 pixels one would be left
    ],
)
def test_what_does_not_fit_is_refused(create, changes):
    with pytest.raises(UserError, match=r"too small|multiple of|use between 1 and 4"):
        create("reggan", TINY | changes)
