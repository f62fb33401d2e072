"""The model card of a trained stage, from its checkpoint."""

import dataclasses
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.data.dataset import Dataset
from cdm_jax.errors import UserError
from cdm_jax.files import replacing
from cdm_jax.intervals import FILE as INTERVALS
from cdm_jax.intervals import read_intervals
from cdm_jax.methods import base
from cdm_jax.records import Record, read_records
from cdm_jax.report.card import FILE, PARTS, model_card, parameter_counts
from cdm_jax.report.judgements import judgements
from cdm_jax.report.rows import headline_rows

JUDGED = "{}_segmenter"  # folder of a segmenter's records, beside that of the evaluation


def evaluated(
    workdir: pathlib.Path, part: str, dataset: Dataset
) -> tuple[list[Record], list[Record]]:
    """The records of a run's evaluation, and those of its segmenter, of this split; maybe none."""
    folders = (workdir / "evaluation" / name for name in (part, JUDGED.format(part)))
    found = ([r for r in read_records(f) if r["split"] == dataset.split_hash] for f in folders)
    return next(found), next(found)


def worth(
    stage_folder: pathlib.Path, records: Sequence[Record], judged: Sequence[Record]
) -> dict[str, str]:
    """What an evaluated system is worth to a reader, topic to sentences; nothing of any other."""
    stage = stage_folder.name
    row = headline_rows(records).get(stage)
    if row is None:
        return {}
    intervals = None
    if (stage_folder / INTERVALS).exists():
        known = read_intervals(stage_folder)
        if known.checkpoint == records[0].get("checkpoint", {}).get(stage):
            intervals = dataclasses.asdict(known)
    return judgements(row, records, judged, intervals)


def write_card(
    stage_folder: pathlib.Path,
    dataset: Dataset,
    records: Sequence[Record] = (),
    judged: Sequence[Record] = (),
) -> None:
    """Writes a stage's card, with the records of its checkpoint's evaluation if there was one.

    Of several processes the first one does it. `judged` are the records of a segmenter.

    Raises:
      UserError: no checkpoint there.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None:
        raise UserError(f"no checkpoint in {stage_folder}: train this stage first")
    if not parallel.is_first():
        return
    method = base.create(saved.config)
    text = model_card(
        provenance=saved.to_json(),
        parameters=parameter_counts(saved.config.stage, checkpoint.model_shapes(stage_folder)),
        patients={part: len(getattr(dataset, part)) for part in PARTS},
        translates=isinstance(method, base.Translator),
        facts=method.facts() | _checkpoint(stage_folder, saved.config),
        limits=method.limits(),
        records=records,
        worth=worth(stage_folder, records, judged),
    )
    with replacing(stage_folder / FILE) as partial:
        partial.write_text(text)


def _checkpoint(stage_folder: pathlib.Path, config: ConfigDict) -> dict[str, str]:
    """Which step's parameters others load."""
    last, best = checkpoint.latest_step(stage_folder), checkpoint.best(stage_folder)
    if best is None:
        return {"checkpoint": f"step {last}, the last; there were no validation patients"}
    text = f"step {best.step}, the best of validation ({best.metric} {best.value:.4g})"
    used = "" if config.checkpoint.use == "best" else ", which this run's tables do not use"
    return {"checkpoint": f"{text}{used}; step {last} is the last"}
