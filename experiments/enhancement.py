"""The map of the probability that a voxel enhances: calibrated, and informative where it can be?

  python -m experiments.enhancement --small

Trains M1 and C-UNet with a quantile head on two phantoms: in one T1 and T2 tell how much contrast
agent each part of a tumor takes up, in the other nothing does. Where tumor enhances at all shows in
both, by its tissue, and T1 with its noise is part of the true subtraction as of the map: neither
may pass for knowledge of uptake. So the question is put to what was simulated: within one patient's
enhancing tissue, does the map rank voxels by their uptake, which no scan's noise is in? Where the
sources do not tell it, any map ranks it at .5, but for chance. The cohort is large to keep that
small: over a patient's few independent parts the area varies by .2.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from cdm_jax.calibration import calibrate_stage
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.labels import read_segmentation
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_voxel_size
from cdm_jax.data.prepare import FULL_SCALE, to_native
from cdm_jax.data.subjects import Subject
from cdm_jax.enhancement import EnhancementMap, enhances, read_enhancement, voxel_ml_of
from cdm_jax.metrics.aggregate import summarize
from cdm_jax.metrics.conformal import detection
from cdm_jax.metrics.conventions import fingerprint, json_ready
from cdm_jax.metrics.enhancement import POSTCONTRAST, PRECONTRAST
from cdm_jax.metrics.enhancement import measure as volumes_of
from cdm_jax.metrics.enhancement_probability import (
    BINS,
    MORE_ML,
    fit_bound,
    reliability,
    scores,
)
from cdm_jax.metrics.regions import region_masks
from cdm_jax.non_learned import NonLearned, fit_non_learned
from cdm_jax.phantom import PhantomSettings
from cdm_jax.phantom.fields import scatter
from cdm_jax.phantom.patient import simulate_body
from cdm_jax.phantom.tumor import segment
from cdm_jax.records import per_patient
from cdm_jax.report.enhancement import enhancement_table
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.sampling import SubjectSampler, draw_beside_truth, load_uncertain
from cdm_jax.scoring import usable_segmentation
from cdm_jax.writer import console
from experiments.study import Study, main
from experiments.uncertainty import REGIONS, values

NAME = "enhancement"
STAGES = ("mrm", "mdn", "cunet", "m1")
SYSTEMS = {"m1": "M1", "cunet": "CDM"}
PHANTOMS = {"told": 1.0, "hidden": 0.0}  # part of the variance of uptake that T1 and T2 tell
HEADS = ("--config.cunet.quantiles=(0.05,0.95)", "--config.m1.quantiles=(0.05,0.95)")
COHORT = (  # 420 unseen patients, of whom 2 in 5 have enough enhancing tissue; 45 calibrate
    "--config.phantom.num_patients=600",
    "--config.data.test_fraction=0.7",
    "--config.data.validation_fraction=0.25",
    # Twice as long as in the tables: what tells the uptake is a fine texture within few voxels.
    "--config.cunet.train.num_steps=2000",
    "--config.m1.train.num_steps=2000",
)
UPPER = ", upper quantile"  # of its T1c instead of the mean, in units of the mean's median
LEVEL = 0.9  # of the intervals, which are calibrated beside the map
MAP, VOLUME = "probability", "volume"  # conventions of the records
# Voxels so full of enhancing tissue, and so many of them, are ranked. In a voxel that is less full
# the part that enhances hides the uptake: the true gain itself ranks it at .98 from .9 on, at .91
# from .75 on.
FILLED, LEAST = 0.9, 20
INFORMATIVE, CHANCE = 0.80, (0.47, 0.53)  # what is asked for
JUDGED = ("brain", "tumor_core", "enhancing_tumor")
METRICS = {"auroc": ".3f", "brier": ".4f", "flat_brier": ".4f", "enhancing": ".3f"}  # formats


# What is measured


def measure(study: Study) -> None:
    """Trains what is missing, calibrates, scores every test patient, writes the record."""
    overrides = (*HEADS, *(() if study.smoke else COHORT))
    phantoms = {}
    for name, part in PHANTOMS.items():
        own = dataclasses.replace(
            study,
            workdir=study.workdir.with_name(f"{study.workdir.name}_{NAME}_{name}"),
            overrides=(*study.overrides, *overrides, f"--config.phantom.predictable={part}"),
        )
        own.train(STAGES)
        phantoms[name] = measured(own)
    content = {"command": study.command(NAME), "overrides": list(overrides), "phantoms": phantoms}
    study.save(NAME, content)


def measured(study: Study) -> dict[str, Any]:
    """The calibrated maps of one phantom, and a record of each unseen patient."""
    dataset, settings = study.data(), PhantomSettings(**study.config("cdm").phantom.to_dict())
    samplers, maps = {}, {}
    for stage in SYSTEMS:
        folder = study.workdir / stage
        calibrate_stage(folder, dataset, samples=1, level=LEVEL)
        samplers[stage] = SubjectSampler(load_uncertain(folder, 1), 1)
        maps[stage] = read_enhancement(folder)
    plain = fit_non_learned(dataset.train, dataset.copies)
    records = []
    for subject in track(dataset.test, "measuring maps", console=console):
        files = dataset.subjects[subject.subject_id]
        uptake = uptake_of(settings, subject, files)
        identity = {
            "subject": subject.subject_id,
            "patient": subject.patient_id,
            "split": dataset.split_hash,
            "conventions": {VOLUME: fingerprint(VOLUME), MAP: ""},
        }
        rows = rows_of(subject, files, samplers, maps, plain, uptake)
        records.append({**identity, "rows": json_ready(rows)})
    told = {stage: dataclasses.asdict(found) for stage, found in maps.items()}
    known = [[(0.0, tumor_ml(dataset.subjects[s.subject_id]))] for s in dataset.validation]
    return {"maps": told, "blind_ml": MORE_ML * (fit_bound(known, LEVEL) or 0), "records": records}


def tumor_ml(files: Subject) -> float:
    """Volume of a simulated patient's enhancing tumor in ml."""
    labels = read_segmentation(files)
    tumor = region_masks(labels, np.ones(labels.shape, bool))["enhancing_tumor"]
    return voxel_ml_of(files) * float(tumor.sum())


