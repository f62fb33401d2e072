import itertools
import json
import pickle
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cdm_jax.data.cache import write_prepared
from cdm_jax.data.intensity import Intensity
from cdm_jax.data.pipeline import (
    SliceSource,
    padded_batches,
    plain_plans,
    prefetched,
    training_batches,
)
from cdm_jax.data.prepare import Prepared
from cdm_jax.errors import UserError

SIDE = 4
MODALITIES = ("t1", "t2", "t1c", "t2f")


def make_subject(folder: Path, number: int, stored: int, training: tuple[int, ...], **changes):
    """Pixels of 10000 x modality + 1000 x subject + 10 x position + column, counted from 0."""
    slices = np.full((stored, SIDE, SIDE, 4), 1000 * number, np.uint16)
    slices += 10 * np.arange(stored, dtype=np.uint16)[:, None, None, None]
    slices += np.arange(SIDE, dtype=np.uint16)[None, None, :, None]
    slices += 10_000 * np.arange(4, dtype=np.uint16)
    content = dict(
        subject_id=f"subject-{number}",
        patient_id=f"patient-{number}",
        sources=MODALITIES[:2],
        targets=MODALITIES[2:],
        native_shape=(stored, SIDE, SIDE),
        slice_indices=tuple(range(stored)),
        training=training,
        intensities={name: Intensity(offset=0.0, scale=1.0) for name in MODALITIES},
        slices=slices,
    )
    return write_prepared(Prepared(**(content | changes)), folder / f"{number}.npy")


@pytest.fixture
def prepared(tmp_path):
    """Two subjects with 7 + 5 = 12 slices to train on."""
    return [
        make_subject(tmp_path, 1, 9, tuple(range(1, 8))),
        make_subject(tmp_path, 2, 5, tuple(range(5))),
    ]


EVERY_SLICE = [1010 + 10 * k for k in range(7)] + [2000 + 10 * k for k in range(5)]


def identities(batch) -> list[int]:
    """Which slices are in a batch, flipped or not."""
    return [int(image[..., :2].min()) for image in np.asarray(batch["images"])]


def read(source: SliceSource, *indices: int) -> np.ndarray:
    return source.read(plain_plans(np.array(indices)))["images"]


def take(dataset_or_iterator, count: int) -> list:
    return list(itertools.islice(dataset_or_iterator, count))


def stream(prepared, count: int, **options) -> list[int]:
    """The first `count` slices of a training stream, one by one."""
    options = {"batch_size": 1, "seed": 0, "flips": False} | options
    return [identities(batch)[0] for batch in take(training_batches(prepared, **options), count)]


def assert_same(actual: list, expected: list) -> None:
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_threads_that_fetch_slices_parse_no_header(prepared, monkeypatch):
    """Python 3.11 cannot parse in two threads at once, as NumPy does for a file's header."""
    source = SliceSource(prepared)
    expected = read(source, 3)

    def never(*_, **__):
        raise AssertionError("a header is parsed")

    monkeypatch.setattr(np, "load", never)
    np.testing.assert_array_equal(read(source, 3), expected)


def test_unpaired_batches_hold_every_source_and_every_target_but_not_of_the_same_slices(prepared):
    stream = training_batches(prepared, batch_size=1, seed=0, flips=False, paired=False)
    batches = take(stream, 2 * len(EVERY_SLICE))
    images = [batch["images"][0] for batch in batches]
    sources = [int(image[..., :2].min()) for image in images]
    targets = [int(image[..., 2:].min()) - 20_000 for image in images]
    for image in images:  # both modalities of each are of one slice
        assert image[..., 1].min() - image[..., 0].min() == 10_000
        assert image[..., 3].min() - image[..., 2].min() == 10_000
    for epoch in (slice(0, 12), slice(12, 24)):
        assert sorted(sources[epoch]) == sorted(targets[epoch]) == EVERY_SLICE
    together = sum(s == t for s, t in zip(sources, targets, strict=True))
    assert together < len(batches) // 2
    assert targets[:12] != targets[12:]


def test_the_source_lists_only_training_slices(prepared):
    source = SliceSource(prepared)
    found = source.read(plain_plans(np.arange(len(source))))
    assert identities(found) == EVERY_SLICE
    assert not found["mirrored"].any()


def test_a_slice_is_read_as_it_is_stored(prepared):
    images = read(SliceSource(prepared), 0, 11)
    np.testing.assert_array_equal(images[0, 0, 0], [1010, 11010, 21010, 31010])
    np.testing.assert_array_equal(images[0], prepared[0].slices[1])
    np.testing.assert_array_equal(images[1], prepared[1].slices[4])
    assert images.dtype == np.uint16 and images.flags.c_contiguous


