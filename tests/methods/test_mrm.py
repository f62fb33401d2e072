import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.cdm.mrm import masked_distances, masked_loss, random_mask
from cdm_jax.methods.cdm.mrm_network import FeatureEncoder, MaskedAutoencoder

PATCH, SIZE = 4, 16
ROWS = SIZE // PATCH


def _represent(method, state, targets):
    return np.asarray(jax.jit(method.represent)(base.model_of(state), {"target": targets}))


def _raw_tokens(method, state, targets):
    variables = {"params": state.params}
    return np.asarray(method.network.apply(variables, targets, method=MaskedAutoencoder.encode))


# Masks.


@pytest.mark.parametrize(("rows", "columns", "ratio"), [(4, 4, 0.6), (8, 8, 0.6), (3, 5, 0.4)])
def test_masks_hide_exactly_the_ratio_in_every_image_and_modality(rows, columns, ratio):
    hidden = random_mask(jax.random.key(0), 50, rows, columns, 3, ratio)
    assert hidden.shape == (50, rows, columns, 3)
    assert set(np.asarray(hidden.sum(axis=(1, 2))).ravel()) == {math.ceil(ratio * rows * columns)}


def test_masks_are_independent_between_modalities_images_and_keys():
    draws, cells, count = 4000, 16, 10
    masks = random_mask(jax.random.key(0), draws, 4, 4, 2, 0.6)
    t1c, t2f = np.asarray(masks, float).reshape(draws, cells, 2).transpose(2, 0, 1)
    again = np.asarray(random_mask(jax.random.key(1), draws, 4, 4, 2, 0.6), float)[..., 0]
    # For independent draws the cells that both hide are hypergeometric: mean count^2 / cells.
    mean = count**2 / cells
    variance = mean * (1 - count / cells) * (cells - count) / (cells - 1)
    others = {"modality": t2f, "image": np.roll(t1c, 1, axis=0), "key": again.reshape(t1c.shape)}
    for name, other in others.items():
        both = (t1c * other).sum(axis=1)
        assert both.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / draws)), name
        assert both.var() == pytest.approx(variance, rel=0.15), name


def test_masks_favor_no_place():
    hidden = np.asarray(random_mask(jax.random.key(0), 4000, 4, 4, 2, 0.6), float)
    frequency = hidden.mean(axis=0)
    tolerance = 5 * np.sqrt(0.625 * 0.375 / 4000)
    np.testing.assert_allclose(frequency, 10 / 16, atol=tolerance)


def test_hidden_cells_are_whole_and_as_many_as_stated(start):
    changes = {"data.size": 32, "mrm.mask_cell": 8, "data.targets": ("t1c",)}
    method, state, batch = start("mrm", changes, targets=1, size=32)
    keys = jax.random.split(jax.random.key(3), len(batch["target"]))
    _, pictures = jax.jit(method.validate)(base.model_of(state), batch, keys)
    hidden = np.asarray(pictures["seen"]) == 0  # the images themselves are never that dark
    cells = hidden.reshape(4, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(4, 16, 64)
    assert (cells.all(axis=-1) == cells.any(axis=-1)).all()
    np.testing.assert_array_equal(cells.any(axis=-1).sum(axis=1), math.ceil(0.6 * 16))
    # What was seen is shown as it is; what was hidden is shown as it was restored.
    np.testing.assert_array_equal(pictures["seen"][~hidden], pictures["truth"][~hidden])
    np.testing.assert_array_equal(pictures["restored"][~hidden], pictures["truth"][~hidden])
    assert (pictures["restored"] != pictures["truth"])[hidden].mean() > 0.9


# The loss.


def _patches(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    prediction, truth = (jax.random.normal(key, (2, 2, 3, 2, 4)) for key in keys[:2])
    return prediction, truth, jax.random.bernoulli(keys[2], 0.5, (2, 2, 3, 2))


def _loss(prediction, truth, hidden, kind):
    return masked_loss(*masked_distances(prediction, truth, hidden, kind))


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("mse", lambda d: sum(x * x for x in d) / 4),
        ("l2norm", lambda d: math.sqrt(sum(x * x for x in d))),
    ],
)
def test_the_loss_is_the_mean_distance_of_hidden_patches(kind, distance):
    prediction, truth, hidden = _patches(0)
    distances = []
    for place in np.ndindex(hidden.shape):
        if hidden[place]:
            distances.append(distance([float(x) for x in prediction[place] - truth[place]]))
    assert 5 < len(distances) < 20
    found = _loss(prediction, truth, hidden, kind)
    assert float(found) == pytest.approx(sum(distances) / len(distances), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "l2norm"])