def uptake_of(settings: PhantomSettings, subject: PreparedSubject, files: Subject) -> np.ndarray:
    """Relative uptake (z, y, x) where enhancing tissue fills a simulated voxel, NaN elsewhere."""
    body = simulate_body(settings, int(subject.subject_id.split("-")[2]))
    brain = scatter(body.brain, np.ones_like(body.uptake)).T > 0
    labels, _ = usable_segmentation(files, brain)
    simulated = scatter(body.brain, segment(body.tissues)).T
    if labels is None or not np.array_equal(simulated, labels):
        raise ValueError(f"{subject.subject_id} is not the patient that was simulated")
    filled = body.tissues.get("enhancing", np.zeros_like(body.uptake)) > FILLED
    uptake = np.full(brain.shape, np.nan, np.float32)
    uptake.T[body.brain] = np.where(filled, body.uptake, np.nan)
    return uptake


def uptake_auroc(volume: np.ndarray, uptake: np.ndarray) -> float:
    """How well a map tells the voxels whose uptake is above the patient's median; NaN of few."""
    mask = np.isfinite(uptake)
    if np.count_nonzero(mask) < LEAST:
        return math.nan
    return detection(uptake[mask] > np.median(uptake[mask]), volume[mask])


def rows_of(
    subject: PreparedSubject,
    files: Subject,
    samplers: Mapping[str, SubjectSampler],
    maps: Mapping[str, EnhancementMap],
    plain: NonLearned,
    uptake: np.ndarray,
) -> dict[str, Any]:
    """Rows of a patient's record: maps, and what T1c images show that have none."""
    number, size = subject.targets.index(POSTCONTRAST), read_voxel_size(files.images[PRECONTRAST])
    sources = subject.slices[..., : len(subject.sources)].astype(np.float32) / FULL_SCALE
    native = read_native(files, subject.sources, (*subject.sources, POSTCONTRAST))
    regions = region_masks(usable_segmentation(files, native.brain)[0], native.brain)
    judged = ("brain", "whole_tumor")
    masks: dict[str, np.ndarray] = {n: regions[n] for n in judged if n in regions}
    t1, truth = native.images[PRECONTRAST], native.images[POSTCONTRAST]

    def detected(image: np.ndarray, usual: np.ndarray | None = None) -> dict[str, Any]:
        """The scores of enhancement as the convention `volume` lays them out."""
        found = volumes_of(image, truth, t1, masks, math.prod(size) / 1000, usual)
        return {VOLUME: {POSTCONTRAST: {**found.pop("brain"), "regions": found}}}

    fitted = plain.rows(sources)
    rows = {
        name: detected(to_native(subject, fitted[name][..., number], native.brain))
        for name in ("copy", "regression")
    }
    true = enhances(truth, native)
    for stage, sampler in samplers.items():
        made = draw_beside_truth(sampler, subject, files)[1][POSTCONTRAST].predicted
        rows[SYSTEMS[stage]] = detected(made.mean)
        rows[f"{SYSTEMS[stage]}{UPPER}"] = detected(made.mean + made.above, made.mean)
        told = maps[stage].of(made, native, voxel_ml_of(files))
        if told is not None and true is not None:
            shown = map_scores(told[0], true, regions, uptake)
            shown |= {"most_ml": told[1], "tumor_ml": tumor_ml(files)}
            rows[SYSTEMS[stage]][MAP] = {POSTCONTRAST: shown}
    return rows


