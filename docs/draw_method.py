"""Draws the figure of the method: what is trained when, and what is known at test time.

  python docs/draw_method.py

Writes `docs/method.svg` and `docs/method.png`.
"""

import dataclasses
import pathlib

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

HERE = pathlib.Path(__file__).parent
# Fill and edge of what a box is.
SOURCE = ("#d6e6f5", "#2b6ca3")
TARGET = ("#fbe3c8", "#c46a00")
TRAINED = ("#d5edd8", "#2e7d3a")
FROZEN = ("#e6e6e6", "#777777")
VECTOR = ("#ffffff", "#555555")
INK, FAINT = "#222222", "#666666"
LEGEND = {
    "sources (always there)": SOURCE,
    "targets (true ones: only in training)": TARGET,
    "network, trained in this stage": TRAINED,
    "network, frozen": FROZEN,
    "vector or noise": VECTOR,
}


@dataclasses.dataclass(frozen=True)
class Box:
    """A drawn box: its center and half its size."""

    x: float
    y: float
    half_width: float
    half_height: float

    def side(self, name: str) -> tuple[float, float]:
        """The middle of the left, right, top or bottom."""
        across = {"left": -self.half_width, "right": self.half_width}.get(name, 0.0)
        up = {"bottom": -self.half_height, "top": self.half_height}.get(name, 0.0)
        return self.x + across, self.y + up


def rounded(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], radius: float, **look
) -> None:
    """A rectangle with round corners, the first of them at the lower left."""
    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, **look))


