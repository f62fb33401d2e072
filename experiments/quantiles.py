"""Predictive intervals of C-UNet and M1 by a quantile head: do they know where the mean is wrong?

  python -m experiments.quantiles --small

Trains both with a head for the 5 and 95 % quantiles on phantom patients of whom enough are held out
to calibrate a nominal 90 %, calibrates as `cdm-jax calibrate` does, and asks of the unseen ones: is
each region covered, with and without knowledge of the segmentation; does the interval's width tell
which voxels err, and does the samples' deviation, and does it once no whole volume is too bright or
too dark; what does the head cost in a pass?
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.progress import track

from cdm_jax.calibration import calibration_scores, find_edges, fit_intervals
from cdm_jax.intervals import PREMISE, Intervals
from cdm_jax.methods.cdm.cunet import CrossConditioned
from cdm_jax.methods.cdm.cunet_network import HEAD
from cdm_jax.metrics.aggregate import summarize
from cdm_jax.metrics.conformal import (
    bounds,
    coverage_by_region,
    detection,
)
from cdm_jax.metrics.psnr import best_gain
from cdm_jax.metrics.regions import region_masks
from cdm_jax.records import per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.rows import MEAN_OF
from cdm_jax.report.tables import with_interval
from cdm_jax.sampling import Drawn, SubjectSampler, draw_beside_truth, load_uncertain
from cdm_jax.scoring import usable_segmentation
from cdm_jax.shapes import source_channels
from cdm_jax.writer import console
from experiments.study import Study, main
from experiments.uncertainty import REGIONS, coverage_table, values

NAME = "quantiles"
STAGES = ("mrm", "mdn", "cunet", "m1")
HEADS = ("--config.cunet.quantiles=(0.05,0.95)", "--config.m1.quantiles=(0.05,0.95)")
# 80 patients are unseen and 96 calibrate; in two of three of them a tumor enhances. What n of
# them promise may cost 1 / (n + 1) of coverage more than was asked for.
OVERRIDES = (
    *HEADS,
    "--config.phantom.num_patients=400",
    "--config.data.test_fraction=0.2",
    "--config.data.validation_fraction=0.3",
)
MANY = f"cunet/{MEAN_OF}8"
SYSTEMS = {"m1": ("m1", 1), "cunet": ("cunet", 1), MANY: ("cunet", 8)}  # stage, samples
LEVEL = 0.9
WRONG = 0.1  # a voxel errs if its mean is off by more, in units of [0, 1]
CONVENTION = "intervals"  # of the records: native grid, truth by its own intensity rule
BRAIN, STRATA, KNOWN = "one multiplier", "by predicted width", "segmentation known"
CALIBRATIONS = (BRAIN, STRATA, KNOWN)
DETECTORS = {
    "width": "width of the calibrated interval",
    "predicted": "predicted width, as trained",
    "deviation": "deviation of the samples",
    "scaled": "width again, of what errs after the best factor for each patient and target",
}
JUDGED = ("healthy", "whole_tumor", "enhancing_tumor")
COVERED, DETECTED, COSTS = (0.85, 0.95), 0.75, 1.1  # what is asked for
METRICS = {"coverage": ".3f", "width": ".3f", "mae": ".4f"}  # formats
REPEATS = 40  # of a pass that is timed


# What is measured


def measure(study: Study) -> None:
    """Trains what is missing, calibrates, scores every test patient, writes the record."""
    study = placed(study)
    study.train(STAGES)
    dataset = study.data()
    records: dict[str, dict[str, Any]] = {
        subject.subject_id: {
            "subject": subject.subject_id,
            "patient": subject.patient_id,
            "split": dataset.split_hash,
            "conventions": {CONVENTION: ""},
            "rows": {},
        }
        for subject in dataset.test
    }
    fitted = {}
    for system, (stage, samples) in SYSTEMS.items():
        sampler = SubjectSampler(load_uncertain(study.workdir / stage, samples), samples)
        edges = find_edges(sampler, dataset)
        scores = calibration_scores(sampler, dataset, edges)
        fitted[system] = fit_intervals(scores, sampler, LEVEL, edges)
        for subject in track(dataset.test, f"measuring {system}", console=console):
            files = dataset.subjects[subject.subject_id]
            native, drawn = draw_beside_truth(sampler, subject, files)
            regions = region_masks(usable_segmentation(files, native.brain)[0], native.brain)
            rows = scored(system, drawn, regions, fitted[system])
            records[subject.subject_id]["rows"] |= rows
    content = {
        "command": study.command(NAME),
        "overrides": list(OVERRIDES),
        "intervals": {system: dataclasses.asdict(one) for system, one in fitted.items()},
        "cost": {stage: cost(study, stage) for stage in ("cunet", "m1")},
        "records": list(records.values()),
    }
    study.save(NAME, content)


def placed(study: Study) -> Study:
    """The study with patients and heads of its own, in a workdir of its own."""
    return dataclasses.replace(
        study,
        workdir=study.workdir.with_name(f"{study.workdir.name}_{NAME}"),
        overrides=(*study.overrides, *(HEADS if study.smoke else OVERRIDES)),
    )


def scored(
    system: str,
    drawn: Mapping[str, Drawn],
    regions: Mapping[str, np.ndarray],
    intervals: Intervals,
) -> dict[str, Any]:
    """Rows of a patient's record: coverage by region in each calibration, and detection."""
    rows: dict[str, Any] = {f"{system}, {name}": {} for name in CALIBRATIONS}
    brain = regions["brain"]
    for target, images in drawn.items():
        made = images.predicted
        multipliers = {
            BRAIN: intervals.multipliers[target],
            STRATA: intervals.multiplier(target, made),
            KNOWN: intervals.multiplier(target, made, regions),
        }
        for name, multiplier in multipliers.items():
            rows[f"{system}, {name}"][target] = {
                "regions": coverage_by_region(
                    images.truth, made, regions, multiplier=multiplier, floor=intervals.floor
                )
            }
        lower, upper = bounds(made, multipliers[STRATA], intervals.floor)
        truth, mean = images.truth[brain], made.mean[brain]
        wrong = np.abs(truth - mean) > WRONG
        scaled = np.clip(best_gain(mean, truth) * mean, 0, 1)
        uncertainty = {"width": upper - lower, "predicted": made.width}
        if images.deviation is not None:
            uncertainty["deviation"] = images.deviation
        told = {name: detection(wrong, image[brain]) for name, image in uncertainty.items()}
        told["scaled"] = detection(np.abs(truth - scaled) > WRONG, (upper - lower)[brain])
        told = {name: area for name, area in told.items() if not math.isnan(area)}
        rows[f"{system}, {STRATA}"][target] |= told | {"wrong": float(wrong.mean())}
    return {row: {CONVENTION: targets} for row, targets in rows.items()}