def map_scores(
    volume: np.ndarray,
    true: np.ndarray,
    regions: Mapping[str, np.ndarray],
    uptake: np.ndarray,
) -> dict[str, Any]:
    """How good a map is by region, in bins of it in the whole brain, and at ranking uptake."""
    brain = regions["brain"]
    chances = volume[brain].astype(np.float64)
    found = reliability(chances, true)
    for name in JUDGED:
        if name in regions and (mask := regions[name][brain]).any():
            found[name] = scores(chances[mask], true[mask])
    return {"uptake_auroc": uptake_auroc(volume, uptake), "regions": found}


# What it says


def uptake_sentence(patients: pd.DataFrame, phantom: str, system: str) -> str:
    """Whether the map ranks local uptake where the sources tell it, and only there."""
    found = summarize(values(patients, system, POSTCONTRAST, "uptake_auroc"))
    if not found.n:
        return f"{system}, {phantom}: no patient has enough enhancing tissue."
    area = round(found.mean, 3)
    if PHANTOMS[phantom]:
        head = "T1 and T2 tell the local uptake"
        met = "is" if area >= INFORMATIVE else "is NOT"
        verdict = f"the map {met} as informative as asked, at least {INFORMATIVE:.2f}"
    else:
        head = "T1 and T2 do not tell the local uptake"
        met = "is" if CHANCE[0] <= area <= CHANCE[1] else "is NOT"
        verdict = f"the map {met} uninformative, {CHANCE[0]:.2f} to {CHANCE[1]:.2f}, as it must be"
    text = with_interval(found, ".3f")
    return f"{system}, where {head}: AUROC {text} within {found.n} patients' tumors: {verdict}."


def brier_sentence(patients: pd.DataFrame, system: str, region: str) -> str:
    """Whether the map is better than a region's own part for every voxel."""
    ours, flat = (
        values(patients, system, POSTCONTRAST, m, region) for m in ("brier", "flat_brier")
    )
    gain = summarize(flat - ours)
    low, high = gain.interval or (0.0, 0.0)
    verdict = "better than" if low > 0 else "WORSE than" if high < 0 else "NO better than"
    return (
        f"{system}, {REGIONS[region]}: Brier score {with_interval(summarize(ours), '.4f')}, "
        f"{verdict} the patient's own part there for every voxel ({summarize(flat).mean:.4f}), "
        "which nobody knows beforehand."
    )


