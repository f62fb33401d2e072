"""What every system must do: learn four slices, update one network at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax import parallel
from cdm_jax.data.dataset import load_dataset
from cdm_jax.methods import base
from cdm_jax.methods.baselines.adversarial import NETWORKS, Adversarial
from cdm_jax.run import slice_batches
from cdm_jax.tasks import task_of
from configs import phantom
from configs.common import CUNETS, PARTS, SYSTEMS

pytestmark = pytest.mark.slow

SYSTEM_STAGES = [s for s in SYSTEMS["all"] if s not in PARTS and s not in CUNETS] + ["resvit_cnn"]
GANS = [stage for stage in SYSTEM_STAGES if stage not in ("diffusion", "rcg")]
STEPS = 30


def _config(stage):
    config = phantom.get_config(f"{stage},smoke")
    config.data.num_workers = 1
    rate = {"learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 0}
    config[stage].optimizer.update(rate)
    return config


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Four slices of a phantom patient."""
    config = _config("m1")
    dataset = load_dataset(config, tmp_path_factory.mktemp("data"))
    task = task_of(config.data)
    return next(slice_batches(dataset.train[:1], 4, 4, parallel.local_mesh(), task))


def _frozen(method, config, batch):
    """Fresh models of the stages before: enough to build upon."""
    frozen = {}
    for stage in method.depends_on:
        config.stage = stage
        needed = base.create(config)
        before = {name: frozen[name] for name in needed.depends_on}
        model = base.model_of(jax.jit(needed.init)(jax.random.key(1), batch, before))
        frozen[stage] = {name: model[name] for name in ("params", "statistics")}
    return frozen


def _start(stage, batch):
    config = _config(stage)
    method = base.create(config)
    frozen = _frozen(method, config, batch)
    return method, jax.jit(method.init)(jax.random.key(0), batch, frozen)


def _distance(method, state, batch):
    translate = jax.jit(method.translate, static_argnums=3)
    images = translate(base.model_of(state), batch["source"], jax.random.key(9), 1)[0]
    assert images.shape == batch["target"].shape
    return float(jnp.abs(images - batch["target"]).mean())


@pytest.fixture(scope="module")
def learned(batch):
    """`learned(stage)`: a system before and after its steps, its losses, and what GANs changed.

    What each gradient step of the second update changed: what starts at zero may hide what lies
    before it in the first.
    """
    original = Adversarial.update_network

    @functools.cache
    def train(stage):
        method, before = _start(stage, batch)
        changed = []

        def watched(self, state, network, loss):
            after, value, extra = original(self, state, network, loss)
            changed.append(
                (network, jax.tree.map(lambda a, b: jnp.any(a != b), state.params, after.params))
            )
            return after, value, extra

        @jax.jit
        def update(state, key):
            state, metrics = method.update(state, batch, key)
            return state, metrics["loss"], [change for _, change in changed]

        after, losses, changes = before, [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Adversarial, "update_network", watched)
            for key in jax.random.split(jax.random.key(2), STEPS):
                after, loss, change = update(after, key)
                losses.append(float(loss))
                changes.append(change)
        return method, before, after, np.array(losses), [n for n, _ in changed], changes[1]

    return train


@pytest.mark.parametrize("stage", [*SYSTEM_STAGES, *CUNETS])
def test_four_slices_are_learned(learned, stage, batch):
    """With pairs, translations come near the targets; without them, the loss falls."""
    method, before, trained, losses, _, _ = learned(stage)
    assert int(trained.step) == STEPS
    assert np.isfinite(losses).all()
    if stage in GANS and method.paired:
        assert _distance(method, trained, batch) < 0.7 * _distance(method, before, batch)
    else:
        assert losses[-5:].mean() < 0.7 * losses[0]


@pytest.mark.parametrize("stage", GANS)
def test_a_gradient_step_changes_all_of_one_network_and_not_the_other(learned, stage):
    *_, networks, changes = learned(stage)
    assert sorted(networks) == sorted(NETWORKS)
    for network, change in zip(networks, changes, strict=True):
        (other,) = set(NETWORKS) - {network}
        assert not any(jax.tree.leaves(change[other]))
        still = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(change[network])
            if not leaf
        ]
        assert not still
