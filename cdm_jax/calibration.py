"""What a system's own uncertainty is worth: intervals, calibrated on a run's validation patients.

Samples of one system agree with each other far more than with the truth, and ends that a network
predicts are learned from errors on patients that it was trained on: neither is an error bar by
itself. Calibration finds by how much it has to be multiplied (`metrics/conformal.py`); the result
lies beside the checkpoints (`intervals.py`). Test patients are never looked at.

Predicted ends are calibrated in strata of their width, so that wide intervals, which lie where the
network expects to err, have a multiplier of their own (Vovk 2012, "Mondrian" conformal prediction,
of patients instead of voxels); and for whom a segmentation is known, in healthy brain and in tumor,
where it tells what enhances in each of the tumor's two parts.

The guarantee presupposes that validation patients are to the system what new ones are. They have
only measured it and never moved a weight, with the exceptions that `PREMISE` names (see
`rescaling.py`, and `finish` in `methods/cdm/mdn.py`). The edges between strata are therefore taken
from training patients.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from rich.progress import track

from cdm_jax import enhancement, inference, parallel
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.native import NativeImages
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.evaluate_patterns import as_fixed
from cdm_jax.intervals import (
    METHODS,
    REGIONS,
    Intervals,
    by_region,
    folder_of,
    read_intervals,
    save_intervals,
)
from cdm_jax.metrics import conformal
from cdm_jax.metrics.conformal import Multiplier
from cdm_jax.metrics.regions import region_masks
from cdm_jax.sampling import (
    Drawn,
    SubjectSampler,
    different_samples,
    draw_beside_truth,
    load_uncertain,
)
from cdm_jax.scoring import usable_segmentation
from cdm_jax.tasks import JOIN
from cdm_jax.writer import console

# Added to distances from the mean, in units of [0, 1], so that samples that agree have an interval
# too. It is about what samples of CDM deviate by; half of it made intervals 9 % wider at the same
# coverage, twice of it 5 % narrower, on patients of the phantom's training part. A constant, since
# one fitted to the validation patients would void the guarantee that these patients give to q.
FLOOR = 0.01
# Shares of a brain whose predicted intervals are narrower than the edges between strata. A tumor
# is a few hundredths of a brain, an enhancing rim less.
SHARES = (0.5, 0.8, 0.95, 0.99)
EDGE_PATIENTS = 16  # training patients from whose predicted widths the edges are taken, at most
BRAIN = "brain"

Edges = Mapping[str, Sequence[float]]
"""Target -> predicted widths between strata."""
Scores = dict[str, dict[str | int, dict[str, list[conformal.Scan]]]]
"""Target -> group of voxels -> patient -> the scores of each of his scans, sorted and thinned.

A group is `BRAIN`, one of `intervals.by_region`, or the number of a stratum.
"""
Watch = Callable[[Subject, NativeImages, Mapping[str, Drawn]], None]


def find_edges(sampler: SubjectSampler, dataset: Dataset) -> Edges:
    """Edges between the strata of predicted widths, from training patients; their truth has no say.

    A system without predicted ends has no strata.
    """
    if not sampler.system.method.quantiles:
        return {}
    numbers = np.linspace(0, len(dataset.train) - 1, min(EDGE_PATIENTS, len(dataset.train)))
    widths: dict[str, list[conformal.Scan]] = {}
    for subject in (dataset.train[number] for number in np.unique(numbers.astype(int))):
        native, drawn = _drawn(sampler, dataset, subject)
        for target, images in drawn.items():
            widths.setdefault(target, []).append(images.predicted.width[native.brain])
    return {target: conformal.edges_between(ones, SHARES) for target, ones in widths.items()}


def calibration_scores(
    sampler: SubjectSampler,
    dataset: Dataset,
    edges: Edges,
    floor: float = FLOOR,
    watch: Watch | None = None,
) -> Scores:
    """Lets the system make every validation patient; keeps of each scan only its sorted scores.

    Args:
      sampler: the system.
      dataset: that it was trained on.
      edges: as `find_edges` gives them.
      floor: added to the distances from the mean.
      watch: sees each subject with what was acquired and what is made of it.

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
        native, drawn = _drawn(sampler, dataset, subject)
        brain = native.brain
        files = dataset.subjects[subject.subject_id]
        if watch is not None:
            watch(files, native, drawn)
        for target, images in drawn.items():
            values = conformal.scores(images.truth, images.predicted, floor)
            for group, mask in _groups(images, brain, files, edges.get(target)).items():
                if not mask.any():
                    continue
                kept = conformal.thinned(values[mask])
                patients = scores.setdefault(target, {}).setdefault(group, {})
                patients.setdefault(subject.patient_id, []).append(kept)
    return scores


def _drawn(
    sampler: SubjectSampler, dataset: Dataset, subject: PreparedSubject
) -> tuple[NativeImages, dict[str, Drawn]]:
    return draw_beside_truth(sampler, subject, dataset.subjects[subject.subject_id])


def _groups(
    images: Drawn,
    brain: Bool[np.ndarray, "z y x"],
    files: Subject,
    edges: Sequence[float] | None,
) -> dict[str | int, Bool[np.ndarray, "z y x"]]:
    """The groups of a scan's voxels: the brain, and of predicted ends strata and regions."""
    if edges is None:
        return {BRAIN: brain}
    numbers = conformal.strata(images.predicted.width, edges)
    regions = region_masks(usable_segmentation(files, brain)[0], brain)
    groups: dict[str | int, Bool[np.ndarray, "z y x"]] = {BRAIN: brain}
    groups |= {number: brain & (numbers == number) for number in range(len(edges) + 1)}
    return groups | by_region(regions)


