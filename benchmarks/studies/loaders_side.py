"""This package's side of the study of loaders."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from benchmarks.networks import key
from benchmarks.studies.patients import SOURCES, TARGETS, found
from benchmarks.studies.worker import Prepared, drawn
from cdm_jax import parallel
from cdm_jax.data.cohort import prepare
from cdm_jax.data.pipeline import prefetched, training_batches
from cdm_jax.data.prepare import PrepareSettings
from cdm_jax.tasks import Task


def stored(folder: str, cache: str, batch: int, size: int, threads: int, smoke: bool) -> Prepared:
    """16-bit slices, as the training step takes them."""
    return {}, drawn(_batches(folder, cache, batch, size, threads), smoke)


def floats(folder: str, cache: str, batch: int, size: int, threads: int, smoke: bool) -> Prepared:
    """The same, mirrored, as floats in [-1, 1] on the device, which the training step makes."""
    task, root = Task(sources=SOURCES, targets=TARGETS), key()
    unpack = jax.jit(lambda stored: task.batch(stored, root, training=True))
    put = parallel.all_devices("jit").put
    batches = _batches(folder, cache, batch, size, threads)

    class Unpacked:
        """Batches after the compiled step's first operations."""

        def __iter__(self) -> Iterator[Any]:
            iterator: Any = iter(prefetched(batches, put))
            try:
                for one in iterator:
                    yield unpack(one)
            finally:
                iterator.close()

    return {}, drawn(Unpacked(), smoke, jax.block_until_ready)


def _batches(folder: str, cache: str, batch: int, size: int, threads: int) -> Any:
    """Training batches of all slices of the patients that hold brain."""
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
    settings = PrepareSettings(sources=SOURCES, targets=TARGETS, size=size, minimum_brain=0.01)
    prepared = prepare(found(folder), settings, pathlib.Path(cache), num_workers=1)
    for subject in prepared:
        _ = subject.slices  # into the memory that the system keeps files in
    return training_batches(prepared, batch_size=batch, seed=0, flips=True, threads=threads)
