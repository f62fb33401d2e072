"""How real the phantom looks: statistics of real patients beside those of simulated ones.

  python -m experiments.realism --data=<folder of real patients> [--patients=40] [--picture=<png>]

The same code measures both, on one grid: 2 mm beside the phantom whose protocol is drawn for each
patient, and 3 mm, the benchmark's, beside the fixed one. Writes `experiments/results/realism.json`,
where real patients are numbers by index and source, and from it `docs/results/realism.md`; then
draws simulated patients to `docs/results/realism.png`. `--picture` draws them below real ones in
the same window, for one's own eyes: that picture is not to be published. `--show` redraws the
table.
"""

import argparse
import functools
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage

from cdm_jax.data.nifti import read_labels, read_volume, read_voxel_size
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.phantom import PhantomSettings, simulate_patient
from cdm_jax.phantom.patient import VERSIONS
from cdm_jax.report.render import to_markdown
from cdm_jax.writer import console
from configs import real
from experiments.image_statistics import Mask, Volume, block_mean, measure
from experiments.records import load_results, save_results
from experiments.study import DOCS, write

NAME = "realism"
COMMAND = "python -m experiments.realism --data=<folder>"
MODALITIES = ("t1", "t1c", "t2", "t2f")
GRIDS_MM = {"random": 2, "fixed": 3}  # protocol to voxels
SEED = 2  # patients that no benchmark has
SHOWN_MM = 1.5  # 128 pixels across
SHOWN = (1, 5, 9, 13)  # patients in the picture
COVERED = (5, 95)  # percentiles of the simulated patients
TOLERANCE = 0.02  # by which a value may miss them: so many patients tell them no better

Values = dict[str, float]
Scan = tuple[dict[str, Volume], Mask, np.ndarray | None]


def real_subjects(root: pathlib.Path) -> list[Subject]:
    """The real patients below a folder."""
    patterns = real.get_config().data.patterns.to_dict()
    return list(find_subjects(root, modalities=MODALITIES, patterns=patterns))


def read_patient(subject: Subject) -> Scan:
    """A real patient's images, brain and labels; what a scan's corner shows is background."""
    images = {name: read_volume(subject.images[name]) for name in MODALITIES}
    images = {name: image - image[0, 0, 0] for name, image in images.items()}
    brain = np.logical_and.reduce([image != 0 for image in images.values()])
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    labels = None if subject.segmentation is None else read_labels(subject.segmentation)[box]
    return {name: image[box] for name, image in images.items()}, brain[box], labels


def coarsen(scan: Scan, factor: int) -> Scan:
    """The patient on a grid of voxels `factor` times as long; labels are those of the corner."""
    images, brain, labels = scan
    coarse = {name: block_mean(image, brain, factor) for name, image in images.items()}
    region = coarse["t1"][1]
    if labels is not None:
        labels = labels[::factor, ::factor, ::factor]
    return {name: image for name, (image, _) in coarse.items()}, region, labels


def simulate(protocol: str, voxel_mm: float, index: int) -> Scan:
    """A simulated patient in the same form."""
    x, y, z = (int(side / voxel_mm) for side in (192, 216, 174))
    settings = PhantomSettings(shape=(x, y, z), voxel_mm=voxel_mm, seed=SEED, protocol=protocol)
    patient = simulate_patient(settings, index)
    images = {name: image.T for name, image in patient.images.items()}
    return images, images["t1"] > 0, patient.segmentation.T.astype(np.int16)


def measure_simulated(protocol: str, index: int) -> Values:
    """Statistics of a simulated patient."""
    return measure(*simulate(protocol, GRIDS_MM[protocol], index))


