"""Batches from prepared subjects: shuffled for training, in order for whole volumes.

Slices stay 16-bit integers (65535 = 1.0) until they are on the device, which halves the traffic. A
training batch is one array of all modalities, and says which slices are mirrored: the compiled step
mirrors them, splits sources from targets and makes floats (`methods.base.unpack`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt16

from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.neighbors import neighbor_places
from cdm_jax.errors import UserError

Item = dict[str, UInt16[np.ndarray, "batch height width _modality"]]
# "images": uint16 [b, h, w, modality]; "mirrored": bool [b]; any-to-any "known": bool [b, modality]
# With context "neighbors": uint16 [b, h, w, neighbor x source], see `data/neighbors.py`.
Stored = dict[str, np.ndarray]
Plan = tuple[int, int, bool]  # slice of the sources, slice of the targets, mirrored or not

HOST_BUFFER = 4  # Batches read ahead, at least: Grain's own 500 would be tens of gigabytes.
DEVICE_BUFFER = 2  # Batches that wait on the device: one is used while the next arrives.


class SliceSource:
    """Slices of the prepared subjects, in order, with random access.

    Attributes:
        positions: the number of its subject and the place among the subject's slices, of each.
    """

    positions: Int[np.ndarray, "slice 2"]

    def __init__(
        self,
        prepared: Sequence[PreparedSubject],
        chosen: Sequence[Sequence[int]] | None = None,
        any_to_any: bool = False,
        context: int = 0,
    ) -> None:
        """Lists the slices.

        Args:
            prepared: the subjects.
            chosen: places among each subject's slices; those to train on where None.
            any_to_any: whether subjects may lack modalities; what each has is read too.
            context: neighbors to each side whose sources are read too.

        Raises:
            UserError: the subjects' modalities differ, or there is nothing to train on.
        """
        for subject in prepared if not any_to_any else ():
            if not subject.targets or subject.targets != prepared[0].targets:
                raise UserError(
                    f"{subject.subject_id} has only {', '.join(subject.intensities)}: every "
                    "subject to train on needs all the targets; leave this one out"
                )
        chosen = [subject.training for subject in prepared] if chosen is None else chosen
        positions = [(n, k) for n, places in enumerate(chosen) for k in places]
        if not positions:
            raise UserError(
                f"no slices to train on in {len(prepared)} subjects: add subjects, or allow slices "
                "with less brain (minimum_brain)"
            )
        for subject in prepared:
            _ = subject.offsets  # read here, not by the threads that fetch slices
        self._shape = prepared[0].shape
        self._prepared = tuple(prepared)
        self.positions = np.array(positions)
        self._neighbors = [neighbor_places(s.slice_indices, context) for s in prepared]
        self._context = context
        self._known: Bool[np.ndarray, "subject modality"] | None = None
        if any_to_any:
            self._known = np.array(
                [[name in subject.intensities for name in subject.sources] for subject in prepared]
            )

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, plans: Int[np.ndarray, "batch 3"]) -> Stored:
        """Reads the slices of plans (see `Plan`), each straight into its place in the batch."""
        images = np.empty((len(plans), *self._shape), np.uint16)
        first_target = len(self._prepared[0].sources)
        for image, (sources, targets, _) in zip(images, plans.tolist(), strict=True):
            self._read_slice(sources, image)
            if targets != sources:
                other = np.empty_like(image)
                self._read_slice(targets, other)
                image[..., first_target:] = other[..., first_target:]
        stored = {"images": images, "mirrored": plans[:, 2].astype(bool)}
        if self._known is not None:
            stored["known"] = self._known[self.positions[plans[:, 0], 0]]
        if self._context:
            stored["neighbors"] = self._read_neighbors(plans[:, 0], first_target)
        return stored

    def _read_neighbors(
        self, indices: Int[np.ndarray, "batch"], sources: int
    ) -> UInt16[np.ndarray, "batch height width _channel"]:
        """The first `sources` modalities of each neighbor of these slices; targets stay behind."""
        size = self._shape[:2]
        found = np.zeros((len(indices), *size, 2 * self._context * sources), np.uint16)
        whole = np.empty(self._shape, np.uint16)
        for out, (number, position) in zip(found, self.positions[indices].tolist(), strict=True):
            for n, place in enumerate(self._neighbors[number][position].tolist()):
                if place >= 0:
                    self._prepared[number].read_slice(place, whole)
                    out[..., n * sources : (n + 1) * sources] = whole[..., :sources]
        return found

    def _read_slice(self, index: int, out: UInt16[np.ndarray, "height width modality"]) -> None:
        number, position = self.positions[index].tolist()
        self._prepared[number].read_slice(position, out)


def stored_sources(stored: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """The sources of a stored batch, the first `number` of its modalities, and their neighbors'."""
    parts = [stored["images"][..., :number]]
    parts += [stored["neighbors"]] if "neighbors" in stored else []
    return np.concatenate(parts, axis=-1)


def plain_plans(indices: Int[np.ndarray, "batch"]) -> Int[np.ndarray, "batch 3"]:
    """Plans of these slices as they are: paired, none mirrored."""
    return np.stack([indices, indices, np.zeros_like(indices)], axis=1)