def test_the_loss_is_blind_to_what_is_not_hidden(kind):
    prediction, truth, hidden = _patches(1)
    changed = jnp.where(hidden[..., None], truth, truth + 100)
    loss = _loss(prediction, truth, hidden, kind)
    assert float(loss) == float(_loss(prediction, changed, hidden, kind))
    assert float(loss) != float(_loss(prediction, truth + 1, hidden, kind))


@pytest.mark.parametrize("kind", ["mse", "l2norm"])
def test_perfect_restoration_and_empty_masks_have_finite_gradients(kind):
    prediction, truth, hidden = _patches(2)
    for p, mask in ((truth, hidden), (prediction, jnp.zeros_like(hidden))):
        loss, gradient = jax.value_and_grad(_loss)(p, truth, mask, kind)
        assert float(loss) == pytest.approx(0, abs=1e-5)
        assert jnp.isfinite(gradient).all()


def test_unknown_losses_are_refused():
    with pytest.raises(UserError, match="mse, l2norm"):
        _loss(*_patches(0), "huber")


def test_every_hidden_patch_counts_also_pure_background(start):
    """With everything hidden the network sees nothing, so its restoration is known beforehand."""
    method, state, batch = start("mrm", {"mrm.mask_ratio": 1.0})
    target = batch["target"].at[:, :, :8].set(-1).at[:, 0, 0].set(0.5)  # a lit corner in the dark
    hidden = jnp.ones((4, ROWS, ROWS, 2), bool)
    restored = np.asarray(jax.jit(method.network.apply)({"params": state.params}, target, hidden))
    errors = []
    for b, row, column, m in np.ndindex(4, ROWS, ROWS, 2):
        rows, columns = (slice(PATCH * i, PATCH * (i + 1)) for i in (row, column))
        truth = np.asarray(target[b, rows, columns, m]).ravel()
        errors.append(((restored[b, row * ROWS + column, m] - truth) ** 2).mean())
    keys = jax.random.split(jax.random.key(0), 4)
    values, _ = jax.jit(method.validate)(base.model_of(state), batch | {"target": target}, keys)
    metrics = method.summarize(jax.device_get(values), np.zeros(4, int))
    assert float(metrics["loss"]) == pytest.approx(np.mean(errors), rel=1e-5)


# What the encoder sees.


def test_no_token_depends_on_hidden_pixels_and_all_visible_pixels_count():
    encoder = FeatureEncoder(patch=PATCH, width=16, depth=1, heads=2)
    image = jax.random.uniform(jax.random.key(0), (1, SIZE, SIZE, 2), minval=-1.0)
    params = jax.jit(encoder.init)(jax.random.key(1), image)
    hidden = random_mask(jax.random.key(2), 1, ROWS, ROWS, 2, 0.6)
    assert bool((hidden[..., 0] & ~hidden[..., 1]).any())  # hidden in one modality only
    jacobian = jax.jit(jax.jacrev(lambda x: encoder.apply(params, x, hidden)[0]))(image)
    influence = np.asarray(jnp.abs(jacobian).max(axis=(0, 1, 2)))
    pixels = np.asarray(hidden[0]).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    assert (influence[pixels] == 0).all()
    assert (influence[~pixels] > 0).all()


def test_the_encoder_knows_what_is_hidden(start):
    """Hiding a patch changes the tokens, and in each modality differently."""
    method, state, batch = start("mrm")
    nothing = jnp.zeros((4, ROWS, ROWS, 2), bool)

    @jax.jit
    def tokens(hidden):
        return method.network.encoder.apply(
            {"params": state.params["encoder"]}, batch["target"], hidden
        )

    first, second = (tokens(nothing.at[..., m].set(True)) for m in (0, 1))
    assert float(jnp.abs(first - tokens(nothing)).max()) > 1e-3
    assert float(jnp.abs(first - second).max()) > 1e-3


def test_hiding_nothing_is_encoding(start):
    method, state, batch = start("mrm")
    encoded = _raw_tokens(method, state, batch["target"])
    nothing = jnp.zeros((4, ROWS, ROWS, 2), bool)
    seen = method.network.encoder.apply(
        {"params": state.params["encoder"]}, batch["target"], nothing
    )
    np.testing.assert_allclose(encoded, seen, atol=1e-5)


