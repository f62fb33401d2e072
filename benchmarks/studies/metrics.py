"""The metrics of this package beside those of scikit-image, torchmetrics and MONAI."""

from collections.abc import Iterator

from benchmarks.parts.rows import Row
from benchmarks.studies.contest import Contender, Setting, beside, contest
from benchmarks.studies.metrics_side import BRAIN, VOLUME
from benchmarks.studies.patients import simulate

OURS = "cdm_jax"
LIBRARIES = (OURS, "scikit-image", "torchmetrics", "MONAI")
# Metric -> libraries that have it.
METRICS = {
    "psnr": LIBRARIES,
    "mae": (OURS, "torchmetrics", "MONAI"),
    "ssim": (OURS, "scikit-image", "MONAI"),
    "ssim, torchmetrics'": (OURS, "torchmetrics"),
    BRAIN: (OURS, "scikit-image", "torchmetrics"),
    VOLUME: (OURS,),
}


def metrics(setting: Setting) -> Iterator[Row]:
    """A metric of one volume by every library: time, value, and the distance from our value."""
    folder = simulate(setting.workdir, setting.smoke)
    for metric, libraries in METRICS.items():
        contenders = [
            Contender(
                names={"metric": metric, "library": library},
                side="metrics_side.measure",
                given={"metric": metric, "library": library, "folder": str(folder)}
                | {"smoke": setting.smoke},
                python=setting.other_python if library != OURS else Contender.python,
            )
            for library in libraries
        ]
        rows = contest(contenders, setting.turns)
        yield from (distant(row, rows[0]) for row in beside(rows, {"library": OURS}))


def distant(row: Row, ours: Row) -> Row:
    """The row with the largest distance of its values from those of `ours`."""
    shared = [name for name in row.get("values", ()) if name in ours.get("values", ())]
    if not shared:
        return row
    distances = [abs(row["values"][name] - ours["values"][name]) for name in shared]
    return row | {"millionths": 1e6 * max(distances)}
