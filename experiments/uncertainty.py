"""Intervals around CDM's mean of eight samples, calibrated and then met by unseen patients.

  python -m experiments.uncertainty --dataset=phantom --small

Calibrates on the validation patients as `python -m cdm_jax.main calibrate` does, and asks of the
test patients: do the intervals cover what they should, brain and tumor; does the deviation of the
samples tell where the error is (risk-coverage curve: the most certain voxels are kept, against the
best possible order and a random one); and does the interval widen where the truth is missed most?
Two further calibrations show what the first is worth: a level that fewer patients suffice for, and
intervals of one width, which know nothing of the samples' deviation.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track

from cdm_jax import checkpoint
from cdm_jax.calibration import FLOOR, calibration_scores, fit_intervals
from cdm_jax.intervals import PREMISE, Intervals, save_intervals
from cdm_jax.metrics.aggregate import Summary, summarize
from cdm_jax.metrics.conformal import coverage_by_region, risk_coverage
from cdm_jax.metrics.regions import region_masks
from cdm_jax.records import WHOLE, per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.rows import MEAN_OF
from cdm_jax.report.tables import with_interval
from cdm_jax.sampling import Drawn, SubjectSampler, draw_beside_truth, load_uncertain
from cdm_jax.scoring import usable_segmentation
from cdm_jax.writer import console
from experiments.study import COLORS, PAGE_WIDTH, Study, main

NAME = "uncertainty"
STAGE = "cunet"
SAMPLES = 8
CONVENTION = "intervals"  # of the records: native grid, truth by its own intensity rule
MAIN, FEWER, FLAT = "samples, 90 %", "samples, 80 %", "one width, 90 %"
ROWS = {MAIN: (0.9, FLOOR), FEWER: (0.8, FLOOR), FLAT: (0.9, 100.0)}  # level, floor
ORDERS = ("deviation", "best possible", "random")
SHARES = np.linspace(0.05, 1, 20)
REGIONS = {
    "brain": "whole brain",
    "healthy": "healthy brain",
    "whole_tumor": "whole tumor",
    "tumor_core": "tumor core",
    "enhancing_tumor": "enhancing tumor",
}
METRICS = {"coverage": ".3f", "width": ".3f", "mae": ".4f", "deviation": ".4f"}  # formats


# What is measured


def measure(study: Study) -> None:
    """Calibrates, draws samples of every test patient, writes the record."""
    folder = study.workdir / STAGE
    if not checkpoint.finished(folder):
        study.run(("cdm",), (f"{STAGE}/{MEAN_OF}{SAMPLES}",))
    dataset = study.data()
    sampler = SubjectSampler(load_uncertain(folder, SAMPLES), SAMPLES)
    floors = dict.fromkeys(floor for _, floor in ROWS.values())
    scores = {floor: calibration_scores(sampler, dataset, {}, floor) for floor in floors}
    fitted = {
        row: fit_intervals(scores[floor], sampler, level, {}, floor)
        for row, (level, floor) in ROWS.items()
    }
    save_intervals(folder, fitted[MAIN])
    records = []
    for subject in track(dataset.test, "measuring coverage", console=console):
        files = dataset.subjects[subject.subject_id]
        native, drawn = draw_beside_truth(sampler, subject, files)
        regions = region_masks(usable_segmentation(files, native.brain)[0], native.brain)
        identity = {
            "subject": subject.subject_id,
            "patient": subject.patient_id,
            "split": dataset.split_hash,
            "conventions": {CONVENTION: sampler.system.fingerprint},
        }
        records.append(identity | {"rows": scored(drawn, regions, fitted)})
    content = {
        "command": study.command(NAME),
        "intervals": {row: dataclasses.asdict(one) for row, one in fitted.items()},
        "records": records,
    }
    study.save(NAME, content)


def scored(
    drawn: Mapping[str, Drawn],
    regions: Mapping[str, np.ndarray],
    fitted: Mapping[str, Intervals],
) -> dict[str, Any]:
    """Rows of a patient's record: coverage by region, and the error of what is kept."""
    rows: dict[str, Any] = {}
    for row, intervals in fitted.items():
        rows[row] = {
            target: {
                "regions": coverage_by_region(
                    images.truth,
                    images.predicted,
                    regions,
                    multiplier=intervals.multipliers[target],
                    floor=intervals.floor,
                )
            }
            for target, images in drawn.items()
        }
    for order in ORDERS:
        rows[order] = {t: kept(images, regions["brain"], order) for t, images in drawn.items()}
    return {row: {CONVENTION: targets} for row, targets in rows.items()}


def kept(images: Drawn, brain: np.ndarray, order: str) -> dict[str, float]:
    """Mean absolute error of the most certain shares of a brain, and the area under the curve."""
    errors = np.abs(images.truth - images.predicted.mean)[brain]
    by = {
        "deviation": images.predicted.above[brain],
        "best possible": errors,
        "random": np.zeros_like(errors),
    }
    curve = risk_coverage(errors, by[order], SHARES)
    risks = {f"{share:.2f}": float(risk) for share, risk in zip(SHARES, curve.risk, strict=True)}
    return risks | {"area": curve.area}


