"""Training curves: the lines of `metrics.jsonl` in, SVG out."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import matplotlib.figure

from cdm_jax.report.tables import DECIMALS

Line = Mapping[str, int | float]
"""One line of `metrics.jsonl`: "step" and named values."""

VALIDATION = "validation/"
FINAL = "final/"  # measured once, after the last step
UNWANTED = ("step", "gradient_norm", "learning_rate")
# Okabe and Ito's colors and different dashes: told apart without color as well.
STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#8A4F7D", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One picture of a stage's training.

    Attributes:
        title: of the picture.
        text: where the curves start and end, in words; also for screen readers.
        svg: the picture.
    """

    title: str
    text: str
    svg: str


def curves(stage: str, lines: Sequence[Line]) -> list[Curve]:
    """Draws a stage's losses, and its validation metrics where it has any.

    Args:
        stage: its name.
        lines: of its `metrics.jsonl`.
    """
    names = dict.fromkeys(
        name
        for line in lines
        for name in line
        if name not in UNWANTED and not name.startswith(FINAL)
    )
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        metric = name.removeprefix(VALIDATION)
        kind = metric.partition("_")[0]
        validates = name != metric and not _is_loss(metric)
        shown = kind.upper() if kind in DECIMALS else kind
        title = f"validation {shown}" if validates else "losses"
        groups.setdefault(title, {})[name] = _label(name)
    drawn = (_curve(f"{stage}: {title}", lines, shown) for title, shown in groups.items())
    return [curve for curve in drawn if curve is not None]


def final_values(lines: Sequence[Line]) -> dict[str, str]:
    """What was measured once, after the last step: name to text."""
    return {
        name.removeprefix(FINAL).replace("_", " "): f"{value:.3g}"
        for line in lines
        for name, value in line.items()
        if name.startswith(FINAL)
    }


def _is_loss(metric: str) -> bool:
    return "loss" in metric or "error" in metric


def _label(name: str) -> str:
    return name.replace(VALIDATION, "validation ").replace("_", " ")


def _curve(title: str, lines: Sequence[Line], shown: Mapping[str, str]) -> Curve | None:
    series = {
        label: [
            (float(line["step"]), float(line[name]))
            for line in lines
            if name in line and math.isfinite(line[name])
        ]
        for name, label in shown.items()
    }
    series = {label: points for label, points in series.items() if points}
    if not series:
        return None
    ends = (
        f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for label, points in series.items()
    )
    steps = [step for points in series.values() for step, _ in points]
    text = f"Steps {min(steps):.0f} to {max(steps):.0f}: {'; '.join(ends)}."
    return Curve(title=title, text=text, svg=_draw(title, series))


def _draw(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    figure = matplotlib.figure.Figure(figsize=(4.4, 2.9), layout="constrained")
    axis = figure.subplots()
    for number, (label, points) in enumerate(series.items()):
        color, dashes = STYLES[number % len(STYLES)]
        marker = "o" if len(points) < 30 else None
        axis.plot(
            *zip(*points, strict=True),
            color=color,
            linestyle=dashes,
            label=label,
            marker=marker,
            markersize=2.5,
        )
    values = [y for points in series.values() for _, y in points]
    if "loss" in title and min(values) > 0:
        axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