def training_batches(
    prepared: Sequence[PreparedSubject],
    *,
    batch_size: int,
    seed: int,
    flips: bool,
    paired: bool = True,
    any_to_any: bool = False,
    simulated: Sequence[PreparedSubject] = (),
    simulated_share: float = 0.0,
    context: int = 0,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Stored]:
    """Returns an endless stream of training batches, shuffled anew each epoch.

    The order and the flips are those of the global batches: the processes' parts, side by side, are
    the batches that one process alone would have.  The iterator's `get_state` and `set_state`
    resume the stream exactly, also with another number of processes.

    Args:
        prepared: the training subjects, the same for every process.
        batch_size: slices in a global batch; every batch is full.
        seed: decides the order and the flips.
        flips: whether half of the slices, at random, are mirrored left to right.
        paired: whether sources and targets are of the same slices; if not, the targets are those
            of other slices, shuffled by themselves.
        any_to_any: whether subjects may lack modalities.
        simulated: patients to mix in.
        simulated_share: of the slices that are theirs, in the long run.
        context: neighbors to each side of a slice whose sources are read too.
        threads: that read batches side by side; the batches do not depend on it.
        process_index: which of the processes this is.
        process_count: how many processes share a batch.

    Raises:
        UserError: there are no slices, the processes do not divide the batch, or patients are
            mixed into slices that are not paired.
    """
    if batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} slices cannot be shared by {process_count} processes: use a "
            "multiple"
        )
    source = SliceSource([*prepared, *simulated], any_to_any=any_to_any, context=context)
    plans = _source_plans(source, len(prepared), simulated_share, seed, flips, paired)
    number = batch_size // process_count
    own = range(process_index * number, (process_index + 1) * number)

    def read(batch: int) -> Stored:
        """This process's part; a plan takes time as well, so that none of the others' are made."""
        return source.read(np.array([plans[batch * batch_size + place] for place in own]))

    batches = grain.MapDataset.range(len(plans) // batch_size).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, HOST_BUFFER))
    return batches.to_iter_dataset(options)


def subjects_of_batch(
    prepared: Sequence[PreparedSubject],
    batch: int,
    *,
    batch_size: int,
    seed: int,
    flips: bool,
    paired: bool,
    any_to_any: bool,
    simulated: Sequence[PreparedSubject] = (),
    simulated_share: float = 0.0,
) -> list[str]:
    """Whose slices are in the batch of this number, from 0, of `training_batches`; sorted."""
    subjects = [*prepared, *simulated]
    source = SliceSource(subjects, any_to_any=any_to_any)
    plans = _source_plans(source, len(prepared), simulated_share, seed, flips, paired)
    own = [plans[batch * batch_size + place] for place in range(batch_size)]
    slices = {index for sources, targets, _ in own for index in (sources, targets)}
    return sorted({subjects[source.positions[index, 0]].subject_id for index in slices})


def _source_plans(
    source: SliceSource, real: int, share: float, seed: int, flips: bool, paired: bool
) -> grain.MapDataset[Plan]:
    """The endless order of a source's slices: `share` of them from subjects after the `real` first.

    Raises:
        UserError: slices are mixed in that are not paired.
    """
    number = int(np.count_nonzero(source.positions[:, 0] < real))
    order = grain.MapDataset.range(number).seed(seed).shuffle()
    if number < len(source):
        if not paired:
            raise UserError("data.simulated: this system trains on unpaired slices: use share=0")
        mixed_in = grain.MapDataset.range(number, len(source)).seed(seed + 1).shuffle()
        order = grain.MapDataset.mix([order.repeat(), mixed_in.repeat()], (1 - share, share))
        return order.random_map(_plan_flip) if flips else order.map(_plan)
    if not paired:
        others = grain.MapDataset.range(number).seed(seed + 1).shuffle()
        # Grain's seed of what follows counts the transformations before it, hence the empty one.
        order = grain.experimental.ZipMapDataset([order, others]).map(tuple)
    return (order.random_map(_plan_flip) if flips else order.map(_plan)).repeat()


def prefetched(
    batches: grain.IterDataset[Stored], put: Callable[[Stored], dict[str, Any]]
) -> grain.IterDataset[dict[str, Any]]:
    """Returns the batches of this process, moved onto the devices by `put`, fetched ahead.

    Each process gives its own part of the global batch, which `grain.experimental.device_put`
    cannot do.  Resuming stays exact: batches that wait are not counted as seen.  Close the
    iterator after use; its threads then end.
    """
    return grain.experimental.ThreadPrefetchIterDataset(
        batches.map(put), prefetch_buffer_size=DEVICE_BUFFER
    )


def padded_batches(
    stored: Mapping[str, UInt16[np.ndarray, "slice height width _modality"]], batch_size: int
) -> Iterator[tuple[Item, int]]:
    """Yields named stacks of slices, in order, in batches, each with how many of its slices count.

    The last batch is filled up with its last slice, so that a network is compiled only once.
    """
    total = len(next(iter(stored.values())))
    for start in range(0, total, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), total - 1)
        valid = min(batch_size, total - start)
        yield {name: np.asarray(slices)[rows] for name, slices in stored.items()}, valid


def _plan(chosen: int | tuple[int, int], mirrored: bool = False) -> Plan:
    """A plan of one slice, or of the sources of one and the targets of another."""
    sources, targets = chosen if isinstance(chosen, tuple) else (chosen, chosen)
    return sources, targets, mirrored


def _plan_flip(chosen: int | tuple[int, int], rng: np.random.Generator) -> Plan:
    """A plan that mirrors with equal chance."""
    return _plan(chosen, rng.random() >= 0.5)
