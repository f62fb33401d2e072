"""Which metric notices what: seven distortions of the same mean squared error, by every metric.

  python -m experiments.metric_sensitivity [--patients=24] [--show]

The T1c of simulated patients with enhancing tumors is blurred, moved, made noisy, shaded, darkened,
freed from its lesion (the same person without a tumor), or given the lesion's mirror image as well.
Removing the lesion sets a patient's mean squared error in the brain; each other distortion is made
as strong as gives the same, so that PSNR cannot tell them apart. No network takes part. Writes
`experiments/results/metric_sensitivity.json`, and from it `docs/results/metric_sensitivity.md`.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from rich.progress import track
from scipy import ndimage, optimize, stats

from cdm_jax.data.native import scale_volumes
from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions import Case, get_convention
from cdm_jax.metrics.enhancement import POSTCONTRAST, PRECONTRAST
from cdm_jax.phantom import PhantomSettings, simulate_patient
from cdm_jax.phantom.fields import Grid, smooth_field
from cdm_jax.phantom.patient import VERSIONS
from cdm_jax.records import WHOLE
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import ABSENT
from cdm_jax.writer import console
from experiments.records import load_results, save_results
from experiments.study import DOCS, write

NAME = "metric_sensitivity"
SETTINGS = PhantomSettings(seed=3)  # fixed protocol, 3 mm, patients that no benchmark has
ENHANCING_ML = 0.5  # at least, of a patient's tumor
BIAS_MM = 60.0  # over which shading changes, as the phantom's own
STRONGEST = 64.0  # amounts beyond are not tried

Volume = Float[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Measured = dict[str, dict[str, float | None]]  # distortion to column to number


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric of the table.

    Attributes:
        region: as `volume` names it.
        metric: likewise.
        rises: whether more is better.
        form: of its numbers.
    """

    region: str
    metric: str
    rises: bool
    form: str


COLUMNS: Mapping[str, Column] = {
    "PSNR": Column(region=WHOLE, metric="psnr", rises=True, form=".1f"),
    "MAE": Column(region=WHOLE, metric="mae", rises=False, form=".3f"),
    "SSIM": Column(region=WHOLE, metric="ssim", rises=True, form=".3f"),
    "PSNR, best gain": Column(region=WHOLE, metric="psnr_best_gain", rises=True, form=".1f"),
    "GMSD": Column(region=WHOLE, metric="gmsd", rises=False, form=".3f"),
    "step error in z": Column(region=WHOLE, metric="z_gradient", rises=False, form=".3f"),
    "PSNR in the tumor": Column(region="whole_tumor", metric="psnr", rises=True, form=".1f"),
    "Dice of enhancement": Column(region=WHOLE, metric="enhancement_dice", rises=True, form=".2f"),
    "the same in the tumor": Column(
        region="whole_tumor", metric="enhancement_dice", rises=True, form=".2f"
    ),
}
EQUAL = "PSNR"  # by construction


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A simulated patient, images in [0, 1] with background 0.

    Attributes:
        truth: T1c.
        before: T1.
        brain: mask.
        labels: of the tumor.
        lesion: what the tumor adds to T1c, 0 elsewhere.
        noise: standard normal in each voxel.
        bias: a smooth field of variance 1.
    """

    truth: Volume
    before: Volume
    brain: Mask
    labels: np.ndarray
    lesion: Volume
    noise: Volume
    bias: Volume


def _blur(scan: Scan, amount: float) -> Volume:
    """Within the brain: what lies outside has been stripped."""
    images = scan.truth, scan.brain.astype(float)
    blurred, share = (ndimage.gaussian_filter(image, amount) for image in images)
    return blurred / np.maximum(share, 1e-6)


DISTORTIONS: Mapping[str, Callable[[Scan, float], Volume]] = {
    "blur": _blur,
    "shift": lambda scan, amount: ndimage.shift(scan.truth, (0, 0, amount)),
    "noise": lambda scan, amount: scan.truth + amount * scan.noise,
    "bias field": lambda scan, amount: scan.truth * np.exp(amount * scan.bias),
    "gain": lambda scan, amount: scan.truth / (1 + amount),
    "removed lesion": lambda scan, amount: scan.truth - amount * scan.lesion,
    "invented lesion": lambda scan, amount: scan.truth + amount * scan.lesion[..., ::-1],
}
REFERENCE = "removed lesion"


def distorted(scan: Scan, name: str, amount: float) -> Volume:
    """T1c distorted by an amount (0: not at all), cut to [0, 1] and the brain as by `volume`."""
    return np.clip(DISTORTIONS[name](scan, amount), 0, 1) * scan.brain


def squared_error(scan: Scan, image: Volume) -> float:
    """Mean squared error in the brain."""
    return float(np.mean((image - scan.truth)[scan.brain] ** 2))


def amount_for(scan: Scan, name: str, error: float) -> float:
    """The amount of a distortion that gives this mean squared error.

    Raises:
        UserError: None does.
    """

    def excess(amount: float) -> float:
        return squared_error(scan, distorted(scan, name, amount)) - error

    upper = 1.0 / 64
    while excess(upper) < 0:
        upper *= 2
        if upper > STRONGEST:
            raise UserError(f"{name}: no amount gives a mean squared error of {error:g}")
    return float(optimize.brentq(excess, 0, upper, rtol=1e-6))


def scans(settings: PhantomSettings, patients: int) -> Iterator[Scan]:
    """The first so many patients of a cohort whose tumors enhance."""
    found = (_scan(settings, index) for index in itertools.count())
    return itertools.islice((scan for scan in found if scan is not None), patients)


def _scan(settings: PhantomSettings, index: int) -> Scan | None:
    """A patient with and without the tumor; None where nothing enhances."""
    patient = simulate_patient(settings, index)
    labels = patient.segmentation.T.astype(np.int16)
    if (labels == 3).sum() * settings.voxel_mm**3 / 1000 < ENHANCING_ML:
        return None
    healthy = simulate_patient(settings, index, with_tumor=False)
    volumes = {name: image.T.astype(np.float32) for name, image in patient.images.items()}
    native = scale_volumes(volumes, [PRECONTRAST, "t2"], f"patient {index}")
    truth = native.images[POSTCONTRAST].astype(np.float64)
    scale = native.intensities[POSTCONTRAST]
    removed = scale.apply(healthy.images[POSTCONTRAST].T).astype(np.float64)
    # A tumor pushes tissue beyond its labels; there the two images merge.
    near = np.clip(ndimage.gaussian_filter((labels > 0).astype(float), 1.0) * 3, 0, 1)
    rng = np.random.default_rng([settings.seed, index])
    grid = Grid(shape=settings.shape, voxel_mm=settings.voxel_mm)
    return Scan(
        truth=truth,
        before=native.images[PRECONTRAST],
        brain=native.brain,
        labels=labels,
        lesion=near * (truth - removed),
        noise=rng.standard_normal(truth.shape),
        bias=smooth_field(rng, grid, BIAS_MM).T.astype(np.float64),
    )


def measure(scan: Scan, voxel_ml: float) -> Measured:
    """Every metric of every distortion of a patient, and the amounts; None is undefined."""
    error = squared_error(scan, distorted(scan, REFERENCE, 1))
    found: Measured = {}
    for name in DISTORTIONS:
        amount = amount_for(scan, name, error)
        case = Case(
            subject=NAME,
            modality=POSTCONTRAST,
            prediction=distorted(scan, name, amount),
            truth=scan.truth,
            brain=scan.brain,
            segmentation=scan.labels,
            precontrast=scan.before,
            voxel_ml=voxel_ml,
        )
        scores = get_convention("volume").score(case)
        places = {WHOLE: scores, **scores["regions"]}
        numbers = {title: places[c.region][c.metric] for title, c in COLUMNS.items()}
        numbers = {title: None if np.isnan(n) else n for title, n in numbers.items()}
        found[name] = numbers | {"amount": amount}
    return found


def ranks(patient: Measured) -> pd.DataFrame:
    """Ranks of a patient's distortions by each metric: 1 is the worst; ties share theirs."""
    numbers = pd.DataFrame(patient).T.astype(float)
    return pd.DataFrame(
        {
            title: stats.rankdata(
                numbers[title] if column.rises else -numbers[title], nan_policy="omit"
            )
            for title, column in COLUMNS.items()
        },
        index=numbers.index,
    )


