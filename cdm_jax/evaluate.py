"""Trained systems and non-learned baselines over test patients: one JSON record a subject.

A record is written when its subject is done and found again by its fingerprints, so an interrupted
evaluation goes on where it was, and a row evaluated later joins those that are there.
Several processes share the subjects; those of one that failed are done by the next run.
"""

import collections
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from ml_collections import ConfigDict
from rich.progress import track

from cdm_jax import inference, parallel, scoring, workers
from cdm_jax.cards import JUDGED, write_card
from cdm_jax.config import plain
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset, num_workers
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.errors import UserError, collected, report_failures
from cdm_jax.files import digest
from cdm_jax.judge import judge_run
from cdm_jax.metrics import enhancement
from cdm_jax.metrics.conventions import fingerprint
from cdm_jax.non_learned import NonLearned, fit_non_learned
from cdm_jax.preflight import check_trained
from cdm_jax.records import Identity, Record, read_record, tidy, write_record
from cdm_jax.report.enhancement import enhancement_table
from cdm_jax.report.render import TextTable
from cdm_jax.report.rows import CEILING, NON_LEARNED, headline_rows
from cdm_jax.report.tables import FURTHER, results_table
from cdm_jax.rows import asked_rows, images_of, num_samples, system_of
from cdm_jax.writer import console, say, say_once

_Future: TypeAlias = "Future[tuple[scoring.Scores, str]]"


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
    share, failures = parallel.process_shard(part), dict[str, UserError]()

    def computed() -> Iterator[_Pending]:
        for subject in share:
            with collected(failures, subject.subject_id):
                yield evaluation.compute(subject, _another(subject, part), folder)

    number = min(num_workers(config), scoring.most_jobs(len(share), len(evaluation.rows)))
    with workers.pool(number) as pool:
        scoring_of = _Scoring(dataset, settings.conventions, pool, number, failures)
        written = scoring_of.run(computed())
        for _ in track(written, "evaluating", total=len(share), console=console):
            pass
    parallel.wait_for_all("records")
    paths = [folder / f"{s.subject_id}.json" for s in part if s.subject_id not in failures]
    records = [read_record(path) for path in paths if path.exists()]  # not what others failed in
    judged: Sequence[Record] = ()
    if records and name is None:
        judged_in = folder.with_name(JUDGED.format(folder.name))
        trained = headline_rows(records)
        judged = evaluation.judge(part, trained, workdir, judged_in)
    if parallel.is_first() and records:
        reference = settings.reference if settings.reference in records[0]["rows"] else None
        show_tables(records, settings.conventions, reference, folder)
        if name is None and settings.part == "test":
            evaluation.save_cards(records, judged, workdir)
    report_failures(failures, len(part), say)
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
    check_trained(folder, dataset.split_hash)
    system = inference.load_system(
        folder, config.evaluate.batch_size, config.sampler, config.checkpoint.use
    )
    if inference.is_any_to_any(system):
        return inference.restricted(system, config.data.sources, config.data.targets)
    return system


class _Pending(NamedTuple):
    """A subject between its images and its scores: the record so far, and what it lacks."""

    subject: PreparedSubject
    path: pathlib.Path
    record: Record
    images: scoring.Images


