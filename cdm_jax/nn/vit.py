"""The vision transformer: patches and pre-norm blocks (Dosovitskiy et al. 2021)."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.convolution import bias_values, kernel_values
from cdm_jax.nn.dropout import Dropout

LAYER_NORM_EPSILON = 1e-6
EXPANSION = 4  # hidden width of the perceptrons over that of the tokens


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


def _initial_values(initial: str, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the attention's and the perceptron's layers begin; see `TransformerBlock`."""
    if initial == "flax":
        return {}, {}
    attention = {"kernel_init": kernel_values(initial), "bias_init": bias_values(initial, width)}
    perceptron = {
        "kernel_init": nn.initializers.xavier_uniform(),
        "bias_init": nn.initializers.normal(1e-6),
    }
    return attention, perceptron


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after LayerNorm and beside a residual.

    Attributes:
      heads: number of attention heads.
      dropout: share of the perceptron's hidden and output features dropped in training.
      initial: initial values: "flax" (its defaults), or "pytorch": PyTorch's default for the
        attention, Xavier with biases next to zero for the perceptron, as ViT's PyTorch ports have.
    """

    heads: int
    dropout: float = 0.0
    initial: str = "flax"

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b n d"]:
        """Tokens in, tokens of the same shape out; training takes a "dropout" key."""
        width = tokens.shape[-1]
        attention, perceptron = _initial_values(self.initial, width)
        drop = Dropout(self.dropout)
        h = nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
        tokens += nn.MultiHeadDotProductAttention(self.heads, **attention)(h, h)
        h = nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
        h = nn.Dense(EXPANSION * width, **perceptron)(h)
        h = drop(nn.gelu(h, approximate=False), train)
        return tokens + drop(nn.Dense(width, **perceptron)(h), train)


class Transformer(nn.Module):
    """A stack of `depth` transformer blocks with a final LayerNorm; see `TransformerBlock`."""

    depth: int
    heads: int
    dropout: float = 0.0
    initial: str = "flax"

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b n d"]:
        """Tokens in, normalized tokens of the same shape out."""
        for _ in range(self.depth):
            block = TransformerBlock(self.heads, dropout=self.dropout, initial=self.initial)
            tokens = block(tokens, train)
        return nn.LayerNorm(LAYER_NORM_EPSILON)(tokens)
