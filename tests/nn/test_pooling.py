"""Max pooling is Flax's, and so is its derivative, where pixels are alike too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cdm_jax.nn.pooling import max_pool


def flax_max_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 5, 7, 2)])
@pytest.mark.parametrize("levels", [2, 3, 10**6])  # few: most pixels are like a neighbor
def test_values_and_derivatives_are_flax_s(shape, levels):
    rng = np.random.default_rng(levels)
    x = jnp.asarray(rng.integers(0, levels, shape), jnp.float32)
    weights = jnp.asarray(rng.standard_normal(flax_max_pool(x).shape), jnp.float32)
    found, expected = (
        jax.value_and_grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)
        for pool in (max_pool, flax_max_pool)
    )
    np.testing.assert_array_equal(max_pool(x), flax_max_pool(x))
    np.testing.assert_array_equal(found[1], expected[1])


def test_the_derivative_keeps_the_precision_of_the_features():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[0, :2, :2, 0], [[1, 0], [0, 0]])


def test_the_derivative_looks_no_places_up():
    text = jax.jit(jax.grad(lambda x: max_pool(x).sum())).lower(jnp.ones((1, 4, 4, 1))).as_text()
    assert "select_and_scatter" not in text