def bound_sentence(patients: pd.DataFrame, system: str, blind_ml: float) -> str:
    """Whether the bound on the volume of enhancing tumor holds, and says more than one for all."""
    most, true = (values(patients, system, POSTCONTRAST, m) for m in ("most_ml", "tumor_ml"))
    holds, tighter = summarize((true <= most).astype(float)), summarize(blind_ml - most)
    low, high = tighter.interval or (0.0, 0.0)
    verdict = "less than" if low > 0 else "MORE than" if high < 0 else "NO other than"
    return (
        f"{system}, at most so much enhancing tumor, nominal {LEVEL:.0%}: holds for "
        f"{with_interval(holds, '.3f')} of the patients; in the mean it is "
        f"{summarize(most).mean:.1f} ml, {verdict} the bound that sees no image, {blind_ml:.1f} ml "
        f"for everyone. In truth there are {summarize(true).mean:.1f} ml."
    )


def reliability_table(patients: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """Predicted beside observed parts in each bin of the map, every patient's brain alike."""
    lines = {}
    for number in range(BINS):
        line = {}
        for system in systems:
            part, predicted, observed = (
                values(patients, system, POSTCONTRAST, m, f"{number / BINS:g}")
                for m in ("part", "predicted", "observed")
            )
            if total := part.sum():
                line[f"{system} predicts"] = f"{(part * predicted).sum() / total:.3f}"
                line[f"observed ({system})"] = f"{(part * observed).sum() / total:.3f}"
                line[f"of the brain ({system})"] = f"{total / len(patients):.2%}"
        lines[f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}"] = line
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("map")
    return table.fillna("–")


def region_table(patients: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """Texts: a system and region each, means over patients with 95 % intervals."""
    lines = {}
    for system in systems:
        for region in JUDGED:
            own = {m: summarize(values(patients, system, POSTCONTRAST, m, region)) for m in METRICS}
            texts = {m: with_interval(own[m], form) for m, form in METRICS.items()}
            lines[f"{system}, {REGIONS[region]}"] = texts | {"patients": str(own["brier"].n)}
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("map")
    return table.rename(columns={"flat_brier": "brier of the part", "enhancing": "part"})


def section(phantom: str, found: Mapping[str, Any]) -> list[str]:
    """What is said of one phantom."""
    records, systems = found["records"], list(SYSTEMS.values())
    patients = per_patient(records, MAP)
    promises = {stage: one["promise"] for stage, one in found["maps"].items()}
    whether = "tell" if PHANTOMS[phantom] else "do not tell"
    return [
        f"## Where T1 and T2 {whether} the local uptake",
        *(brier_sentence(patients, s, region) for s in systems for region in JUDGED[:2]),
        to_markdown(region_table(patients, systems)),
        *(f"{SYSTEMS[stage]}: {promise}." for stage, promise in promises.items()),
        to_markdown(reliability_table(patients, systems)),
        *(bound_sentence(patients, system, found["blind_ml"]) for system in systems),
        enhancement_table(records).markdown(),
    ]


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    phantoms = content["phantoms"]
    tables = {name: per_patient(found["records"], MAP) for name, found in phantoms.items()}
    parts = [
        "# The probability that a voxel enhances",
        f"Made by `{content['command']}`, with `{' '.join(content['overrides'])}`.",
        "## Does the map know more than where the tumor is?",
        *(uptake_sentence(tables[p], p, s) for p in phantoms for s in SYSTEMS.values()),
        f"Of the voxels that enhancing tissue fills to {FILLED:.0%}: does the map tell those whose "
        f"simulated uptake is above the patient's median? Patients with at least {LEAST} of them.",
    ]
    for name, found in phantoms.items():
        parts += section(name, found)
    count = len(next(iter(phantoms.values()))["records"])
    parts.append(
        f"Means over {count} unseen patients of each phantom, 95 % bootstrap intervals over "
        "patients in brackets. AUROC: of whether a voxel enhances, in patients who have both kinds "
        "there. Upper quantile: the predicted upper end of T1c, in units of the mean's median."
    )
    return "\n\n".join(parts) + "\n"


def show(study: Study) -> None:
    """Prints the text and writes it, from the record."""
    study.save_text(NAME, report(study.load(NAME)))


if __name__ == "__main__":
    main(None, __doc__, measure, show, ("phantom",))