def tables(patients: Sequence[Measured]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over patients: numbers and ranks, a line a distortion and a column a metric."""
    numbers = pd.concat([pd.DataFrame(patient).T.astype(float) for patient in patients])
    ranked = pd.concat([ranks(patient) for patient in patients])
    return tuple(part.groupby(level=0).mean().loc[list(DISTORTIONS)] for part in (numbers, ranked))


def as_text(patients: Sequence[Measured]) -> str:
    """What the patients' numbers say, in sentences and a table."""
    numbers, ranked = tables(patients)
    lines = [
        f"- {title}: worst is the {ranked[title].idxmin()} (mean rank {ranked[title].min():.1f} of "
        f"{len(DISTORTIONS)}), mildest the {ranked[title].idxmax()} ({ranked[title].max():.1f})."
        for title in COLUMNS
        if title != EQUAL
    ]

    def cell(name: str, title: str) -> str:
        if np.isnan(numbers.at[name, title]):
            return ABSENT
        text = f"{numbers.at[name, title]:{COLUMNS[title].form}}"
        return text if title == EQUAL else f"{text} ({ranked.at[name, title]:.1f})"

    cells = {title: [cell(name, title) for name in DISTORTIONS] for title in COLUMNS}
    table = pd.DataFrame(cells, index=pd.Index(DISTORTIONS, name="distortion"))
    footer = (
        f"Means over {len(patients)} simulated patients; in brackets the mean rank among the "
        f"{len(DISTORTIONS)} distortions, 1 for what the metric judges worst."
    )
    return "\n".join(lines) + "\n\n" + to_markdown(table, footer)


def show() -> None:
    """Prints and writes what the committed record says."""
    content = load_results(NAME)
    head = f"Made by `{content['command']}`, phantom version {content['version']}, T1c, 3 mm."
    text = f"{head}\n\n{as_text(content['patients'])}"
    console.print(text, soft_wrap=True)
    write(DOCS / f"{NAME}.md", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the record and shows it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--patients", type=int, default=24, help="how many to simulate")
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args(arguments)
    if not options.show:
        found = track(scans(SETTINGS, options.patients), total=options.patients, console=console)
        voxel_ml = SETTINGS.voxel_mm**3 / 1000
        content = {
            "command": f"python -m experiments.{NAME}",
            "version": VERSIONS["fixed"],
            "patients": [measure(scan, voxel_ml) for scan in found],
        }
        save_results(NAME, content)
    show()


if __name__ == "__main__":
    main()
