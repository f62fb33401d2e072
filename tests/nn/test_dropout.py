"""Dropout: the share, the scale, and only in training."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdm_jax.nn.dropout import Dropout

X = jnp.ones((50, 400))


def dropped(rate, module=Dropout, **options):
    rngs = {"dropout": jax.random.key(0)}
    return np.asarray(module(rate, **options).apply({}, X, **_call(module), rngs=rngs))


def _call(module):
    return {"train": True} if module is Dropout else {"deterministic": False}


def test_a_share_is_zero_and_the_mean_is_kept():
    found = dropped(0.3)
    assert set(np.unique(found)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert abs((found == 0).mean() - 0.3) < 0.02
    assert abs(found.mean() - 1) < 0.03


def test_it_drops_what_flax_drops():
    np.testing.assert_array_equal(dropped(0.4), dropped(0.4, nn.Dropout))


def test_without_training_nothing_is_dropped_and_no_key_is_needed():
    np.testing.assert_array_equal(Dropout(0.5).apply({}, X, train=False), X)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, X, train=True), X)
