"""Dropout whose masks do not depend on how the batch is shared out."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax import draws


class Dropout(nn.Module):
    """Sets a share of the features to zero and scales up the rest (Srivastava et al. 2014).

    Attributes:
      rate: the share, below 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *d"], train: bool) -> Float[Array, "b *d"]:
        """Features in, features out; only training drops any and takes a "dropout" key."""
        if not train or not self.rate:
            return x
        kept = functools.partial(jax.random.bernoulli, p=1 - self.rate)
        keep = draws.draw(self.make_rng("dropout"), x.shape, kept)
        return jnp.where(keep, x / (1 - self.rate), 0)
