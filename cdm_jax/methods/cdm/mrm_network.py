"""The networks of MRM: a transformer over masked patches, and its linear decoder."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from cdm_jax.nn.embeddings import grid_positions
from cdm_jax.nn.vit import Transformer, to_patches


class FeatureEncoder(nn.Module):
    """FE: patches of all modalities summed into one token a place, then a transformer.

    A convolution over concatenated modalities is the sum of one linear map a modality; writing it
    so lets each modality be hidden by itself, its map replaced by its own mask token.

    Attributes:
      patch: side of a patch in pixels.
      width: features of a token.
      depth: transformer blocks.
      heads: attention heads.
    """

    patch: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w m"],
        hidden: Bool[Array, "b rows columns m"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Images in [-1, 1] and the patches to hide, to one token a place in raster order."""
        patches = to_patches(images, self.patch)
        b, rows, columns, num_modalities, _ = patches.shape
        total = jnp.zeros((b, rows, columns, self.width), images.dtype)
        for m in range(num_modalities):
            embedded = nn.Dense(self.width, use_bias=m == 0, name=f"embed_{m}")(patches[..., m, :])
            token = self.param(f"mask_token_{m}", nn.initializers.normal(0.02), (self.width,))
            if hidden is not None:
                embedded = jnp.where(hidden[..., m, None], token[None, None, None], embedded)
            total += embedded
        tokens = total.reshape(b, rows * columns, self.width)
        tokens += grid_positions(rows, columns, self.width)[None].astype(tokens.dtype)
        return Transformer(self.depth, self.heads)(tokens)


class FeatureDecoder(nn.Module):
    """FD: one linear layer from each token to the pixels of its place (SimMIM's light head).

    Attributes:
      patch: side of a patch in pixels.
      num_modalities: modalities to restore.
    """

    patch: int
    num_modalities: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n m pixels"]:
        """Tokens to patches of every modality in [-1, 1]."""
        pixels = nn.Dense(self.num_modalities * self.patch**2)(tokens)
        return pixels.reshape(*tokens.shape[:2], self.num_modalities, self.patch**2)


class MaskedAutoencoder(nn.Module):
    """FE and FD together."""

    encoder: FeatureEncoder
    decoder: FeatureDecoder

    def __call__(self, images: Array, hidden: Array | None = None) -> Array:
        """Restored patches [b, n, m, pixels]."""
        return self.decoder(self.encoder(images, hidden))

    def encode(self, images: Array, hidden: Array | None = None) -> Array:
        """Tokens of images [b, n, d]."""
        return self.encoder(images, hidden)