def test_a_file_that_was_cut_short_is_named(prepared):
    source = SliceSource(prepared)
    path = prepared[1].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"2\.npy is cut short"):
        read(source, 11)


def test_a_pickled_source_holds_no_slices(tmp_path):
    subject = make_subject(tmp_path, 1, 2000, (0, 1))
    source = SliceSource([subject])
    assert identities({"images": read(source, 1)}) == [1010]
    assert len(pickle.dumps(source)) < subject.path.stat().st_size / 5  # slices of 128 bytes


def test_a_subject_without_targets_cannot_be_trained_on(prepared, tmp_path):
    lacking = make_subject(tmp_path, 3, 4, (0, 1), targets=())
    with pytest.raises(UserError, match="subject-3"):
        SliceSource([*prepared, lacking])


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no slices"):
        SliceSource([make_subject(tmp_path, 1, 4, ())])


def test_every_epoch_covers_each_slice_once_in_its_own_order(prepared):
    epochs = np.reshape(stream(prepared, 36), (3, 12)).tolist()
    assert all(sorted(epoch) == EVERY_SLICE for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_seed_decides_the_order(prepared):
    assert stream(prepared, 12, seed=3) == stream(prepared, 12, seed=3)
    assert stream(prepared, 12, seed=3) != stream(prepared, 12, seed=4)


def test_batches_are_full_even_across_epochs(prepared):
    batches = take(training_batches(prepared, batch_size=5, seed=0, flips=False), 12)
    assert {batch["images"].shape for batch in batches} == {(5, SIDE, SIDE, 4)}
    seen = [identity for batch in batches for identity in identities(batch)]
    assert sorted(seen) == sorted(EVERY_SLICE * 5)


def test_half_of_the_slices_are_mirrored(prepared):
    batches = take(training_batches(prepared, batch_size=12, seed=0, flips=True), 15)
    assert 0.4 < np.mean([batch["mirrored"] for batch in batches]) < 0.6


def test_without_flips_nothing_is_mirrored(prepared):
    for batch in take(training_batches(prepared, batch_size=12, seed=0, flips=False), 3):
        assert not batch["mirrored"].any()


def test_the_same_slice_is_mirrored_anew_each_epoch(prepared):
    one = [prepared[1]]
    batches = take(training_batches(one, batch_size=5, seed=0, flips=True), 12)
    by_slice = {}
    for batch in batches:
        for name, mirrored in zip(identities(batch), batch["mirrored"].tolist(), strict=True):
            by_slice.setdefault(name, set()).add(mirrored)
    assert all(seen == {True, False} for seen in by_slice.values())


# (source slice, target slice, mirrored) of the first two batches of seed 3, as release 0.1 gave
# them: where they change, every run becomes another one.
FIRST_BATCHES = {
    True: [
        (1050, 1050, True),
        (1070, 1070, True),
        (2020, 2020, False),
        (2000, 2000, False),
        (1060, 1060, True),
        (1040, 1040, True),
        (1020, 1020, True),
        (2040, 2040, False),
        (2030, 2030, False),
        (1010, 1010, True),
        (1030, 1030, False),
        (2010, 2010, False),
    ],
    False: [
        (1050, 1010, True),
        (1070, 1030, False),
        (2020, 2000, True),
        (2000, 1070, True),
        (1060, 2040, True),
        (1040, 1060, True),
        (1020, 2010, False),
        (2040, 1050, False),
        (2030, 1020, True),
        (1010, 2030, True),
        (1030, 1040, True),
        (2010, 2020, True),
    ],
}


@pytest.mark.parametrize("paired", [True, False])
def test_a_seed_gives_the_batches_that_it_always_gave(prepared, paired):
    """Each slice as its file holds it, sources of one and targets of another where unpaired."""
    stored = {int(image.min()): image for s in prepared for image in s.slices}
    stream = training_batches(prepared, batch_size=6, seed=3, flips=True, paired=paired)
    batches = take(stream, 2)
    images, mirrored = (np.concatenate([b[k] for b in batches]) for k in ("images", "mirrored"))
    for n, (source, target, flipped) in enumerate(FIRST_BATCHES[paired]):
        np.testing.assert_array_equal(images[n, ..., :2], stored[source][..., :2])
        np.testing.assert_array_equal(images[n, ..., 2:], stored[target][..., 2:])
        assert mirrored[n] == flipped


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_do_not_depend_on_the_number_of_threads(prepared, threads):
    options = {"batch_size": 6, "seed": 0, "flips": True}
    expected = take(training_batches(prepared, **options), 9)
    assert_same(take(training_batches(prepared, **options, threads=threads), 9), expected)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("process_count", [2, 3])
def test_parts_of_the_processes_side_by_side_are_the_batches_of_one(
    prepared, process_count, paired
):
    """In the same order, with the same flips, also where an epoch ends within a batch."""
    options = {"batch_size": 6, "seed": 0, "flips": True, "paired": paired}
    whole = take(training_batches(prepared, **options), 9)
    parts = [
        take(
            training_batches(prepared, **options, process_index=k, process_count=process_count),
            9,
        )
        for k in range(process_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in several]) for name in several[0]}
        for several in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_batch_that_the_processes_do_not_divide_is_refused(prepared):
    with pytest.raises(UserError, match="5 slices cannot be shared by 2 processes"):
        training_batches(prepared, batch_size=5, seed=0, flips=False, process_count=2)


