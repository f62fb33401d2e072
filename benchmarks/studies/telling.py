"""The record of `benchmarks.efficiency` in words: what was wanted and reached, then all tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.parts.rows import Row
from benchmarks.parts.tables import table
from benchmarks.studies.loaders import PATIENTS
from benchmarks.studies.metrics_side import BRAIN

TOLD = {
    "training": "A step of the squared error and Adam on a batch that is there. `network alone` "
    "does in JAX what PyTorch does; `the loop's step` is what training runs, which also makes "
    "floats of stored slices, encodes the targets by MRM and looks after what is not finite. "
    "times: as fast as eager PyTorch.",
    "sampling": "A call that samples with N = 30: of `mdn` representations alone, of `cunet` whole "
    "slices. times: as fast as eager PyTorch.",
    "roofline": "The machine's peaks, then programs of the package. A program takes at least as "
    "long as the peaks allow for its operations (before XLA optimizes it) or its bytes (after), "
    "whichever is longer; share of limit: that time over the measured one. What a cache keeps from "
    "one operation to the next counts as moved again.",
    "metrics": "One simulated patient of BraTS' grid, T1 taken for the T1c, in single precision "
    "for libraries on PyTorch. millionths: the largest distance from our values. times: as fast as "
    "ours. The last row is what an evaluation computes, a dozen further numbers included.",
    "loading": "Shuffled batches of four modalities, half of them mirrored. Ours are read from the "
    "cache on disk (from the system's memory, once warm), MONAI's are kept in memory: patients, of "
    "which each item is a random slice, or the slices themselves. times: as fast as MONAI's loader "
    "of patients without further processes, the faster of the two. TorchIO is not compared.",
    "frames": "Whole slices, one a call; Diffusion has 64 channels. times: as fast as Diffusion.",
    "start": "Seconds from the start of Python to the end of the first training step, with nothing "
    "compiled before (cold) and with JAX's cache on disk (warm).",
    "compilations": "What `train` compiles in a run of M1, from the first step to the scores.",
    "growth": "Time and planned memory against what is changed alone; exponents of least squares "
    "through the logarithms, 1 is in proportion.",
}
HIDDEN = ("values", "flops", "bytes", "peak_bytes", "compile_seconds")
SHOWN_ANYWAY = {"compilations": ("compile_seconds",), "growth": ("peak_bytes", "flops")}
Studies = Mapping[str, Mapping[str, Any]]
Reached = Callable[[Studies], float | None]


def rows_of(studies: Studies, name: str, **cells: Any) -> list[Row]:
    """The rows of a study that have these cells, if there are any."""
    rows = studies.get(name, {}).get("rows", ())
    return [row for row in rows if all(row.get(cell) == value for cell, value in cells.items())]


def value(studies: Studies, name: str, column: str, **cells: Any) -> float | None:
    """The number in a column of the only such row; None where it is not there."""
    found = [row[column] for row in rows_of(studies, name, **cells) if column in row]
    return found[0] if len(found) == 1 else None


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None


def _training(studies: Studies) -> float | None:
    cells = {"stage": "cunet", "scale": "paper", "library": "JAX", "mode": "network alone"}
    return value(studies, "training", "times", **cells)


def _sampling(studies: Studies) -> float | None:
    cells = {"stage": "mdn", "scale": "paper", "batch": 1, "library": "JAX"}
    return value(studies, "sampling", "times", **cells)


def _reading(studies: Studies) -> float | None:
    cells = {"what": "mdn codes", "scale": "paper", "batch": 1}
    return value(studies, "roofline", "share_of_limit", **cells)


def _frames(studies: Studies) -> float | None:
    return value(studies, "frames", "times", system="CDM", N=30)


def _loader(studies: Studies) -> float | None:
    return _times_loader(studies, PATIENTS)


def _fastest_loader(studies: Studies) -> float | None:
    loaders = [row["loader"] for row in rows_of(studies, "loading", library="MONAI")]
    found = [_times_loader(studies, loader) for loader in loaders]
    return min((times for times in found if times is not None), default=None)


def _times_loader(studies: Studies, loader: str) -> float | None:
    """Our fastest loader beside this one of MONAI's."""
    theirs = value(studies, "loading", "milliseconds", library="MONAI", loader=loader)
    ours = [
        row["milliseconds"]
        for row in rows_of(studies, "loading", library="cdm_jax")
        if "milliseconds" in row
    ]
    return _ratio(theirs, min(ours, default=None))


