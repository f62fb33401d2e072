import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdm_jax.methods import base
from cdm_jax.tasks import Task

STAGES = ("mrm", "mdn", "cunet", "m1")


def test_stored_intensities_span_the_networks_range():
    stored = jnp.asarray([0, 65535], jnp.uint16).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(base.to_model_range(stored).ravel(), [-1, 1], atol=1e-6)


def test_every_stored_intensity_survives_the_way_to_the_networks_and_back():
    stored = np.arange(0, 65536, 7, dtype=np.uint16).reshape(1, 1, -1, 1)
    unit = base.to_unit_range(base.to_model_range(jnp.asarray(stored)))
    np.testing.assert_array_equal(np.rint(np.asarray(unit) * 65535), stored)


def test_a_stored_batch_is_mirrored_left_to_right_and_split():
    images = np.random.default_rng(0).integers(0, 65536, (3, 4, 6, 5)).astype(np.uint16)
    mirrored = np.array([True, False, True])
    task = Task(sources=("t1", "t2"), targets=("t1c", "t2f", "pd"))
    stored = {"images": jnp.asarray(images), "mirrored": jnp.asarray(mirrored)}
    batch = task.batch(stored, jax.random.key(0))
    assert set(batch) == {"source", "target"}
    stored = np.concatenate([batch["source"], batch["target"]], axis=-1)
    expected = [np.fliplr(image) if m else image for image, m in zip(images, mirrored, strict=True)]
    np.testing.assert_array_equal(np.rint((stored + 1) * 32767.5), expected)
    assert batch["source"].shape == (3, 4, 6, 2)


def test_intensities_beyond_the_range_are_clipped():
    np.testing.assert_array_equal(base.to_unit_range(jnp.asarray([-3.0, 0.0, 5.0])), [0, 0.5, 1])


def _descent(decay, steps):
    """States of gradient descent with rate 0.1 on sum((w - 3)^2), whose gradient is 2 (w - 3)."""
    sgd = optax.sgd(0.1)
    state = base.new_state(
        {"w": jnp.asarray([1.0, -2.0])}, sgd, averaged=bool(decay), frozen={"mrm": {}}
    )
    states, metrics = [state], []
    for _ in range(steps):
        state, logged = base.gradient_step(
            state,
            lambda p: (jnp.sum((p["w"] - 3) ** 2), {"distance": jnp.max(3 - p["w"])}),
            sgd,
            decay,
        )
        states.append(state)
        metrics.append(logged)
    return states, metrics


def test_a_gradient_step_descends_counts_and_reports():
    states, metrics = _descent(0.0, 3)
    for n, state in enumerate(states):
        assert int(state.step) == n
        expected = 3 + np.asarray([-2.0, -5.0]) * 0.8**n  # closed form of the descent
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)
    assert float(metrics[0]["loss"]) == 29
    assert float(metrics[0]["distance"]) == 5
    assert float(metrics[0]["gradient_norm"]) == pytest.approx(np.sqrt(4**2 + 10**2))


def test_the_average_follows_the_parameters_as_a_loop_by_hand():
    states, _ = _descent(0.25, 6)
    average = np.asarray(states[0].params["w"], np.float64)
    np.testing.assert_array_equal(states[0].average["w"], average)
    for n, state in enumerate(states[1:]):
        rate = min(0.25, (1 + n) / (10 + n))  # 0.1, 0.18, 0.25, 0.25, ...
        average = rate * average + (1 - rate) * np.asarray(state.params["w"], np.float64)
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)


def test_inference_takes_averaged_parameters_where_there_are_any():
    (_, averaged), _ = _descent(0.9, 1)
    assert base.model_of(averaged)["params"] is averaged.average
    (_, plain), _ = _descent(0.0, 1)
    assert plain.average == {}
    assert base.model_of(plain)["params"] is plain.params
    assert base.model_of(plain)["frozen"] == {"mrm": {}}


def test_a_fresh_state_can_be_donated():
    """A buffer shared between parameters and average would be donated twice, which is an error."""
    states, _ = _descent(0.9, 0)
    moved = jax.jit(lambda s: s.replace(step=s.step + 1), donate_argnums=0)(states[0])
    assert int(moved.step) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_follows_the_protocol(create, stage):
    method = create(stage)
    protocol = base.Translator if stage in ("cunet", "m1") else base.Method
    promised = {name for name in dir(protocol) if not name.startswith("_")}
    assert not promised - set(dir(method))
    assert isinstance(method.depends_on, tuple)
    assert set(method.depends_on) <= set(STAGES)
