"""Figure 5: (a) slices a second against N, (b, c) PSNR and SSIM against the number of parameters.

  python -m experiments.figure5 --dataset=phantom --small
  python -m experiments.figure5 --dataset=brats --root=<folder>

(a) is of CDM and Diffusion, the area of a bubble its PSNR; both are timed on the same device. (b)
and (c) are of all systems of Table I; parameters are those that a translation uses. The paper says
that CDM has a smaller parameter scale: at 256x256 it has 19.3 million, fewer than ResViT, Pix2pix
and Diffusion, but more than the 11.4 million of the ResNet-9 systems.
"""

from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from cdm_jax.methods import base
from cdm_jax.records import AVERAGE, WHOLE, Record, per_patient
from cdm_jax.shapes import create, example, inference_parameters, start
from experiments.study import COLORS, PAGE_WIDTH, Study, main
from experiments.sweep import STEPS, sweep
from experiments.table1 import HEADLINES, ROWS, SYSTEMS

CONVENTION = "volume"
SWEPT = {"cunet": "CDM", "diffusion": "Diffusion"}
SHAPES = "osD^vP*X<"  # for print in gray
TEXT = 7
BUBBLE = 25  # points squared for the smallest bubble; each dB more adds as much


def measure(study: Study) -> None:
    """Times CDM and Diffusion for every N, and counts parameters."""
    study.run(SYSTEMS, ROWS)
    sweep(study, tuple(SWEPT), study.command("figure5"))
    config = study.config("all")
    counts = {}
    for stage in HEADLINES:
        method = create(config, stage)
        if isinstance(method, base.Translator):
            state = start(config, stage, example(config, 1))
            counts[stage] = inference_parameters(method, state, example(config, 1))
    content = {"command": study.command("figure5"), "size": config.data.size, "parameters": counts}
    study.save("figure5", content)


def show(study: Study) -> None:
    """Draws the figure from the records."""
    figure = draw(
        study.load("sampling"),
        study.load("figure5")["parameters"],
        study.load("systems")["records"],
    )
    study.save_figure("figure5", figure)


def draw(
    sampling: dict, counts: dict[str, int], records: Sequence[Record]
) -> matplotlib.figure.Figure:
    """The three panels, from the sweep, the parameters of each stage and the systems' records."""
    figure = matplotlib.figure.Figure(figsize=(PAGE_WIDTH, 3), layout="constrained")
    speed, psnr, ssim = figure.subplots(1, 3)
    draw_speed(speed, sampling)
    for axis, metric, label in ((psnr, "psnr", "PSNR, dB"), (ssim, "ssim", "SSIM")):
        draw_parameters(axis, records, counts, metric, label)
    handles, labels = psnr.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=TEXT)
    return figure


def mean_of(records: Sequence[Record], row: str, metric: str) -> float:
    """Mean over patients, targets averaged."""
    return per_patient(records, CONVENTION)[row, AVERAGE, WHOLE, metric].mean()


def draw_speed(axis: Axes, content: dict) -> None:
    """(a) Slices a second against N; a bubble's area grows with the PSNR of one sample."""
    points = {
        stage: [
            (steps, 1 / row["seconds_a_slice"], mean_of(row["records"], stage, "psnr"))
            for steps in STEPS
            if (row := content["systems"][stage].get(str(steps)))
        ]
        for stage in SWEPT
    }
    lowest = min(psnr for found in points.values() for *_, psnr in found)
    looks = ((COLORS[5], 1, "bottom"), (COLORS[6], -1, "top"))  # numbers above, numbers below
    for (stage, found), (color, side, anchor) in zip(points.items(), looks, strict=True):
        steps, rates, values = (np.array(column) for column in zip(*found, strict=True))
        axis.plot(steps, rates, color=color, linewidth=1.5, label=SWEPT[stage])
        area = BUBBLE * (1 + values - lowest)
        axis.scatter(steps, rates, s=area, color=color, alpha=0.8)
        for (n, rate, value), radius in zip(found, np.sqrt(area / np.pi), strict=True):
            axis.annotate(
                f"{value:.1f}",
                *((n, rate), (0, side * (radius + 2))),
                textcoords="offset points",
                ha="center",
                va=anchor,
                fontsize=TEXT,
            )
    axis.set_yscale("log")
    axis.margins(0.2)
    axis.set_xlabel("sampling steps N", fontsize=TEXT)
    axis.set_ylabel(f"slices a second\non {content['device']}", fontsize=TEXT)
    axis.set_title("(a) speed; areas: PSNR in dB", fontsize=TEXT)
    axis.legend(fontsize=TEXT, loc="lower left")
    axis.tick_params(labelsize=TEXT)


def draw_parameters(
    axis: Axes, records: Sequence[Record], counts: dict[str, int], metric: str, label: str
) -> None:
    """(b), (c) A metric against the parameters that a translation uses."""
    for place, (stage, row) in enumerate(HEADLINES.items()):
        if stage not in counts or row not in records[0]["rows"]:
            continue
        axis.scatter(
            counts[stage] / 1e6,
            mean_of(records, row, metric),
            color=COLORS[place % len(COLORS)],
            marker=SHAPES[place % len(SHAPES)],
            edgecolors="black",
            linewidths=0.5,
            s=55,
            label=ROWS[row],
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("parameters, millions", fontsize=TEXT)
    axis.set_ylabel(f"{label} ({AVERAGE}, {CONVENTION})", fontsize=TEXT)
    axis.set_title(f"({'b' if metric == 'psnr' else 'c'}) {metric.upper()} and size", fontsize=TEXT)
    axis.tick_params(labelsize=TEXT, which="both")


if __name__ == "__main__":
    main(None, __doc__, measure, show)
