"""Processes that work on patients side by side, and end with the process that began them.

Imports no JAX: a worker must take neither a device nor its memory.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

from cdm_jax.errors import UserError

_unfinished: set[Path] = set()  # files that this process is writing


def cores() -> int:
    """Cores that this process may use: a scheduler may grant fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hear_one_interrupt() -> None:
    """Lets the first Ctrl-C stop this process and the further ones do nothing, until its end.

    What the first one begins would be cut short by a second one: workers are waited for, and half
    written files removed. Where Ctrl-C is ignored or has a handler already, nothing is changed.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, _nothing)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def _nothing(*_: object) -> None:
    """Not SIG_IGN, of which Python says so where a signal had arrived just before."""


@contextlib.contextmanager
def pool(number: int) -> Iterator[Executor]:
    """An executor of so many processes; of one: a thread of this process.

    Left by an error or by Ctrl-C, it drops what has not begun. Processes then end at once, also
    where this one is killed, and remove what they have half written; a thread ends its task first.

    Raises:
        UserError: a process was killed from outside.
    """
    if number <= 1:
        with ThreadPoolExecutor(1) as thread:
            try:
                yield thread
            except BaseException:
                thread.shutdown(wait=False, cancel_futures=True)
                raise
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of JAX's threads
    reader, writer = context.Pipe(duplex=False)
    processes = ProcessPoolExecutor(
        number, mp_context=context, initializer=_follow, initargs=(reader,)
    )
    others = set(multiprocessing.active_children())
    with processes, reader, writer:
        try:
            yield processes
            processes.shutdown()
        except BaseException as error:
            # What has not begun leaves the executor before its workers end: where they are gone,
            # Python 3.11 cannot say so to a task that was canceled, and prints a traceback.
            processes.shutdown(wait=False, cancel_futures=True)
            writer.close()
            for worker in set(multiprocessing.active_children()) - others:
                worker.join()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    f"one of {number} worker processes was killed, perhaps for want of memory: "
                    "set --config.data.num_workers to fewer; what is done is kept"
                ) from error
            raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to: the file appears under `path` complete or not at all.

    Also when several processes write it at once, and in a worker of `pool` that has to end.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    _unfinished.add(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        _unfinished.discard(partial)


def _follow(reader: Connection) -> None:
    """Begins a worker, which ends when the pipe's other end closes: by the pool, or its death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_await_end, args=(reader,), daemon=True).start()


def _await_end(reader: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        reader.recv()
    # To the main thread, which may be waiting for a task: another would leave it waiting. Again and
    # again: what arrives just before it begins to wait does not wake it.
    while True:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(0.1)


def _leave(*_: object) -> None:
    """Ends this worker without a trace. An exception would be taken for a task's result."""
    for partial in _unfinished:
        partial.unlink(missing_ok=True)
    os._exit(1)
