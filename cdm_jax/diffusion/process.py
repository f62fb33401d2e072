"""The forward process (Eq. 2) and the conversions between what a network may predict."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cdm_jax.errors import UserError

PREDICTIONS = ("x0", "noise")


def _like(coefficient: Float[Array, "*b"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Appends axes to per-example coefficients so that they multiply x."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def corrupt(
    x0: Float[Array, "b *d"], noise: Float[Array, "b *d"], alpha_bar: Float[Array, "b"]
) -> Float[Array, "b *d"]:
    """Draws x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar) x_0, (1 - alpha_bar) I).

    Eq. 2, whose printed variance carries an epsilon that belongs to the sample (Ho et al. 2020,
    Eq. 4).
    """
    signal = _like(alpha_bar, x0)
    return jnp.sqrt(signal) * x0 + jnp.sqrt(1 - signal) * noise


def training_target(
    kind: str,
    x0: Float[Array, "b *d"],
    noise: Float[Array, "b *d"],
    alpha_bar: Float[Array, "b"],
) -> Float[Array, "b *d"]:
    """What a network of prediction type `kind` learns to output: x0 or noise.

    Raises:
      UserError: the kind is unknown.
    """
    if kind == "x0":
        return x0
    if kind == "noise":
        return noise
    raise UserError(f"unknown prediction type '{kind}': allowed are {', '.join(PREDICTIONS)}")


def split_prediction(
    kind: str,
    prediction: Float[Array, "b *d"],
    x_t: Float[Array, "b *d"],
    alpha_bar: Float[Array, "*b"],
) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"]]:
    """Estimates (x0, noise) from a prediction of any kind; they satisfy Eq. 2 together.

    Raises:
      UserError: the kind is unknown.
    """
    signal = _like(alpha_bar, x_t)
    root, noise_root = jnp.sqrt(signal), jnp.sqrt(1 - signal)
    if kind == "x0":
        return prediction, (x_t - root * prediction) / noise_root
    if kind == "noise":
        return (x_t - noise_root * prediction) / root, prediction
    raise UserError(f"unknown prediction type '{kind}': allowed are {', '.join(PREDICTIONS)}")
