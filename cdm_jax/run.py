"""What a stage's training rests on: its config, patients, batches, keys and earlier stages."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.config import differences
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.pipeline import SliceSource, plain_plans
from cdm_jax.data.prepare import median_scales
from cdm_jax.data.ranges import Ranges, training_ranges
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.tasks import Task, task_of

# Settings of a section in which a run may differ from what it goes on from: training does not see
# them, or there may be other devices. `remat` gives the same values in less memory.
HARMLESS = (
    *("train.num_steps", "train.num_epochs", "train.log_every", "train.validate_every"),
    *("train.checkpoint_every", "train.best_by", "train.patience", "train.non_finite"),
    *("train.batch_size_per_device", "remat"),
    *("root", "cache", "split_file", "num_workers", "read_threads", "copies"),
)

_batch = jax.jit(Task.batch, static_argnums=0)


def resolve(config: ConfigDict, num_slices: int, stage: str = "") -> ConfigDict:
    """A copy of the config, for another stage if one is named, its steps worked out from epochs.

    Raises:
      UserError: nothing to train: neither steps nor epochs.
    """
    config = config.copy_and_resolve_references()
    config.stage = stage or config.stage
    length = config[config.stage].train
    if not length.num_steps:
        batch = length.batch_size_per_device * jax.device_count()
        length.num_steps = length.num_epochs * max(1, num_slices // batch)
    if length.num_steps < 1:
        raise UserError(f"{config.stage}.train: num_steps and num_epochs are 0; set one of them")
    return config


def training_slices(dataset: Dataset) -> int:
    """Slices in an epoch."""
    return sum(len(subject.training) for subject in dataset.train)


def stage_keys(config: ConfigDict) -> Array:
    """Keys of a stage: of its initialization, of its training steps, of its measurements."""
    root = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(config.stage.encode()))
    return jax.random.split(root, 3)


class MissingStageError(UserError):
    """A stage cannot be trained before the one of this name."""

    def __init__(self, text: str, stage: str):
        super().__init__(text)
        self.stage = stage


def load_frozen(method: base.Method, config: ConfigDict, workdir: pathlib.Path) -> base.Model:
    """Models of the stages that this one builds on.

    Raises:
      MissingStageError: one is missing or unfinished.
      UserError: one was trained with other settings.
    """
    check_earlier_stages(config, workdir, method.depends_on)
    found = {}
    for stage in method.depends_on:
        model, _ = checkpoint.load_model(workdir / stage, config.checkpoint.use)
        found[stage] = {name: model[name] for name in ("params", "statistics")}
    return found


def check_earlier_stages(
    config: ConfigDict, workdir: pathlib.Path, needed: Sequence[str], planned: Sequence[str] = ()
) -> None:
    """Refuses to train the config's stage without those that it needs, but for planned ones.

    Raises:
      MissingStageError: one is missing or unfinished.
      UserError: one was trained with other settings.
    """
    for stage in needed:
        folder = workdir / stage
        saved = checkpoint.provenance(folder)
        if saved is not None and checkpoint.finished(folder):
            check_same(config, saved.config, ("data", stage), folder)
        elif stage not in planned:
            raise MissingStageError(
                f"stage {config.stage} needs a finished {stage} in {folder}: train that first",
                stage,
            )


def check_same(
    ours: ConfigDict, saved: ConfigDict, sections: Sequence[str], folder: pathlib.Path
) -> None:
    """Refuses to build on a run whose settings differ in more than what is `HARMLESS`."""
    lines = differences(ours, saved, sections)
    if changed := [s for s in lines if s.partition(":")[0].partition(".")[2] not in HARMLESS]:
        raise UserError(
            f"the run in {folder} was made with other settings ({'; '.join(changed[:3])}): "
            "use those, another --workdir, or remove that folder"
        )


def slice_batches(
    subjects: Sequence[PreparedSubject],
    batch_size: int,
    limit: int,
    mesh: jax.sharding.Mesh,
    task: Task,
) -> Iterator[base.Batch]:
    """Up to `limit` slices, evenly spaced over the subjects, as full global batches of floats.

    The last batch is filled up from the start. Each process reads its own part of each. The
    patterns of an any-to-any task are the same each time.
    """
    source = SliceSource(subjects, any_to_any=task.is_any, context=task.context)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
    batches = np.resize(chosen, (-(-len(chosen) // batch_size), batch_size))
    for number, indices in enumerate(batches):
        own = np.split(indices, jax.process_count())[jax.process_index()]
        stored = parallel.global_batch(source.read(plain_plans(own)), mesh)
        yield _batch(task, stored, jax.random.key(number))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same while a stage trains.

    Attributes:
      config: whole config, its number of steps resolved.
      folder: of the stage.
      dataset: prepared patients.
      method: the system.
      devices: those of all processes.
      keys: of initialization, of training steps, of measurements.
    """

    config: ConfigDict
    folder: pathlib.Path
    dataset: Dataset
    method: base.Method
    devices: parallel.Devices
    keys: Array

    @property
    def length(self) -> ConfigDict:
        """Steps, batch size and intervals of the stage."""
        return self.config[self.config.stage].train

    @property
    def batch_size(self) -> int:
        """Slices in a global batch."""
        return self.length.batch_size_per_device * jax.device_count()

    @functools.cached_property
    def ranges(self) -> Ranges:
        """What the training patients' sources look like, measured once."""
        return training_ranges(self.dataset.train, self.dataset.subjects)

    def provenance(self) -> checkpoint.Provenance:
        """What checkpoints of this run say of themselves."""
        return checkpoint.Provenance(
            config=self.config,
            batch_size=self.batch_size,
            split=self.dataset.split_hash,
            scales=median_scales(self.dataset.train),
            ranges=self.ranges,
        )

    def slices(self, subjects: Sequence[PreparedSubject], limit: int) -> Iterator[base.Batch]:
        """Slices of these subjects in order, shared out over all devices."""
        task = task_of(self.config.data)
        return slice_batches(subjects, self.batch_size, limit, self.devices.mesh, task)


def check_resumes(config: ConfigDict, folder: pathlib.Path, split: str | None) -> None:
    """Refuses to continue a run with other settings, another split or another global batch.

    The split is None where none is drawn yet.

    Raises:
      UserError: something differs.
    """
    saved, stage = checkpoint.provenance(folder), config.stage
    if saved is None:
        return
    check_same(config, saved.config, ("data", stage), folder)
    if split is not None and saved.split != split:
        raise UserError(
            f"{folder} was trained on split {saved.split}, the data now has {split}: restore that "
            "split file or use another --workdir"
        )
    batch_size = config[stage].train.batch_size_per_device * jax.device_count()
    if saved.batch_size != batch_size:
        raise UserError(
            f"{folder} was trained with batches of {saved.batch_size} slices, and "
            f"{jax.device_count()} devices now make batches of {batch_size}: set "
            f"--config.{stage}.train.batch_size_per_device so that they agree (on fewer devices "
            "that means more on each)"
        )
