"""A segmenter judges syntheses: what does it find with them, with acquired images, and with none?

Where a run has a trained stage `segmenter`, `evaluate` lets it look at every unseen patient who has
a segmentation. Its records lie in `<workdir>/evaluation/<part>_segmenter`, one a patient. Their
rows are those of `ROWS` and the systems' own; in place of modalities, their targets are the regions
of a tumor.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from rich.progress import track

from cdm_jax import checkpoint, inference, parallel
from cdm_jax.config import plain
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset, copied_sources
from cdm_jax.data.labels import REGIONS
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_voxel_size
from cdm_jax.data.pipeline import padded_batches
from cdm_jax.data.prepare import (
    FULL_SCALE,
    Prepared,
    PrepareSettings,
    prepare_subject,
    quantize,
    to_native,
)
from cdm_jax.data.subjects import Subject
from cdm_jax.files import digest
from cdm_jax.inference import System
from cdm_jax.methods import base
from cdm_jax.metrics.regions import region_masks
from cdm_jax.metrics.segmentation import dice, hd95
from cdm_jax.preflight import check_trained
from cdm_jax.records import Record, read_record, write_record
from cdm_jax.report.judgements import ACQUIRED, COPY, JUDGED_BY, NOTHING
from cdm_jax.report.rows import samples_of
from cdm_jax.rows import system_of
from cdm_jax.sampling import SubjectSampler
from cdm_jax.scoring import usable_segmentation
from cdm_jax.tasks import task_of
from cdm_jax.writer import console, say_once

STAGE = "segmenter"
SLICES = 16  # that a call of the segmenter takes

Images = Float[np.ndarray, "slice h w _"]


class Judge:
    """The trained segmenter and the systems that fill in what it lacks.

    Attributes:
      config: of the segmenter's training.
      fingerprints: of the segmenter and of each system.
    """

    def __init__(self, stage_folder: pathlib.Path, systems: Mapping[str, tuple[System, int]]):
        """Loads the segmenter and compiles.

        Args:
          stage_folder: of the segmenter.
          systems: name of a row to its system and number of samples; all of one task.
        """
        self._model, provenance = checkpoint.load_model(stage_folder)
        self.config: ConfigDict = provenance.config
        self.fingerprints = {STAGE: inference.fingerprint(self._model)}
        method = base.create(self.config)
        assert isinstance(method, base.RegionFinder)

        def segment(model: base.Model, stored: Array, given: Array) -> Array:
            return method.segment(model, base.to_model_range(stored), given)

        self._segment = jax.jit(segment)
        self._samplers = {row: SubjectSampler(*one) for row, one in systems.items()}
        for row, (system, _) in systems.items():
            self.fingerprints[system_of(row)] = system.fingerprint
            self._task = system.provenance.config.data

    def score(self, files: Subject, split: str) -> Record | None:
        """Dice and HD95 of each row in each region; None of who has no segmentation to score."""
        native = read_native(files, self._task.sources, self._task.sources)
        labels, remark = usable_segmentation(files, native.brain)
        if labels is None:
            say_once(remark or f"{files.subject_id} has no segmentation")
            return None
        truth = region_masks(labels, np.ones(labels.shape, bool))
        size = read_voxel_size(next(iter(files.images.values())))
        data = self.config.data
        settings = PrepareSettings(
            sources=tuple(data.sources), targets=(), size=data.size, minimum_brain=0.0
        )
        prepared = prepare_subject(files, settings)
        record: Record = {
            "subject": files.subject_id,
            "patient": files.patient_id,
            "split": split,
            "conventions": {JUDGED_BY: ""},
            "rows": {},
        }
        for row, (images, given) in self._given(prepared):
            found = self._regions(images, given)
            scores = record["rows"].setdefault(row, {}).setdefault(JUDGED_BY, {})
            for number, name in enumerate(REGIONS):
                mask = to_native(prepared, found[..., number], native.brain) >= 0.5
                scores[name] = {
                    "dice": dice(mask, truth[name]),
                    "hd95": hd95(mask, truth[name], size),
                }
        return record

    def _given(self, prepared: Prepared) -> Iterator[tuple[str, tuple[Images, tuple[str, ...]]]]:
        """Each row's images in [0, 1], and which of them the segmenter is told that it has."""
        names = tuple(self.config.data.sources)
        sources, targets = tuple(self._task.sources), tuple(self._task.targets)
        acquired = prepared.slices.astype(np.float32) / FULL_SCALE
        missing = [names.index(name) for name in targets]

        def filled(images: Images) -> tuple[Images, tuple[str, ...]]:
            whole = acquired.copy()
            whole[..., missing] = images
            return whole, names

        yield ACQUIRED, (acquired, names)
        own = prepared.slices[..., [names.index(name) for name in sources]]
        key = inference.subject_key(self.config.seed, prepared.subject_id)
        for row, sampler in self._samplers.items():
            stored = {"source": sampler.system.sources_of(own, prepared.slice_indices)}
            yield row, filled(sampler.volumes(stored, key)["mean"])
        copies = [names.index(name) for name in copied_sources(self._task)]
        yield COPY, filled(acquired[..., copies])
        yield NOTHING, (filled(0 * acquired[..., missing])[0], sources)

    def _regions(self, images: Images, given: Sequence[str]) -> Float[np.ndarray, "slice h w 3"]:
        """The probability of each region, slice by slice."""
        told = np.isin(self.config.data.sources, given)
        batches = padded_batches({"images": quantize(images)}, SLICES)
        every = jnp.broadcast_to(told[None], (SLICES, len(told)))
        parts = [self._segment(self._model, b["images"], every)[:valid] for b, valid in batches]
        return np.concatenate(parts)