# What it says


def values(
    patients: pd.DataFrame, row: str, target: str, metric: str, region: str = WHOLE
) -> pd.Series:
    """One number a patient, from what `per_patient` gives; NaN where no patient has one."""
    return patients.get((row, target, region, metric), pd.Series(np.nan, patients.index))


def widening_sentence(patients: pd.DataFrame, target: str) -> str:
    """Whether intervals widen in enhancing tumor as the error grows there, beside healthy brain."""
    logs = [
        np.log(values(patients, MAIN, target, metric, "enhancing_tumor"))
        - np.log(values(patients, MAIN, target, metric, "healthy"))
        for metric in ("mae", "width")
    ]
    error, width, more = summarize(logs[0]), summarize(logs[1]), summarize(logs[1] - logs[0])
    if not width.n:
        return f"{target}: no patient has an enhancing tumor."
    head = (
        f"{target}: in enhancing tumor the error is {_ratio(error)} times that of healthy "
        f"brain and the interval {_ratio(width)} times as wide ({width.n} patients)."
    )
    covered = [
        values(patients, MAIN, target, "coverage", region).mean()
        for region in ("enhancing_tumor", "healthy")
    ]
    tail = f"It covers {covered[0]:.1%} of enhancing tumor, {covered[1]:.1%} of healthy brain."
    if _side(error) != "more":
        return f"{head} The truth is not missed more there. {tail}"
    widens = {
        "more": "It widens where the truth is missed",
        "less": "It does NOT widen where the truth is missed, it narrows",
        "alike": "It does NOT widen noticeably where the truth is missed",
    }[_side(width)]
    against = {
        "more": "and by more than the error grows",
        "less": "and by less than the error grows",
        "alike": "as the error grows",
    }[_side(more)]
    return f"{head} {widens}{', ' + against if _side(width) == 'more' else ''}. {tail}"


def _side(found: Summary) -> str:
    """Where zero lies: "more" if the whole interval is above it, "less" if below."""
    low, high = found.interval or (0.0, 0.0)
    return "more" if low > 0 else "less" if high < 0 else "alike"


def _ratio(logs: Summary) -> str:
    """A ratio with its interval, from its logarithm's."""
    ends = logs.interval and (math.exp(logs.interval[0]), math.exp(logs.interval[1]))
    return with_interval(dataclasses.replace(logs, mean=math.exp(logs.mean), interval=ends), ".2f")


def order_sentence(patients: pd.DataFrame, target: str) -> str:
    """Whether the deviation tells where the error is."""
    areas = {order: values(patients, order, target, "area") for order in ORDERS}
    means = {order: area.mean() for order, area in areas.items()}
    gain = (means["random"] - means["deviation"]) / (means["random"] - means["best possible"])
    verdict = {
        "less": "tells where the error is better than chance",
        "more": "tells where the error is WORSE than chance",
        "alike": "does NOT tell where the error is better than chance",
    }[_side(summarize(areas["deviation"] - areas["random"]))]
    half, every = (values(patients, "deviation", target, n).mean() for n in ("0.50", "1.00"))
    return (
        f"{target}: the samples' deviation {verdict}: kept by it, the most certain half of a brain "
        f"has an error of {half:.4f}, the whole {every:.4f}; of the area that the best possible "
        f"order gains over a random one it gains {gain:.0%}."
    )


def flat_sentence(patients: pd.DataFrame, target: str) -> str:
    """What the deviation does for the width, beside intervals that are as wide everywhere."""
    ours, flat = (values(patients, row, target, "width", "brain") for row in (MAIN, FLAT))
    covered = [values(patients, row, target, "coverage", "brain").mean() for row in (MAIN, FLAT)]
    word = {
        "more": "wider than intervals of one width, so that the deviation costs more than it helps",
        "less": "narrower than intervals of one width, so that the deviation helps",
        "alike": "as wide as intervals of one width",
    }[_side(summarize(ours - flat))]
    return (
        f"{target}: by the deviation intervals are {word} ({ours.mean():.3f} against "
        f"{flat.mean():.3f}; they cover {covered[0]:.1%} and {covered[1]:.1%})."
    )


def coverage_sentence(patients: pd.DataFrame, row: str, intervals: Intervals) -> str:
    """What was promised and what was met."""
    words = {"more": "above the level", "less": "BELOW the level", "alike": "as the level says"}
    found = []
    for target in intervals.multipliers:
        coverage = values(patients, row, target, "coverage", "brain")
        word = words[_side(summarize(coverage - intervals.level))]
        found.append(f"{target} {with_interval(summarize(coverage), '.3f')}, {word}")
    covered = f"{row}: unseen patients' brains are covered {'; '.join(found)}."
    return f"{covered} {intervals.guarantee[:1].upper()}{intervals.guarantee[1:]}."


# How it is shown


