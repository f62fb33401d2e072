"""Batches from prepared subjects: shuffled for training, in order for whole volumes.

Slices stay 16-bit integers (65535 = 1.0) until they are on the device, which halves the traffic;
the compiled step turns them into floats.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt16

from cdm_jax.data.prepare import PreparedSubject
from cdm_jax.errors import UserError

Item = dict[str, UInt16[np.ndarray, "*batch height width _modality"]]

# Grain's own buffer holds 500 elements, here batches of tens of megabytes.
READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
DEVICE_BUFFER = 2  # Batches that wait on the device: one is used while the next arrives.


class SliceSource:
    """All training slices of the prepared subjects, in order, with random access.

    An item is {"source": [height, width, source], "target": [height, width, target]}.
    """

    def __init__(self, prepared: Sequence[PreparedSubject]) -> None:
        """Lists the slices.

        Raises:
            UserError: the subjects' modalities differ, or there is nothing to train on.
        """
        for subject in prepared:
            if not subject.targets or subject.targets != prepared[0].targets:
                raise UserError(
                    f"{subject.subject_id} has only {', '.join(subject.intensities)}: every "
                    "subject to train on needs all the targets; leave this one out"
                )
        positions = [(n, k) for n, subject in enumerate(prepared) for k in subject.training]
        if not positions:
            raise UserError(
                f"no slices to train on in {len(prepared)} subjects: add subjects, or allow slices "
                "with less brain (minimum_brain)"
            )
        for subject in prepared:
            _ = subject.layout  # read here, not by the threads that fetch slices
        self._prepared = tuple(prepared)
        self._positions = np.array(positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Item:
        number, position = self._positions[index]
        subject = self._prepared[number]
        # Still on disk: batching makes the only copy.
        modalities = subject.slices[position].copy()
        return {
            "source": modalities[..., : len(subject.sources)],
            "target": modalities[..., len(subject.sources) :],
        }


def training_batches(
    prepared: Sequence[PreparedSubject],
    *,
    batch_size: int,
    seed: int,
    flips: bool,
    paired: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Item]:
    """Returns an endless stream of training batches, shuffled anew each epoch.

    The processes together see every slice once an epoch, with the same flips however many they
    are.  The iterator's `get_state` and `set_state` (through which Orbax saves and restores it)
    resume the stream exactly.

    Args:
        prepared: the training subjects, the same for every process.
        batch_size: slices in a batch of this process; every batch is full.
        seed: decides the order and the flips.
        flips: whether half of the slices, at random, are mirrored left to right.
        paired: whether sources and targets are of the same slices; if not, the targets are those
            of other slices, shuffled by themselves.
        process_index: which of the processes this is.
        process_count: how many processes share the slices.

    Raises:
        UserError: there are no slices, or fewer than processes.
    """
    source = SliceSource(prepared)
    if len(source) < process_count:
        raise UserError(
            f"{len(source)} slices to train on cannot be shared by {process_count} processes: "
            "start at most one process a slice"
        )
    slices = grain.MapDataset.source(source).seed(seed).shuffle()
    if not paired:
        others = grain.MapDataset.source(source).seed(seed + 1).shuffle()
        slices = grain.experimental.ZipMapDataset([slices, others]).map(_unpair)
    if flips:
        slices = slices.random_map(_flip)
    batches = slices[process_index::process_count].repeat().batch(batch_size, drop_remainder=True)
    return batches.to_iter_dataset(READ_OPTIONS)


def to_device(batches: grain.IterDataset[Item], sharding: Any) -> grain.IterDataset[dict[str, Any]]:
    """Returns the batches as jax arrays with the given sharding, fetched ahead.

    Each process gives its own part of the global batch, which `grain.experimental.device_put`
    cannot do.  Resuming stays exact: batches that wait are not counted as seen.  Close the
    iterator after use; its threads then end.

    Args:
        batches: batches of this process.
        sharding: a `jax.sharding.Sharding` of the global batch.
    """
    import jax

    def put(batch: Item) -> dict[str, Any]:
        return {
            name: jax.make_array_from_process_local_data(sharding, slices)
            for name, slices in batch.items()
        }

    return grain.experimental.ThreadPrefetchIterDataset(
        batches.map(put), prefetch_buffer_size=DEVICE_BUFFER
    )


def padded_batches(
    stored: Mapping[str, UInt16[np.ndarray, "slice height width _modality"]], batch_size: int
) -> Iterator[tuple[Item, int]]:
    """Yields all slices of a volume, in order, in batches of one size.

    The last batch is filled up with its last slice, so that a network is compiled only once.

    Args:
        stored: named stacks of the same number of slices, such as "source" and "target".
        batch_size: slices in a batch.

    Yields:
        A batch of the same names, and how many of its slices count.
    """
    total = len(next(iter(stored.values())))
    for start in range(0, total, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), total - 1)
        valid = min(batch_size, total - start)
        yield {name: np.asarray(slices)[rows] for name, slices in stored.items()}, valid


def _flip(item: Item, rng: np.random.Generator) -> Item:
    """Mirrors all modalities of a slice left to right, or none, with equal chance."""
    if rng.random() < 0.5:
        return item
    return {name: slices[:, ::-1] for name, slices in item.items()}


def _unpair(items: tuple[Item, Item]) -> Item:
    """The sources of one slice beside the targets of another."""
    return {"source": items[0]["source"], "target": items[1]["target"]}
