"""A picture of one patient: a few axial slices of each volume side by side."""

import pathlib
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.files import replacing
from cdm_jax.metrics.regions import bounding_box

NUM_SLICES = 5


def slices_to_show(brain: Bool[np.ndarray, "z y x"], count: int) -> list[int]:
    """Axial slices evenly spaced through the middle 60 % of the brain."""
    filled = np.flatnonzero(brain.any(axis=(1, 2)))
    return np.quantile(filled, np.linspace(0.2, 0.8, count)).round().astype(int).tolist()


def save_overview(
    path: pathlib.Path,
    panels: Sequence[tuple[str, Float[np.ndarray, "z y x"]]],
    brain: Bool[np.ndarray, "z y x"],
) -> None:
    """Writes a PNG: a column for each title and volume of [0, 1], a row for each of some slices."""
    rows = slices_to_show(brain, NUM_SLICES)
    _, y, x = bounding_box(brain, 0)
    figure = matplotlib.figure.Figure(
        figsize=(1.8 * len(panels), 2.1 * len(rows)), layout="constrained", facecolor="black"
    )
    grid = figure.subplots(len(rows), len(panels), squeeze=False)
    for row, z in zip(grid, rows, strict=True):
        for axis, (_, volume) in zip(row, panels, strict=True):
            axis.imshow(volume[z, y, x], cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, (title, _) in zip(grid[0], panels, strict=True):
        axis.set_title(title, color="white", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
