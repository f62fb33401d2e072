"""Calibrated intervals of a trained stage: their file, what they promise, and their ends.

`<workdir>/<stage>/intervals.json` lies beside the checkpoints, where `calibration.py` writes it and
`synthesize` finds it. Those of a system that takes any modalities differ from pattern to pattern:
that of T1 and T2 has a folder of its own, `<workdir>/<stage>/patterns/t1+t2`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax import inference
from cdm_jax.files import write_json
from cdm_jax.metrics import conformal
from cdm_jax.metrics.conformal import Multiplier, Predicted
from cdm_jax.pattern import Pattern
from cdm_jax.sampling import different_samples, predicted
from cdm_jax.tasks import JOIN
from cdm_jax.writer import console

FILE = "intervals.json"
PREMISE = (
    "CDM takes the covariance of its training noise from these validation patients, and where the "
    "scale of whole volumes is corrected, it is fitted to them: a guarantee which presupposes that "
    "nothing was fitted to them is then an approximation at best"
)
METHODS = {
    True: "conformal risk control over patients (Angelopoulos et al. 2022)",
    False: "mean over patients, too few for conformal risk control at this level",
}
RULES = {
    False: "mean ± multiplier (deviation + floor)",
    True: "from mean - multiplier (mean - lower + floor) to mean + multiplier (upper - mean + "
    "floor), lower and upper being the ends that the network predicts and the multiplier that of "
    "the stratum which upper - lower is in",
}

# Groups of voxels that have a multiplier of their own where a segmentation is known. Of a tumor of
# which part enhances, that part and the rest have one each instead of the whole.
REGIONS = ("healthy", "whole_tumor", "enhancing_tumor", "rest_of_tumor")

Volume = Float[np.ndarray, "z y x"]
Masks = Mapping[str, Bool[np.ndarray, "z y x"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What was calibrated of a stage.

    Attributes:
      checkpoint: fingerprint of the stage's model.
      split: hash of the split whose validation patients it was calibrated on.
      samples: drawn for each patient; other numbers deviate otherwise.
    """

    checkpoint: str
    split: str
    samples: int


