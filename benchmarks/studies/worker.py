"""The process of one contender: prepares it, then times it whenever it is asked to.

  python -m benchmarks.studies.worker

The first line of the standard input is JSON: the function that prepares, as "module.function" of
this folder, and its arguments. It returns what there is to say of the contender and a function that
takes a turn: seconds of a call. The answer is the former; every further line is answered by a turn.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.parts.rows import Row, SkippedError, survive

Turn = Callable[[], float]
Prepared = tuple[Row, Turn]
# What need not be installed, by the name under which it is imported.
OPTIONAL = {
    "torch": "PyTorch",
    "monai": "MONAI",
    "torchmetrics": "torchmetrics",
    "skimage": "scikit-image",
}
GROUP_SECONDS, MOST_CALLS = 0.4, 20  # of a turn, in which several short calls are timed together
READ_SECONDS, READ_BEFORE = 1.0, 8  # of a turn of batches, and those before it, which buffers hold


def repeated(call: Callable[[int], Any], smoke: bool, warm: bool = False) -> Turn:
    """A turn of several calls, as many as take long enough to be timed.

    Args:
      call: makes so many calls, one queued behind the other, and waits for the last one.
      smoke: whether one call is enough.
      warm: whether it has been called before.
    """
    if not warm:
        call(1)  # compiles
    once = _seconds(call, 1)
    number = 1 if smoke else max(1, min(MOST_CALLS, int(GROUP_SECONDS / once)))
    return lambda: _seconds(call, number)


def drawn(
    batches: Iterable[Any], smoke: bool, wait: Callable[[Any], Any] = lambda batch: None
) -> Turn:
    """A turn that reads batches from the beginning, its buffers used up before it is timed.

    Args:
      batches: without an end. An iterator with `close` is closed when the turn is over, so that
        nothing is read ahead while others take theirs.
      smoke: whether a few batches are enough.
      wait: for the last batch.
    """

    def turn() -> float:
        iterator: Iterator[Any] = iter(batches)
        for _ in range(1 if smoke else READ_BEFORE):
            next(iterator)
        begin, number = time.perf_counter(), 0
        while not number or (time.perf_counter() - begin < READ_SECONDS and not smoke):
            batch = next(iterator)
            number += 1
        wait(batch)
        seconds = (time.perf_counter() - begin) / number
        if hasattr(iterator, "close"):
            iterator.close()
        return seconds

    return turn


def _seconds(call: Callable[[int], Any], number: int) -> float:
    begin = time.perf_counter()
    call(number)
    return (time.perf_counter() - begin) / number


def prepare(side: str, given: Row) -> Prepared:
    """Calls the function of this name.

    Raises:
      SkippedError: something that it needs is not installed.
    """
    module, function = side.split(".")
    try:
        room = importlib.import_module(f"benchmarks.studies.{module}")
        return getattr(room, function)(**given)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise SkippedError(f"{OPTIONAL[error.name]} is not installed") from error


def main() -> None:
    """Answers until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(job: Callable[[], Row]) -> None:
        print(json.dumps(survive(job)), file=answers, flush=True)

    turns: list[Turn] = []

    def first() -> Row:
        facts, turn = prepare(*json.loads(sys.stdin.readline()))
        turns.append(turn)
        return facts

    answer(first)
    for _ in sys.stdin:
        answer(lambda: {"seconds": turns[0]()})


if __name__ == "__main__":
    main()
