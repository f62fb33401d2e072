"""The PatchGAN discriminator: one score for each patch of 70x70 pixels (Isola et al. 2017)."""

from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.blur import blur_pool
from cdm_jax.nn.convolution import Conv, Norm

SLOPE = 0.2


class PatchGAN(nn.Module):
    """Convolutions of stride 2, 2, 2, 1, 1.

    Attributes:
      width: features of the first layer (64 in all publications); at most eight times as many.
      norm: see `convolution.Norm`; of the three layers in the middle.
      antialias: halves by a convolution of stride 1 and a blur-pool instead of one of stride 2.
      initial: see `convolution.Conv`.
    """

    width: int
    norm: str = "instance"
    antialias: bool = False
    initial: str = "normal"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ 1"]:
        """Images (and what they are conditioned on, concatenated) to scores without a sigmoid.

        BatchNorm uses the batch at hand: a discriminator is never used but in training.
        """
        for layer, factor in enumerate((1, 2, 4, 8)):
            halve = layer < 3
            stride = 2 if halve and not self.antialias else 1
            bias = layer == 0 or self.norm == "instance"
            x = Conv(factor * self.width, 4, stride, 1, bias=bias, initial=self.initial)(x)
            if layer > 0:
                x = Norm(self.norm, self.initial)(x, True)
            x = nn.leaky_relu(x, SLOPE)
            x = blur_pool(x) if halve and self.antialias else x
        return Conv(1, 4, padding=1, initial=self.initial)(x)
