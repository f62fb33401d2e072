"""Trained systems and untrained rows over test patients: one JSON record a subject.

A record is written when its subject is done and found again by its fingerprints, so an interrupted
evaluation goes on where it was, and a system evaluated later joins the records of the others.
Several processes share the subjects; those of one that failed are done by the next run.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict
from rich.progress import track

from cdm_jax import checkpoint, inference, parallel
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.intensity import brain_mask
from cdm_jax.data.nifti import read_labels, read_volume
from cdm_jax.data.prepare import FULL_SCALE, PreparedSubject
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.metrics.aggregate import Record
from cdm_jax.metrics.conventions import Case, fingerprint, get_convention, json_ready
from cdm_jax.metrics.regions import region_masks
from cdm_jax.report.card import PARTS, model_card, parameter_counts, save_card
from cdm_jax.report.tables import results_table, to_markdown, to_rich
from cdm_jax.untrained import Untrained, fit_untrained
from cdm_jax.writer import console, write_json

Rows = Mapping[str, Float[np.ndarray, "slice h w t"]]


def rows_of(system: str, method: base.Translator, num_samples: int) -> inference.Compute:
    """Everything that an evaluation asks of a system, as one function to compile.

    Rows: the system's name is one sample; with "/mean_of_K" the mean of K images; the method's
    audits follow under their own names.
    """
    samples = num_samples if method.stochastic else 1
    audits = method.audits(num_samples)

    def rows(model: base.Model, batch: base.Batch, key: Array) -> inference.Outputs:
        """Named images in [0, 1] of one batch."""
        drawn = method.translate(model, batch["source"], key, samples)
        outputs = {system: drawn[0]}
        if method.stochastic:
            outputs[f"{system}/mean_of_{samples}"] = drawn.mean(axis=0)
        outputs |= {f"{system}/{n}": audit(model, batch, key) for n, audit in audits.items()}
        return {name: base.to_unit_range(image) for name, image in outputs.items()}

    return rows


def evaluate_run(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset, name: str | None = None
) -> list[Record]:
    """Scores the config's systems on unseen patients; prints the tables.

    Args:
      config: its sections `evaluate` and `sampler` (the checkpoints' own may differ).
      workdir: holds the systems' folders; records go to `<workdir>/evaluation/<name>`.
      dataset: prepared patients.
      name: of the records' folder; the part of the split by default.

    Returns:
      One record a subject.

    Raises:
      UserError: a system is missing or was trained on another split, or there is no patient.
    """
    settings = config.evaluate
    part = getattr(dataset, settings.part, None)
    if not part:
        raise UserError(f"no patients in part '{settings.part}' of the split to evaluate")
    evaluation = _Evaluation(config, workdir, dataset)
    folder = workdir / "evaluation" / (name or settings.part)
    folder.mkdir(parents=True, exist_ok=True)
    others = {s.subject_id: _another(s, part) for s in part}
    for subject in track(parallel.own_share(part), "evaluating", console=console):
        evaluation.record(subject, others[subject.subject_id], folder)
    parallel.wait_for_all("records")
    records = [json.loads((folder / f"{s.subject_id}.json").read_text()) for s in part]
    if parallel.is_first():
        reference = settings.reference if settings.reference in records[0]["rows"] else None
        show_tables(records, settings.conventions, reference, folder)
        if name is None and settings.part == "test":
            evaluation.save_cards(records, workdir)
    return records


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
    system = inference.load_system(folder, config.evaluate.batch_size, config.sampler)
    if system.provenance.split != dataset.split_hash:
        raise UserError(
            f"{folder} was trained on split {system.provenance.split}, not on this data's "
            f"{dataset.split_hash}: its training patients may be among the test patients"
        )
    return system


class _Evaluation:
    """Systems loaded and compiled once, applied to one subject after another."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self._systems = {
            stage: _load(stage, config, workdir, dataset) for stage in config.evaluate.systems
        }
        self._compiled = {
            stage: system.compile(rows_of(stage, system.method, self._num_samples(stage)))
            for stage, system in self._systems.items()
        }
        self._untrained: Untrained = fit_untrained(dataset.train, dataset.copies)

    def _num_samples(self, stage: str) -> int:
        """Samples for the mean's row; a system whose samples are dear has a number of its own."""
        return self._config[stage].get("num_samples", self._config.evaluate.num_samples)

    def _identity(self, subject: PreparedSubject) -> dict[str, Any]:
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

    def record(
        self, subject: PreparedSubject, other: PreparedSubject, folder: pathlib.Path
    ) -> Record:
        """The subject's record: what is up to date is read back, the rest computed and written."""
        path = folder / f"{subject.subject_id}.json"
        identity = self._identity(subject)
        known = json.loads(path.read_text()) if path.exists() else {}
        if {name: known.get(name) for name in identity} != identity:
            known = {}
        done = known.get("checkpoint", {})
        wanted = {stage: system.fingerprint for stage, system in self._systems.items()}
        missing = [stage for stage in wanted if done.get(stage) != wanted[stage]]
        if known and not missing:
            return known
        kept = {
            name: scores
            for name, scores in known.get("rows", {}).items()
            if name.split("/")[0] not in missing
        }
        scores = kept | self._scores(subject, self._rows(subject, other, missing, bool(known)))
        record = json_ready(identity | {"checkpoint": done | wanted, "rows": scores})
        write_json(path, record)
        return record

    def save_cards(self, records: Sequence[Record], workdir: pathlib.Path) -> None:
        """Writes the numbers into the card of each system, unless it was sampled in another way."""
        patients = {part: len(getattr(self._dataset, part)) for part in PARTS}
        for stage, system in self._systems.items():
            provenance = system.provenance.to_json()
            if provenance["config"]["sampler"] != checkpoint.plain(self._config.sampler):
                continue
            text = model_card(
                provenance=provenance,
                parameters=parameter_counts(stage, system.model),
                patients=patients,
                translates=True,
                records=records,
            )
            save_card(workdir / stage, text)

    def _rows(
        self,
        subject: PreparedSubject,
        other: PreparedSubject,
        stages: Sequence[str],
        trained_only: bool,
    ) -> Rows:
        """Predictions of these systems, with the untrained rows unless `trained_only`."""
        num_sources = len(subject.sources)
        slices = np.asarray(subject.slices)
        matched = np.linspace(0, len(other.slice_indices) - 1, len(slices)).round().astype(int)
        stored = {
            "source": slices[..., :num_sources],
            "target": slices[..., num_sources:],
            "other": other.slices[matched][..., :num_sources],
        }
        unit = slices.astype(np.float32) / FULL_SCALE
        rows = {}
        if not trained_only:
            rows = dict(self._untrained.rows(unit[..., :num_sources]))
            rows["resampled_truth"] = unit[..., num_sources:]
        key = inference.subject_key(self._config.seed, subject.subject_id)
        for stage in stages:
            rows |= self._systems[stage].volumes(self._compiled[stage], stored, key)
        return rows

    def _scores(self, subject: PreparedSubject, rows: Rows) -> dict[str, Any]:
        """Row -> convention -> target -> metrics."""
        truth = np.asarray(subject.slices)[..., len(subject.sources) :].astype(np.float32)
        native = _Native(subject, self._dataset.subjects[subject.subject_id])

        def score(name: str, row: str, t: int) -> Mapping[str, Any]:
            """One row under one convention, for one target."""
            convention, target = get_convention(name), subject.targets[t]
            predicted = rows[row][..., t]
            if convention.space == "native":
                return convention.score(native.case(target, predicted))
            return convention.score(
                Case(
                    subject=subject.subject_id,
                    modality=target,
                    prediction=predicted,
                    truth=truth[..., t] / FULL_SCALE,
                )
            )

        conventions, targets = self._config.evaluate.conventions, subject.targets
        tasks = list(itertools.product(conventions, rows, range(len(targets))))
        # NumPy and SciPy let go of the interpreter while they work.
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(score, *zip(*tasks, strict=True)))
        scores: dict[str, Any] = {row: {name: {} for name in conventions} for row in rows}
        for (name, row, t), values in zip(tasks, found, strict=True):
            scores[row][name][targets[t]] = values
        return scores


