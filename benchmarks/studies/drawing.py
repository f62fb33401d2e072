"""One picture of the record of `benchmarks.efficiency`: a panel a study that has been made."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.parts.rows import Row
from benchmarks.studies.limits import PRODUCT, READING, highest
from experiments.study import COLORS, PAGE_WIDTH

TEXT = 7  # points, legible in print
HEIGHT = 3.1  # inches of a row of panels
COLUMNS = 2
MARKERS = "osD^v"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")  # for print in gray
PHASES = ("imports", "state", "compile", "step")


def draw(content: Row) -> matplotlib.figure.Figure:
    """The panels, two a row."""
    studies = content["studies"]
    drawn = {
        name: [row for row in studies[name]["rows"] if not {"error", "skipped"} & set(row)]
        for name in PANELS
        if name in studies
    }
    drawn = {name: rows for name, rows in drawn.items() if rows}
    lines = max(1, -(-len(drawn) // COLUMNS))
    figure = matplotlib.figure.Figure(figsize=(PAGE_WIDTH, HEIGHT * lines), layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(drawn) :]:
        axis.remove()
    for letter, axis, (name, rows) in zip("abcdefghi", axes, drawn.items(), strict=False):
        title, panel = PANELS[name]
        panel(axis, rows)
        axis.set_title(f"({letter}) {title}", fontsize=TEXT + 1)
        axis.tick_params(labelsize=TEXT)
    return figure


def _grouped(
    axis: Axes, rows: Sequence[Row], group: Callable[[Row], str], bar: Callable[[Row], str], of: str
) -> None:
    """Horizontal bars on a logarithmic axis: a group of bars for each case."""
    groups = list(dict.fromkeys(map(group, rows)))
    bars = list(dict.fromkeys(map(bar, rows)))
    height = 0.85 / len(bars)
    looks = zip(bars, itertools.cycle(COLORS[1:]), itertools.cycle(HATCHES), strict=False)
    for number, (name, color, hatch) in enumerate(looks):
        own = [row for row in rows if bar(row) == name]
        places = [groups.index(group(row)) + height * (number - (len(bars) - 1) / 2) for row in own]
        axis.barh(
            places,
            [row[of] for row in own],
            height,
            label=name,
            color=color,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.4,
        )
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    _logarithmic(axis)
    _legend_below(axis)


def _logarithmic(axis: Axes) -> None:
    """A horizontal axis with a number at every 1 and 3."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend_below(axis: Axes, **options: Any) -> None:
    """A legend that hides nothing, and has room to the left where it is wider than the axis."""
    place: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.2)}
    look: dict[str, Any] = {"fontsize": TEXT - 1, "ncols": 2, "frameon": False}
    axis.legend(handlelength=1.5, columnspacing=0.8, **look, **place, **options)


def _case(row: Row) -> str:
    return f"{row['stage']}\n{row['scale']}, {row['batch']}"


def _libraries(axis: Axes, rows: Sequence[Row]) -> None:
    _grouped(axis, rows, _case, lambda row: f"{row['library']}, {row['mode']}", "slices_per_second")
    axis.set_xlabel("slices a second", fontsize=TEXT)


def _roofline(axis: Axes, rows: Sequence[Row]) -> None:
    """Operations a second against operations a byte, below the machine's peaks."""
    peak = highest(rows, PRODUCT, "gflop_per_second")
    width = highest(rows, READING, "gb_per_second")
    programs = [row for row in rows if "intensity" in row]
    if not (programs and peak and width):
        return
    reach = [row["intensity"] for row in programs] + [peak / width]
    x = np.geomspace(min(reach) / 3, max(reach) * 3, 100)
    axis.plot(x, np.minimum(peak, x * width), color="black", linewidth=1.2)
    looks = zip(programs, itertools.cycle(COLORS[1:]), itertools.cycle(MARKERS), strict=False)
    for row, color, marker in looks:
        label = f"{row['what']}, {row['scale']}, {row['batch']}"
        place = row["intensity"], row["gflop_per_second"]
        edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.4, "zorder": 3}
        axis.scatter(*place, color=color, marker=marker, s=22, label=label, **edge)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations a byte", fontsize=TEXT)
    axis.set_ylabel("Gflop/s", fontsize=TEXT)
    _legend_below(axis)


