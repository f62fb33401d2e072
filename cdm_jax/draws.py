"""Random numbers for a batch that do not depend on how many devices share it."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Key

from cdm_jax import parallel


def draw(key: Key[Array, ""], shape: tuple[int, ...], distribution: Callable[..., Array]) -> Array:
    """Numbers as one draw for the global batch gives them.

    Under `jax.pmap` each device draws for the global batch and takes its own part.

    Args:
      key: the same on all devices.
      shape: of the numbers for the examples at hand, examples first.
      distribution: of `jax.random`, its parameters fixed by `functools.partial`.
    """
    number = shape[0]
    whole = distribution(key, shape=(parallel.num_parts() * number, *shape[1:]))
    return parallel.own_part(whole, number)


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Standard normal numbers, see `draw`."""
    return draw(key, shape, jax.random.normal)
