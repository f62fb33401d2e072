"""What the whole paper takes on the patients and devices at hand: disk, memory and hours.

Everything is of the paper's networks and batches, and of what is not done yet. Hours are no
promise: `experiments.costs` says what they are made of.
"""

import os
import pathlib
import shutil
from collections.abc import Iterable, Sequence

import jax
from ml_collections import ConfigDict

from cdm_jax import checkpoint, memory, workers
from cdm_jax.data.cohort import GB, cache_bytes
from cdm_jax.data.dataset import data_root
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.errors import UserError
from experiments import costs
from experiments.figure5 import SWEPT
from experiments.records import read_results
from experiments.study import Study
from experiments.sweep import STEPS, rows_swept

WORKER_GIB = 1.3  # of a process that scores
ROW_GIB, WAITING = 0.9 / 12, 6 / 16  # of a row of a subject that waits for one; subjects a core
HOUR = 3600

Row = tuple[str, str, str]  # what, how much, how that is known


class Estimate:
    """The whole paper on one data set.

    Args:
      study: at the paper's scale.
      rows: of the evaluation.

    Raises:
      UserError: there is no patient, or a config value does not fit.
    """

    def __init__(self, study: Study, rows: Sequence[str]):
        self.config: ConfigDict = study.config("all")
        self.workdir, self._rows = study.workdir, rows
        self.subjects = _find(self.config, study.workdir)
        self.parts = costs.cohort(self.config, len(self.subjects))
        self.devices, self.cores = jax.device_count(), workers.cores()
        self.rates = costs.rates(jax.devices()[0].device_kind)
        self._timed = read_results(costs.MEASURED / "day_one.json")
        counted = read_results(costs.MEASURED / "parameters.json")
        self._stages = {row["stage"]: row for row in counted["stages"]}
        self._networks = {(r["stage"], r["network"]): r["flops"] for r in counted["networks"]}
        self.missing = [
            stage for stage in self.config.pipeline if not checkpoint.finished(self.workdir / stage)
        ]

    @property
    def cache(self) -> pathlib.Path:
        """The folder of prepared slices."""
        return pathlib.Path(self.config.data.cache or self.workdir / "cache")

    def disk(self) -> dict[pathlib.Path, float]:
        """Bytes that each folder will take beside what it holds."""
        states = sum(costs.state_bytes(self.config, s, self._timed) for s in self.missing)
        states -= sum(_size(self.workdir / stage) for stage in self.missing)
        cache = cache_bytes(self.subjects, self.config.data) - _size(self.cache)
        return {self.cache: max(0, cache), self.workdir: max(0, states)}

    def check_disk(self) -> None:
        """Refuses to begin what will not find room.

        Raises:
          UserError: a disk has less free than the folders on it will take.
        """
        needed: dict[int, float] = {}
        for folder, number in self.disk().items():
            device = _existing(folder).stat().st_dev
            needed[device] = needed.get(device, 0) + number
            if needed[device] > _free(folder):
                raise UserError(
                    f"the disk of {folder} has {_free(folder) / GB:.0f} GB free, and "
                    f"{needed[device] / GB:.0f} GB are needed: make room, or give another folder, "
                    "--workdir=<folder> or, of prepared slices, --config.data.cache=<folder>"
                )

    def training_hours(self, stage: str) -> float:
        """Hours of a stage from its first step to its last."""
        counted, slices = self._stages[stage], self.parts["train"] * costs.TRAINED
        steps = costs.training_steps(self.config, stage, slices, self.devices)
        batch = self.config[stage].train.batch_size_per_device / costs.BATCH
        seconds = batch * counted["step_flops"] / self.rates.of(stage)
        seconds += costs.exchange_seconds(counted["trained"], self.devices)
        return steps * seconds / HOUR

    def translating_hours(self, systems: Iterable[str], steps: int) -> float:
        """Hours of the devices to make all images of the test patients, by N steps of DDIM."""
        config = self.config.copy_and_resolve_references()
        config.sampler.num_steps = steps
        seconds = sum(
            costs.slice_flops(config, system, self._networks) / self.rates.of(system)
            for system in systems
        )
        return self.parts["test"] * costs.STORED * seconds / self.devices / HOUR

    def scoring_hours(self, rows: int) -> float:
        """Hours of all cores to score so many rows of each test patient."""
        seconds = costs.row_seconds(self.config, self._timed)
        return self.parts["test"] * rows * seconds / self.cores / HOUR

    def times(self) -> list[Row]:
        """Hours of each part, and of all."""
        usual = self.config.sampler.num_steps
        others = tuple(steps for steps in STEPS if steps != usual)
        rows = sum(len(rows_swept(self.config, stage)) for stage in SWEPT) * len(others)
        prepare = len(self.subjects) * self._timed["prepare_core_seconds"] / self.cores / HOUR
        train = sum(map(self.training_hours, self.missing))
        translate = self.translating_hours(self.config.evaluate.systems, usual)
        sweep = sum(self.translating_hours(SWEPT, steps) for steps in others)
        scores, swept = self.scoring_hours(len(self._rows)), self.scoring_hours(rows)
        # Subjects are scored while the devices make the images of the next ones.
        whole = prepare + train + max(translate, scores) + max(sweep, swept)
        return [
            ("preparing", f"{prepare:.1f} h", "cores: measured on one of BraTS' patients"),
            ("training", f"{train:.1f} h", f"devices: {self.rates.source}"),
            ("images of test patients", f"{translate:.1f} h", "devices: the same rate"),
            ("scoring them", f"{scores:.1f} h", f"{len(self._rows)} rows; cores, meanwhile"),
            (f"images for N = {others}", f"{sweep:.1f} h", "devices: the same rate"),
            ("scoring those", f"{swept:.1f} h", f"{rows} rows; cores, meanwhile"),
            ("**all**", f"**{whole:.1f} h**", "without compilation and validation"),
        ]

    def room(self) -> list[Row]:
        """Disk and memory, beside what there is."""
        rows = []
        for (folder, number), what in zip(
            self.disk().items(), ("prepared slices", "checkpoints"), strict=True
        ):
            how = f"{_free(folder) / GB:.0f} GB are free in {folder}"
            rows.append((f"disk: {what}", f"{number / GB:.1f} GB", how))
        if self.missing:
            rows.append(self._largest_step(memory.device_limit()))
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / memory.GIB
        need = self.cores * (WORKER_GIB + WAITING * len(self._rows) * ROW_GIB)
        how = f"of {host:.0f} GiB; scoring by {self.cores} processes (`data.num_workers`)"
        return [*rows, ("memory of the machine", f"{need:.0f} GiB", how)]

    def _largest_step(self, limit: int | None) -> Row:
        """What the largest step that is not trained takes of each device, which may have a limit.

        XLA planned it for a CPU. Before the first stage trains, every step is compiled for the
        device at hand and compared with what that has.
        """
        stage = max(self.missing, key=lambda stage: self._stages[stage]["peak_bytes"])
        peak = self._stages[stage]["peak_bytes"]
        how = f"{stage}, {costs.BATCH} slices, by XLA's plan for a CPU"
        if limit:
            how += f"; there are {limit / memory.GIB:.1f} GiB"
        if limit and peak > limit:
            how += f", which is TOO LITTLE: set {memory.remedy(self.config, stage)}"
        return "memory of each device", f"{peak / memory.GIB:.1f} GiB", how

    def markdown(self) -> str:
        """The whole estimate."""
        kind, parts = jax.devices()[0].device_kind, self.parts
        stages = [
            (
                stage,
                f"{self.training_hours(stage):.1f} h" if stage in self.missing else "done",
                f"{self._stages[stage]['peak_bytes'] / memory.GIB:.1f} GiB",
            )
            for stage in self.config.pipeline
        ]
        return "\n\n".join(
            (
                f"{len(self.subjects):,} subjects, about {parts['train']:,} to train, "
                f"{parts['validation']:,} to validate and {parts['test']:,} to test on; "
                f"{self.devices} x {kind}, {self.cores} cores. What is not done yet takes about:",
                _table(("what", "takes", "how that is known"), [*self.room(), *self.times()]),
                _table(("stage", "training", "peak of a device"), stages),
            )
        )


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ("---", "---:", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _find(config: ConfigDict, workdir: pathlib.Path) -> list[Subject]:
    names = (*config.data.sources, *config.data.targets)
    patterns = config.data.patterns.to_dict() or None
    return find_subjects(data_root(config, workdir), modalities=names, patterns=patterns)


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or the nearest above it that is there."""
    places = (folder.absolute(), *folder.absolute().parents)
    return next(place for place in places if place.exists())


def _free(folder: pathlib.Path) -> int:
    return shutil.disk_usage(_existing(folder)).free
