"""Which modalities a slice gives, and what is wanted of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax import shapes
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.pattern import for_pattern
from cdm_jax.tasks import Task, given_in, hide, parse_pattern, with_pattern
from configs import phantom

ALL = ("t1", "t1c", "t2", "t2f")
ANY = Task(sources=ALL, targets=ALL, favored=("t1", "t2"), share=0.25)
FIXED = Task(sources=("t1", "t2"), targets=("t1c", "t2f"))
N = 4000
batch_of = jax.jit(Task.batch, static_argnums=0, static_argnames="training")


def stored(known=(True,) * 4, number=N):
    draws = np.random.default_rng(0)
    return {
        "images": draws.integers(1, 2**16, (number, 2, 2, 4), np.uint16),
        "mirrored": np.zeros(number, bool),
        "known": np.broadcast_to(known, (number, 4)),
    }


def given(batch):
    return np.asarray(given_in(batch["source"]))


def test_there_are_fourteen_patterns_of_four_modalities_and_one_of_a_fixed_task():
    assert len(set(ANY.patterns())) == 14
    assert all(0 < len(one) < 4 for one in ANY.patterns())
    assert Task(sources=("t1",), targets=("t2",)).patterns() == (("t1",),)


def test_patterns_are_drawn_as_often_as_configured():
    found = given(batch_of(ANY, stored(), jax.random.key(1)))
    names, counts = np.unique(found, axis=0, return_counts=True)
    assert len(names) == 14
    for row, count in zip(names, counts, strict=True):
        favored = row.tolist() == [True, False, True, False]
        expected = 0.25 if favored else 0.75 / 13
        assert count / N == pytest.approx(expected, abs=5 * np.sqrt(expected / N))


def test_gains_and_gammas_of_training_slices_are_log_normal():
    varied = dataclasses.replace(FIXED, gain=0.1, gamma=0.2)
    images = jnp.full((N, 1, 2, 4), 0.25 * 65535).at[:, :, 1].set(0.5 * 65535)
    batch = {**stored(), "images": images.astype(jnp.uint16)}
    found = batch_of(varied, batch, jax.random.key(1), training=True)
    low, high = np.moveaxis((np.asarray(found["source"])[:, 0] + 1) / 2, 1, 0)
    gamma = np.log(high / low) / np.log(2)
    gain = low / 0.25**gamma
    for values, spread in ((gamma, 0.2), (gain, 0.1)):
        logarithms = np.log(values)
        np.testing.assert_allclose(logarithms.mean(axis=0), 0, atol=5 * spread / np.sqrt(N))
        np.testing.assert_allclose(logarithms.std(axis=0), spread, rtol=0.05)
    correlations = np.corrcoef(np.log(np.hstack([gain, gamma])).T) - np.eye(4)
    assert np.abs(correlations).max() < 0.1


@pytest.mark.parametrize("task", ["fixed", "any"])
def test_intensities_of_sources_vary_in_training_and_targets_never_do(task):
    plain = FIXED if task == "fixed" else ANY
    varied = dataclasses.replace(plain, gain=0.5, gamma=0.5)
    batch, key = stored(number=64), jax.random.key(1)
    expected = batch_of(plain, batch, key)
    jax.tree.map(np.testing.assert_array_equal, batch_of(varied, batch, key), expected)
    trained = batch_of(varied, batch, key, training=True)
    np.testing.assert_array_equal(trained["target"], expected["target"])
    shown = expected["source"] > -1
    assert np.mean(np.asarray(trained["source"] != expected["source"])[shown]) > 0.9
    assert float(trained["source"].min()) >= -1 and float(trained["source"].max()) <= 1


def test_the_background_of_varied_sources_stays():
    varied = dataclasses.replace(ANY, gain=0.5, gamma=0.5)
    batch = stored(number=64)
    empty = {**batch, "images": jnp.zeros_like(batch["images"])}
    trained = batch_of(varied, empty, jax.random.key(1), training=True)
    np.testing.assert_array_equal(trained["source"], jnp.full_like(trained["source"], -1))


def test_what_is_hidden_counts_and_what_is_given_does_not():
    batch = batch_of(ANY, stored(number=64), jax.random.key(1))
    np.testing.assert_array_equal(batch["weight"], ~given(batch))
    seen = given(batch)[:, None, None]
    np.testing.assert_array_equal(batch["source"], np.where(seen, batch["target"], -1))
    assert (batch["target"] > -1).all()


def test_a_modality_that_a_patient_lacks_is_neither_given_nor_counted():
    batch = batch_of(ANY, stored(known=(True, True, False, True)), jax.random.key(1))
    assert not given(batch)[:, 2].any() and not batch["weight"][:, 2].any()
    assert (given(batch).any(axis=1) & (batch["weight"] > 0).any(axis=1)).all()
    assert len(np.unique(given(batch), axis=0)) == 6  # non-empty proper subsets of three


def test_patterns_of_slices_with_own_keys_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(2), 8)
    whole = batch_of(ANY, stored(number=8), keys)
    part = batch_of(ANY, {k: v[5:] for k, v in stored(number=8).items()}, keys[5:])
    np.testing.assert_array_equal(given(part), given(whole)[5:])


def test_mask_channels_say_what_is_given_and_hidden_values_do_not_show():
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 4), minval=-1.0)
    chosen = jnp.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]], bool)
    seen = with_pattern(images, chosen)
    np.testing.assert_array_equal(
        seen[..., 4:], np.where(chosen, 1, -1)[:, None, None] + 0 * images
    )
    np.testing.assert_array_equal(seen, with_pattern(hide(images, chosen), chosen))


def started(stage):
    """A smoke system of the any-to-any task with parameters at random."""
    config = phantom.get_config(f"{stage},any,smoke")
    method = base.create(config)
    state = shapes.start(config, stage, shapes.example(config, 4))
    generator = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), leaf.dtype), state
    )
    images = jnp.asarray(generator.uniform(-0.9, 1, (4, 32, 32, 4)), jnp.float32)
    return config, method, base.model_of(state), images


@pytest.mark.parametrize("stage", ["cunet", "m1"])
def test_a_missing_modality_cannot_influence_what_is_made(stage):
    """Whatever stands in the place of a hidden modality: in the batch as in the cache."""
    _, method, model, images = started(stage)
    pattern = for_pattern(method, ALL, ("t1", "t2"), ("t1c", "t2f"))
    made = jax.jit(lambda sources: pattern.translate(model, sources, jax.random.key(0), 1))(
        images[..., ::2]
    )
    assert made.shape == (1, 4, 32, 32, 2)
    chosen = jnp.array([[1, 0, 1, 0]] * 4, bool)
    whole = jax.jit(lambda sources: method.translate(model, sources, jax.random.key(0), 1))
    for change in (1.0, 0.3):
        hidden = hide(jnp.where(chosen[:, None, None], images, change * images), chosen)
        np.testing.assert_allclose(whole(hidden)[..., 1::2], made, rtol=1e-5, atol=1e-6)


def test_the_representation_holds_what_is_missing_and_nothing_that_is_given():
    config, _, model, images = started("cunet")
    config.stage = "mrm"
    representation, frozen = base.create(config), model["frozen"]["mrm"]
    weight = jnp.array([[0, 1, 0, 1.0]] * 4)
    represent = jax.jit(representation.represent)
    y = represent(frozen, {"target": images, "weight": weight})
    for m, influences in enumerate((False, True, False, True)):
        changed = {"target": images.at[..., m].multiply(0.5), "weight": weight}
        other = represent(frozen, changed)
        assert bool((other != y).any()) == influences


def test_only_what_is_hidden_and_known_moves_the_parameters():
    _, method, _, images = started("m1")
    batch = {
        "source": images.at[..., 1].set(-1),
        "target": images,
        "weight": jnp.array([[0, 1.0, 0, 0]] * 4),
    }
    state = jax.jit(method.init)(jax.random.key(0), batch, {})
    step = jax.jit(method.update)
    _, metrics = step(state, batch, jax.random.key(1))
    for m in range(4):
        changed = batch | {"target": images.at[..., m].multiply(0.5)}
        _, found = step(state, changed, jax.random.key(1))
        assert (float(found["loss"]) != float(metrics["loss"])) == (m == 1)


def test_the_loss_of_a_part_is_the_mean_over_that_part():
    from cdm_jax.methods.cdm.cunet import synthesis_loss

    generator = np.random.default_rng(0)
    made, truth = generator.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    weight = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    chosen = np.moveaxis(made - truth, -1, 1)[weight > 0]
    found = synthesis_loss(*map(jnp.asarray, (made, truth)), "mse", jnp.asarray(weight))
    assert float(found) == pytest.approx((chosen**2).mean(), rel=1e-5)


def test_the_systems_to_compare_with_keep_their_fixed_tasks():
    with pytest.raises(UserError, match="pix2pix has a fixed task"):
        base.create(phantom.get_config("pix2pix,any,smoke"))


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ((), ("t1",), "from nothing"),
        (("t1",), (), "to nothing"),
        (("t1",), ("t1", "t2"), "leave at least one other"),
        (("t1", "pd"), ("t2",), "pd is no modality of this system"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(sources, targets, message):
    system = base.create(phantom.get_config("m1,any,smoke"))
    with pytest.raises(UserError, match=message):
        for_pattern(system, ALL, sources, targets)


def test_patterns_are_named_by_their_sources():
    assert parse_pattern("t2+t1", ALL) == (("t1", "t2"), ("t1c", "t2f"))
    with pytest.raises(UserError, match="pd is not among"):
        parse_pattern("t1+pd", ALL)
    with pytest.raises(UserError, match="leave one out"):
        parse_pattern("t1+t1c+t2+t2f", ALL)
