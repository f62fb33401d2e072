"""The cache's file: what it leaves out, and that nothing is lost by it."""

import json

import numpy as np
import pytest

from cdm_jax.data.cache import shown_rows, write_prepared
from cdm_jax.data.intensity import Intensity
from cdm_jax.data.prepare import Prepared
from cdm_jax.errors import UserError

SIZE = 8
DRAWN = np.random.default_rng(0).integers(1, 2**16, (4, SIZE, SIZE, 3), np.uint16)
ROWS = ((2, 5), (0, SIZE), (0, 0), (7, 8))  # some, all, none and the last alone


def prepared(slices):
    return Prepared(
        subject_id="one",
        patient_id="one",
        sources=("t1", "t2"),
        targets=("t1c",),
        native_shape=(6, 9, 9),
        slice_indices=(1, 2, 3, 4),
        training=(1, 2),
        intensities={"t1": Intensity(offset=0.0, scale=3.0)},
        slices=slices,
    )


@pytest.fixture
def slices():
    """Random slices whose background reaches to the rows of `ROWS`."""
    kept = DRAWN.copy()
    for image, (top, bottom) in zip(kept, ROWS, strict=True):
        image[:top] = 0
        image[bottom:] = 0
    return kept


def test_only_the_rows_between_the_first_and_the_last_with_any_value_are_stored(slices, tmp_path):
    slices[0, 3] = 0  # an empty row within stays
    slices[3, 7] = 0
    slices[3, 7, 5, 2] = 1  # one voxel of one target is enough
    assert shown_rows(slices) == ROWS
    path = write_prepared(prepared(slices), tmp_path / "one.npy").path
    assert np.load(path).shape == (3 + SIZE + 0 + 1, SIZE, 3)


def test_every_slice_is_read_back_to_the_bit_over_whatever_was_in_its_place(slices, tmp_path):
    cached = write_prepared(prepared(slices), tmp_path / "one.npy")
    np.testing.assert_array_equal(cached.slices, slices)
    np.testing.assert_array_equal(cached.read_slices([3, 0, 3]), slices[[3, 0, 3]])
    out = np.full((SIZE, SIZE, 3), 7, np.uint16)
    for position in (1, 0, 2, 3):
        cached.read_slice(position, out)
        np.testing.assert_array_equal(out, slices[position])


@pytest.mark.parametrize("place", [-1, -SIZE * 3 * 2 * 4])
def test_a_value_that_was_altered_is_refused_by_the_file(place, slices, tmp_path):
    cached = write_prepared(prepared(slices), tmp_path / "one.npy")
    content = bytearray(cached.path.read_bytes())
    content[place] ^= 1
    cached.path.write_bytes(content)
    np.testing.assert_array_equal(cached.read_slices([0]), slices[[0]])  # this one is whole
    with pytest.raises(UserError, match=r"one\.npy is damaged: remove it and prepare the data ag"):
        _ = cached.slices


def test_rows_that_are_not_those_of_the_file_are_refused(slices, tmp_path):
    cached = write_prepared(prepared(slices), tmp_path / "one.npy")
    assert json.loads(cached.path.with_suffix(".json").read_text())["rows"] == [*map(list, ROWS)]
    np.save(cached.path, np.load(cached.path)[:-1])
    with pytest.raises(ValueError, match="holds an array"):
        _ = cached.offsets
