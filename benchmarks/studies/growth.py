"""CDM's frames a second beside Diffusion's, and how time and memory grow, with exponents."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.parts.rows import Row
from benchmarks.studies.cases import Case, case
from benchmarks.studies.contest import Contender, Setting, beside, contest

STEPS = (1, 10, 20, 30, 40)  # N of DDIM
# The 64 channels that the paper's comparison allows; see `configs.baselines.diffusion`.
CHANNELS = {"diffusion__width": 64, "diffusion__attention": (16,)}
SWEPT = {"cunet": "CDM", "diffusion": "Diffusion"}
STEP, CODES = ("cunet", "step"), ("mdn", "codes")
# What is changed -> program, scale, and (value, slices, changes) of each point.
Points = tuple[tuple[int, int, Row], ...]
GROWTH: dict[str, tuple[tuple[str, str], str, Points]] = {
    "pixels a side": (
        STEP,
        "paper",
        tuple((size, 2, {"data__size": size}) for size in (32, 64, 128, 256)),
    ),
    "slices a step": (
        STEP,
        "paper",
        tuple((batch, batch, {"data__size": 64}) for batch in (1, 2, 4, 8, 16)),
    ),
    "N": (CODES, "paper", tuple((n, 12, {"sampler__num_steps": n}) for n in (10, 20, 40, 80))),
    "slices a call": (CODES, "paper", tuple((batch, batch, {}) for batch in (1, 4, 16, 64))),
}
SMOKE: dict[str, tuple[tuple[str, str], str, Points]] = {
    "pixels a side": (
        STEP,
        "smoke",
        tuple((size, 1, {"data__size": size}) for size in (16, 32)),
    ),
    "N": (CODES, "smoke", tuple((n, 1, {"sampler__num_steps": n}) for n in (1, 2))),
}


def frames(setting: Setting) -> Iterator[Row]:
    """Slices a second of CDM (MDN, then C-UNet) and of Diffusion, for equal N."""
    scale, changes = ("smoke", {}) if setting.smoke else ("paper", CHANNELS)
    for steps in (1, 2) if setting.smoke else STEPS:
        contenders = [
            _contender(
                {"system": name, "N": steps},
                "sampler",
                case(scale, stage, 1, sampler__num_steps=steps, **changes),
                setting,
            )
            for stage, name in SWEPT.items()
        ]
        for row in beside(contest(contenders, setting.turns), {"system": "Diffusion"}):
            if "milliseconds" in row:
                row |= {"frames_per_second": 1e3 / row["milliseconds"]}
            yield row


def growth(setting: Setting) -> Iterator[Row]:
    """Time and planned memory point by point, then their exponents."""
    for name, ((stage, part), scale, points) in (SMOKE if setting.smoke else GROWTH).items():
        contenders = [
            _contender(
                {"program": f"{stage} {part}", "grows": name, "value": value},
                part,
                case(scale, stage, batch, **changes),
                setting,
                counted=True,
            )
            for value, batch, changes in points
        ]
        rows = contest(contenders, setting.turns)
        yield from rows
        yield {"program": f"{stage} {part}", "grows": name} | exponents(rows)


def exponents(rows: Sequence[Row]) -> Row:
    """Of time, memory and operations: the slopes of least squares through the logarithms.

    1 is in proportion to the value. What a call costs at least makes the exponent of time smaller.
    """
    whole = [row for row in rows if "milliseconds" in row]
    if len(whole) < 2:
        return {"skipped": "fewer than two points"}
    values = [math.log(row["value"]) for row in whole]
    names = {"time": "milliseconds", "memory": "peak_bytes", "operations": "flops"}
    return {
        f"exponent_of_{what}": float(np.polyfit(values, [math.log(r[name]) for r in whole], 1)[0])
        for what, name in names.items()
    }


def _contender(
    names: Row, part: str, one: Case, setting: Setting, counted: bool = False
) -> Contender:
    given = {"part": part, "case": one, "smoke": setting.smoke, "counted": counted}
    return Contender(names=names, side="jax_side.program", given=given)
