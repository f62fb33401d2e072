"""RegGAN's registration (Kong et al. 2021): how one image must be displaced to lie on another.

The network that finds the displacement, the loss that keeps it smooth, and what moves pixels: by a
displacement, or by rotation, shift and scale.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from cdm_jax import draws
from cdm_jax.nn.convolution import Norm
from cdm_jax.nn.pooling import max_pool

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
            x = max_pool(x)
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


def smoothness(displacement: Float[Array, "b h w 2"]) -> Float[Array, ""]:
    """Mean squared slope down the rows plus that along the columns (Kong et al. 2021)."""
    down = displacement[:, 1:] - displacement[:, :-1]
    along = displacement[:, :, 1:] - displacement[:, :, :-1]
    return jnp.mean(down**2) + jnp.mean(along**2)


def _grid(height: int, width: int) -> Float[Array, "{height} {width} 2"]:
    """The row and the column of each pixel."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([rows, columns], axis=-1).astype(jnp.float32)


def _look_up(
    images: Float[Array, "b h w c"], places: Float[Array, "b h w 2"], *, order: int, mode: str
) -> Float[Array, "b h w c"]:
    """Each image at its own places, all its channels alike; -1 outside where mode is "constant"."""

    def channel(image: Array, place: Array) -> Array:
        return map_coordinates(image, [place[..., 0], place[..., 1]], order, mode, cval=-1.0)

    one = jax.vmap(channel, in_axes=(2, None), out_axes=2)
    return jax.vmap(one)(images, places)


def warp(
    images: Float[Array, "b h w c"], displacement: Float[Array, "b h w 2"]
) -> Float[Array, "b h w c"]:
    """Images looked up, between pixels linearly, at each pixel's place plus its displacement.

    Args:
      images: any number of channels, which move together.
      displacement: in pixels, along rows, then columns. Places outside have the border's value.
    """
    grid = _grid(*images.shape[1:3])
    return _look_up(images, grid[None] + displacement, order=1, mode="nearest")


def affine(
    images: Float[Array, "b h w c"],
    angle: Float[Array, " b"],
    shift: Float[Array, "b 2"],
    scale: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Images in [-1, 1] turned and scaled about their center, then shifted.

    Nearest neighbors, so that noise stays as sharp as it was; -1 where nothing was before.

    Args:
      images: any number of channels, which move together.
      angle: counter-clockwise, in radians.
      shift: in pixels, along rows, then columns.
      scale: above 1 enlarges.
    """
    height, width = images.shape[1:3]
    center = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)[None, None, None]
    # A place of the result came from the inverse transform of that place.
    place = _grid(height, width)[None] - center - shift[:, None, None]
    rows, columns = place[..., 0], place[..., 1]
    cosine, sine = ((f(angle) / scale)[:, None, None] for f in (jnp.cos, jnp.sin))
    origin = jnp.stack([cosine * rows + sine * columns, cosine * columns - sine * rows], axis=-1)
    return _look_up(images, origin + center, order=0, mode="constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """A random `affine` for each image.

    Attributes:
      degrees: largest angle to either side.
      shift: largest shift along each axis, as a share of the image's side.
      scale: largest difference of the scale from 1.
    """

    degrees: float
    shift: float
    scale: float

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """Images in [-1, 1], each moved a little by itself, all its channels alike."""
        b, height, width, _ = images.shape
        uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
        drawn = draws.draw(key, (b, 4), uniform)
        return affine(
            images,
            jnp.deg2rad(self.degrees) * drawn[:, 0],
            self.shift * jnp.array([[height, width]]) * drawn[:, 1:3],
            1 + self.scale * drawn[:, 3],
        )