class _Scoring:
    """Scores subjects by the workers of a pool while the devices compute the next ones.

    What is wrong with a subject is kept in `failures`; the others go on.
    """

    def __init__(
        self,
        dataset: Dataset,
        conventions: Sequence[str],
        pool: Executor,
        number: int,
        failures: dict[str, UserError],
    ):
        self._dataset, self._conventions = dataset, conventions
        self._pool, self._number, self._failures = pool, number, failures
        self._waiting: collections.deque[tuple[_Pending, list[_Future]]] = collections.deque()

    def run(self, computed: Iterable[_Pending]) -> Iterator[pathlib.Path]:
        """Writes the subjects' records, in order, and yields the path of each when it is there.

        No more subjects are held than keep the workers at work. An error ends it after the subjects
        that were computed before.
        """
        try:
            for pending in computed:
                subject = pending.subject
                files = self._dataset.subjects[subject.subject_id]
                jobs = scoring.jobs(subject, files, self._conventions, pending.images, self._number)
                self._waiting.append((pending, [self._pool.submit(scoring.score, j) for j in jobs]))
                while len(self._waiting) > max(1, self._number // max(1, len(jobs))):
                    yield self._write_first()
        except Exception:
            while self._waiting:
                self._write_first()
            raise
        while self._waiting:
            yield self._write_first()

    def _write_first(self) -> pathlib.Path:
        """Waits for the scores of the first subject, and writes its record if it lacked any."""
        pending, futures = self._waiting.popleft()
        found: list[tuple[scoring.Scores, str]] = []
        with collected(self._failures, pending.subject.subject_id):
            found = [future.result() for future in futures]
        for remark in dict.fromkeys(remark for _, remark in found if remark):
            say_once(remark)
        if found:
            rows = pending.record["rows"] | {r: s for scores, _ in found for r, s in scores.items()}
            write_record(pending.path, {**pending.record, "rows": rows})
        return pending.path


class _Evaluation:
    """Systems loaded and compiled once, applied to one subject after another."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self._volume_scale = config.get("volume_scale", True)  # former runs' config has none
        systems = {s: _load(s, config, workdir, dataset) for s in config.evaluate.systems}
        self.rows = asked_rows(config, {name: s.method for name, s in systems.items()})
        used = {system_of(row) for row in self.rows}
        self._systems = {name: system for name, system in systems.items() if name in used}
        self._compiled: dict[tuple[str, ...], inference.Compute] = {}

    @functools.cached_property
    def _non_learned(self) -> NonLearned:
        train, copies = self._dataset.train, self._dataset.copies
        return fit_non_learned(train, copies, self._volume_scale)

    def _identity(self, subject: PreparedSubject) -> Identity:
        """What all rows of a record have in common."""
        settings = plain(self._config.sampler) | {
            "num_samples": self._config.evaluate.num_samples,
            "copies": self._dataset.copies,
            "sources": self._config.data.sources,
            "volume_scale": self._volume_scale,
            "seed": self._config.seed,
        }
        return {
            "subject": subject.subject_id,
            "patient": subject.patient_id,
            "split": self._dataset.split_hash,
            "conventions": {n: fingerprint(n) for n in self._config.evaluate.conventions},
            "config": digest(settings)[:12],
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
        lacking = [row for row in self.rows if row not in kept]
        record: Record = {**identity, "checkpoint": done | wanted, "rows": kept}
        return _Pending(subject, path, record, self._images(subject, other, lacking))

    def judge(
        self,
        part: Sequence[PreparedSubject],
        rows: Mapping[str, str],
        workdir: pathlib.Path,
        folder: pathlib.Path,
    ) -> list[Record]:
        """Lets the run's segmenter judge these systems, see `judge_run`."""
        loaded = self._systems
        return judge_run(self._config, workdir, self._dataset, part, rows, loaded, folder)

    def save_cards(
        self, records: Sequence[Record], judged: Sequence[Record], workdir: pathlib.Path
    ) -> None:
        """Writes the numbers into the card of each system, unless it was sampled in another way."""
        for stage, system in self._systems.items():
            if system.provenance.config.sampler.to_dict() == self._config.sampler.to_dict():
                write_card(workdir / stage, self._dataset, records, judged)

    def _images(
        self, subject: PreparedSubject, other: PreparedSubject, rows: Sequence[str]
    ) -> scoring.Images:
        """Predictions of these rows."""
        if not rows:
            return {}
        slices, num_sources = subject.slices, len(subject.sources)
        sources, targets = slices[..., :num_sources], slices[..., num_sources:]
        found: dict[str, np.ndarray] = {}
        if not NON_LEARNED.keys().isdisjoint(rows):
            found |= self._non_learned.rows(sources.astype(np.float32) / FULL_SCALE)
        if CEILING in rows:
            found[CEILING] = targets.astype(np.float32) / FULL_SCALE
        matched = np.linspace(0, len(other.slice_indices) - 1, len(slices)).round().astype(int)
        others = other.slices
        key = inference.subject_key(self._config.seed, subject.subject_id)
        for name, system in self._systems.items():
            if own := tuple(row for row in rows if system_of(row) == name):
                stored = {
                    "source": system.sources_of(slices, subject.slice_indices),
                    "target": targets,
                    "other": system.sources_of(others, other.slice_indices)[matched],
                }
                found |= system.volumes(self._compile(name, own), stored, key)
        return {row: found[row] for row in rows}

    def _compile(self, name: str, rows: tuple[str, ...]) -> inference.Compute:
        """A system's function for these rows, the same one for every subject that lacks them."""
        if rows not in self._compiled:
            system, samples = self._systems[name], num_samples(self._config, name)
            images = images_of(name, system.method, samples, rows)
            self._compiled[rows] = system.compile(images)
        return self._compiled[rows]


def show_tables(
    records: Sequence[Record],
    conventions: Sequence[str],
    reference: str | None,
    folder: pathlib.Path,
) -> None:
    """Prints tables and writes them as Markdown beside the records.

    One for each convention; and, where the records have them, one of what `volume` measures
    beside PSNR, SSIM and MAE, and one of enhancement. All other rows are tested against the
    reference, if there is one.
    """
    tables: list[TextTable] = [
        results_table(records, name, reference=reference) for name in conventions
    ]
    if "volume" in conventions:
        measured = set(tidy(records).dropna()["metric"])  # records of earlier versions lack some
        if not measured.isdisjoint(FURTHER):
            tables.append(results_table(records, "volume", reference=reference, metrics=FURTHER))
        if not measured.isdisjoint(enhancement.METRICS):
            tables.append(enhancement_table(records))
    for table in tables:
        console.print(table.rich())
    (folder / "tables.md").write_text("\n\n".join(table.markdown() for table in tables) + "\n")
