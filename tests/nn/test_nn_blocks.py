import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.nn.embeddings import grid_positions, sinusoidal
from cdm_jax.nn.unet import UpSample
from cdm_jax.nn.vit import from_patches, to_patches


def test_patches_hold_the_pixels_of_their_place_and_modality():
    images = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
    patches = to_patches(images, 4)
    assert patches.shape == (2, 2, 3, 3, 16)
    np.testing.assert_array_equal(patches[1, 1, 2, 0], images[1, 4:8, 8:12, 0].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 4), images)


def test_timesteps_far_apart_and_close_are_told_apart():
    codes = sinusoidal(jnp.arange(1000), 64)
    distance = jnp.linalg.norm(codes[:, None] - codes[None], axis=-1)
    off_diagonal = distance + 10 * jnp.eye(1000)
    assert float(off_diagonal.min()) > 0.5
    np.testing.assert_allclose((codes**2).sum(-1), 32, rtol=1e-4)  # 32 pairs of cos and sin


def test_every_cell_of_a_grid_has_its_own_position():
    codes = np.asarray(grid_positions(8, 8, 32))
    assert codes.shape == (64, 32)
    assert len(np.unique(codes.round(4), axis=0)) == 64


def test_upsampling_is_the_gradient_of_a_strided_convolution():
    """A transposed convolution is by definition the adjoint of the convolution with its kernel."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    module = UpSample(4)
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    kernel = params["Dense_0"]["kernel"].reshape(2, 2, 2, 4).transpose(1, 2, 3, 0)  # h w in out

    def convolve(image):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    _, adjoint = jax.vjp(convolve, jnp.zeros((1, 6, 6, 4)))
    assert float(jnp.abs(params["Dense_0"]["bias"]).max()) == 0
    np.testing.assert_allclose(module.apply({"params": params}, x), adjoint(x)[0], atol=1e-5)


@pytest.mark.parametrize("patch", [2, 8])
def test_patching_loses_nothing(patch):
    images = jax.random.normal(jax.random.key(2), (3, 16, 16, 1))
    np.testing.assert_array_equal(from_patches(to_patches(images, patch), patch), images)
