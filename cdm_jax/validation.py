"""What a stage is worth on patients that it was not trained on, while it trains.

All validation patients are measured, on the same slices with the same draws each time: every slice
with any brain, or fewer where that would take more than `validation.share` of the training's time.
"""

import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.pipeline import SliceSource, plain_plans
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.run import Run
from cdm_jax.tasks import PATTERNS, task_of

STEP_PASSES = 3  # of a network in a training step: forward, and twice as much backward
RISING = ("psnr", "explained", "dice")  # how metrics begin of which more is better

Numbers = dict[str, Float[np.ndarray, "..."]]


class Validation:
    """The compiled validation of a run; all processes take part in it, each with its slices."""

    def __init__(self, run: Run):
        self._run = run
        subjects = run.dataset.validation
        number = slices_per_patient(
            run.config.validation.share,
            run.length,
            run.batch_size,
            len(subjects),
            run.method.validation_passes,
        )
        chosen = [chosen_slices(subject, number, run.config.seed) for subject in subjects]
        self._task = task_of(run.config.data)
        self._source = SliceSource(subjects, chosen, self._task.is_any, self._task.context)
        # Those from the middle of the brains come first: the first batch is what pictures show.
        middles = np.array([len(subject.slice_indices) // 2 for subject in subjects])
        numbers, places = self._source.positions.T
        self._order = np.argsort(np.abs(places - middles[numbers]), kind="stable")
        self._patients = np.unique([s.patient_id for s in subjects], return_inverse=True)[1]
        self._keys = jax.random.split(run.keys[2], len(self._source))
        self._compiled = jax.jit(self.validate, out_shardings=parallel.replicated(run.devices.mesh))

    def __len__(self) -> int:
        """Slices that are measured."""
        return len(self._order)

    def measure(self, state: base.State) -> tuple[Numbers, Numbers]:
        """Metrics over all validation patients, and pictures of some slices, by modality."""
        model = base.model_of(self._run.devices.replicate(state))
        size, parts = self._run.batch_size, []
        pictures: Numbers = {}
        for start in range(0, len(self._order), size):
            indices = np.resize(self._order[start : start + size], size)
            own = np.split(indices, jax.process_count())[jax.process_index()]
            stored = self._source.read(plain_plans(own))
            batch = parallel.global_batch(stored, self._run.devices.mesh)
            values, shown = self._compiled(model, batch, self._keys[indices])
            valid = len(self._order[start : start + size])
            parts.append({name: each[:valid] for name, each in jax.device_get(values).items()})
            pictures = pictures or jax.device_get(shown)
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        patients = self._patients[self._source.positions[self._order, 0]]
        metrics = self._run.method.summarize(values, patients)
        metrics = {name: np.asarray(each) for name, each in metrics.items()}
        data = self._run.config.data
        return by_modality(metrics, data), by_modality(pictures, data)

    def validate(
        self, model: base.Model, stored: Mapping[str, Array], keys: Key[Array, "b"]
    ) -> tuple[base.Values, base.Pictures]:
        """The method's values of a stored batch; pure."""
        batch = self._task.batch(stored, jax.vmap(jax.random.fold_in, (0, None))(keys, PATTERNS))
        return self._run.method.validate(model, batch, keys)


def slices_per_patient(
    share: float, length: ConfigDict, batch_size: int, num_patients: int, passes: int
) -> int:
    """How many slices of each patient a validation takes, so that its time is bounded.

    Args:
      share: of the time that the steps between two validations take, roughly: a step applies the
        network three times (forward, and backward for twice as long).
      length: of the stage: steps between validations.
      batch_size: slices in a step.
      num_patients: scans to validate on.
      passes: see `base.Method.validation_passes`.
    """
    slices = STEP_PASSES * share * length.validate_every * batch_size / passes
    return max(1, int(slices / num_patients))


def chosen_slices(subject: PreparedSubject, number: int, seed: int) -> list[int]:
    """Places of some of a subject's slices with any brain, drawn by its name; all where few."""
    total = len(subject.slice_indices)
    if number >= total:
        return list(range(total))
    generator = np.random.default_rng([seed, zlib.crc32(subject.subject_id.encode())])
    return sorted(generator.choice(total, number, replace=False).tolist())


def better(metric: str, value: float, than: checkpoint.Best | None) -> bool:
    """Whether a validation did better than the best before."""
    if not np.isfinite(value):
        return False
    if than is None or than.metric != metric:
        return True
    return value > than.value if metric.startswith(RISING) else value < than.value


def judged(
    metrics: Mapping[str, Float[np.ndarray, ""]], metric: str, targets: Sequence[str]
) -> float:
    """The value of a metric: of one modality ("psnr_brain_t1c"), or the mean over the targets.

    Raises:
      UserError: no such metric.
    """
    each = [metrics[name] for name in (f"{metric}_{t}" for t in targets) if name in metrics]
    if metric in metrics:
        each = [metrics[metric]]
    if not each:
        raise UserError(f"best_by='{metric}' is not measured here: use {', '.join(metrics)}")
    known = [value for value in each if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def by_modality(values: Mapping[str, Float[np.ndarray, "..."]], data: ConfigDict) -> Numbers:
    """Numbers and pictures of single modalities, by names such as "psnr_t1c".

    Args:
      values: metrics (scalars, or vectors over the targets) or pictures ([b, h, w], or with the
        modalities as last axis).
      data: the config's section, whose modalities these are.
    """
    found = {}
    for name, value in values.items():
        if value.ndim % 3 == 0:
            found[name] = value
            continue
        modalities = data.sources if name == "source" else data.targets
        found |= {f"{name}_{modality}": value[..., m] for m, modality in enumerate(modalities)}
    return found