class _Native:
    """A subject's truth, brain and segmentation on its own grid, read once."""

    def __init__(self, subject: PreparedSubject, files: Subject):
        self._subject = subject
        self._brain = brain_mask(
            {name: read_volume(files.images[name]) for name in subject.sources}
        )
        self._truth = {
            name: subject.intensities[name].apply(read_volume(files.images[name]))
            for name in subject.targets
        }
        self._segmentation = usable_segmentation(files, self._brain)

    def case(self, target: str, slices: Float[np.ndarray, "slice h w"]) -> Case:
        """A prediction in the model's frame beside the truth, on the native grid."""
        return Case(
            subject=self._subject.subject_id,
            modality=target,
            prediction=inference.to_native(self._subject, slices, self._brain),
            truth=self._truth[target],
            brain=self._brain,
            segmentation=self._segmentation,
        )


def usable_segmentation(
    files: Subject, brain: Bool[np.ndarray, "z y x"]
) -> Int[np.ndarray, "z y x"] | None:
    """The subject's labels, or None where there are none or their meaning is unknown."""
    if files.segmentation is None:
        return None
    labels = read_labels(files.segmentation)
    try:
        region_masks(labels, brain)
    except UserError as error:
        console.print(f"{files.subject_id}: no tumour regions are scored: {error}")
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
        console.print(to_rich(table))
    (folder / "tables.md").write_text("\n\n".join(to_markdown(table) for table in tables) + "\n")
