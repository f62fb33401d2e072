"""Contenders that are timed by turns, each in a process of its own."""

import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.parts.asking import Ask, asked
from benchmarks.parts.checks import ROOT
from benchmarks.parts.rows import Row, survive

CPU_ALONE = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How the studies are made.

    Attributes:
      smoke: the smallest sizes, to test the command itself.
      turns: of every contender; the record has medians over them.
      workdir: for simulated patients and compiled programs.
      other_python: the interpreter that has PyTorch, MONAI and torchmetrics.
    """

    smoke: bool
    turns: int
    workdir: pathlib.Path
    other_python: str = sys.executable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time.

    Attributes:
      names: the cells that tell its row from others.
      side: the function that prepares it, such as "jax_side.program".
      given: that function's arguments.
      python: its interpreter.
    """

    names: Row
    side: str
    given: Row
    python: str = sys.executable


def contest(contenders: Iterable[Contender], turns: int) -> list[Row]:
    """Prepares all contenders, then times them by turns.

    What is not timed waits for its turn without computing, so that no two ever share the cores;
    what else the machine does falls on all of them alike.

    Returns:
      A row for each: its names, what its preparation says of it, the median "milliseconds" of a
      call over the turns, and the "spread", (longest - shortest) / median; or why there is none.

    Raises:
      ValueError: contenders of the same work differ in their number of parameters.
    """
    contenders = list(contenders)
    with contextlib.ExitStack() as stack:
        asks: list[Ask] = []
        rows: list[Row] = []
        for contender in contenders:
            asks.append(stack.enter_context(process(contender.python)))
            rows.append(contender.names | _answer(asks[-1], [contender.side, contender.given]))
        times: list[list[float]] = [[] for _ in rows]
        for _ in range(turns):
            for row, ask, found in zip(rows, asks, times, strict=True):
                if "error" in row or "skipped" in row:
                    continue
                answer = _answer(ask, "turn")
                if "seconds" in answer:
                    found.append(1e3 * answer["seconds"])
                else:
                    row |= answer
    check_equal(rows)
    return [row | _summary(found) for row, found in zip(rows, times, strict=True)]


def process(python: str = sys.executable) -> contextlib.AbstractContextManager[Ask]:
    """A process of `worker`, by an interpreter, as a function that asks it; it sees no GPU."""
    command = [python, "-m", "benchmarks.studies.worker"]
    return asked(command, os.environ | CPU_ALONE, str(ROOT))


def _answer(ask: Ask, question: Any) -> Row:
    return survive(lambda: ask(question))


def _summary(milliseconds: Sequence[float]) -> Row:
    if not milliseconds:
        return {}
    median = statistics.median(milliseconds)
    spread = (max(milliseconds) - min(milliseconds)) / median
    return {"milliseconds": median, "spread": spread}


def check_equal(rows: Sequence[Row]) -> None:
    """Refuses to compare networks of different sizes.

    Raises:
      ValueError: the numbers of parameters differ.
    """
    sizes = {row["parameters"] for row in rows if "parameters" in row}
    if len(sizes) > 1:
        raise ValueError(f"the libraries' networks have {sorted(sizes)} parameters")


def beside(rows: list[Row], standard: Row) -> list[Row]:
    """Adds "times": how often as fast as the row that holds all of `standard` each row is."""
    for row in rows:
        if standard.items() <= row.items() and "milliseconds" in row:
            return [
                other | {"times": row["milliseconds"] / other["milliseconds"]}
                if "milliseconds" in other
                else other
                for other in rows
            ]
    return rows
