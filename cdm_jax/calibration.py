"""What the samples of a system are worth: intervals, calibrated on a run's validation patients.

Samples of one system agree with each other far more than with the truth, so their deviation alone
is no error bar. Calibration finds by how much it has to be multiplied (`metrics/conformal.py`); the
result lies beside the checkpoints in `<workdir>/<stage>/intervals.json`, where `synthesize` finds
it. Test patients are never looked at.

The guarantee presupposes that validation patients are to the system what new ones are. They have
only measured it and never moved a weight, with the one exception that `PREMISE` names (see `finish`
in `methods/cdm/mdn.py`).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from rich.progress import track

from cdm_jax import inference, parallel
from cdm_jax.data.dataset import Dataset
from cdm_jax.errors import UserError
from cdm_jax.files import write_json
from cdm_jax.metrics import conformal
from cdm_jax.sampling import SubjectSampler, draw_beside_truth, load_stochastic
from cdm_jax.writer import console

FILE = "intervals.json"
# Added to the deviation, in units of [0, 1], so that samples that agree have an interval too. It is
# about what samples of CDM deviate by; half of it made intervals 9 % wider at the same coverage,
# twice of it 5 % narrower, on patients of the phantom's training part. A constant, since one fitted
# to the validation patients would void the guarantee that these patients give to q.
FLOOR = 0.01
PREMISE = (
    "CDM takes the covariance of its training noise from these validation patients, so that for "
    "CDM a guarantee which presupposes that nothing was fitted to them is an approximation at best"
)
METHODS = {
    True: "conformal risk control over patients (Angelopoulos et al. 2022)",
    False: "mean over patients, too few for conformal risk control at this level",
}

Scores = dict[str, dict[str, list[conformal.Scan]]]
"""Target -> patient -> the scores of each of his scans, sorted and thinned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """What `intervals.json` says: how wide a stage's intervals have to be.

    Attributes:
      checkpoint: fingerprint of the stage's model.
      split: hash of the split whose validation patients it was calibrated on.
      samples: drawn for each patient; other numbers deviate otherwise.
      level: nominal coverage of the brain.
      method: how the multipliers were found.
      guarantee: in words, what holds for a new patient.
      guaranteed_level: the coverage that a new patient may expect.
      patients: validation patients.
      patients_needed: the fewest with which the level can be guaranteed.
      floor: added to the deviation.
      multipliers: q of each target.
    """

    checkpoint: str
    split: str
    samples: int
    level: float
    method: str
    guarantee: str
    guaranteed_level: float
    patients: int
    patients_needed: int
    floor: float
    multipliers: Mapping[str, float]


def calibration_scores(sampler: SubjectSampler, dataset: Dataset, floor: float = FLOOR) -> Scores:
    """Draws samples of every validation patient; keeps of each scan only its sorted scores.

    The floor is added to the deviation.

    Raises:
      UserError: the system was trained on another split, or nobody was held out for validation.
    """
    trained_on = sampler.system.provenance.split
    if trained_on != dataset.split_hash:
        raise UserError(
            f"the system was trained on split {trained_on}, not on this data's "
            f"{dataset.split_hash}: its training patients may be among those to calibrate on"
        )
    if not dataset.validation:
        raise UserError(
            "no validation patients to calibrate on: raise --config.data.validation_fraction"
        )
    scores: Scores = {}
    for subject in track(dataset.validation, "calibrating", console=console):
        brain, drawn = draw_beside_truth(sampler, subject, dataset.subjects[subject.subject_id])
        for target, images in drawn.items():
            voxels = (images.truth[brain], images.mean[brain], images.deviation[brain])
            kept = conformal.thinned(conformal.scores(*voxels, floor))
            scores.setdefault(target, {}).setdefault(subject.patient_id, []).append(kept)
    return scores


def fit_intervals(
    scores: Scores, sampler: SubjectSampler, level: float, floor: float = FLOOR
) -> Intervals:
    """Calibrates each target for itself, by the `calibration_scores` of this sampler and floor.

    The level is the nominal coverage, between 0 and 1.

    Raises:
      UserError: the level does not lie between 0 and 1.
    """
    fitted = {
        target: conformal.fit_multiplier(list(patients.values()), level)
        for target, patients in scores.items()
    }
    one = next(iter(fitted.values()))  # all targets have the same patients
    return Intervals(
        checkpoint=sampler.system.fingerprint,
        split=sampler.system.provenance.split,
        samples=sampler.samples,
        level=level,
        method=METHODS[one.controlled],
        guarantee=_guarantee(one, level),
        guaranteed_level=one.guaranteed_level,
        patients=one.patients,
        patients_needed=one.patients_needed,
        floor=floor,
        multipliers={target: multiplier.value for target, multiplier in fitted.items()},
    )


