"""What keeps a registration from explaining away what a generator did wrong."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def smoothness(displacement: Float[Array, "b h w 2"]) -> Float[Array, ""]:
    """Mean squared slope down the rows plus that along the columns (Kong et al. 2021)."""
    down = displacement[:, 1:] - displacement[:, :-1]
    along = displacement[:, :, 1:] - displacement[:, :, :-1]
    return jnp.mean(down**2) + jnp.mean(along**2)
