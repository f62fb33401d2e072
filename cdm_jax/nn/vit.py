"""The vision transformer: patches and pre-norm blocks (Dosovitskiy et al. 2021)."""

from flax import linen as nn
from jaxtyping import Array, Float

LAYER_NORM_EPSILON = 1e-6


def to_patches(
    images: Float[Array, "b h w m"], patch: int
) -> Float[Array, "b rows columns m pixels"]:
    """Cuts images into square patches, each modality by itself; pixels in raster order."""
    b, h, w, m = images.shape
    cut = images.reshape(b, h // patch, patch, w // patch, patch, m)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // patch, w // patch, m, patch**2)


def from_patches(
    patches: Float[Array, "b rows columns m pixels"], patch: int
) -> Float[Array, "b h w m"]:
    """The inverse of `to_patches`."""
    b, rows, columns, m, _ = patches.shape
    cut = patches.reshape(b, rows, columns, m, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return cut.reshape(b, rows * patch, columns * patch, m)


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after LayerNorm and beside a residual.

    Attributes:
      heads: number of attention heads.
      expansion: hidden width of the perceptron over the token width.
    """

    heads: int
    expansion: int = 4

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Tokens in, tokens of the same shape out."""
        width = tokens.shape[-1]
        h = nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
        tokens += nn.MultiHeadDotProductAttention(self.heads)(h, h)
        h = nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
        h = nn.Dense(self.expansion * width)(h)
        return tokens + nn.Dense(width)(nn.gelu(h, approximate=False))


class Transformer(nn.Module):
    """A stack of transformer blocks with a final LayerNorm.

    Attributes:
      depth: number of blocks.
      heads: attention heads a block.
    """

    depth: int
    heads: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Tokens in, normalised tokens of the same shape out."""
        for _ in range(self.depth):
            tokens = TransformerBlock(self.heads)(tokens)
        return nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
