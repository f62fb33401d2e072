"""Products of values, in which polynomials are linear."""

import itertools

import numpy as np
from jaxtyping import Float


def products(values: Float[np.ndarray, "*n v"], degree: int) -> Float[np.ndarray, "*n _"]:
    """One, the values of each point, and all products of up to `degree` of them, in this order."""
    found = [np.ones_like(values[..., 0])]
    for count in range(1, degree + 1):
        chosen = itertools.combinations_with_replacement(range(values.shape[-1]), count)
        found += [np.prod(values[..., list(one)], axis=-1) for one in chosen]
    return np.stack(found, axis=-1)
