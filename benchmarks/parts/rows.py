"""Rows of records that outlive an error. Imports nothing large: small processes use it too."""

from collections.abc import Callable
from typing import Any

LENGTH = 500  # of the text of an error that is kept
GROUPS = 5  # of calls, over which a time's median is taken

Row = dict[str, Any]


class SkippedError(Exception):
    """Something cannot be measured here; its text says why."""


def survive(job: Callable[[], Row]) -> Row:
    """What a job finds; or the text of its error, or why it was skipped."""
    try:
        return job()
    except SkippedError as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # whatever it is, the next row is worth as much
        return {"error": told(error)}


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LENGTH]
