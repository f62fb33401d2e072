"""Trained systems and non-learned baselines over test patients: one JSON record a subject.

A record is written when its subject is done and found again by its fingerprints, so an interrupted
evaluation goes on where it was, and a row evaluated later joins those that are there.
Several processes share the subjects; those of one that failed are done by the next run.
"""

import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict
from rich.progress import track

from cdm_jax import checkpoint, inference, parallel
from cdm_jax.cards import write_card
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.formats import check_file
from cdm_jax.data.grids import oriented_like
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_labels
from cdm_jax.data.prepare import FULL_SCALE, PreparedSubject
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError, collected, report_failures
from cdm_jax.metrics.conventions import Case, fingerprint, get_convention
from cdm_jax.metrics.regions import region_masks
from cdm_jax.non_learned import NonLearned, fit_non_learned
from cdm_jax.records import Identity, Record, read_record, write_record
from cdm_jax.report.rows import CEILING, NON_LEARNED
from cdm_jax.report.tables import results_table
from cdm_jax.rows import REFERENCE_ROWS, chosen_rows, images_of, num_samples, rows_of, system_of
from cdm_jax.writer import console, say

Images = Mapping[str, Float[np.ndarray, "slice h w t"]]
"""Row to the synthetic targets of all slices of a subject, in [0, 1]."""
Item = TypeVar("Item")
Made = TypeVar("Made")


def evaluate_run(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset, name: str | None = None
) -> list[Record]:
    """Scores the config's systems on unseen patients; prints the tables.

    Args:
      config: its sections `evaluate` and `sampler` (the checkpoints' own may differ). Of the rows
        of `evaluate.systems` and the non-learned ones, only `evaluate.rows` are computed and
        scored, such as ("copy", "cunet", "cunet/mean_of_8"); () stands for all.
      workdir: holds the systems' folders; records go to `<workdir>/evaluation/<name>`.
      dataset: prepared patients.
      name: of the records' folder; the part of the split by default.

    Returns:
      One record a subject, with the rows asked for and those that were there before.

    Raises:
      UserError: a system is missing or was trained on another split, there is no such row, no
        patient; or some patients cannot be scored, all others are.
    """
    settings = config.evaluate
    part = getattr(dataset, settings.part, None)
    if not part:
        raise UserError(f"no patients in part '{settings.part}' of the split to evaluate")
    evaluation = _Evaluation(config, workdir, dataset)
    folder = workdir / "evaluation" / (name or settings.part)
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, UserError] = {}

    def compute(subject: PreparedSubject) -> _Pending | None:
        with collected(failures, subject.subject_id):
            return evaluation.compute(subject, _another(subject, part), folder)
        return None

    def score(pending: _Pending | None) -> None:
        if pending is not None:
            with collected(failures, pending.subject.subject_id):
                evaluation.score(pending)

    share = track(parallel.process_shard(part), "evaluating", console=console)
    _one_ahead(share, compute, score)
    parallel.wait_for_all("records")
    paths = [folder / f"{s.subject_id}.json" for s in part if s.subject_id not in failures]
    records = [read_record(path) for path in paths if path.exists()]  # not what others failed in
    if parallel.is_first() and records:
        reference = settings.reference if settings.reference in records[0]["rows"] else None
        show_tables(records, settings.conventions, reference, folder)
        if name is None and settings.part == "test":
            evaluation.save_cards(records, workdir)
    report_failures(failures, len(part), say)
    return records


def _one_ahead(
    items: Iterable[Item], make: Callable[[Item], Made], use: Callable[[Made], None]
) -> None:
    """Uses what is made of each item, in a thread, while that of the next one is made.

    Nothing is made further ahead. An error of either ends it, after what is being used.
    """
    with ThreadPoolExecutor(1) as thread:
        used: Future[None] | None = None
        for item in items:
            made = make(item)
            if used:
                used.result()
            used = thread.submit(use, made)
        if used:
            used.result()


def _another(subject: PreparedSubject, part: Sequence[PreparedSubject]) -> PreparedSubject:
    """The next patient of the part, whose representation the shuffled row takes."""
    start = part.index(subject)
    rotated = [*part[start + 1 :], *part[:start]]
    return next((s for s in rotated if s.patient_id != subject.patient_id), subject)