def coverage_table(
    patients: pd.DataFrame, row: str, target: str, metrics: Mapping[str, str] = METRICS
) -> pd.DataFrame:
    """Texts: a region each, means over patients with 95 % intervals, each metric in its format."""
    lines = []
    for region in REGIONS:
        found = {m: summarize(values(patients, row, target, m, region)) for m in metrics}
        texts = {metric: with_interval(found[metric], form) for metric, form in metrics.items()}
        lines.append(texts | {"patients": str(found["coverage"].n)})
    table = pd.DataFrame(lines, index=pd.Index(REGIONS.values(), name=f"{target}, {row}"))
    return table.rename(columns={"mae": "error (MAE)"})


def order_table(patients: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """Texts: the error of what is kept, for each order of the voxels."""
    shares = {f"{float(s):.0%} kept": s for s in ("0.25", "0.50", "0.75", "1.00")}
    rows = [(target, order) for target in targets for order in ORDERS]
    cells = {
        heading: [
            with_interval(summarize(values(patients, order, target, name)), ".4f")
            for target, order in rows
        ]
        for heading, name in {**shares, "area": "area"}.items()
    }
    return pd.DataFrame(cells, index=pd.Index(map(", ".join, rows), name="kept by"))


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    patients = per_patient(content["records"], CONVENTION)
    fitted = {row: Intervals.from_json(one) for row, one in content["intervals"].items()}
    targets = list(fitted[MAIN].multipliers)
    parts = [
        "# What the samples' deviation is worth",
        f"Made by `{content['command']}`.",
        "## Does the interval widen where the truth is missed?",
        *(widening_sentence(patients, target) for target in targets),
        "## Do they cover what they should?",
        *(coverage_sentence(patients, row, one) for row, one in fitted.items()),
        f"{PREMISE}.",
        *(to_markdown(coverage_table(patients, row, t)) for row in ROWS for t in targets),
        "## Does the deviation tell where the error is?",
        *(say(patients, t) for t in targets for say in (order_sentence, flat_sentence)),
        to_markdown(order_table(patients, targets)),
        "![Coverage by region, and risk-coverage curves](uncertainty.png)",
        "Means over test patients, 95 % bootstrap intervals over patients in brackets. Units of "
        "[0, 1], where a truth's own 99.5th percentile is 1. Ratios are geometric means. Area: the "
        "error of what is kept, averaged over all shares.",
    ]
    return "\n\n".join(parts) + "\n"


def draw(content: Mapping[str, Any]) -> Figure:
    """Coverage by region above, risk-coverage curves below, a column for each target."""
    patients = per_patient(content["records"], CONVENTION)
    targets = list(content["intervals"][MAIN]["multipliers"])
    figure = Figure(figsize=(PAGE_WIDTH, 6), layout="constrained")
    axes = figure.subplots(2, len(targets), squeeze=False, sharey="row")
    for column, target in enumerate(targets):
        _draw_coverage(axes[0, column], patients, target)
        _draw_risk(axes[1, column], patients, target)
    axes[0, 0].set_ylabel("share of voxels within the interval")
    axes[1, 0].set_ylabel("mean absolute error of what is kept")
    axes[1, 0].set_ylim(bottom=0)  # shared, so only once all curves are there
    return figure


def _draw_coverage(axis: Axes, patients: pd.DataFrame, target: str) -> None:
    """A point a region with its 95 % interval over patients."""
    for shift, row, color in ((-0.12, MAIN, COLORS[5]), (0.12, FLAT, COLORS[1])):
        cells = [summarize(values(patients, row, target, "coverage", r)) for r in REGIONS]
        present = [(place, cell) for place, cell in enumerate(cells) if cell.n]
        for place, cell in present:
            axis.plot([place + shift] * 2, cell.interval or [cell.mean] * 2, color=color, lw=1.5)
        places = [place + shift for place, _ in present]
        axis.plot(places, [cell.mean for _, cell in present], "o", color=color, label=row)
    axis.axhline(ROWS[MAIN][0], color="black", lw=0.8, ls="--", label="nominal")
    axis.set_xticks(range(len(REGIONS)), [n.replace(" ", "\n") for n in REGIONS.values()])
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylim(0, 1.02)
    axis.set_title(target)
    axis.legend(fontsize=8, loc="lower left")


def _draw_risk(axis: Axes, patients: pd.DataFrame, target: str) -> None:
    """The error of the kept share in each order."""
    styles = {"deviation": "-", "best possible": "--", "random": ":"}
    for (order, style), color in zip(styles.items(), (5, 3, 0), strict=True):
        risks = [values(patients, order, target, f"{share:.2f}").mean() for share in SHARES]
        label = f"kept by {order}" if style == "-" else order
        axis.plot(SHARES, risks, style, color=COLORS[color], label=label)
    axis.set_xlabel("share of the brain that is kept")
    axis.legend(fontsize=8)


def show(study: Study) -> None:
    """Prints the tables and writes them and the figure, from the record."""
    content = study.load(NAME)
    study.save_figure(NAME, draw(content))
    study.save_text(NAME, report(content))


if __name__ == "__main__":
    main(None, __doc__, measure, show)