def test_simulated_patients_are_mixed_in_by_their_share(prepared, tmp_path):
    (tmp_path / "more").mkdir()
    simulated = [make_subject(tmp_path / "more", 3, 4, (0, 1, 2))]
    mixed = {"simulated": simulated, "simulated_share": 0.25}
    seen = stream(prepared, 64, **mixed)
    own, others = ([s for s in seen if (s >= 3000) is simulated] for simulated in (False, True))
    assert len(others) == 16
    assert set(others) == {3000, 3010, 3020}
    for start in range(0, 48, len(EVERY_SLICE)):  # an epoch of the real patients' own
        assert sorted(own[start : start + len(EVERY_SLICE)]) == EVERY_SLICE
    assert stream(prepared, 64, **mixed, flips=True) == seen
    assert stream(prepared, 64, **mixed, seed=1) != seen


def test_a_mixed_stream_resumes_exactly(prepared, tmp_path):
    (tmp_path / "more").mkdir()
    simulated = [make_subject(tmp_path / "more", 3, 4, (0, 1, 2))]
    options = {"batch_size": 4, "seed": 0, "flips": True}
    options |= {"simulated": simulated, "simulated_share": 0.5}
    whole = iter(training_batches(prepared, **options))
    take(whole, 5)
    state, rest = whole.get_state(), take(whole, 4)
    again = iter(training_batches(prepared, **options))
    again.set_state(state)
    assert_same(take(again, 4), rest)


def test_nothing_is_mixed_into_unpaired_slices(prepared):
    with pytest.raises(UserError, match="unpaired slices: use share=0"):
        training_batches(
            prepared, batch_size=1, seed=0, flips=False, paired=False, simulated=prepared
        )


def one_device() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))


def on_device(prepared, **processes):
    options = {"batch_size": 6, "seed": 7, "flips": True} | processes
    batches = training_batches(prepared, **options)
    return iter(prefetched(batches, lambda batch: jax.device_put(batch, one_device())))


def test_batches_on_the_device_are_the_same_batches(prepared):
    expected = take(training_batches(prepared, batch_size=6, seed=7, flips=True), 6)
    iterator = on_device(prepared)
    actual = take(iterator, 6)
    iterator.close()
    assert actual[0]["images"].sharding == one_device()
    assert actual[0]["images"].dtype == np.uint16
    assert_same(actual, expected)


@pytest.mark.parametrize("step", [0, 1, 5, 13])
def test_a_position_resumes_the_stream_exactly(prepared, step):
    """Also as JSON, as a checkpoint keeps it."""
    iterator = on_device(prepared)
    take(iterator, step)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 8)
    iterator.close()

    restored = on_device(prepared)
    take(restored, 3)  # The restored place does not depend on where the iterator was.
    restored.set_state(position)
    assert_same(take(restored, 8), expected)
    restored.close()


def test_a_position_holds_for_another_number_of_processes(prepared):
    iterator = on_device(prepared)
    take(iterator, 5)
    position = iterator.get_state()
    expected = next(iterator)
    iterator.close()
    parts = []
    for k in range(2):
        part = on_device(prepared, process_index=k, process_count=2)
        part.set_state(position)
        parts.append(next(part))
        part.close()
    joined = jax.tree.map(lambda *several: np.concatenate(several), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, expected)


def test_closing_ends_every_thread(prepared):
    before = set(threading.enumerate())
    iterator = on_device(prepared)
    take(iterator, 3)
    assert set(threading.enumerate()) - before
    iterator.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9, 16])
def test_padded_batches_cover_all_stored_slices_in_order(prepared, batch_size):
    slices = prepared[0].slices
    stored = {"source": slices[..., :2], "target": slices[..., 2:]}
    batches = list(padded_batches(stored, batch_size))
    assert {b[name].shape for b, _ in batches for name in b} == {(batch_size, SIDE, SIDE, 2)}
    for name, whole in stored.items():
        joined = np.concatenate([batch[name][:valid] for batch, valid in batches])
        np.testing.assert_array_equal(joined, whole)
    last, valid = batches[-1]
    assert {int(image.min()) for image in last["source"][valid:]} <= {1080}
