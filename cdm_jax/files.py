"""Files written as a whole or not at all, JSON read or refused in one line, and full disks."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cdm_jax.errors import UserError

FULL_TOLD = threading.Event()  # set when the command ends because of a full disk
NO_SPACE = "no space is left: what is written beside the training, such as curves, is cut short"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to: the file then replaces `path`, complete or not at all.

    For a single writer: the name is always the same, so that what a killed process left there is
    written over. `workers.whole_file` is for several.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a folder
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it") from error
    except ValueError as error:  # not JSON, or not even text
        raise UserError(
            f"{path} is not JSON ({error}): restore it, or delete it and make it again"
        ) from error


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a log of JSON, a mapping a line; lines that a full disk cut short are left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [content for content in found if isinstance(content, dict)]


def digest(content: Mapping[str, Any], others: bytes = b"") -> str:
    """SHA-256 of JSON content, whatever the order of its keys, and of bytes that belong to it."""
    text = json.dumps(content, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode() + others).hexdigest()


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it followed from, says that a disk or a quota is full.

    Libraries raise errors of their own, and further ones while they close what they cannot write.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def hear_full_disks() -> None:
    """Has threads and exit handlers of this program answer a full disk in one line, or in none.

    Threads remember the hook of their start: call it before there are any.
    """

    def unless_full(show: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A hook that leaves out what follows from a full disk."""

        def hook(found: Any) -> None:
            error = found.exc_value
            if FULL_TOLD.is_set() and isinstance(error, OSError):
                return  # of what was being written: "handle is closed"
            if is_full(error):
                print(f"warning: {NO_SPACE}", file=sys.stderr, flush=True)
            else:
                show(found)

        return hook

    threading.excepthook = unless_full(threading.excepthook)
    sys.unraisablehook = unless_full(sys.unraisablehook)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says more than that a disk is full.

    Libraries log that with a traceback for each thread; what they raise then says it once.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (is_full(error) or is_full(RuntimeError(record.getMessage())))
