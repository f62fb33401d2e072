"""Figure 4: what each system paints, beside the truth, with its errors and a zoom on the tumor.

  python -m experiments.figure4 --dataset=phantom --small
  python -m experiments.figure4 --dataset=brats --root=<folder>

Shown are the two test patients with the most enhancing tumor (without segmentations: the first
two), each in the slice with the most of it: where none enhances with the most tumor, where there is
no tumor the middle one. Stochastic systems show the mean of their samples.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib.figure
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cdm_jax import checkpoint, inference
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.nifti import read_labels
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.resample import to_frame
from cdm_jax.methods import base
from cdm_jax.metrics.regions import ENHANCING_TUMOR
from cdm_jax.rows import num_samples
from experiments.study import COLORS, PAGE_WIDTH, Study, main
from experiments.table1 import HEADLINES, ROWS, SYSTEMS

PATIENTS = 2
STAGES = {stage: ROWS[row] for stage, row in HEADLINES.items()}
ERROR_LIMIT = 0.3  # of the truth's range, where the error map's colors end
ZOOM_MARGIN = 4  # pixels around the tumor

Shown = tuple[PreparedSubject, int, Bool[np.ndarray, "h w"]]


def measure(study: Study) -> None:
    """Paints the slices with every trained system; writes the record, a compressed .npz."""
    study.run(SYSTEMS, ROWS)
    dataset = study.data()
    shown = patients_to_show(dataset)
    slices = np.stack([s.read_slices([place])[0] for s, place, _ in shown])
    number = len(shown[0][0].sources)
    images = {
        "sources": slices[..., :number] / FULL_SCALE,
        "truth": slices[..., number:] / FULL_SCALE,
        "tumor": np.stack([tumor for *_, tumor in shown]),
    }
    for stage in STAGES:
        if checkpoint.finished(study.workdir / stage):
            images[stage] = painted(study, stage, shown)
    content: dict[str, Any] = {name: to_bytes(image) for name, image in images.items()}
    content["subjects"] = np.array([subject.subject_id for subject, *_ in shown])
    content["source_names"] = np.array(shown[0][0].sources)
    content["target_names"] = np.array(shown[0][0].targets)
    content["command"] = np.array(study.command("figure4"))
    path = study.record_path("figure4.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def to_bytes(image: Float[np.ndarray, "..."]) -> np.ndarray:
    """Values in [0, 1] as bytes."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def patients_to_show(dataset: Dataset) -> list[Shown]:
    """(subject, place among its slices, what to enlarge in the model's frame), most first."""
    found = []
    for subject in dataset.test:
        path = dataset.subjects[subject.subject_id].segmentation
        size, middle = subject.size, len(subject.slice_indices) // 2
        if path is None:
            found.append((0, subject, middle, np.zeros((size, size), bool)))
            continue
        labels = read_labels(path)[list(subject.slice_indices)]
        enhancing = np.isin(labels, ENHANCING_TUMOR)
        shown = enhancing if enhancing.any() else labels > 0
        place = int(shown.sum(axis=(1, 2)).argmax()) if shown.any() else middle
        tumor = to_frame(shown[place : place + 1].astype(np.float32), size)[0] > 0.5
        found.append((int(enhancing.sum()), subject, place, tumor))
    found.sort(key=lambda entry: -entry[0])
    return [entry[1:] for entry in found[:PATIENTS]]


def painted(study: Study, stage: str, shown: Sequence[Shown]) -> Float[np.ndarray, "n h w t"]:
    """The slices to show by one system, in [0, 1]: the mean of its samples."""
    config = study.config("cdm")
    system = inference.load_system(study.workdir / stage, len(shown), config.sampler)
    slices = [system.sources_of(s.slices, s.slice_indices)[place] for s, place, _ in shown]
    # Slices of several patients are no volume, so that their scale stays as it is.
    system = inference.uncorrected(system)
    method = system.method
    samples = num_samples(config, stage) if method.stochastic else 1

    def mean(model: base.Model, batch: base.Batch, key: Array) -> inference.Outputs:
        drawn = method.synthesize(model, batch["source"], key, samples)
        return {"mean": drawn.mean(axis=0)}

    return system.volumes(system.compile(mean), {"source": np.stack(slices)}, jax.random.key(0))[
        "mean"
    ]


def show(study: Study) -> None:
    """Draws the figure from the record."""
    with np.load(study.record_path("figure4.npz")) as content:
        images = {name: content[name] for name in content.files}
    study.save_figure("figure4", draw(images))


def draw(images: dict[str, np.ndarray]) -> matplotlib.figure.Figure:
    """A pair of rows (images, errors) for each patient and target, a column for each system."""
    targets, subjects = images["target_names"].tolist(), images["subjects"].tolist()
    stages = [stage for stage in STAGES if stage in images]
    titles = [*images["source_names"].tolist(), *(STAGES[s] for s in stages), "truth"]
    first = len(images["source_names"])
    pairs = [(n, t) for n in range(len(subjects)) for t in range(len(targets))]
    figure = matplotlib.figure.Figure(
        figsize=(PAGE_WIDTH, 2.1 * PAGE_WIDTH / len(titles) * len(pairs) + 0.7),
        layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
    )
    grid = figure.subplots(2 * len(pairs), len(titles), squeeze=False)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title.replace(" (", "\n("), fontsize=6)
    shade = None
    for (n, t), above, below in zip(pairs, grid[::2], grid[1::2], strict=True):
        box = zoom_box(images["tumor"][n])
        above[0].set_ylabel(f"{subjects[n][-9:]}\n{targets[t]}", fontsize=6)
        below[0].set_ylabel("error", fontsize=6)
        truth = images["truth"][n, ..., t] / 255
        columns = [images["sources"][n, ..., s] / 255 for s in range(images["sources"].shape[-1])]
        columns += [images[stage][n, ..., t] / 255 for stage in stages] + [truth]
        for place, (image, axis) in enumerate(zip(columns, above, strict=True)):
            show_image(axis, image, box)
            if first <= place < len(columns) - 1:
                error = np.abs(image - truth)
                shade = below[place].imshow(error, cmap="cividis", vmin=0, vmax=ERROR_LIMIT)
    if shade is not None:
        bar = figure.colorbar(shade, ax=grid, location="bottom", shrink=0.3, aspect=40, pad=0.01)
        bar.set_label("absolute error (1 = the truth's 99.5th percentile)", fontsize=6)
        bar.ax.tick_params(labelsize=6)
    return figure


def zoom_box(tumor: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns around the tumor, None where there is none."""
    rows, columns = np.nonzero(tumor)
    if not rows.size:
        return None
    side = max(np.ptp(rows), np.ptp(columns)) // 2 + ZOOM_MARGIN
    y, x = (int(v.min() + v.max()) // 2 for v in (rows, columns))
    return slice(max(0, y - side), y + side + 1), slice(max(0, x - side), x + side + 1)


def show_image(
    axis: Axes, image: Float[np.ndarray, "h w"], box: tuple[slice, slice] | None
) -> None:
    """One image, with the tumor enlarged in its lower right corner."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    if box is None:
        return
    inset = axis.inset_axes((0.56, 0, 0.44, 0.44))
    inset.imshow(image[box], cmap="gray", vmin=0, vmax=1)
    inset.set_xticks([])
    inset.set_yticks([])
    inset.spines[:].set_color(COLORS[1])


if __name__ == "__main__":
    main(None, __doc__, measure, show)
