"""Slices of a patient as sprites: all slices of a volume below one another in one PNG.

The browser moves a sprite behind a window of one slice; errors and deviations are transparent
sprites above the image.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int, UInt8

from cdm_jax.metrics.regions import bounding_box
from cdm_jax.report.site import Site

MOST_SLICES = 48
MOST_PIXELS = 256  # rows or columns of a slice in the gallery
MARGIN = 2
ERROR_LIMIT = 0.3  # full color, in units of the truth's 99.5th percentile
DEVIATION_LIMIT = 0.1
INTERVAL_LIMIT = 0.5
# Okabe and Ito's: told apart with any color vision.
TOO_BRIGHT = (230, 159, 0)
TOO_DARK = (86, 180, 233)
DEVIATION = (240, 228, 66)
INTERVAL = (204, 121, 167)

Volume = Float[np.ndarray, "z y x"]
Window = tuple[Int[np.ndarray, "shown"], slice, slice]
"""Index of the voxels of a volume that its sprites show."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A volume to look at.

    Attributes:
        name: unique among a case's images, fit for a file's name.
        role: what it is.
        modality: which it shows.
        system: that made it, for a synthesis.
        note: below the picture.
        values: in [0, 1], on the patient's grid.
        deviation: standard deviation of the samples, in the same unit.
        interval: width of the calibrated intervals, in the same unit.
        nifti: compressed NIfTI files for the viewer: "image" (0 to 255), and for a synthesis
            "error", "deviation" and "interval" as `viewer.overlay_values` encodes them.
    """

    name: str
    role: Literal["input", "truth", "synthesis"]
    modality: str
    system: str | None = None
    note: str = ""
    values: Volume
    deviation: Volume | None = None
    interval: Volume | None = None
    nifti: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        made = f" by {self.system}" if self.system else ""
        return f"{self.role.capitalize()}: {self.modality}{made}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A patient to show.

    Attributes:
        subject: the examination's name.
        reason: why this one.
        images: inputs, truths and syntheses.
        brain: of the inputs.
        voxel_size: along (z, y, x) in mm.
        focus: the voxel (z, y, x) that is looked at first.
    """

    subject: str
    reason: str
    images: Sequence[Image]
    brain: Bool[np.ndarray, "z y x"]
    voxel_size: tuple[float, float, float]
    focus: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A window on a sprite: its title, the note below, the sprite, and overlays by their kind."""

    title: str
    note: str
    sprite: str
    overlays: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A case's panels.

    Attributes:
        subject: the examination's name.
        reason: why this one.
        slices: indices z, from inferior to superior.
        start: position among them with which to begin.
        aspect: width of a slice over its height.
        rows: target modality to its panels: inputs, truth, systems.
    """

    subject: str
    reason: str
    slices: Sequence[int]
    start: int
    aspect: float
    rows: Mapping[str, Sequence[Panel]]

    @property
    def has_intervals(self) -> bool:
        """Whether there is a width of intervals to show."""
        return any("interval" in panel.overlays for row in self.rows.values() for panel in row)


def save_gallery(site: Site, case: Case) -> Gallery:
    """Writes a case's sprites to `sprites/<subject>`."""
    window = _window(case.brain)
    truths = {i.modality: i.values for i in case.images if i.role == "truth"}
    panels = {
        image.name: _panel(site, case, image, truths.get(image.modality), window)
        for image in case.images
    }
    inputs = [panels[image.name] for image in case.images if image.role == "input"]
    targets = dict.fromkeys(image.modality for image in case.images if image.role != "input")
    rows = {
        target: inputs
        + [panels[i.name] for i in case.images if i.role != "input" and i.modality == target]
        for target in targets
    }
    _, height, width = case.brain[window].shape
    _, size_y, size_x = case.voxel_size
    slices = window[0].tolist()
    return Gallery(
        subject=case.subject,
        reason=case.reason,
        slices=slices,
        start=min(range(len(slices)), key=lambda n: abs(slices[n] - case.focus[0])),
        aspect=width * size_x / (height * size_y),
        rows=rows,
    )


def _window(brain: Bool[np.ndarray, "z y x"]) -> Window:
    """The brain's box with a margin; slices and pixels are thinned where there are too many."""
    filled = np.flatnonzero(brain.any(axis=(1, 2)))
    shown = np.linspace(0, len(filled) - 1, min(len(filled), MOST_SLICES)).round().astype(int)
    _, y, x = bounding_box(brain, 0)
    step = -(-max(y.stop - y.start - 1, x.stop - x.start - 1, 1) // MOST_PIXELS)
    _, y, x = bounding_box(brain, MARGIN)
    return filled[shown], slice(y.start, y.stop, step), slice(x.start, x.stop, step)


def _panel(site: Site, case: Case, image: Image, truth: Volume | None, window: Window) -> Panel:
    brain, values = case.brain[window], image.values[window]
    overlays = {}
    if image.role == "synthesis" and truth is not None:
        overlays["error"] = error_colors(values - truth[window], brain)
    if image.deviation is not None:
        overlays["deviation"] = one_color(image.deviation[window] / DEVIATION_LIMIT, brain)
    if image.interval is not None:
        overlays["interval"] = one_color(image.interval[window] / INTERVAL_LIMIT, brain, INTERVAL)
    stem = f"sprites/{case.subject}/{image.name}"
    return Panel(
        title=image.title,
        note=image.note,
        sprite=site.write(f"{stem}.png", sprite(gray(values))),
        overlays={
            kind: site.write(f"{stem}-{kind}.png", sprite(colors))
            for kind, colors in overlays.items()
        },
    )


def gray(values: Float[np.ndarray, "slice h w"]) -> UInt8[np.ndarray, "slice h w"]:
    """Values of [0, 1] as gray levels."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def error_colors(
    error: Float[np.ndarray, "slice h w"], brain: Bool[np.ndarray, "slice h w"]
) -> UInt8[np.ndarray, "slice h w 4"]:
    """Signed errors as colors that are the more opaque the larger the error.

    Args:
        error: synthesis minus truth, in [-1, 1].
        brain: outside of it nothing is shown.
    """
    colors = np.where((error > 0)[..., None], TOO_BRIGHT, TOO_DARK)
    return _with_opacity(colors, np.abs(error) / ERROR_LIMIT * brain)


def one_color(
    opacity: Float[np.ndarray, "slice h w"],
    brain: Bool[np.ndarray, "slice h w"],
    color: tuple[int, int, int] = DEVIATION,
) -> UInt8[np.ndarray, "slice h w 4"]:
    """One color, from transparent at 0 to full from 1 on, within the brain."""
    colors = np.broadcast_to(color, (*opacity.shape, 3))
    return _with_opacity(colors, opacity * brain)


def _with_opacity(colors: np.ndarray, opacity: np.ndarray) -> UInt8[np.ndarray, "slice h w 4"]:
    return np.concatenate([colors.astype(np.uint8), gray(opacity)[..., None]], axis=-1)


def sprite(slices: UInt8[np.ndarray, "slice h w *channels"]) -> bytes:
    """All slices below one another as a PNG."""
    sheet = slices.reshape(-1, *slices.shape[2:])
    out = io.BytesIO()
    PIL.Image.fromarray(sheet).save(out, format="PNG", optimize=True)
    return out.getvalue()