def _guarantee(multiplier: conformal.Multiplier, level: float) -> str:
    """What the intervals promise, in words."""
    promise = (
        f"at least {multiplier.guaranteed_level:.1%} of the brain is covered, on average over new "
        "patients if they are exchangeable with the validation patients and nothing was fitted to "
        "these, each target for itself; nothing is promised for a single patient or for a region "
        "such as a tumor"
    )
    if multiplier.controlled:
        return f"guaranteed: {promise}"
    return (
        f"NO guarantee of {level:.1%}, which takes {multiplier.patients_needed} validation "
        f"patients: there are {multiplier.patients}; all that is guaranteed: {promise}"
    )


def calibrate_stage(
    stage_folder: pathlib.Path, dataset: Dataset, *, samples: int, level: float
) -> Intervals:
    """Calibrates a stage's intervals and writes `<stage folder>/intervals.json`.

    Of several processes the first one does it.

    Args:
      stage_folder: of the trained system, such as `runs/brats/cunet`.
      dataset: that it was trained on.
      samples: drawn for each patient, as many as `synthesize` will draw.
      level: nominal coverage of the brain, such as 0.9.

    Raises:
      UserError: nothing to calibrate there or on (see `load_stochastic`, `calibration_scores`), or
        a level that is none.
    """
    conformal.patients_needed(level)  # a wrong level is named before patients are drawn
    system = load_stochastic(stage_folder, samples)
    if inference.is_any_to_any(system):
        raise UserError(
            f"{stage_folder} takes any modalities, and its error depends on which: intervals are "
            "calibrated for systems of a fixed task"
        )
    with parallel.first_process_first("intervals"):
        if parallel.is_first():
            sampler = SubjectSampler(system, samples)
            intervals = fit_intervals(calibration_scores(sampler, dataset), sampler, level)
            save_intervals(stage_folder, intervals)
    return _read(stage_folder)


def save_intervals(stage_folder: pathlib.Path, intervals: Intervals) -> None:
    """Writes `<stage folder>/intervals.json` as a whole or not at all."""
    write_json(stage_folder / FILE, dataclasses.asdict(intervals))


def _read(stage_folder: pathlib.Path) -> Intervals:
    return Intervals(**json.loads((stage_folder / FILE).read_text()))


def find_intervals(
    stage_folder: pathlib.Path, system: inference.System, samples: int
) -> Intervals | None:
    """The stage's intervals; None, and a line that says why, where they are of something else.

    Nothing is said where nothing was ever calibrated.
    """
    if samples < 2 or not system.method.stochastic or not (stage_folder / FILE).exists():
        return None
    try:
        intervals = _read(stage_folder)
    except (TypeError, ValueError):  # an unknown form of the file, or no JSON
        why = f"{FILE} cannot be read"
    else:
        if (intervals.checkpoint, intervals.samples) == (system.fingerprint, samples):
            return intervals
        why = (
            f"{FILE} is of checkpoint {intervals.checkpoint} and {intervals.samples} samples, "
            f"not of {system.fingerprint} and {samples}"
        )
    console.print(f"{why}: the command `calibrate` with --samples={samples} would give intervals")
    return None


def within(
    images: Mapping[str, Float[np.ndarray, "z y x"]],
    brain: Bool[np.ndarray, "z y x"],
    intervals: Intervals,
    target: str,
) -> dict[str, Float[np.ndarray, "z y x"]]:
    """Ends of a target's intervals on the native grid in [0, 1], 0 outside the sources' brain.

    From "mean" and "deviation" in [0, 1] to "lower" and "upper".
    """
    lower, upper = conformal.bounds(
        images["mean"], images["deviation"], intervals.multipliers[target], intervals.floor
    )
    return {"lower": lower * brain, "upper": upper * brain}


def summary(intervals: Intervals) -> list[str]:
    """Lines for the terminal."""
    found = ", ".join(f"{target} {q:.3g}" for target, q in intervals.multipliers.items())
    return [
        f"mean ± q (deviation + {intervals.floor:g}) of {intervals.samples} samples, nominal level "
        f"{intervals.level:.1%}: q = {found}",
        f"{intervals.patients} validation patients, {intervals.method}",
        f"{intervals.guarantee}; {PREMISE}",
    ]


def sidecar(intervals: Intervals, target: str) -> dict[str, Any]:
    """What stands of the intervals in the sidecar of a synthetic image."""
    return {
        "level": intervals.level,
        "method": intervals.method,
        "guarantee": intervals.guarantee,
        "premise": PREMISE,
        "patients": intervals.patients,
        "multiplier": intervals.multipliers[target],
        "floor": intervals.floor,
        "rule": "mean ± multiplier (deviation + floor) in units of reference_scale, within [0, 1]; "
        "calibrated on truths scaled by their own 99.5th percentile, which is unknown here",
    }
