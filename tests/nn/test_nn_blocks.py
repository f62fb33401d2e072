import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.nn.embeddings import grid_positions, sinusoidal
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


@pytest.mark.parametrize("patch", [2, 8])
def test_patching_loses_nothing(patch):
    images = jax.random.normal(jax.random.key(2), (3, 16, 16, 1))
    np.testing.assert_array_equal(from_patches(to_patches(images, patch), patch), images)