def measure_real(root: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Statistics of each real patient on each grid, by index and source."""
    for index, subject in enumerate(real_subjects(root)):
        scan, size = read_patient(subject), read_voxel_size(subject.images["t1"])[0]
        source = subject.images["t1"].relative_to(root).parts[0]
        grids = {
            protocol: measure(*coarsen(scan, round(voxel_mm / size)))
            for protocol, voxel_mm in GRIDS_MM.items()
        }
        yield {"index": index, "source": source} | grids


def measure_cohort(protocol: str, patients: int, workers: int = 0) -> list[Values]:
    """Statistics of simulated patients, several at once; how many at once changes nothing."""
    one = functools.partial(measure_simulated, protocol)
    if workers == 1:
        return [one(index) for index in range(patients)]
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(workers or None, mp_context=context) as pool:
        return list(pool.map(one, range(patients)))


def comparison(real_values: Sequence[Values], simulated: Sequence[Values]) -> pd.DataFrame:
    """Numbers, a line a quantity: the real patients' range and the simulated ones' percentiles."""
    patients, cohort = pd.DataFrame(real_values), pd.DataFrame(simulated)
    low, high = (cohort.quantile(part / 100) for part in COVERED)
    table = pd.DataFrame(
        {
            "n": patients.count(),
            "lowest": patients.min(),
            "highest": patients.max(),
            "5 %": low,
            "median": cohort.median(),
            "95 %": high,
        }
    ).dropna()
    table["outside"] = [
        int(
            (
                (patients[name] < (1 - TOLERANCE) * low[name])
                | (patients[name] > (1 + TOLERANCE) * high[name])
            ).sum()
        )
        for name in table.index
    ]
    return table


def as_text(title: str, table: pd.DataFrame) -> str:
    """A comparison as Markdown, with what it says in one sentence above it."""
    outside = table.index[table["outside"] > 0]
    finding = (
        f"Of {len(table)} quantities, {len(table) - len(outside)} have every real patient within "
        f"the simulated patients' {COVERED[0]}th to {COVERED[1]}th percentile, to "
        f"{100 * TOLERANCE:.0f} %."
    )
    cells = pd.DataFrame(
        {
            "real": [
                f"{low:.3f} to {high:.3f}" for low, high in table[["lowest", "highest"]].values
            ],
            "real patients": table["n"].astype(str).values,
            "simulated, 5 % to 95 %": [
                f"{low:.3f} to {high:.3f}" for low, high in table[["5 %", "95 %"]].values
            ],
            "median": [f"{value:.3f}" for value in table["median"]],
            "outside": [str(count or "–") for count in table["outside"]],
        },
        index=table.index.rename("quantity"),
    )
    return f"**{title}.** {finding}\n\n{to_markdown(cells)}"


def show() -> None:
    """Prints and writes what the committed record says."""
    content = load_results(NAME)
    parts = [
        f"Made by `{content['command']}`. Images are in "
        "units of their mean over the brain. "
        "Noise: second differences within white matter. "
        "Sharpness: difference of neighbors over that of voxels three apart. "
        "Bias: standard deviation of a second-order polynomial through log white matter. "
        "Level: 1 over the 99.5th percentile of the brain, to which networks scale. "
        "p5 to p99: percentiles of the brain."
    ]
    for protocol, voxel_mm in content["grids_mm"].items():
        table = comparison(
            [patient[protocol] for patient in content["real"]], content["simulated"][protocol]
        )
        count = len(content["simulated"][protocol])
        version = content["versions"][protocol]
        title = f"Protocol {protocol}, version {version}, {voxel_mm} mm, {count} simulated patients"
        parts.append(as_text(title, table))
    text = "\n\n".join(parts) + "\n"
    console.print(text, soft_wrap=True)
    write(DOCS / f"{NAME}.md", text)


def draw(path: pathlib.Path, scans: Sequence[Scan]) -> None:
    """A row a patient, a column a modality: the axial slice with the most tumor, or the middle."""
    figure, grid = plt.subplots(
        len(scans), len(MODALITIES), figsize=(8.8, 2.4 * len(scans)), squeeze=False, facecolor="k"
    )
    for row, (images, brain, labels) in zip(grid, scans, strict=True):
        heights = np.flatnonzero(brain.any(axis=(1, 2)))
        middle = int(np.quantile(heights, 0.58))
        core = np.zeros_like(brain) if labels is None else np.isin(labels, (1, 3))
        heights = heights[
            (heights > np.quantile(heights, 0.4)) & (heights < np.quantile(heights, 0.75))
        ]
        place = heights[core[heights].sum(axis=(1, 2)).argmax()] if core[heights].any() else middle
        for axes, name in zip(row, MODALITIES, strict=True):
            top = np.percentile(images[name][brain], 99.7)
            axes.imshow(_framed(images[name], brain, place), cmap="gray", vmin=0, vmax=top)
            axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    console.print(f"drawn: {path}")


def _framed(image: Volume, brain: Mask, place: int) -> np.ndarray:
    """A slice cut to the patient's brain, the face up."""
    y, x = np.nonzero(brain.any(axis=0))
    return np.where(brain, image, 0)[place, y.min() : y.max() + 1, x.min() : x.max() + 1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the record, prints the table and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=pathlib.Path, help="folder of real patients")
    parser.add_argument("--patients", type=int, default=40, help="how many to simulate")
    parser.add_argument("--picture", type=pathlib.Path, help="real and simulated side by side")
    parser.add_argument("--workers", type=int, default=0, help="processes; default one a core")
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args(arguments)
    if not options.show:
        if options.data is None:
            parser.error("give --data=<folder of real patients>, or --show")
        content = {
            "command": COMMAND,
            "versions": VERSIONS,
            "grids_mm": GRIDS_MM,
            "real": list(measure_real(options.data)),
            "simulated": {
                protocol: measure_cohort(protocol, options.patients, options.workers)
                for protocol in GRIDS_MM
            },
        }
        save_results(NAME, content)
        scans = [simulate("random", SHOWN_MM, index) for index in SHOWN]
        draw(DOCS / f"{NAME}.png", scans)
        if options.picture:
            draw(options.picture, [*map(read_patient, real_subjects(options.data)), *scans])
    show()


if __name__ == "__main__":
    main()
