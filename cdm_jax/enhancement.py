"""The map of the probability that a voxel enhances: its calibration, its file, what it promises.

With it comes a bound on the volume of enhancing tumor, from the sum of the predicted probabilities.

`<workdir>/<stage>/enhancement.json` lies beside the checkpoints, where `calibrate` writes it and
`synthesize` finds it, of a stage that predicts ends, makes T1c and has T1 among its sources.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cdm_jax import inference
from cdm_jax.data.native import NativeImages
from cdm_jax.data.nifti import read_voxel_ml
from cdm_jax.data.subjects import Subject
from cdm_jax.files import write_json
from cdm_jax.intervals import Calibrated, find_calibrated
from cdm_jax.metrics.conformal import Predicted
from cdm_jax.metrics.enhancement import POSTCONTRAST, PRECONTRAST, THRESHOLD, gained
from cdm_jax.metrics.enhancement_probability import (
    MORE_ML,
    Counts,
    Table,
    counted,
    fit_bound,
    fit_table,
    raw_probability,
)
from cdm_jax.metrics.regions import region_masks
from cdm_jax.sampling import Drawn, SubjectSampler
from cdm_jax.scoring import usable_segmentation

FILE = "enhancement.json"
RULE = (
    f"the probability, 0 to 1, that the real T1c less T1, each in units of its own median in the "
    f"brain, is above {THRESHOLD:g} in a voxel; vessels and meninges enhance too"
)

Volume = Float[np.ndarray, "z y x"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnhancementMap(Calibrated):
    """What `enhancement.json` says: what the predicted probabilities of a stage are worth.

    Attributes:
      patients: validation patients.
      threshold: gain above which a voxel enhances, in units of the brain's median.
      quantiles: levels of the predicted ends.
      rule: in words, what the map shows.
      promise: in words, what holds for new patients.
      table: from the predicted to the calibrated probability.
      level: of the bound on the volume of enhancing tumor.
      factor: of that bound, see `fit_bound`; None where too few patients have a segmentation.
      segmented: validation patients who have one.
    """

    patients: int
    threshold: float
    quantiles: Sequence[float]
    rule: str
    promise: str
    table: Table
    level: float
    factor: float | None
    segmented: int

    def of(
        self, predicted: Predicted, native: NativeImages, voxel_ml: float
    ) -> tuple[Volume, float | None] | None:
        """The map of a subject, and the bound on the volume of its enhancing tumor.

        Args:
          predicted: T1c on the native grid.
          native: the subject's images on it, T1 among them.
          voxel_ml: volume of a voxel in ml.

        Returns:
          In [0, 1], 0 outside the brain; and ml, or None where too few patients allow a bound.
          None where the images have no unit.
        """
        brain = native.brain
        raw = _raw(predicted, native, self.quantiles)
        if raw is None:
            return None
        volume = np.zeros(brain.shape, np.float32)
        volume[brain] = self.table.apply(raw)
        expected_ml = voxel_ml * float(raw.sum())
        return volume, self.factor and self.factor * (expected_ml + MORE_ML)


def _raw(
    predicted: Predicted, native: NativeImages, levels: Sequence[float]
) -> Float[np.ndarray, " voxel"] | None:
    precontrast = native.images[PRECONTRAST][native.brain]
    return raw_probability(predicted.at(native.brain), precontrast, levels)


def enhances(truth: Volume, native: NativeImages) -> np.ndarray | None:
    """Which voxels of the brain do enhance, by the acquired T1c; None where there is no unit."""
    gain = gained(native.images[PRECONTRAST][native.brain], truth[native.brain])
    return None if gain is None else gain > THRESHOLD


def voxel_ml_of(files: Subject) -> float:
    """Volume of a voxel in ml."""
    return read_voxel_ml(next(iter(files.images.values())))


class Calibration:
    """Counts what enhances in one subject after another, beside what a system predicts.

    The level is that of the bound on the volume of enhancing tumor.
    """

    def __init__(self, sampler: SubjectSampler, level: float):
        self._sampler, self._level = sampler, level
        self._counts: dict[str, list[Counts]] = {}
        self._volumes: dict[str, list[tuple[float, float]]] = {}

    def add(self, files: Subject, native: NativeImages, drawn: Mapping[str, Drawn]) -> None:
        """Counts one subject; one without a unit is left out."""
        images = drawn[POSTCONTRAST]
        raw = _raw(images.predicted, native, self._sampler.system.method.quantiles)
        true = enhances(images.truth, native)
        if raw is None or true is None:
            return
        self._counts.setdefault(files.patient_id, []).append(counted(raw, true))
        labels, _ = usable_segmentation(files, native.brain)
        if labels is not None:
            tumor = region_masks(labels, native.brain)["enhancing_tumor"]
            volumes = voxel_ml_of(files) * float(raw.sum()), voxel_ml_of(files) * float(tumor.sum())
            self._volumes.setdefault(files.patient_id, []).append(volumes)

    def fit(self) -> EnhancementMap | None:
        """The calibrated map; None where no subject has a unit."""
        if not self._counts:
            return None
        system = self._sampler.system
        return EnhancementMap(
            checkpoint=system.fingerprint,
            split=system.provenance.split,
            samples=self._sampler.samples,
            patients=len(self._counts),
            threshold=THRESHOLD,
            quantiles=list(system.method.quantiles),
            rule=RULE,
            promise=_promise(len(self._counts)),
            table=fit_table(list(self._counts.values())),
            level=self._level,
            factor=fit_bound(list(self._volumes.values()), self._level),
            segmented=len(self._volumes),
        )


def _promise(patients: int) -> str:
    return (
        f"calibrated on {patients} validation patients, each counting alike: over many patients "
        "like these, of the voxels with a probability of p about the part p enhances; nothing is "
        "promised for a single patient, lesion or region, or for another scanner"
    )


def applies(system: inference.System) -> bool:
    """Whether a system says enough for such a map."""
    data = system.provenance.config.data
    known = PRECONTRAST in data.sources and POSTCONTRAST in data.targets
    return bool(known and system.method.quantiles and not inference.is_any_to_any(system))


def save_enhancement(stage_folder: pathlib.Path, found: EnhancementMap | None) -> None:
    """Writes `<stage folder>/enhancement.json` as a whole; of None, removes what was there."""
    if found is None:
        (stage_folder / FILE).unlink(missing_ok=True)
    else:
        write_json(stage_folder / FILE, dataclasses.asdict(found))


def read_enhancement(stage_folder: pathlib.Path) -> EnhancementMap:
    """Reads what `save_enhancement` wrote.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: it is something else, or of another
        threshold.
    """
    content = json.loads((stage_folder / FILE).read_text())
    found = EnhancementMap(**{**content, "table": Table(**content["table"])})
    if found.threshold != THRESHOLD:
        raise ValueError(f"{FILE} is of threshold {found.threshold}, not {THRESHOLD}")
    return found


def find_enhancement(
    stage_folder: pathlib.Path, system: inference.System, samples: int
) -> EnhancementMap | None:
    """The stage's map; None, and a line that says why, where it is of something else."""
    if not applies(system):
        return None
    return find_calibrated(stage_folder, FILE, read_enhancement, system, samples)


def summary(found: EnhancementMap) -> list[str]:
    """Lines for the terminal."""
    return [f"{POSTCONTRAST}: a map of {found.rule}", found.promise, bound_promise(found)]


def bound_promise(found: EnhancementMap) -> str:
    """What the bound on the volume of enhancing tumor promises, in words."""
    of = f"{found.segmented} validation patients who have a segmentation"
    if found.factor is None:
        return f"no bound on the volume of enhancing tumor at {found.level:.0%}: too few, {of}"
    return (
        f"enhancing tumor: at most {found.factor:.3g} (V + {MORE_ML:g} ml), where V is the sum of "
        f"the predicted probabilities; holds for at least {found.level:.0%} of new patients, if "
        f"they are exchangeable with {of}"
    )


def sidecar(found: EnhancementMap) -> dict[str, Any]:
    """What stands of the map in the sidecar of a synthetic T1c."""
    told = dataclasses.asdict(found)
    names = ("rule", "promise", "patients", "threshold", "quantiles", "table")
    return {name: told[name] for name in names} | {"volume_bound": bound_promise(found)}
