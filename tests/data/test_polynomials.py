"""Products of values."""

import numpy as np

from cdm_jax.data.polynomials import products


def test_products_are_those_that_are_written_out():
    x, y = np.array([2.0, 3.0]), np.array([5.0, 7.0])
    expected = [x * 0 + 1, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3]
    np.testing.assert_allclose(products(np.stack([x, y], -1), 3), np.stack(expected, -1))
    assert products(np.zeros((4, 3, 6)), 3).shape == (4, 3, 84)