def cost(study: Study, stage: str) -> dict[str, float]:
    """What the head costs: seconds and operations of the network with it over those without."""
    system = load_uncertain(study.workdir / stage, 1)
    method, size = system.method, system.provenance.config.data.size
    assert isinstance(method, CrossConditioned)
    params = system.model["params"]["network"]
    sources = jnp.zeros((8, size, size, source_channels(system.provenance.config.data)))
    width = method.mdn.representation.representation_width if method.mdn else 0
    y = jnp.zeros((8, width)) if method.mdn else None
    plain = {name: layer for name, layer in params.items() if name != HEAD}
    compiled = {
        "with": jax.jit(lambda p, x, y: method.network.apply({"params": p}, x, y, True)),
        "without": jax.jit(
            lambda p, x, y: method.network.clone(quantiles=()).apply({"params": p}, x, y)
        ),
    }
    arguments = {"with": (params, sources, y), "without": (plain, sources, y)}
    programs = {name: f.lower(*arguments[name]).compile() for name, f in compiled.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(REPEATS):  # in turn, so that what else the machine does meets both
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments[name]))
            seconds[name].append(time.perf_counter() - start)
    flops = {name: (one.cost_analysis() or {})["flops"] for name, one in programs.items()}
    return {
        "time": statistics.median(seconds["with"]) / statistics.median(seconds["without"]),
        "best_time": min(seconds["with"]) / min(seconds["without"]),
        "operations": flops["with"] / flops["without"],
    }


