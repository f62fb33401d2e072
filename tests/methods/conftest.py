"""Stages small enough to train within a test, and the data they train on."""

import jax
import numpy as np
import pytest

from cdm_jax.methods import base
from configs import common

TINY = {
    "data.size": 16,
    "mrm.patch": 4,
    "mrm.mask_cell": 4,
    "mrm.width": 16,
    "mdn.width": 16,
    "mdn.encoder.width": 8,
    "mdn.average_decay": 0.0,
    "cunet.average_decay": 0.0,
    "m1.average_decay": 0.0,
}
TRAINING = {
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "clip": 1.0,
}


def _configure(stage, changes=None):
    config = common.smoke(common.base(stage))
    for name in ("mrm", "mdn", "cunet", "m1"):
        config[name].optimizer.update(TRAINING)
    config.update_from_flattened_dict(TINY | (changes or {}))
    return config


@pytest.fixture(scope="session")
def create():
    """`create(stage, {"mrm.loss": "l2norm"})`: a tiny stage with these settings changed."""
    return lambda stage, changes=None: base.create(_configure(stage, changes))


@pytest.fixture(scope="session")
def images():
    """`images(seed, sources=2, targets=2, number=4, size=16)`: a batch of noise in [-1, 1]."""

    def draw(seed, *, sources=2, targets=2, number=4, size=16):
        keys = jax.random.split(jax.random.key(seed))
        return {
            name: jax.random.uniform(key, (number, size, size, channels), minval=-0.99)
            for name, key, channels in zip(
                ("source", "target"), keys, (sources, targets), strict=True
            )
        }

    return draw


@pytest.fixture(scope="session")
def start(create, images):
    """`start(stage, {...}, targets=3)`: a method, its fresh state, and a batch of that shape."""

    begun = {}

    def begin(stage, changes=None, frozen=None, **shape):
        name = repr((stage, changes, shape))
        if name not in begun:
            method, batch = create(stage, changes), images(0, **shape)
            # Compiled as one program: operation by operation it takes ten times as long.
            state = jax.jit(method.init)(jax.random.key(0), batch, {})
            begun[name] = method, state, batch
        method, state, batch = begun[name]
        return method, state.replace(frozen=frozen or {}), dict(batch)

    return begin


@pytest.fixture(scope="session")
def stir():
    """Moves every parameter at random, so that nothing is hidden behind zero initial values."""

    def move(params, seed=0, scale=0.3):
        draws = np.random.default_rng(seed)  # JAX would compile a program for each shape

        def moved(leaf):
            return np.float32(leaf + scale * draws.standard_normal(leaf.shape))

        return jax.tree.map(moved, params)

    return move


@pytest.fixture(scope="session")
def train():
    """`train(method, state, batch, steps)`: the state after these steps, and their losses."""

    def run(method, state, batch, steps, seed=7):
        def step(state, key):
            state, metrics = method.update(state, batch, key)
            return state, metrics["loss"]

        keys = jax.random.split(jax.random.key(seed), steps)
        return jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)

    return run


@pytest.fixture(scope="session")
def same():
    """Whether two trees hold the same bits."""

    def compare(one, other):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    return compare
