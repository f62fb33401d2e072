"""A network that finds how one image must be displaced to lie on another (Kong et al. 2021)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.nn.convolution import Norm

SLOPE = 0.2
BOTTLENECK_BLOCKS = 3

# He's normal values for what follows: ReLU, or leaky ReLU.
_BEFORE_RELU = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_BEFORE_LEAKY = nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")
_NEARLY_ZERO = nn.initializers.normal(1e-5)


class RegistrationBlock(nn.Module):
    """Two 3x3 convolutions with reflected edges and instance norms beside a plain residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Features in, features of the same shape out."""
        h = x
        for part in range(2):
            h = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            h = nn.Conv(x.shape[-1], (3, 3), padding="VALID", kernel_init=_BEFORE_RELU)(h)
            h = Norm("instance")(h, True)
            h = nn.relu(h) if part == 0 else h
        return x + h


class RegistrationNetwork(nn.Module):
    """A UNet with residual blocks on its way down and at its bottom.

    Attributes:
      features: channels of the scales, finest first; every scale is half the one before.
    """

    features: tuple[int, ...]

    @nn.compact
    def __call__(
        self, moving: Float[Array, "b h w c"], fixed: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w 2"]:
        """The displacement in pixels that `warp` needs to lay the first images on the second.

        Almost zero in a fresh network.
        """
        x, skips = jnp.concatenate([moving, fixed], axis=-1), []
        for features in self.features:
            x = RegistrationBlock()(self._convolve(x, features, 3))
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = self._convolve(x, 2 * self.features[-1], 1)
        for _ in range(BOTTLENECK_BLOCKS):
            x = RegistrationBlock()(x)
        x = self._convolve(x, self.features[-1], 1)
        for features, skip in zip(self.features[::-1], skips[::-1], strict=True):
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "bilinear")
            x = self._convolve(jnp.concatenate([x, skip], axis=-1), features, 3)
        x = self._convolve(RegistrationBlock()(x), self.features[0], 1)
        return nn.Conv(2, (3, 3), padding=((1, 1), (1, 1)), kernel_init=_NEARLY_ZERO)(x)

    def _convolve(self, x: Array, features: int, kernel: int) -> Array:
        """Convolution and leaky ReLU at the same size."""
        pad = kernel // 2
        x = nn.Conv(
            features, (kernel, kernel), padding=((pad, pad), (pad, pad)), kernel_init=_BEFORE_LEAKY
        )(x)
        return nn.leaky_relu(x, SLOPE)