def judge_run(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: Dataset,
    subjects: Sequence[PreparedSubject],
    rows: Mapping[str, str],
    loaded: Mapping[str, System],
    folder: pathlib.Path,
) -> list[Record]:
    """Lets the run's segmenter judge its systems; records that are up to date stay.

    Args:
      config: of the evaluation.
      workdir: of the run.
      dataset: prepared patients.
      subjects: to judge by; several processes share them.
      rows: system to the row that it is judged by, such as "cunet/mean_of_8".
      loaded: systems that need not be loaded again, by name.
      folder: of the records.

    Returns:
      The records; none where the run has no trained segmenter, or one that needs modalities which
      these systems do not know. Systems for whatever is missing are not judged.

    Raises:
      UserError: the segmenter was trained on another split.
    """
    rows = {stage: row for stage, row in rows.items() if not _takes_any(workdir / stage)}
    if not rows or not checkpoint.finished(workdir / STAGE):
        return []
    check_trained(workdir / STAGE, dataset.split_hash)
    systems = {}
    for stage, row in rows.items():
        system = loaded.get(stage) or inference.load_system(
            workdir / stage, SLICES, config.sampler, config.checkpoint.use
        )
        systems[row] = system, samples_of(row)
    judge = Judge(workdir / STAGE, systems)
    if not set(judge.config.data.sources) <= {*config.data.sources, *config.data.targets}:
        return []
    settings = plain(config.sampler) | {"rows": dict(rows), "seed": config.seed}
    of = digest(settings)[:12]
    for subject in track(parallel.process_shard(subjects), "judging", console=console):
        path = folder / f"{subject.subject_id}.json"
        known: Mapping[str, Any] = read_record(path) if path.exists() else {}
        if (known.get("checkpoint"), known.get("config")) == (judge.fingerprints, of):
            continue
        record = judge.score(dataset.subjects[subject.subject_id], dataset.split_hash)
        if record is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_record(path, {**record, "checkpoint": judge.fingerprints, "config": of})
    parallel.wait_for_all("judged")
    paths = [folder / f"{subject.subject_id}.json" for subject in subjects]
    return [read_record(path) for path in paths if path.exists()]


def _takes_any(stage_folder: pathlib.Path) -> bool:
    saved = checkpoint.provenance(stage_folder)
    return saved is not None and task_of(saved.config.data).is_any