def _load(
    stage: str, config: ConfigDict, workdir: pathlib.Path, dataset: Dataset
) -> inference.System:
    folder = workdir / stage
    if not checkpoint.finished(folder):
        raise UserError(
            f"{stage} has not been trained to its end in {folder}: train it, or leave it out by "
            "--config.evaluate.systems='(...)'"
        )
    system = inference.load_system(
        folder, config.evaluate.batch_size, config.sampler, config.checkpoint.use
    )
    if system.provenance.split != dataset.split_hash:
        raise UserError(
            f"{folder} was trained on split {system.provenance.split}, not on this data's "
            f"{dataset.split_hash}: its training patients may be among the test patients"
        )
    return system


class _Pending(NamedTuple):
    """A subject between its images and its scores: the record so far, and what it lacks."""

    subject: PreparedSubject
    path: pathlib.Path
    record: Record
    images: Images


class _Evaluation:
    """Systems loaded and compiled once, applied to one subject after another."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, dataset: Dataset):
        self._config, self._dataset = config, dataset
        systems = {s: _load(s, config, workdir, dataset) for s in config.evaluate.systems}
        rows = [*REFERENCE_ROWS]
        for name, system in systems.items():
            rows += rows_of(name, system.method, num_samples(config, name))
        self._rows = chosen_rows(config.evaluate.rows, rows)
        used = {system_of(row) for row in self._rows}
        self._systems = {name: system for name, system in systems.items() if name in used}
        self._compiled: dict[tuple[str, ...], inference.Compute] = {}

    @functools.cached_property
    def _non_learned(self) -> NonLearned:
        return fit_non_learned(self._dataset.train, self._dataset.copies)

    def _identity(self, subject: PreparedSubject) -> Identity:
        """What all rows of a record have in common."""
        settings = checkpoint.plain(self._config.sampler) | {
            "num_samples": self._config.evaluate.num_samples,
            "copies": self._dataset.copies,
            "seed": self._config.seed,
        }
        text = json.dumps(settings, sort_keys=True)
        return {
            "subject": subject.subject_id,
            "patient": subject.patient_id,
            "split": self._dataset.split_hash,
            "conventions": {n: fingerprint(n) for n in self._config.evaluate.conventions},
            "config": hashlib.sha256(text.encode()).hexdigest()[:12],
            "size": self._config.data.size,
        }

    def compute(
        self, subject: PreparedSubject, other: PreparedSubject, folder: pathlib.Path
    ) -> _Pending:
        """The subject's record as far as it is up to date, and images of the rows it lacks."""
        path = folder / f"{subject.subject_id}.json"
        identity = self._identity(subject)
        known: Mapping[str, Any] = read_record(path) if path.exists() else {}
        if {name: known.get(name) for name in identity} != identity:
            known = {}
        done = known.get("checkpoint", {})
        wanted = {name: system.fingerprint for name, system in self._systems.items()}
        changed = {name for name in wanted if done.get(name) != wanted[name]}
        kept = {r: s for r, s in known.get("rows", {}).items() if system_of(r) not in changed}
        lacking = [row for row in self._rows if row not in kept]
        record: Record = {**identity, "checkpoint": done | wanted, "rows": kept}
        return _Pending(subject, path, record, self._images(subject, other, lacking))

    def score(self, pending: _Pending) -> None:
        """Scores the images and writes the record, if it lacked anything."""
        if pending.images:
            scores = self._scores(pending.subject, pending.images)
            rows = pending.record["rows"] | scores
            write_record(pending.path, {**pending.record, "rows": rows})

    def save_cards(self, records: Sequence[Record], workdir: pathlib.Path) -> None:
        """Writes the numbers into the card of each system, unless it was sampled in another way."""
        for stage, system in self._systems.items():
            if system.provenance.config.sampler.to_dict() == self._config.sampler.to_dict():
                write_card(workdir / stage, self._dataset, records)

    def _images(
        self, subject: PreparedSubject, other: PreparedSubject, rows: Sequence[str]
    ) -> Images:
        """Predictions of these rows."""
        if not rows:
            return {}
        num_sources = len(subject.sources)
        slices = np.asarray(subject.slices)
        sources, targets = slices[..., :num_sources], slices[..., num_sources:]
        found: dict[str, np.ndarray] = {}
        if not NON_LEARNED.keys().isdisjoint(rows):
            found |= self._non_learned.rows(sources.astype(np.float32) / FULL_SCALE)
        if CEILING in rows:
            found[CEILING] = targets.astype(np.float32) / FULL_SCALE
        matched = np.linspace(0, len(other.slice_indices) - 1, len(slices)).round().astype(int)
        stored = {
            "source": sources,
            "target": targets,
            "other": other.slices[matched][..., :num_sources],
        }
        key = inference.subject_key(self._config.seed, subject.subject_id)
        for name, system in self._systems.items():
            if own := tuple(row for row in rows if system_of(row) == name):
                found |= system.volumes(self._compile(name, own), stored, key)
        return {row: found[row] for row in rows}

    def _compile(self, name: str, rows: tuple[str, ...]) -> inference.Compute:
        """A system's function for these rows, the same one for every subject that lacks them."""
        if rows not in self._compiled:
            system, samples = self._systems[name], num_samples(self._config, name)
            images = images_of(name, system.method, samples, rows)
            self._compiled[rows] = system.compile(images)
        return self._compiled[rows]

    def _scores(self, subject: PreparedSubject, images: Images) -> dict[str, Any]:
        """Row -> convention -> target -> metrics."""
        conventions, targets = self._config.evaluate.conventions, subject.targets
        truth = np.asarray(subject.slices)[..., len(subject.sources) :].astype(np.float32)
        truth /= FULL_SCALE
        native = None
        if any(get_convention(name).space == "native" for name in conventions):
            native = _Native(subject, self._dataset.subjects[subject.subject_id])

        def score(name: str, row: str, t: int) -> Mapping[str, Any]:
            """One row under one convention, for one target."""
            convention, target = get_convention(name), subject.targets[t]
            predicted = images[row][..., t]
            if native and convention.space == "native":
                return convention.score(native.case(target, predicted))
            return convention.score(
                Case(
                    subject=subject.subject_id,
                    modality=target,
                    prediction=predicted,
                    truth=truth[..., t],
                )
            )

        tasks = list(itertools.product(conventions, images, range(len(targets))))
        # NumPy and SciPy let go of the interpreter while they work.
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(score, *zip(*tasks, strict=True)))
        scores: dict[str, Any] = {row: {name: {} for name in conventions} for row in images}
        for (name, row, t), values in zip(tasks, found, strict=True):
            scores[row][name][targets[t]] = values
        return scores


