"""The ResNet generator (Johnson et al. 2016; Zhu et al. 2017), plain or anti-aliased."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.blur import blur_pool, blur_upsample
from cdm_jax.nn.convolution import Conv, ConvTranspose, Norm

NCE_LAYERS = 5  # feature maps that `features` returns


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with reflected edges and norms beside a plain residual.

    Attributes:
      norm: see `convolution.Norm`; a bias stands only before an instance norm.
      initial: see `convolution.Conv`.
    """

    norm: str
    initial: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = True) -> Float[Array, "b h w c"]:
        """Features in, features of the same shape out."""
        h = x
        for part in range(2):
            h = Conv(
                x.shape[-1],
                3,
                padding=1,
                reflect=True,
                bias=self.norm == "instance",
                initial=self.initial,
            )(h)
            h = Norm(self.norm, self.initial)(h, train)
            h = nn.relu(h) if part == 0 else h
        return x + h


class ResNetEncoder(nn.Module):
    """7x7 convolution, two halvings, residual blocks; see `ResNetGenerator` for the attributes."""

    width: int
    blocks: int
    antialias: bool
    initial: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w s"]
    ) -> tuple[Float[Array, "b _ _ _"], list[Float[Array, "b _ _ _"]]]:
        """The last features, and those that contrastive losses compare (CUT's layers 0 to 16)."""
        features = [jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")]
        x = Conv(self.width, 7, padding=3, reflect=True, initial=self.initial)(x)
        x = nn.relu(Norm("instance")(x, True))
        for factor in (2, 4):
            stride = 1 if self.antialias else 2
            x = Conv(factor * self.width, 3, stride, 1, initial=self.initial)(x)
            features.append(x)
            x = nn.relu(Norm("instance")(x, True))
            x = blur_pool(x) if self.antialias else x
        for block in range(self.blocks):
            x = ResidualBlock("instance", self.initial)(x)
            if block in (0, 4):
                features.append(x)
        return x, features


class ResNetDecoder(nn.Module):
    """Two doublings and a 7x7 convolution to images; see `ResNetGenerator` for the attributes."""

    width: int
    num_targets: int
    antialias: bool
    initial: str

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ {self.num_targets}"]:
        """Features to images in [-1, 1]."""
        for factor in (2, 1):
            features = factor * self.width
            if self.antialias:
                x = Conv(features, 3, padding=1, initial=self.initial)(blur_upsample(x))
            else:
                x = ConvTranspose(features, 3, 2, 1, output_padding=1, initial=self.initial)(x)
            x = nn.relu(Norm("instance")(x, True))
        x = Conv(self.num_targets, 7, padding=3, reflect=True, initial=self.initial)(x)
        return jnp.tanh(x)


class ResNetGenerator(nn.Module):
    """Images to images through a ResNet at a quarter of the resolution.

    Attributes:
      width: features at full resolution (64 in all publications); four times as many in the blocks.
      blocks: residual blocks (9 at 256 pixels).
      num_targets: output channels.
      antialias: halves by a convolution of stride 1 and a blur-pool instead of one of stride 2, and
        doubles by a blur and a convolution instead of a transposed one.
      initial: see `convolution.Conv`.
    """

    width: int
    blocks: int
    num_targets: int
    antialias: bool = False
    initial: str = "normal"

    def setup(self) -> None:
        """The two halves."""
        self.encoder = ResNetEncoder(self.width, self.blocks, self.antialias, self.initial)
        self.decoder = ResNetDecoder(self.width, self.num_targets, self.antialias, self.initial)

    def __call__(self, x: Float[Array, "b h w s"]) -> Float[Array, "b h w {self.num_targets}"]:
        """Images to images, both in [-1, 1]."""
        return self.decoder(self.encoder(x)[0])

    def features(self, x: Float[Array, "b h w s"]) -> list[Float[Array, "b _ _ _"]]:
        """What the encoder makes of images on the way; see `ResNetEncoder`."""
        return self.encoder(x)[1]
