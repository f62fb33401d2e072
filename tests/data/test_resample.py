import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cdm_jax.data.resample import from_frame, to_frame

SHAPES = [(12, 12), (24, 20), (20, 24), (23, 18), (18, 23), (21, 21)]


def smooth_blob(height: int, width: int) -> np.ndarray:
    """A band-limited picture that vanishes toward the border."""
    rows, columns = np.mgrid[:height, :width]
    square = (rows - height / 2) ** 2 + (columns - width / 2) ** 2
    return np.exp(-square / 2 / 3.0**2).astype(np.float32)[None]


def test_a_square_of_the_right_size_is_not_touched():
    volume = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(to_frame(volume, 16), volume)
    np.testing.assert_array_equal(from_frame(volume, (16, 16)), volume)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_alone_is_undone_exactly(shape):
    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    framed = to_frame(volume, max(shape))
    assert framed.shape == (2, max(shape), max(shape))
    np.testing.assert_array_equal(from_frame(framed, shape), volume)


def test_the_shorter_side_is_centered_between_zeros():
    framed = to_frame(np.ones((1, 6, 3), np.float32), 6)
    np.testing.assert_array_equal(framed[0, 0], [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(framed[0].sum(axis=0), [0, 6, 6, 6, 0, 0])


@pytest.mark.parametrize("size", [7, 16, 31, 64])
def test_a_constant_stays_constant(size):
    volume = np.full((2, 20, 20), 0.37, np.float32)
    np.testing.assert_allclose(to_frame(volume, size), 0.37, rtol=1e-5)
    np.testing.assert_allclose(from_frame(volume, (size, size)), 0.37, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 48, 64])
def test_a_ramp_stays_the_same_ramp_between_pixel_centers(size):
    side = 32
    ramp = np.broadcast_to(np.arange(side, dtype=np.float32), (1, side, side)).copy()
    centers = (np.arange(size) + 0.5) * side / size - 0.5
    inside = slice(size // 4, -size // 4)  # The filter is cut off at the border.
    framed = to_frame(ramp, size)[0]
    np.testing.assert_allclose(framed[:, inside], np.tile(centers[inside], (size, 1)), atol=0.02)


@pytest.mark.parametrize("size", [24, 33, 48])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_smooth_picture_survives_there_and_back(shape, size):
    blob = smooth_blob(*shape)
    back = from_frame(to_frame(blob, size), shape)
    assert back.shape == blob.shape
    assert np.abs(back - blob).max() < 0.01


def test_shrinking_does_not_alias():
    stripes = np.tile(np.array([0, 1], np.float32), (1, 64, 32))
    np.testing.assert_allclose(to_frame(stripes, 16)[0, 4:-4, 4:-4], 0.5, atol=0.02)


def test_slices_do_not_mix():
    volume = np.zeros((3, 10, 14), np.float32)
    volume[1] = 1
    framed = to_frame(volume, 20)
    assert not framed[0].any() and not framed[2].any() and framed[1].any()


def test_the_axes_keep_their_order():
    volume = np.zeros((1, 20, 20), np.float32)
    volume[0, 3, 15] = 1
    peak = np.unravel_index(to_frame(gaussian_filter(volume, (0, 1, 1)), 40).argmax(), (40, 40))
    assert peak[0] in (6, 7) and peak[1] in (30, 31)
