"""The encoding of the source modalities on which MDN is conditioned, and its augmentation.

Not in the paper, whose MDN never sees the patient. Small and regularized on purpose: an encoder
that knows its training patients by heart makes samples that C-UNet learns to trust more than it
may, and the synthesis of unseen patients falls below a plain UNet.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from cdm_jax import draws
from cdm_jax.nn.dropout import Dropout
from cdm_jax.tasks import for_channels


class SourceEncoder(nn.Module):
    """Strided convolutions, an average over places, dropout and a linear layer.

    Attributes:
      features: channels after each convolution, which halves the resolution.
      width: length of the code.
      dropout: share of the pooled features left out in training.
    """

    features: tuple[int, ...]
    width: int
    dropout: float

    @nn.compact
    def __call__(
        self, sources: Float[Array, "b h w s"], train: bool = False
    ) -> Float[Array, "b {self.width}"]:
        """Source images in [-1, 1] to one code a slice."""
        x = sources
        for channels in self.features:
            x = nn.Conv(channels, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))(x)
            x = nn.silu(nn.GroupNorm(num_groups=1)(x))
        # Absolute intensities, which the norms remove, say much about the contrast to expect.
        pooled = jnp.concatenate([x.mean(axis=(1, 2)), sources.mean(axis=(1, 2))], axis=-1)
        pooled = Dropout(self.dropout)(pooled, train)
        return nn.Dense(self.width)(pooled)


def disturb(
    key: Key[Array, ""], images: Float[Array, "b h w s"], strength: Any, modalities: int
) -> Float[Array, "b h w s"]:
    """Shifts, rescales and adds noise to images, each slice by its own draw.

    Args:
      key: drives all draws.
      images: in [-1, 1], background -1.
      strength: `shift` in pixels (whole, both ways), `gain` (half-width of a uniform factor of
        each modality around 1, the same for a slice and its neighbors) and `noise` (deviation).
      modalities: of a slice; further channels are those of its neighbors.
    """
    shift_key, gain_key, noise_key = jax.random.split(key, 3)
    b, _, _, channels = images.shape
    if strength.shift:
        whole = functools.partial(
            jax.random.randint, minval=-strength.shift, maxval=strength.shift + 1
        )
        shifts = draws.draw(shift_key, (b, 2), whole)
        images = jax.vmap(lambda image, by: jnp.roll(image, by, axis=(0, 1)))(images, shifts)
    uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    gain = 1 + strength.gain * draws.draw(gain_key, (b, 1, 1, modalities), uniform)
    gain = for_channels(gain, channels)
    noise = strength.noise * draws.normal(noise_key, images.shape)
    return (images + 1) * gain - 1 + noise
