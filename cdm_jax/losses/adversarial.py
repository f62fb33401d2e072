"""What a discriminator is asked: to call real images real and synthesized ones not."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

AdversarialLoss = Callable[[Float[Array, "..."], bool], Float[Array, ""]]


def least_squares(scores: Float[Array, "..."], real: bool) -> Float[Array, ""]:
    """Mean squared distance of the scores from 1 (real) or 0 (Mao et al. 2017, LSGAN)."""
    return jnp.mean((scores - float(real)) ** 2)


def cross_entropy(scores: Float[Array, "..."], real: bool) -> Float[Array, ""]:
    """Binary cross-entropy of the scores as logits (Goodfellow et al. 2014)."""
    labels = jnp.full_like(scores, float(real))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, labels))


def discriminator_loss(
    loss: AdversarialLoss, real: Float[Array, "..."], synthetic: Float[Array, "..."]
) -> Float[Array, ""]:
    """Half of the loss on real images plus half of that on synthetic ones."""
    return (loss(real, True) + loss(synthetic, False)) / 2
