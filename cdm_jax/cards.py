"""The model card of a trained stage, from its checkpoint."""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.data.dataset import Dataset
from cdm_jax.errors import UserError
from cdm_jax.files import replacing
from cdm_jax.methods import base
from cdm_jax.records import Record
from cdm_jax.report.card import FILE, PARTS, model_card, parameter_counts


def write_card(
    stage_folder: pathlib.Path, dataset: Dataset, records: Sequence[Record] = ()
) -> None:
    """Writes a stage's card, with the records of its checkpoint's evaluation if there was one.

    Of several processes the first one does it.

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
