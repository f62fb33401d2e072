"""ResViT's generator: a ResNet whose middle aggregates tokens of a shared transformer.

Dalmaz et al. 2022 (IEEE TMI 41(10)), with the arrangement and initial values of the official code.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.convolution import Conv, ConvTranspose, Norm
from cdm_jax.nn.dropout import Dropout
from cdm_jax.nn.resnet import ResidualBlock
from cdm_jax.nn.vit import Transformer

TOKEN_SIZE = 16  # pixels of the image to a token's side
NORM = "batch"


class Halve(nn.Module):
    """A 3x3 convolution of stride 2, BatchNorm, ReLU."""

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b _ _ {self.features}"]:
        """Features in, features of half the resolution out."""
        x = Conv(self.features, 3, 2, 1, bias=False)(x)
        return nn.relu(Norm(NORM)(x, train))


class Double(nn.Module):
    """A 3x3 transposed convolution of stride 2, BatchNorm, ReLU."""

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b _ _ {self.features}"]:
        """Features in, features of twice the resolution out."""
        x = ConvTranspose(self.features, 3, 2, 1, output_padding=1, bias=False)(x)
        return nn.relu(Norm(NORM)(x, train))


class Compression(nn.Module):
    """Channel compression: two 3x3 convolutions beside one of 1x1, then ReLU."""

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b h w {self.features}"]:
        """Many channels in, few out."""
        h = Conv(self.features, 3, padding=1, bias=False)(x)
        h = nn.relu(Norm(NORM)(h, train))
        h = Conv(self.features, 3, padding=1, bias=False)(h)
        shortcut = Conv(self.features, 1, bias=False)(x)
        return nn.relu(Norm(NORM)(h, train) + Norm(NORM)(shortcut, train))


class Aggregation(nn.Module):
    """What an ART block with a transformer does before its residual block.

    Features are halved twice, embedded as tokens with learned positions, transformed, doubled
    twice, and compressed together with what came in.

    Attributes:
      hidden: width of a token.
      dropout: share of the embedding's features dropped in training.
    """

    hidden: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], transformer: Transformer, train: bool
    ) -> Float[Array, "b h w c"]:
        """Features at a quarter of the image's resolution; the transformer's weights are shared."""
        channels = x.shape[-1]
        h = Halve(2 * channels)(x, train)
        h = Halve(4 * channels)(h, train)
        h = Conv(self.hidden, 1, name="embedding")(h)
        b, rows, columns, _ = h.shape
        shape = (rows * columns, self.hidden)
        tokens = h.reshape(b, *shape) + self.param("positions", nn.initializers.zeros, shape)[None]
        tokens = Dropout(self.dropout)(tokens, train)
        h = transformer(tokens, train).reshape(h.shape)
        h = Double(2 * channels)(h, train)
        h = Double(channels)(h, train)
        return Compression(channels)(jnp.concatenate([h, x], axis=-1), train)


class ResViTGenerator(nn.Module):
    """The network of both stages; parts that both have bear the same names.

    Attributes:
      width: features at full resolution (64).
      blocks: ART blocks (9).
      transformer_blocks: numbers, from 1, of those with a transformer (1 and 6); none in the first
        stage.
      hidden: width of a token (768).
      layers: transformer layers (12).
      heads: attention heads a layer (12).
      dropout: of the embedding and of the transformer's perceptrons, in training (0.1).
      num_targets: output channels.
    """

    width: int
    blocks: int
    transformer_blocks: tuple[int, ...]
    hidden: int
    layers: int
    heads: int
    dropout: float
    num_targets: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w s"], train: bool
    ) -> Float[Array, "b h w {self.num_targets}"]:
        """Images to images, both in [-1, 1]; training takes a "dropout" key."""
        x = Conv(self.width, 7, padding=3, reflect=True, bias=False)(x)
        x = nn.relu(Norm(NORM)(x, train))
        x = Halve(2 * self.width)(x, train)
        x = Halve(4 * self.width)(x, train)
        transformer = Transformer(
            self.layers, self.heads, self.dropout, "pytorch", name="transformer"
        )
        for block in range(1, self.blocks + 1):
            if block in self.transformer_blocks:
                aggregation = Aggregation(self.hidden, self.dropout, name=f"aggregation_{block}")
                x = aggregation(x, transformer, train)
            x = ResidualBlock(NORM, "pytorch", name=f"residual_{block}")(x, train)
        x = Double(2 * self.width)(x, train)
        x = Double(self.width)(x, train)
        return jnp.tanh(Conv(self.num_targets, 7, padding=3, reflect=True)(x))
