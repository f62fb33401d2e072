"""Neighbors of slices, by hand: of one subject, at both ends, and where slices were left out."""

import json

import jax
import numpy as np
import pytest

from cdm_jax.data.neighbors import neighbor_places, with_neighbors
from cdm_jax.data.pipeline import SliceSource, plain_plans, stored_sources, training_batches
from tests.data.test_pipeline import SIDE, make_subject, take

GAP = (3, 4, 6, 7, 8)  # z of the stored slices: that at 5 shows no brain


@pytest.fixture
def prepared(tmp_path):
    """Two subjects, the first with a gap; pixels say of which subject and slice they are."""
    return [
        make_subject(tmp_path, 1, 5, (0, 1, 2), slice_indices=GAP),
        make_subject(tmp_path, 2, 3, (0, 2), slice_indices=(0, 1, 2)),
    ]


def test_places_of_neighbors_at_both_ends_and_in_a_gap():
    one = [[-1, 1], [0, -1], [-1, 3], [2, 4], [3, -1]]
    np.testing.assert_array_equal(neighbor_places(GAP, 1), one)
    two = [[-1, -1, 1, -1], [-1, 0, -1, 2], [1, -1, 3, 4], [-1, 2, 4, -1], [2, 3, -1, -1]]
    np.testing.assert_array_equal(neighbor_places(GAP, 2), two)
    np.testing.assert_array_equal(neighbor_places((9,), 1), [[-1, -1]])
    assert neighbor_places(GAP, 0).shape == (5, 0)


def test_sources_of_neighbors_stand_behind_the_slices_own():
    sources = np.arange(1, 11, dtype=np.uint16).reshape(5, 1, 1, 2)  # slice k: 2k + 1, 2k + 2
    found = with_neighbors(sources, GAP, 1)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(
        found[:, 0, 0],
        [
            [1, 2, 0, 0, 3, 4],
            [3, 4, 1, 2, 0, 0],
            [5, 6, 0, 0, 7, 8],
            [7, 8, 5, 6, 9, 10],
            [9, 10, 7, 8, 0, 0],
        ],
    )
    assert with_neighbors(sources, GAP, 0) is sources


def first_pixels(stored):
    """T1's first pixel in each neighbor of each slice, after a check of all other pixels."""
    first = stored["neighbors"][:, 0, 0, ::2].astype(int)
    columns, shown = np.arange(SIDE)[None, :, None], first[:, None] > 0
    rows = (first[:, None] + columns) * shown  # T2's are 10000 more
    both = np.stack([rows, (rows + 10_000) * shown], axis=-1).reshape(len(first), SIDE, -1)
    expected = np.broadcast_to(both[:, None], stored["neighbors"].shape)
    np.testing.assert_array_equal(stored["neighbors"], expected)
    return first.tolist()


def test_training_slices_come_with_the_neighbors_of_their_subject(prepared):
    """Neighbors need not be slices to train on; no subject's end is another's beginning."""
    source = SliceSource(prepared, context=1)
    stored = source.read(plain_plans(np.arange(5)))
    expected = [[0, 1010], [1000, 0], [0, 1030], [0, 2010], [2010, 0]]
    assert first_pixels(stored) == expected
    np.testing.assert_array_equal(
        stored["images"], SliceSource(prepared).read(plain_plans(np.arange(5)))["images"]
    )
    shuffled = source.read(plain_plans(np.array([4, 1, 3])))  # any order, one after the other
    assert first_pixels(shuffled) == [expected[k] for k in (4, 1, 3)]


def test_what_is_read_slice_by_slice_is_what_whole_volumes_have(prepared):
    for context in (1, 2):
        for subject in prepared:
            chosen = [range(len(subject.slice_indices))]
            source = SliceSource([subject], chosen, context=context)
            stored = source.read(plain_plans(np.arange(len(source))))
            whole = with_neighbors(subject.slices[..., :2], subject.slice_indices, context)
            np.testing.assert_array_equal(stored_sources(stored, 2), whole)


def test_neighbors_of_unpaired_slices_are_those_of_the_sources(prepared):
    stored = SliceSource(prepared, context=1).read(np.array([[0, 4, False]]))
    assert first_pixels(stored) == [[0, 1010]]


def test_the_order_is_that_without_context_and_resumes_exactly(prepared):
    options = {"batch_size": 2, "seed": 3, "flips": True}
    plain = take(training_batches(prepared, **options), 8)
    stream = iter(training_batches(prepared, **options, context=1))
    found = take(stream, 8)
    for one, other in zip(found, plain, strict=True):
        assert one.keys() - other.keys() == {"neighbors"}
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])
    again = iter(training_batches(prepared, **options, context=1))
    state = json.loads(json.dumps(stream.get_state()))
    again.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, take(again, 3), take(stream, 3))
