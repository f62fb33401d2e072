"""The segmenter: its loss, what it leaves out, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.segmenter import REGIONS, nested, regions_of, segmentation_loss
from cdm_jax.tasks import BACKGROUND
from configs import common, phantom


def make(**changes):
    config = common.finish(common.base("segmenter"), {"smoke": True, "size": 16})
    config.segmenter.update(changes)
    config.segmenter.optimizer.update({"learning_rate": 1e-2, "schedule": "constant"})
    return base.create(config)


def tumors(number=8, size=16, seed=0):
    """Slices with a square tumor that two modalities show, in the networks' range."""
    rng = np.random.default_rng(seed)
    depth = np.zeros((number, size, size, 1), np.float32)
    for image, (y, x) in zip(depth, rng.integers(2, 6, (number, 2)), strict=True):
        image[y : y + 8, x : x + 8] = 1 / 3
        image[y + 2 : y + 7, x + 2 : x + 7] = 2 / 3
        image[y + 3 : y + 6, x + 3 : x + 6] = 1
    noise = rng.uniform(0, 0.1, (number, size, size, 4)).astype(np.float32)
    shown = np.array([0, 1, 0, 1], np.float32) * depth * 0.8 + 0.1 + noise
    return {"source": jnp.asarray(2 * shown - 1), "target": jnp.asarray(2 * depth - 1)}


@pytest.fixture(scope="module")
def learned():
    """A method without moving average, its trained state, and how its losses fell."""
    method, batch = make(average_decay=0.0), tumors()
    state = jax.jit(method.init)(jax.random.key(0), batch, {})

    update, losses = jax.jit(method.update), []
    for step in range(80):
        state, metrics = update(state, batch, jax.random.key(step))
        losses.append(float(metrics["loss"]))
    return method, state, losses


def test_the_depth_gives_nested_masks_of_each_region():
    depth = jnp.array([0, 1, 2, 3], jnp.float32).reshape(1, 1, 4, 1) / 3
    assert regions_of(2 * depth - 1)[0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_no_region_is_more_probable_than_the_one_around_it():
    logits = jnp.array([0.0, 2.0, -1.0]).reshape(1, 1, 1, 3)
    expected = jax.nn.sigmoid(jnp.array([0.0, 0.0, -1.0]))
    assert jnp.allclose(nested(logits)[0, 0, 0], expected)


def test_the_loss_of_known_probabilities():
    """Half sure everywhere: log 2, and 1 - Dice of a region that is there and two that are not."""
    truth = jnp.zeros((2, 4, 4, 3)).at[0, :2, :2, 0].set(1)
    loss = segmentation_loss(jnp.zeros_like(truth), truth)
    dice = [(2 * 0.5 * 4 + 1) / (0.5 * 32 + 4 + 1), 1 / (0.5 * 32 + 1), 1 / (0.5 * 32 + 1)]
    assert float(loss) == pytest.approx(np.log(2) + 1 - np.mean(dice), abs=1e-6)
    sure = 30 * (2 * truth - 1)
    assert float(segmentation_loss(sure, truth)) == pytest.approx(0, abs=1e-5)


def test_modalities_are_left_out_as_often_as_said_but_never_all():
    sources = jnp.zeros((400, 1, 1, 4))
    method = make(modality_dropout=0.5)
    shown = method._dropped(sources, jax.random.key(0))
    images, given = np.split(np.asarray(shown)[:, 0, 0], 2, axis=1)
    assert np.array_equal(images == BACKGROUND, given == -1)
    assert (given == 1).any(axis=1).all()
    # One of 16 slices would lack all of them, and keeps one.
    assert (given == 1).mean() == pytest.approx(0.5 + 1 / 16 / 4, abs=0.04)
    everything = make(modality_dropout=0.0)._dropped(sources, jax.random.key(0))
    assert (everything[..., 4:] == 1).all()


def test_what_is_not_given_does_not_matter(learned):
    method, state, _ = learned
    given = jnp.array([[True, False, True, False]])
    sources = tumors(1)["source"]
    changed = sources.at[..., 1].set(0.3)
    model, segment = base.model_of(state), jax.jit(method.segment)
    one, other = segment(model, sources, given), segment(model, changed, given)
    assert one.shape == (1, 16, 16, 3)
    assert np.array_equal(one, other)
    assert not np.array_equal(one, segment(model, changed, given | True))


def test_it_learns_and_validation_says_so(learned):
    method, state, losses = learned
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:10])
    batch = tumors(seed=5)
    keys = jax.random.split(jax.random.key(2), 8)
    values, pictures = jax.jit(method.validate)(base.model_of(state), batch, keys)
    summary = method.summarize(jax.device_get(values), np.arange(8) // 4)
    assert summary["dice"] == pytest.approx(np.mean([summary[f"dice_{r}"] for r in REGIONS]))
    assert 0.6 < summary["dice"] <= 1
    assert pictures["truth"].shape == pictures["segmentation"].shape == (8, 16, 16)


def test_dice_is_that_of_a_patient_and_one_where_there_is_nothing():
    values = {
        "loss": np.ones(3),
        "common": np.array([[2.0, 0, 0], [2, 0, 0], [0, 0, 0]]),
        "found": np.array([[4.0, 0, 0], [2, 1, 0], [0, 0, 0]]),
        "true": np.array([[2.0, 0, 0], [4, 0, 0], [0, 0, 0]]),
    }
    summary = make().summarize(values, np.array([7, 7, 9]))
    assert summary["dice_whole_tumor"] == pytest.approx((2 * 4 / 12 + 1) / 2)
    assert summary["dice_tumor_core"] == 0.5  # one pixel found where there is none
    assert summary["dice_enhancing_tumor"] == 1


def test_it_is_a_stage_of_its_own_task():
    config = phantom.get_config("segmenter")
    assert tuple(config.data.sources) == ("t1", "t1c", "t2", "t2f")
    assert tuple(config.data.targets) == ("segmentation",)
    assert config.pipeline == ()
    assert tuple(phantom.get_config("cdm").data.targets) == ("t1c", "t2f")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.targets": ("t1c",)}, "learns segmentations, not t1c"),
        ({"segmenter.modality_dropout": 1.0}, "no probability below 1"),
        ({"segmenter.groups": 3}, "do not divide"),
        ({"data.size": 17}, "cannot be halved"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    config = phantom.get_config("segmenter,smoke")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        base.create(config)
