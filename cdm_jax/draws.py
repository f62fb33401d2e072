"""Random numbers for a batch that do not depend on how many devices share it.

A training step has one key for its batch. Whole volumes are translated with a key for each slice:
what is drawn for a slice then depends neither on the batch that it is in nor on its neighbors.
"""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Key

from cdm_jax import parallel


def split(key: Key[Array, "*keys"], number: int = 2) -> Key[Array, "{number} *keys"]:
    """`jax.random.split`, of a batch's key or of each example's."""
    if key.ndim:
        return jax.vmap(functools.partial(split, number=number), out_axes=1)(key)
    return jax.random.split(key, number)


def draw(
    key: Key[Array, "*keys"], shape: tuple[int, ...], distribution: Callable[..., Array]
) -> Array:
    """Numbers as one draw for the global batch, or one for each example, gives them.

    Under `jax.pmap` each device draws for the global batch and takes its own part.

    Args:
      key: of the batch, the same on all devices; or one for each example.
      shape: of the numbers for the examples at hand, examples first.
      distribution: of `jax.random`, its parameters fixed by `functools.partial`.
    """
    if key.ndim:
        return jax.vmap(functools.partial(distribution, shape=shape[1:]))(key)
    number = shape[0]
    whole = distribution(key, shape=(parallel.num_parts() * number, *shape[1:]))
    return parallel.device_shard(whole, number)


def normal(key: Key[Array, "*keys"], shape: tuple[int, ...]) -> Array:
    """Standard normal numbers, see `draw`."""
    return draw(key, shape, jax.random.normal)