# The representation.


def test_the_representation_is_the_mean_of_the_tokens_until_it_is_measured(start):
    method, state, batch = start("mrm")
    y = _represent(method, state, batch["target"])
    expected = _raw_tokens(method, state, batch["target"]).mean(axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_zscore_gives_every_entry_mean_zero_and_deviation_one_over_the_training_slices(
    start, images
):
    method, state, _ = start("mrm")
    training = [images(seed, number=16) for seed in (1, 2, 3)]
    finished = method.finish(state, lambda: training, list, jax.random.key(0))
    y = np.concatenate([_represent(method, finished, b["target"]) for b in training])
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-3)
    # Slices that were not measured are put on the same scale, not on their own.
    unseen = _represent(method, finished, -training[0]["target"])
    assert np.abs(unseen.mean(axis=0)).max() > 0.1


def test_the_statistics_belong_to_the_averaged_parameters_where_there_are_any(start, stir):
    method, state, batch = start("mrm", {"mrm.average_decay": 0.9})
    state = state.replace(average=stir(state.average))
    finished = method.finish(state, lambda: [batch], list, jax.random.key(0))
    y = _represent(method, finished, batch["target"])
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-3)


def test_the_representation_mixes_the_modalities(start):
    method, state, batch = start("mrm")
    y = _represent(method, state, batch["target"])
    for m in range(2):
        changed = batch["target"].at[..., m].multiply(-0.5)
        assert (_represent(method, state, changed) != y).mean() > 0.9


def test_the_representation_carries_no_gradient(start):
    method, state, batch = start("mrm")
    model = base.model_of(state)
    gradient = jax.jit(jax.grad(lambda x: method.represent(model, {"target": x})[0, 0]))(
        batch["target"]
    )
    assert (gradient == 0).all()


# Training.


@pytest.mark.parametrize(
    ("changes", "targets"),
    [
        ({}, 2),
        ({"data.targets": ("a",)}, 1),
        ({"mrm.loss": "l2norm", "data.targets": ("a", "b", "c")}, 3),
    ],
)
def test_training_learns_to_restore_a_batch(start, train, changes, targets):
    method, state, batch = start("mrm", changes, targets=targets)
    gray = jnp.linspace(-0.9, 0.9, 4)[:, None, None, None]  # a level a slice, seen anywhere in it
    batch["target"] = jnp.broadcast_to(gray, batch["target"].shape)
    _, losses = train(method, state, batch, 80)
    assert losses[-10:].mean() < 0.5 * losses[:5].mean()
    assert jnp.isfinite(losses).all()


def test_the_restoration_of_a_key_does_not_change_and_another_key_hides_other_cells(start):
    method, state, batch = start("mrm")
    model = base.model_of(state)
    one, again, other = (
        method.validate(model, batch, jax.random.split(jax.random.key(seed), 4))[1]["seen"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"mrm.mask_cell": 5},
        {"mrm.patch": 3},
        {"data.size": 18},
    ],
)
def test_what_does_not_fit_is_refused(create, changes):
    with pytest.raises(UserError, match="cannot divide"):
        create("mrm", changes)


def test_a_loss_that_does_not_exist_is_refused_before_training(create):
    with pytest.raises(UserError, match="allowed are mse, l2norm"):
        create("mrm", {"mrm.loss": "huber"})


def test_a_modality_that_is_given_is_hidden_whole_where_the_others_are_restored(start):
    method, state, batch = start("mrm")
    batch["weight"] = jnp.array([[1.0, 0.0]] * 4)
    keys = jax.random.split(jax.random.key(1), 4)
    validate = jax.jit(method.validate)
    found, _ = validate(base.model_of(state), batch, keys)
    changed = batch | {"target": batch["target"].at[..., 1].multiply(-0.5)}
    after, _ = validate(base.model_of(state), changed, keys)
    jax.tree.map(np.testing.assert_array_equal, after, found)
    changed = batch | {"target": batch["target"].at[..., 0].multiply(-0.5)}
    after, _ = validate(base.model_of(state), changed, keys)
    assert (np.asarray(after["distance"]) != found["distance"]).all()
    np.testing.assert_array_equal(after["number"], found["number"])