class _Native:
    """A subject's truth, brain and segmentation on its own grid, read once."""

    def __init__(self, subject: PreparedSubject, files: Subject):
        self._subject = subject
        self._native = read_native(files, subject.sources, subject.sources + subject.targets)
        self._segmentation = usable_segmentation(files, self._native.brain)

    def case(self, target: str, slices: Float[np.ndarray, "slice h w"]) -> Case:
        """A prediction in the model's frame beside the truth, on the native grid."""
        return Case(
            subject=self._subject.subject_id,
            modality=target,
            prediction=inference.to_native(self._subject, slices, self._native.brain),
            truth=self._native.images[target],
            brain=self._native.brain,
            segmentation=self._segmentation,
        )


def usable_segmentation(
    files: Subject, brain: Bool[np.ndarray, "z y x"]
) -> Int[np.ndarray, "z y x"] | None:
    """The subject's labels, or None where there are none, of unknown meaning or on another grid."""
    if files.segmentation is None:
        return None
    check_file(files.segmentation)
    try:
        image = oriented_like(files.segmentation, next(iter(files.images.values())))
        labels = read_labels(files.segmentation, image)
        region_masks(labels, brain)
    except UserError as error:
        say(f"{files.subject_id}: no tumor regions are scored: {error}")
        return None
    return labels


def show_tables(
    records: Sequence[Record],
    conventions: Sequence[str],
    reference: str | None,
    folder: pathlib.Path,
) -> None:
    """Prints a table for each convention and writes them as Markdown beside the records.

    Args:
      records: one a subject.
      conventions: their names.
      reference: the row against which the others are tested.
      folder: of the records.
    """
    tables = [results_table(records, name, reference=reference) for name in conventions]
    for table in tables:
        console.print(table.rich())
    (folder / "tables.md").write_text("\n\n".join(table.markdown() for table in tables) + "\n")
