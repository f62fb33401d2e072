"""MONAI's side of the study of loaders: slices of all four modalities in one array, mirrored."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from monai import data, transforms

from benchmarks.studies.patients import SOURCES, TARGETS, found
from benchmarks.studies.worker import Prepared, drawn

BRAIN = 0.01  # share of a slice's square that brain covers at least, as for our own slices


def patients(folder: str, batch: int, size: int, processes: int, smoke: bool) -> Prepared:
    """Patients in memory, of each of which a random slice is cut."""
    volumes = data.CacheDataset(_volumes(folder, size), num_workers=0, progress=False)
    # Every patient several times, so that an epoch is more than a batch.
    chosen = [number for number in range(len(volumes)) for _ in range(4 * batch)]
    cut = transforms.Compose(
        [
            volumes.__getitem__,
            transforms.ToTensor(track_meta=False),
            transforms.RandSpatialCrop((-1, -1, 1), random_size=False),
            transforms.SqueezeDim(dim=-1),
            transforms.RandFlip(prob=0.5, spatial_axis=0),
        ]
    )
    return {}, drawn(_endless(data.Dataset(chosen, cut), batch, processes), smoke)


def slices(folder: str, batch: int, size: int, processes: int, smoke: bool) -> Prepared:
    """Slices in memory, each an item: as little work a slice as MONAI's loader allows."""
    cut = [
        np.ascontiguousarray(volume[..., place])
        for volume in _volumes(folder, size)
        for place in range(volume.shape[-1])
        if (volume[0, ..., place] > 0).mean() >= BRAIN
    ]
    cached = data.CacheDataset(
        cut,
        transforms.Compose(
            [transforms.ToTensor(track_meta=False), transforms.RandFlip(0.5, spatial_axis=0)]
        ),
        num_workers=0,
        progress=False,
    )
    return {"slices": len(cut)}, drawn(_endless(cached, batch, processes), smoke)


def _volumes(folder: str, size: int) -> list[Any]:
    """The patients' modalities as float32 [modality, size, size, slice], scaled and padded."""
    load = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.ScaleIntensityRangePercentiles(0, 99.5, 0, 1, clip=True),
            transforms.ResizeWithPadOrCrop((size, size, -1)),
            transforms.ToTensor(track_meta=False),
        ]
    )
    return [
        np.concatenate([np.asarray(load(str(subject.images[m]))) for m in SOURCES + TARGETS])
        for subject in found(folder)
    ]


def _endless(dataset: Any, batch: int, processes: int) -> Any:
    """Batches of a shuffled data set, epoch after epoch, by processes that last."""

    class Epochs:
        """Begins anew with every iterator."""

        def __iter__(self) -> Iterator[Any]:
            loader = data.DataLoader(
                dataset,
                batch_size=batch,
                shuffle=True,
                drop_last=True,
                num_workers=processes,
                persistent_workers=bool(processes),
            )
            while True:
                yield from loader

    return Epochs()