def fit_intervals(
    scores: Scores, sampler: SubjectSampler, level: float, edges: Edges, floor: float = FLOOR
) -> Intervals:
    """Calibrates each target and group for itself.

    Scores, edges and floor are those of one call of `calibration_scores` by this sampler. The level
    is the nominal coverage, between 0 and 1.

    Raises:
      UserError: the level does not lie between 0 and 1.
    """
    fitted = {
        target: {g: conformal.fit_multiplier(list(p.values()), level) for g, p in groups.items()}
        for target, groups in scores.items()
    }
    brains = {target: groups[BRAIN] for target, groups in fitted.items()}
    one = next(iter(brains.values()))  # all targets have the same patients
    strata = {
        target: [
            fitted[target].get(number, _unseen(brains[target])) for number in range(len(ones) + 1)
        ]
        for target, ones in edges.items()
    }
    regions = {
        target: {str(name): groups[name] for name in REGIONS if name in groups}
        for target, groups in fitted.items()
    }
    weakest = min([one, *(s for ones in strata.values() for s in ones)], key=_guaranteed)
    return Intervals(
        checkpoint=sampler.system.fingerprint,
        split=sampler.system.provenance.split,
        samples=sampler.samples,
        level=level,
        method=METHODS[weakest.controlled],
        guarantee=_guarantee(one, strata, level),
        guaranteed_level=weakest.guaranteed_level,
        patients=one.patients,
        patients_needed=one.patients_needed,
        floor=floor,
        multipliers={target: multiplier.value for target, multiplier in brains.items()},
        quantiles=list(sampler.system.method.quantiles),
        edges=edges,
        strata=strata,
        regions={target: found for target, found in regions.items() if found},
    )


def _guaranteed(one: Multiplier) -> float:
    return one.guaranteed_level


def _unseen(brain: Multiplier) -> Multiplier:
    """Of a stratum that no validation patient has voxels in: a multiplier without a promise."""
    return Multiplier(
        value=brain.value,
        controlled=False,
        guaranteed_level=0.0,
        patients=0,
        patients_needed=brain.patients_needed,
    )


def _guarantee(brain: Multiplier, strata: Mapping[str, Sequence[Multiplier]], level: float) -> str:
    """What the intervals promise, in words."""
    groups = [one for ones in strata.values() for one in ones] or [brain]
    weakest = min(groups, key=_guaranteed)
    share = f"at least {weakest.guaranteed_level:.1%} of"
    if strata:
        promise = (
            f"in each stratum of predicted width {share} a patient's voxels are covered, on "
            "average over new patients who have such voxels, if they are exchangeable with the "
            f"validation patients who have (at least {min(g.patients for g in groups)}) and "
            "nothing was fitted to these, each target for itself; nothing is promised for a single "
            "patient, for the brain as a whole, or for a region such as a tumor, unless its "
            "segmentation is known and its own multiplier is used"
        )
    else:
        promise = (
            f"{share} the brain is covered, on average over new "
            "patients if they are exchangeable with the validation patients and nothing was fitted "
            "to these, each target for itself; nothing is promised for a single patient or for a "
            "region such as a tumor"
        )
    if weakest.controlled:
        return f"guaranteed: {promise}"
    return (
        f"NO guarantee of {level:.1%}, which takes {weakest.patients_needed} validation patients"
        f"{' in each stratum' * bool(strata)}: there are {weakest.patients}; all that is "
        f"guaranteed: {promise}"
    )


def calibrate_stage(
    stage_folder: pathlib.Path,
    dataset: Dataset,
    *,
    samples: int,
    level: float,
    given: Sequence[str] = (),
) -> Intervals:
    """Calibrates a stage's intervals and writes `intervals.json`, see `intervals.folder_of`.

    Where the stage predicts enough (`enhancement.applies`), the map of the probability that a voxel
    enhances is calibrated too, on the same images, and `enhancement.json` written beside it. Of
    several processes the first one does it.

    Args:
      stage_folder: of the trained system, such as `runs/brats/cunet`.
      dataset: that it was trained on.
      samples: drawn for each patient, as many as `synthesize` will draw; a deterministic system
        has one.
      level: nominal coverage, such as 0.9.
      given: of a system that takes any modalities, from which to make the others: its error depends
        on them. It is calibrated on patients who have all modalities.

    Raises:
      UserError: nothing to calibrate there or on (see `load_uncertain`, `calibration_scores`), a
        level that is none, or nothing given to a system that takes any modalities.
    """
    conformal.patients_needed(level)  # a wrong level is named before patients are drawn
    system = load_uncertain(stage_folder, samples)
    if inference.is_any_to_any(system):
        fixed, dataset = as_fixed(system.provenance.config, dataset, JOIN.join(given))
        given, targets = fixed.data.sources, fixed.data.targets
        system = inference.restricted(system, given, targets)
    folder = folder_of(stage_folder, given)
    with parallel.first_process_first("intervals"):
        if parallel.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            sampler = SubjectSampler(system, different_samples(system, samples))
            edges = find_edges(sampler, dataset)
            seen = enhancement.Calibration(sampler, level) if enhancement.applies(system) else None
            watch = None if seen is None else seen.add
            scores = calibration_scores(sampler, dataset, edges, watch=watch)
            save_intervals(folder, fit_intervals(scores, sampler, level, edges))
            enhancement.save_enhancement(folder, None if seen is None else seen.fit())
    return read_intervals(folder)
