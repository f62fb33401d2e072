"""What the parts of `benchmarks.accelerator` share: time, sizes, and rows that outlive an error."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.parts.rows import GROUPS, Row, SkippedError, survive, told
from cdm_jax.writer import console
from configs import brats

NO_TIME = "no time left"
# Column -> JAX's default precision of matrix products, and the config's `precision`.
PRECISIONS = {
    "float32": ("float32", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bf16": ("tensorfloat32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One run of the command, as the part at work sees it.

    Attributes:
      smoke: the smallest sizes, to test the command itself.
      workdir: for traces, checkpoints and patients.
      patients: the folder of simulated patients, which are made meanwhile.
      deadline: of the part, by `time.monotonic`.
      parts: the record so far, by part.
    """

    smoke: bool
    workdir: pathlib.Path
    patients: Future[pathlib.Path]
    deadline: float
    parts: dict[str, Row]

    def left(self) -> float:
        """Seconds until the part should end."""
        return self.deadline - time.monotonic()

    def rows(self, part: str) -> list[Row]:
        """What another part has found."""
        return self.parts.get(part, {}).get("rows", [])

    def config(self, precision: str) -> ConfigDict:
        """The paper's config of every system.

        Raises:
          SkippedError: the config has no such precision.
        """
        return with_precision(brats.get_config("all,smoke" if self.smoke else "all"), precision)


def with_precision(config: ConfigDict, precision: str) -> ConfigDict:
    """The config, computing as a column of `PRECISIONS` says.

    Raises:
      SkippedError: it cannot.
    """
    wanted = PRECISIONS[precision][1]
    if "precision" in config:
        config.precision = wanted
    elif wanted != "float32":
        raise SkippedError("the config has no `precision`")
    return config


def products(precision: str) -> Any:
    """A context in which matrix products and convolutions are of a column of `PRECISIONS`."""
    return jax.default_matmul_precision(PRECISIONS[precision][0])


def collect(rows: Callable[[], Iterator[Row]], found: Row, save: Callable[[], None]) -> None:
    """Gathers what a part yields, saving it row by row, and how the part ended.

    Args:
      rows: makes the rows; what it raises ends this part alone.
      found: its "rows" grow; "skipped" or "error", and "seconds" are added.
      save: called after every row.
    """
    begin = time.monotonic()
    try:
        for row in rows():
            found["rows"].append(row)
            say(row)
            save()
    except SkippedError as reason:
        found["skipped"] = str(reason)
    except Exception as error:  # the other parts may be fine
        found["error"] = told(error)
    say({name: value for name, value in found.items() if name != "rows"})
    found["seconds"] = time.monotonic() - begin


def in_time(session: Session, jobs: Iterable[tuple[Row, Callable[[], Row]]]) -> Iterator[Row]:
    """A row for each job: what names it, and what it finds unless the part's time is gone."""
    for named, job in jobs:
        yield named | (survive(job) if session.left() > 0 else {"skipped": NO_TIME})


def median_seconds(call: Callable[[], Any], smoke: bool) -> float:
    """Seconds of a call of a compiled program, whose first call is not counted.

    The calls of a group are queued one behind the other, as a training loop does.
    """
    jax.block_until_ready(call())
    once = _seconds(call, 1)
    number = 1 if smoke else max(1, min(20, int(0.4 / once)))
    return float(np.median([_seconds(call, number) for _ in range(GROUPS)]))


def _seconds(call: Callable[[], Any], number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / number


def say(row: Row) -> None:
    """Prints a row in a line."""
    cells = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    ]
    console.print("  " + ", ".join(cells), soft_wrap=True, markup=False, highlight=False)