Kind = TypeVar("Kind", bound=Calibrated)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals(Calibrated):
    """What `intervals.json` says: how wide a stage's intervals have to be.

    A multiplier of a group of voxels, such as a stratum or a region, is calibrated on the patients
    who have such voxels.

    Attributes:
      level: nominal coverage.
      method: how the multipliers were found.
      guarantee: in words, what holds for a new patient.
      guaranteed_level: the coverage that a new patient may expect, in the group that has least.
      patients: validation patients.
      patients_needed: the fewest with which the level can be guaranteed.
      floor: added to the distances from the mean, which are the samples' deviation or predicted.
      multipliers: q of each target for the whole brain.
      quantiles: levels of the predicted ends that are widened; empty where the deviation is.
      edges: of predicted ends, for each target the widths (upper - lower) between strata.
      strata: for each target the multiplier of each stratum, the narrowest first. That of one
        which no validation patient has is the whole brain's, with 0 patients and no promise.
      regions: for each target the multipliers of `REGIONS`, for patients whose segmentation is
        known.
    """

    level: float
    method: str
    guarantee: str
    guaranteed_level: float
    patients: int
    patients_needed: int
    floor: float
    multipliers: Mapping[str, float]
    quantiles: Sequence[float] = ()
    edges: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, Sequence[Multiplier]] = dataclasses.field(default_factory=dict)
    regions: Mapping[str, Mapping[str, Multiplier]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Intervals":
        """What `dataclasses.asdict` gave, as JSON types.

        Raises:
          AttributeError: it is something else.
          TypeError: it has other fields.
        """
        groups = {
            "strata": {
                target: [Multiplier(**one) for one in ones]
                for target, ones in content.get("strata", {}).items()
            },
            "regions": {
                target: {name: Multiplier(**one) for name, one in ones.items()}
                for target, ones in content.get("regions", {}).items()
            },
        }
        return cls(**{**content, **groups})

    def multiplier(
        self, target: str, images: Predicted, regions: Masks | None = None
    ) -> conformal.Multipliers:
        """Q of a target: one for all voxels, or one for each.

        Args:
          target: modality.
          images: what is predicted.
          regions: where a segmentation is known, `metrics.regions.region_masks` of it. Without, or
            where none was known in calibration, the predicted width decides.
        """
        of_region, groups = self.regions.get(target, {}), by_region(regions or {})
        if {"healthy", "whole_tumor"} <= of_region.keys() & groups.keys():
            found = np.full(images.mean.shape, of_region["healthy"].value, np.float32)
            for name in REGIONS:  # parts of a tumor after the whole
                if name in of_region.keys() & groups.keys():
                    found[groups[name]] = of_region[name].value
            return found
        if target not in self.strata:
            return self.multipliers[target]
        values = np.array([one.value for one in self.strata[target]], np.float32)
        return values[conformal.strata(images.width, self.edges[target])]


def by_region(regions: Masks) -> dict[str, Bool[np.ndarray, "z y x"]]:
    """The voxels of each of `REGIONS` in what `metrics.regions.region_masks` finds.

    None without a segmentation; only the first two of a patient in whom nothing enhances, or whose
    segmentation does not tell it.
    """
    if "whole_tumor" not in regions:
        return {}
    found = {name: regions[name] for name in REGIONS[:2]}
    enhancing = regions["enhancing_tumor"]
    if enhancing.any():
        found |= {"enhancing_tumor": enhancing, "rest_of_tumor": found["whole_tumor"] & ~enhancing}
    return found


def folder_of(stage_folder: pathlib.Path, given: Sequence[str] = ()) -> pathlib.Path:
    """Where what is calibrated of a stage lies; of one that takes any modalities, from those given.

    Their order is the system's.
    """
    return stage_folder / "patterns" / JOIN.join(given) if given else stage_folder


def _given(system: inference.System) -> Sequence[str]:
    """What a system takes of all that it may; nothing is told of a fixed task."""
    return system.method.sources if isinstance(system.method, Pattern) else ()


def save_intervals(stage_folder: pathlib.Path, intervals: Intervals) -> None:
    """Writes `<stage folder>/intervals.json` as a whole or not at all."""
    write_json(stage_folder / FILE, dataclasses.asdict(intervals))


def read_intervals(stage_folder: pathlib.Path) -> Intervals:
    """Reads what `save_intervals` wrote."""
    return Intervals.from_json(json.loads((stage_folder / FILE).read_text()))


def find_intervals(
    stage_folder: pathlib.Path, system: inference.System, samples: int
) -> Intervals | None:
    """The stage's intervals; None, and a line that says why, where they are of something else.

    Nothing is said where nothing was ever calibrated.
    """
    folder = folder_of(stage_folder, _given(system))
    if folder != stage_folder:
        known = sorted(path.name for path in folder.parent.glob("*"))
        if known and folder.name not in known:
            console.print(
                f"no intervals from {folder.name}: calibrated are {', '.join(known)}; `calibrate` "
                "makes those that the config's evaluate.patterns names"
            )
    return find_calibrated(stage_folder, FILE, read_intervals, system, samples)


def find_calibrated(
    stage_folder: pathlib.Path,
    file: str,
    read: Callable[[pathlib.Path], Kind],
    system: inference.System,
    samples: int,
) -> Kind | None:
    """What the file of this name holds, as `find_intervals`; `read` takes its folder."""
    samples, folder = different_samples(system, samples), folder_of(stage_folder, _given(system))
    uncertain = samples > 1 or system.method.quantiles
    if not uncertain or not (folder / file).exists():
        return None
    try:
        found = read(folder)
    except (AttributeError, KeyError, TypeError, ValueError):  # an unknown form, or no JSON
        why = f"{file} cannot be read"
    else:
        if (found.checkpoint, found.samples) == (system.fingerprint, samples):
            return found
        why = (
            f"{file} is of checkpoint {found.checkpoint} and {found.samples} samples, "
            f"not of {system.fingerprint} and {samples}"
        )
    made = file.removesuffix(".json")
    console.print(f"{why}: the command `calibrate` with --samples={samples} would give {made}")
    return None


def within(
    images: Mapping[str, Volume],
    brain: Bool[np.ndarray, "z y x"],
    intervals: Intervals,
    target: str,
    regions: Masks | None = None,
) -> dict[str, Volume]:
    """Ends of a target's intervals on the native grid in [0, 1], 0 outside the sources' brain.

    From what `SubjectSampler.draw` gives of the target to "lower" and "upper"; `regions` as for
    `Intervals.multiplier`.
    """
    found = predicted(images)
    multiplier = intervals.multiplier(target, found, regions)
    lower, upper = conformal.bounds(found, multiplier, intervals.floor)
    return {"lower": lower * brain, "upper": upper * brain}


def summary(intervals: Intervals) -> list[str]:
    """Lines for the terminal."""
    rule = RULES[bool(intervals.quantiles)].replace("multiplier", "q")
    drawn = "" if intervals.quantiles else f" of {intervals.samples} samples"
    found = ", ".join(f"{target} {q:.3g}" for target, q in intervals.multipliers.items())
    return [
        f"{rule.replace('floor', f'{intervals.floor:g}')}{drawn}, nominal level "
        f"{intervals.level:.1%}: q = {found}{' in the whole brain' * bool(intervals.quantiles)}",
        *_lines(intervals),
        f"{intervals.patients} validation patients, {intervals.method}",
        f"{intervals.guarantee}; {PREMISE}",
    ]


def _lines(intervals: Intervals) -> list[str]:
    """A line for each target's strata, and one for its regions."""
    lines = []
    for target, strata in intervals.strata.items():
        edges = ["0", *(f"{edge:.3g}" for edge in intervals.edges[target])]
        cells = (f"from {edge} q = {_short(one)}" for edge, one in zip(edges, strata, strict=True))
        lines.append(f"{target} by predicted width: {'; '.join(cells)}")
    for target, regions in intervals.regions.items():
        cells = (f"{name} q = {_short(one)}" for name, one in regions.items())
        lines.append(f"{target} by region, where a segmentation is known: {'; '.join(cells)}")
    return lines


def _short(one: Multiplier) -> str:
    return f"{one.value:.3g} ({one.patients} patients, {one.guaranteed_level:.1%})"


def sidecar(intervals: Intervals, target: str) -> dict[str, Any]:
    """What stands of the intervals in the sidecar of a synthetic image."""
    content: dict[str, Any] = {
        "level": intervals.level,
        "method": intervals.method,
        "guarantee": intervals.guarantee,
        "premise": PREMISE,
        "patients": intervals.patients,
        "multiplier": intervals.multipliers[target],
        "floor": intervals.floor,
        "rule": f"{RULES[bool(intervals.quantiles)]} in units of reference_scale, within [0, 1]; "
        "calibrated on truths scaled by their own 99.5th percentile, which is unknown here",
    }
    if intervals.quantiles:
        content["quantiles"] = list(intervals.quantiles)
        content["edges"] = list(intervals.edges[target])
        content["strata"] = [dataclasses.asdict(one) for one in intervals.strata[target]]
    return content