# What it says


def coverage_sentence(patients: pd.DataFrame, row: str, target: str) -> str:
    """Whether each judged region is covered as asked."""
    found = {
        region: summarize(values(patients, row, target, "coverage", region)) for region in JUDGED
    }
    least, most = COVERED
    met = {region: least <= round(one.mean, 3) <= most for region, one in found.items()}
    parts = [
        f"{REGIONS[region]} {with_interval(one, '.3f')}{'' if met[region] else ' (NOT as asked)'}"
        for region, one in found.items()
    ]
    asked = f"{least:.0%} to {most:.0%}"
    verdict = "all" if all(met.values()) else "NOT all" if any(met.values()) else "NONE"
    return f"{row}, {target}: {verdict} of {asked}: {', '.join(parts)}."


def detection_sentence(patients: pd.DataFrame, system: str, target: str) -> str:
    """Whether width tells which voxels err, and whether deviation does."""
    row = f"{system}, {STRATA}"
    found = {name: summarize(values(patients, row, target, name)) for name in DETECTORS}
    parts = [
        f"{text} {with_interval(found[name], '.3f')}"
        for name, text in DETECTORS.items()
        if found[name].n
    ]
    verdict = "tells" if found["width"].mean >= DETECTED else "does NOT tell"
    share = values(patients, row, target, "wrong").mean()
    return (
        f"{system}, {target}: the width {verdict} (AUROC of {DETECTED} is asked for) which "
        f"{share:.1%} of the voxels err by more than {WRONG}: {', '.join(parts)}."
    )


def cost_sentence(stage: str, found: Mapping[str, float]) -> str:
    """What a pass with the head costs."""
    verdict = "not more" if found["time"] <= COSTS else "MORE"
    return (
        f"{stage}: a pass with the head takes {found['time']:.3f} times the time of one without "
        f"(medians in turn; the fastest ones {found['best_time']:.3f}), {verdict} than {COSTS} "
        f"times, and {found['operations']:.3f} times the operations."
    )


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    patients = per_patient(content["records"], CONVENTION)
    fitted = {row: Intervals.from_json(one) for row, one in content["intervals"].items()}
    targets = list(next(iter(fitted.values())).multipliers)
    rows = [f"{system}, {name}" for system in fitted for name in CALIBRATIONS]
    parts = [
        "# Intervals that a quantile head predicts",
        f"Made by `{content['command']}`, with `{' '.join(content['overrides'])}`.",
        "## Does each region have what it should?",
        *(coverage_sentence(patients, row, target) for row in rows for target in targets),
        *_promises(fitted),
        f"{PREMISE}.",
        "## Does the width tell which voxels err?",
        *(detection_sentence(patients, s, target) for s in fitted for target in targets),
        "## What does it cost?",
        *(cost_sentence(stage, found) for stage, found in content["cost"].items()),
        "## All numbers",
        *(to_markdown(coverage_table(patients, row, t, METRICS)) for row in rows for t in targets),
        f"Means over {len(content['records'])} unseen patients, 95 % bootstrap intervals over "
        "patients in brackets. Units of [0, 1], where a truth's own 99.5th percentile is 1.",
    ]
    return "\n\n".join(parts) + "\n"


def _promises(fitted: Mapping[str, Intervals]) -> Sequence[str]:
    return [f"{system}: {intervals.guarantee}." for system, intervals in fitted.items()]


def show(study: Study) -> None:
    """Prints the text and writes it, from the record."""
    study.save_text(NAME, report(study.load(NAME)))


if __name__ == "__main__":
    main(None, __doc__, measure, show, ("phantom",))