def box(
    axes: Axes, x: float, y: float, text: str, kind: tuple[str, str], size: tuple[float, float]
) -> Box:
    """A labeled box around (x, y)."""
    (width, height), (fill, edge) = size, kind
    corner = (x - width / 2, y - height / 2)
    rounded(axes, corner, size, 0.09, facecolor=fill, edgecolor=edge, linewidth=1.2)
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.25)
    return Box(x, y, width / 2, height / 2)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str = INK,
    dashed: bool = False,
    bend: float = 0.0,
) -> None:
    """An arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=10,
            linewidth=1.1,
            color=color,
            linestyle="--" if dashed else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=1,
            shrinkB=1,
        )
    )


def note(axes: Axes, x: float, y: float, text: str, *, color: str = FAINT, **options) -> None:
    """A small remark."""
    axes.text(x, y, text, fontsize=7.5, color=color, linespacing=1.3, **{"ha": "center"} | options)


def panel(axes: Axes, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
    """A frame with a title."""
    look = {"facecolor": "#fafafa", "edgecolor": "#cccccc", "linewidth": 1, "zorder": 0}
    rounded(axes, (x[0], y[0]), (x[1] - x[0], y[1] - y[0]), 0.12, **look)
    axes.text(x[0] + 0.15, y[1] - 0.14, title, fontsize=9.5, weight="bold", va="top", color=INK)


def draw_mrm(axes: Axes) -> None:
    """Stage 1: masked targets are restored."""
    panel(axes, "1  MRM learns to encode targets", (0.1, 3.5), (3.55, 7.35))
    targets = box(axes, 1.0, 5.9, "T1c, T2f", TARGET, (1.1, 0.55))
    encoder = box(axes, 2.6, 5.9, "encoder FE", TRAINED, (1.2, 0.55))
    decoder = box(axes, 2.6, 4.75, "decoder FD", TRAINED, (1.2, 0.55))
    restored = box(axes, 1.0, 4.75, "restored\nT1c, T2f", TARGET, (1.1, 0.6))
    arrow(axes, targets.side("right"), encoder.side("left"))
    note(axes, 1.0, 6.32, "60 % of the cells hidden,\neach modality by itself", va="bottom")
    arrow(axes, encoder.side("bottom"), decoder.side("top"))
    arrow(axes, decoder.side("left"), restored.side("right"))
    arrow(axes, restored.side("top"), targets.side("bottom"), color=FAINT, dashed=True)
    note(axes, 1.08, 5.33, "loss, Eq. 1", ha="left", va="center")
    note(
        axes,
        1.8,
        3.72,
        "Afterward: y = mean token of the\nunmasked targets, one vector a slice",
        va="bottom",
    )


def draw_mdn(axes: Axes) -> None:
    """Stage 2: noised representations are restored."""
    panel(axes, "2  MDN learns to sample y", (3.65, 7.45), (3.55, 7.35))
    targets = box(axes, 4.45, 6.3, "T1c, T2f", TARGET, (1.05, 0.5))
    encoder = box(axes, 6.2, 6.3, "encoder FE", FROZEN, (1.2, 0.5))
    noised = box(axes, 4.6, 5.3, "y + noise = $y_t$", VECTOR, (1.4, 0.5))
    mdn = box(axes, 6.45, 5.3, "MDN: a tower\na modality", TRAINED, (1.3, 0.62))
    sources = box(axes, 4.45, 4.25, "T1, T2", SOURCE, (1.05, 0.5))
    condition = box(axes, 6.45, 4.25, "source encoder", TRAINED, (1.3, 0.5))
    arrow(axes, targets.side("right"), encoder.side("left"))
    arrow(axes, encoder.side("bottom"), (noised.x + 0.35, noised.y + 0.25))
    note(axes, 5.42, 5.86, "y", va="center", color=INK)
    arrow(axes, noised.side("right"), mdn.side("left"))
    arrow(axes, sources.side("right"), condition.side("left"))
    arrow(axes, condition.side("top"), mdn.side("bottom"), dashed=True)
    arrow(axes, (6.85, 5.61), (6.55, 6.05), color=FAINT, dashed=True)
    note(axes, 6.8, 5.84, "loss\nagainst y", ha="left", va="center")
    note(axes, 6.35, 4.72, "not in the paper", ha="right", va="center")
    note(axes, 5.55, 3.66, "Afterward: its error is measured on validation patients", va="bottom")


def draw_cunet(axes: Axes) -> None:
    """Stage 3: sources and a noised representation become targets."""
    panel(axes, "3  C-UNet learns to synthesize", (7.6, 11.4), (3.55, 7.35))
    targets = box(axes, 8.4, 6.3, "T1c, T2f", TARGET, (1.05, 0.5))
    encoder = box(axes, 10.4, 6.3, "encoder FE", FROZEN, (1.2, 0.5))
    y = box(axes, 10.4, 5.4, "y + MDN's error", VECTOR, (1.4, 0.45))
    cunet = box(axes, 9.95, 4.4, "C-UNet, y at\nevery scale", TRAINED, (1.35, 0.62))
    sources = box(axes, 8.25, 4.4, "T1, T2", SOURCE, (0.95, 0.5))
    arrow(axes, targets.side("right"), encoder.side("left"))
    arrow(axes, encoder.side("bottom"), y.side("top"))
    arrow(axes, y.side("bottom"), (10.2, 4.71))
    arrow(axes, sources.side("right"), cunet.side("left"))
    arrow(axes, (9.6, 4.71), (8.6, 6.05), color=FAINT, dashed=True)
    note(axes, 8.85, 5.35, "loss, Eq. 4", ha="right", va="center")
    note(axes, 9.5, 3.66, "M1 is this UNet without y", va="bottom")


def draw_test(axes: Axes) -> None:
    """What is there when targets are missing, and the leak."""
    panel(axes, "Test: the targets are missing", (0.1, 11.4), (0.75, 3.4))
    sources = box(axes, 0.95, 1.95, "T1, T2", SOURCE, (1.0, 0.5))
    condition = box(axes, 2.75, 1.95, "source encoder", FROZEN, (1.3, 0.5))
    mdn = box(axes, 4.75, 1.95, "MDN", FROZEN, (1.0, 0.62))
    noise = box(axes, 4.75, 2.9, "noise $y_T$", VECTOR, (1.0, 0.42))
    y = box(axes, 6.55, 1.95, "sampled y", VECTOR, (1.05, 0.45))
    cunet = box(axes, 8.35, 1.95, "C-UNet", FROZEN, (1.0, 0.62))
    output = box(axes, 10.35, 1.95, "synthetic\nT1c, T2f", TARGET, (1.25, 0.62))
    oracle = box(axes, 6.55, 2.9, "y of the true targets", VECTOR, (1.5, 0.42))
    arrow(axes, sources.side("right"), condition.side("left"))
    arrow(axes, condition.side("right"), mdn.side("left"), dashed=True)
    arrow(axes, noise.side("bottom"), mdn.side("top"))
    arrow(axes, mdn.side("right"), y.side("left"))
    note(axes, 5.64, 1.66, "DDIM,\nN steps", va="top")
    arrow(axes, y.side("right"), cunet.side("left"))
    arrow(axes, cunet.side("right"), output.side("left"))
    axes.plot([0.95, 0.95, 8.35], [1.7, 1.08, 1.08], color=INK, linewidth=1.1)
    arrow(axes, (8.35, 1.08), cunet.side("bottom"))
    arrow(axes, oracle.side("right"), (8.2, 2.27), color="#b00020", dashed=True, bend=-0.15)
    note(
        axes, 8.35, 2.8, "oracle: a leak, shown only as an upper bound", color="#b00020", ha="left"
    )
    note(axes, 10.35, 1.5, "K samples of y give K images", va="top")


def draw() -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(11.5, 7.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.5), ylim=(0.1, 7.5), aspect="equal")
    axes.axis("off")
    for part in (draw_mrm, draw_mdn, draw_cunet, draw_test):
        part(axes)
    handles = [
        Patch(facecolor=fill, edgecolor=edge, label=label) for label, (fill, edge) in LEGEND.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Writes both files, the same bytes every time."""
    with matplotlib.rc_context({"svg.hashsalt": "method", "svg.fonttype": "path"}):
        figure = draw()
        figure.savefig(HERE / "method.svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(HERE / "method.png", dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