def _metrics(axis: Axes, rows: Sequence[Row]) -> None:
    _grouped(axis, rows, lambda row: row["metric"], lambda row: row["library"], "milliseconds")
    axis.set_xlabel("ms a volume", fontsize=TEXT)


def _loading(axis: Axes, rows: Sequence[Row]) -> None:
    names = [row["loader"].replace(", ", "\n") for row in rows]
    colors = [COLORS[3] if row["library"] == "cdm_jax" else COLORS[1] for row in rows]
    rates = [row["slices_per_second"] for row in rows]
    axis.barh(names, rates, color=colors, edgecolor="black", linewidth=0.4)
    axis.invert_yaxis()
    _logarithmic(axis)
    axis.set_xlabel("slices a second", fontsize=TEXT)


def _frames(axis: Axes, rows: Sequence[Row]) -> None:
    for system, color, marker in (("CDM", COLORS[5], "o"), ("Diffusion", COLORS[6], "s")):
        own = [row for row in rows if row["system"] == system]
        rates = [row["frames_per_second"] for row in own]
        axis.plot([row["N"] for row in own], rates, color=color, marker=marker, label=system)
    axis.set_yscale("log")
    axis.set_xlabel("sampling steps N", fontsize=TEXT)
    axis.set_ylabel("slices a second", fontsize=TEXT)
    axis.legend(fontsize=TEXT)


def _start(axis: Axes, rows: Sequence[Row]) -> None:
    names = [f"{row['scale']}, {row['cache']}" for row in rows]
    left = np.zeros(len(rows))
    for phase, color, hatch in zip(PHASES, COLORS[1:], HATCHES, strict=False):
        seconds = np.array([row[phase] for row in rows])
        look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "black"}
        axis.barh(names, seconds, left=left, label=phase, linewidth=0.4, **look)
        left += seconds
    axis.invert_yaxis()
    axis.set_xlabel("seconds to the end of the first step", fontsize=TEXT)
    _legend_below(axis)


def _growth(axis: Axes, rows: Sequence[Row]) -> None:
    """Time against each size, relative to the smallest; the exponents are in the legend."""
    for name, color, marker in zip(
        dict.fromkeys(row["grows"] for row in rows), COLORS[1:], MARKERS, strict=False
    ):
        own = [row for row in rows if row["grows"] == name]
        points = [row for row in own if "milliseconds" in row]
        slope = next((row["exponent_of_time"] for row in own if "exponent_of_time" in row), None)
        label = name if slope is None else f"{name}: {slope:.2f}"
        sizes = [row["value"] / points[0]["value"] for row in points]
        times = [row["milliseconds"] / points[0]["milliseconds"] for row in points]
        axis.plot(sizes, times, color=color, marker=marker, markersize=4, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.set_minor_formatter(NullFormatter())
    axis.set_xlabel("size / smallest", fontsize=TEXT)
    axis.set_ylabel("time / shortest", fontsize=TEXT)
    _legend_below(axis, title="exponent of time", title_fontsize=TEXT - 1)


PANELS: Mapping[str, tuple[str, Callable[[Axes, Sequence[Row]], None]]] = {
    "training": ("training steps", _libraries),
    "sampling": ("sampling", _libraries),
    "roofline": ("against the machine's limits", _roofline),
    "metrics": ("scores of a volume", _metrics),
    "loading": ("training input; CacheDataset is MONAI's", _loading),
    "frames": ("CDM and Diffusion, 64 channels", _frames),
    "start": ("start-up", _start),
    "growth": ("growth", _growth),
}
