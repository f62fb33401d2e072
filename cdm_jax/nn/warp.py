"""Moving the pixels of images: by a field of displacements, or by rotation, shift and scale."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from cdm_jax import draws


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
