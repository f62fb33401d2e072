"""The map of the probability that a voxel enhances: its calibration, its file, what it promises.

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
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.native import NativeImages
from cdm_jax.files import write_json
from cdm_jax.intervals import Calibrated, find_calibrated
from cdm_jax.metrics.conformal import Predicted
from cdm_jax.metrics.enhancement import POSTCONTRAST, PRECONTRAST, THRESHOLD, gained
from cdm_jax.metrics.enhancement_probability import (
    Counts,
    Table,
    counted,
    fit_table,
    raw_probability,
)
from cdm_jax.sampling import Drawn, SubjectSampler

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
    """

    patients: int
    threshold: float
    quantiles: Sequence[float]
    rule: str
    promise: str
    table: Table

    def volume(self, predicted: Predicted, native: NativeImages) -> Volume | None:
        """The map of a subject: in [0, 1], 0 outside the brain; None where there is no unit.

        Args:
          predicted: T1c on the native grid.
          native: the subject's images on it, T1 among them.
        """
        brain = native.brain
        raw = _raw(predicted, native, self.quantiles)
        if raw is None:
            return None
        volume = np.zeros(brain.shape, np.float32)
        volume[brain] = self.table.apply(raw)
        return volume


def _raw(
    predicted: Predicted, native: NativeImages, levels: Sequence[float]
) -> Float[np.ndarray, " voxel"] | None:
    precontrast = native.images[PRECONTRAST][native.brain]
    return raw_probability(predicted.at(native.brain), precontrast, levels)


def enhances(truth: Volume, native: NativeImages) -> np.ndarray | None:
    """Which voxels of the brain do enhance, by the acquired T1c; None where there is no unit."""
    gain = gained(native.images[PRECONTRAST][native.brain], truth[native.brain])
    return None if gain is None else gain > THRESHOLD


class Calibration:
    """Counts what enhances in one subject after another, beside what a system predicts."""

    def __init__(self, sampler: SubjectSampler):
        self._sampler = sampler
        self._counts: dict[str, list[Counts]] = {}

    def add(
        self, subject: PreparedSubject, native: NativeImages, drawn: Mapping[str, Drawn]
    ) -> None:
        """Counts one subject; one without a unit is left out."""
        images = drawn[POSTCONTRAST]
        raw = _raw(images.predicted, native, self._sampler.system.method.quantiles)
        true = enhances(images.truth, native)
        if raw is not None and true is not None:
            self._counts.setdefault(subject.patient_id, []).append(counted(raw, true))

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
    return [f"{POSTCONTRAST}: a map of {found.rule}", found.promise]


def sidecar(found: EnhancementMap) -> dict[str, Any]:
    """What stands of the map in the sidecar of a synthetic T1c."""
    told = dataclasses.asdict(found)
    names = ("rule", "promise", "patients", "threshold", "quantiles", "table")
    return {name: told[name] for name in names}
