"""How far from the machine's limits: XLA's operations and bytes, and what the machine can do."""

from collections.abc import Iterator, Sequence

from benchmarks.parts.rows import Row
from benchmarks.studies.cases import case
from benchmarks.studies.contest import Contender, Setting, contest

# Stage, part, scale, slices a call.
PROGRAMS = (
    ("mrm", "step", "paper", 2),
    ("mdn", "step", "paper", 12),
    ("cunet", "step", "paper", 2),
    ("mdn", "codes", "paper", 1),
    ("mdn", "codes", "paper", 12),
    ("cunet", "sampler", "paper", 1),
    ("mrm", "step", "small", 8),
    ("mdn", "step", "small", 8),
    ("cunet", "step", "small", 8),
    ("mdn", "codes", "small", 1),
    ("cunet", "sampler", "small", 8),
)
SMOKE = (("cunet", "step", "smoke", 2), ("mdn", "codes", "smoke", 1))
SIDE, NUMBERS = 4096, 2**27  # of a product of matrices, and to read: far more than any cache holds
PRODUCT, READING = "product of matrices", "reading"


def roofline(setting: Setting) -> Iterator[Row]:
    """The peaks, each the best of several ways, then programs beside what the peaks allow."""
    side, numbers = (128, 2**16) if setting.smoke else (SIDE, NUMBERS)
    product, reading = {"side": side}, {"numbers": numbers}
    ways = (
        (PRODUCT, "XLA", "jax_side.product", product),
        (PRODUCT, "PyTorch", "torch_side.product", product),
        (READING, "XLA", "jax_side.reading", reading),
        (READING, "NumPy's threads", "jax_side.reading_by_threads", reading),
    )
    contenders = [
        Contender(
            names={"what": what, "by": way},
            side=function,
            given=given | {"smoke": setting.smoke},
            python=setting.other_python if way == "PyTorch" else Contender.python,
        )
        for what, way, function, given in ways
    ]
    peaks = contest(contenders, setting.turns)
    yield from placed(peaks)
    for stage, part, scale, batch in SMOKE if setting.smoke else PROGRAMS:
        given = {"part": part, "case": case(scale, stage, batch), "counted": True}
        program = Contender(
            names={"what": f"{stage} {part}", "scale": scale, "batch": batch},
            side="jax_side.program",
            given=given | {"smoke": setting.smoke},
        )
        yield placed([*peaks, *contest([program], setting.turns)])[-1]


def placed(rows: list[Row]) -> list[Row]:
    """The rows with their rates, and programs with the share of what the peaks allow.

    A program of f operations that moves b bytes takes at least the longer of f / peak and
    b / bandwidth (Williams et al. 2009). XLA counts what every fused operation reads and writes;
    what a cache keeps from one to the next is counted again, so that a share may lie above 1.
    """
    found = [row | _rates(row) for row in rows]
    peak = highest(found, PRODUCT, "gflop_per_second")
    width = highest(found, READING, "gb_per_second")
    for row in found:
        if "gflop_per_second" in row and "gb_per_second" in row and peak and width:
            computing = row["flops"] / (1e9 * peak)
            moving = row["bytes"] / (1e9 * width)
            row["intensity"] = row["flops"] / row["bytes"]
            row["bound_by"] = "computing" if computing > moving else "memory"
            row["share_of_limit"] = 1e3 * max(computing, moving) / row["milliseconds"]
    return found


def highest(rows: Sequence[Row], what: str, rate: str) -> float:
    """The highest rate of all ways to do something; 0 where none was measured."""
    return max((row[rate] for row in rows if row["what"] == what and rate in row), default=0.0)


def _rates(row: Row) -> Row:
    """Operations and bytes a second, of what is known."""
    if "milliseconds" not in row:
        return {}
    seconds = row["milliseconds"] / 1e3
    names = {"flops": "gflop_per_second", "bytes": "gb_per_second"}
    return {rate: row[name] / seconds / 1e9 for name, rate in names.items() if name in row}