def _input(studies: Studies) -> float | None:
    ours = [
        row["slices_per_second"]
        for row in rows_of(studies, "loading", library="cdm_jax")
        if "slices_per_second" in row
    ]
    cells = {"stage": "cunet", "scale": "paper", "mode": "the loop's step"}
    return _ratio(max(ours, default=None), value(studies, "training", "slices_per_second", **cells))


def _metrics(studies: Studies) -> float | None:
    """Ours over scikit-image."""
    theirs = value(studies, "metrics", "times", metric=BRAIN, library="scikit-image")
    return _ratio(1.0, theirs)


def _distance(studies: Studies) -> float | None:
    rows = rows_of(studies, "metrics", library="scikit-image")
    found = [row["millionths"] for row in rows if "millionths" in row]
    return max(found, default=None)


def _warm(studies: Studies) -> float | None:
    return value(studies, "start", "seconds", scale="small", cache="warm")


def _compiled(studies: Studies) -> float | None:
    found = [
        row["compilations"]
        for row in rows_of(studies, "compilations")
        if "compilations" in row and not row["function"].endswith("small ones")
    ]
    return max(found, default=None)


# What, at least or at most, the number, how it is found.
WANTED: tuple[tuple[str, str, float, Reached], ...] = (
    ("C-UNet's step, times eager PyTorch", ">=", 1.0, _training),
    ("MDN's sampling at batch 1, times eager PyTorch", ">=", 2.0, _sampling),
    ("MDN's sampling at batch 1, share of the limit", ">=", 0.8, _reading),
    ("CDM's frames at N = 30, times Diffusion's", ">=", 50, _frames),
    ("input, times MONAI's cached loader of patients", ">=", 10, _loader),
    ("input, times the fastest of MONAI's cached loaders", ">=", 10, _fastest_loader),
    ("input, times C-UNet's step", ">=", 5, _input),
    ("volume metrics in the brain, times scikit-image", ">=", 5, _metrics),
    ("metrics, distance from scikit-image, millionths", "<=", 10, _distance),
    ("warm start to the first step, seconds", "<=", 6, _warm),
    ("compilations of a function, at most", "<=", 1, _compiled),
)


def wanted(studies: Studies) -> list[Row]:
    """What was wanted beside what was reached; without what no study has measured."""
    rows = []
    for what, sign, limit, find in WANTED:
        reached = find(studies)
        if reached is not None:
            met = reached >= limit if sign == ">=" else reached <= limit
            wish = f"{sign} {limit:g}"
            rows.append({"what": what, "wanted": wish, "reached": reached, "met": met})
    return rows


def markdown(content: Row) -> str:
    """All of the record."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Row) -> Iterator[str]:
    machine, studies = content["machine"], content["studies"]
    named = machine | content.get("others", {})
    versions = ", ".join(f"{n} {v}" for n, v in named.items() if n not in ("processor", "cores"))
    smoke = " A smoke test: its times mean nothing." * content["smoke"]
    yield f"{machine['cores']} cores of {machine['processor']}; {versions}.{smoke}"
    if met := wanted(studies):
        yield "\n**What was wanted.**"
        yield from table(met)
    for name, study in studies.items():
        yield f"\n**{name}.** {TOLD[name]} Medians of {study['turns']} turns."
        yield from table([shown(name, row) for row in study["rows"]])
        for key, verb in (("error", "ended by an error"), ("skipped", "skipped")):
            if key in study:
                yield f"\nThe study was {verb}: {study[key]}."


def shown(name: str, row: Row) -> Row:
    """The cells of a row that a table has room for."""
    hidden: Sequence[str] = [n for n in HIDDEN if n not in SHOWN_ANYWAY.get(name, ())]
    return {column: cell for column, cell in row.items() if column not in hidden}
