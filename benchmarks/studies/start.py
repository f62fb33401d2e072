"""How long until the first step, cold and warm, and what a run compiles, how often."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

from benchmarks.parts.rows import Row, survive
from benchmarks.studies.cases import case
from benchmarks.studies.contest import Setting, process

RUN = "m1,smoke"  # what is compiled, and how often, depends on no size


def start(setting: Setting) -> Iterator[Row]:
    """Seconds from the start of Python to the end of the first step, phase by phase.

    Cold, nothing is compiled before; warm, JAX's cache on disk holds all that is.
    """
    scales = ("smoke",) if setting.smoke else ("small", "paper")
    for scale in scales:
        one = case(scale, "cunet", 2)
        found: dict[str, list[Row]] = {"cold": [], "warm": []}
        for _ in range(setting.turns):
            with tempfile.TemporaryDirectory() as folder:
                for rows in found.values():
                    given = {"case": one, "folder": folder, "began": time.time()}
                    rows.append(_once("start_side.first_step", given))
        for kind, rows in found.items():
            yield {"what": "first step of cunet", "scale": scale, "cache": kind} | _medians(rows)


def compilations(setting: Setting) -> Iterator[Row]:
    """What `train` compiles of M1, its validation and its evaluation: each function once."""
    with tempfile.TemporaryDirectory() as folder:
        found = _once("start_side.run", {"argument": RUN, "folder": folder})
    if "functions" not in found:
        yield {"run": RUN} | found
    for row in found.get("functions", ()):
        yield {"run": RUN} | row


def _once(side: str, given: Row) -> Row:
    """The answer of a process of its own."""

    def answer() -> Row:
        with process() as ask:
            return ask([side, given])

    return survive(answer)


def _medians(rows: Sequence[Row]) -> Row:
    for row in rows:
        if "error" in row or "skipped" in row:
            return row
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: statistics.median(row[name] for row in rows) for name in names}
