"""Fixed sinusoidal embeddings of timesteps and of positions on a grid."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def sinusoidal(positions: Num[Array, "*n"], width: int) -> Float[Array, "*n {width}"]:
    """Sines and cosines of positions at `width / 2` geometric frequencies from 1 to 1/10000.

    Vaswani et al. 2017, section 3.5, with the cosines first as in diffusion networks since
    Dhariwal & Nichol 2021.

    Args:
      positions: timesteps or coordinates.
      width: an even number of features.
    """
    half = width // 2
    frequencies = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions.ndim + (half,)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_positions(height: int, width: int, features: int) -> Float[Array, "n {features}"]:
    """Embedding of every cell of a grid in raster order, half for the row, half for the column."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    halves = [sinusoidal(axis.reshape(-1), features // 2) for axis in (rows, columns)]
    return jnp.concatenate(halves, axis=-1)
