"""The network of C-UNet (Fig. 3b): a UNet that takes y at every scale of its encoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.pooling import max_pool

NEGATIVE_SLOPE = 0.1
HEAD = "interval_head"  # its name among the parameters
FIRST_DISTANCE = -2.0  # of an end to the mean, before softplus: 0.13 where training begins


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


class ConditionEmbedding(nn.Module):
    """Adds the representation to features at one scale.

    Features go through LayerNorm, SiLU and a 1x1 convolution, y through a perceptron of two linear
    layers with SiLU between, and is added; a residual carries the intensities that LayerNorm
    removes. The last linear layer starts at zero, so that training starts from the plain UNet M1.

    Attributes:
      residual: whether the features are added to what comes out, which Fig. 3b does not show.
    """

    residual: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], y: Float[Array, "b d"] | None
    ) -> Float[Array, "b h w c"]:
        """The fused features; without y (the capacity control) only the first branch."""
        fused = self._fuse(nn.silu(nn.LayerNorm()(x)), y)
        return x + fused if self.residual else fused

    def _fuse(self, h: Array, y: Array | None) -> Array:
        features = h.shape[-1]
        if y is None:
            return nn.Conv(features, (1, 1))(h)
        code = nn.Dense(features, kernel_init=nn.initializers.zeros)(nn.silu(nn.Dense(features)(y)))
        return nn.Conv(features, (1, 1))(h) + code[:, None, None]


class IntervalHead(nn.Module):
    """The ends of an interval around the mean of every pixel, by two 1x1 convolutions.

    An end is the mean less, or plus, a softplus: lower <= mean <= upper whatever the parameters
    are, so that neither do ends cross nor does an image lie outside its own interval. Where a
    quantile lies beyond the mean (a rare, large value draws the mean with it), the best end that is
    left is the mean itself, which makes the interval wider than it need be and never narrower.

    The mean takes no gradient from its ends, so that they move around it and not with it. The
    features do: those that the mean alone asks for do not tell where it errs.

    Attributes:
      features: channels between the two convolutions.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w _"], mean: Float[Array, "b h w t"]
    ) -> Float[Array, "3 b h w t"]:
        """Features of the output layer and the mean, to mean, lower and upper end."""
        center = jax.lax.stop_gradient(mean)
        x = nn.leaky_relu(nn.Conv(self.features, (1, 1))(x), NEGATIVE_SLOPE)
        first = nn.initializers.constant(FIRST_DISTANCE)
        distances = nn.softplus(nn.Conv(2 * mean.shape[-1], (1, 1), bias_init=first)(x))
        below, above = jnp.split(distances, 2, axis=-1)
        return jnp.stack([mean, center - below, center + above])


class CUNet(nn.Module):
    """The UNet.

    Attributes:
      features: channels of the five (or any number of) scales, then of the last decoder stage.
      num_targets: output modalities.
      encoder: "hybrid": a convolution block, then the Condition Embedding; "printed": the Condition
        Embedding alone between 3x3 stride-2 convolutions, as section II-B reads.
      condition: "on", "none" (M1) or "keep_1x1" (M1 with the first branch kept: the same capacity).
      residual: see `ConditionEmbedding`.
      groups: of GroupNorm.
      source_skip: whether the output layer sees the sources beside the last features. GroupNorm
        hides a slice's absolute intensity from the body; a pixel's own intensity says most of
        what its target is.
      quantiles: shares of the truth that are to lie below the lower and below the upper end of a
        predictive interval beside the mean, such as (0.05, 0.95); empty for the mean alone.
    """

    features: tuple[int, ...]
    num_targets: int
    encoder: str
    condition: str
    residual: bool
    groups: int
    source_skip: bool
    quantiles: tuple[float, ...] = ()

    def _embed(self, x: Array, y: Array | None) -> Array:
        if self.condition == "none":
            return x
        return ConditionEmbedding(self.residual)(x, y if self.condition == "on" else None)

    @nn.compact
    def __call__(
        self,
        sources: Float[Array, "b h w s"],
        y: Float[Array, "b d"] | None,
        with_ends: bool = False,
    ) -> Float[Array, "*three b h w {self.num_targets}"]:
        """Source images in [-1, 1] and the representation, to target images in about [-1, 1].

        With ends, which a network with `quantiles` has, these are three: mean, lower and upper end.
        """
        *scales, last = self.features
        x, skips = sources, []
        for level, channels in enumerate(scales):
            x = self._down(x, channels, first=level == 0)
            x = self._embed(x, y)
            skips.append(x)
        decoder = [*scales[1:-1][::-1], last]
        for channels, skip in zip(decoder, skips[-2::-1], strict=True):
            x = jnp.concatenate([skip, UpSample(skip.shape[-1])(x)], axis=-1)
            x = ConvBlock(channels, self.groups)(x)
        if self.source_skip:
            h = nn.Conv(last, (1, 1))(jnp.concatenate([x, sources], axis=-1))
            x = jnp.concatenate([nn.leaky_relu(h, NEGATIVE_SLOPE), sources], axis=-1)
        mean = nn.Conv(self.num_targets, (1, 1))(x)
        if not self.quantiles:
            return mean
        all_three = IntervalHead(last, name=HEAD)(x, mean)
        return all_three if with_ends else mean

    def _down(self, x: Array, channels: int, *, first: bool) -> Array:
        """The part of an encoder scale before its Condition Embedding."""
        if self.encoder == "printed":
            strides = (1, 1) if first else (2, 2)
            return nn.Conv(channels, (3, 3), strides=strides, padding=((1, 1), (1, 1)))(x)
        if not first:
            x = max_pool(x)
        return ConvBlock(channels, self.groups)(x)
