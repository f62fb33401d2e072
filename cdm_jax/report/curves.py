"""Training curves: the lines of `metrics.jsonl` in, SVG out."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import matplotlib.figure
import pandas as pd

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
    """A picture of a stage's training, and in words where its curves start and end."""

    title: str
    text: str
    svg: str


def curves(stage: str, lines: Sequence[Line]) -> list[Curve]:
    """Draws the losses of the stage of this name, and its validation metrics where it has any."""
    if not lines:
        return []
    measured = pd.DataFrame(lines).set_index("step").replace([math.inf, -math.inf], math.nan)
    groups: dict[str, dict[str, pd.Series]] = {}
    for name, values in measured.dropna(axis="columns", how="all").items():
        if name in UNWANTED or name.startswith(FINAL):
            continue
        metric = name.removeprefix(VALIDATION)
        kind = metric.partition("_")[0]
        validates = name != metric and "loss" not in metric and "error" not in metric
        shown = kind.upper() if kind in DECIMALS else kind
        title = f"validation {shown}" if validates else "losses"
        label = name.replace(VALIDATION, "validation ").replace("_", " ")
        groups.setdefault(title, {})[label] = values.dropna()
    return [_curve(f"{stage}: {title}", shown) for title, shown in groups.items()]


def final_values(lines: Sequence[Line]) -> dict[str, str]:
    """What was measured once, after the last step: name to text."""
    return {
        name.removeprefix(FINAL).replace("_", " "): f"{value:.3g}"
        for line in lines
        for name, value in line.items()
        if name.startswith(FINAL)
    }


def _curve(title: str, series: Mapping[str, pd.Series]) -> Curve:
    """One picture of a few series, each with the steps as its index."""
    ends = (f"{name} from {s.iloc[0]:.3g} to {s.iloc[-1]:.3g}" for name, s in series.items())
    first = min(values.index[0] for values in series.values())
    last = max(values.index[-1] for values in series.values())
    text = f"Steps {first} to {last}: {'; '.join(ends)}."
    return Curve(title=title, text=text, svg=_draw(title, series))


def _draw(title: str, series: Mapping[str, pd.Series]) -> str:
    figure = matplotlib.figure.Figure(figsize=(4.4, 2.9), layout="constrained")
    axis = figure.subplots()
    for number, (label, values) in enumerate(series.items()):
        color, dashes = STYLES[number % len(STYLES)]
        marker = "o" if len(values) < 30 else None
        axis.plot(values, color=color, linestyle=dashes, label=label, marker=marker, markersize=2.5)
    if "loss" in title and min(values.min() for values in series.values()) > 0:
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
