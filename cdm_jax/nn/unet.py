"""Blocks of UNets."""

from flax import linen as nn
from jaxtyping import Array, Float

NEGATIVE_SLOPE = 0.1


class ConvBlock(nn.Module):
    """Two times 3x3 convolution, GroupNorm, LeakyReLU.

    Attributes:
      features: output channels of both convolutions.
      groups: of GroupNorm, which normalizes groups of channels over all places. (LayerNorm over the
        channels of each pixel would remove the absolute intensity of every pixel.)
    """

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w {self.features}"]:
        """Images in, images of the same size out."""
        for _ in range(2):
            x = nn.Conv(self.features, (3, 3), padding=((1, 1), (1, 1)), use_bias=False)(x)
            x = nn.GroupNorm(num_groups=self.groups)(x)
            x = nn.leaky_relu(x, NEGATIVE_SLOPE)
        return x


class UpSample(nn.Module):
    """A 2x2 transposed convolution of stride 2, written as a linear layer and a rearrangement."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ {self.features}"]:
        """Twice the size; the patches of a 2x2 stride-2 transposed convolution do not overlap."""
        b, h, w, _ = x.shape
        x = nn.Dense(4 * self.features)(x).reshape(b, h, w, 2, 2, self.features)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
