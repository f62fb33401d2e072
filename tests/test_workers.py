"""Worker processes: without JAX, without leftovers, and gone when the first process is."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cdm_jax import workers
from cdm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# Two workers that write half a file each; the first process says who they are, and waits.
UNFINISHED = """
import os, pathlib, signal, sys, time
from cdm_jax import workers

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
workers.hear_one_interrupt()

def work(name):
    with workers.whole_file(pathlib.Path(name)) as partial:
        partial.write_text(str(os.getpid()))
        time.sleep(300)

if __name__ == "__main__":
    try:
        with workers.pool(2) as pool:
            list(pool.map(work, [f"{sys.argv[1]}/{n}" for n in range(9)]))
    except KeyboardInterrupt:
        sys.exit("stopped")  # as `main` does
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def unfinished(tmp_path):
    """The first process, in a group of its own, when both workers have begun, and their ids."""
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "script.py").write_text(UNFINISHED)
    command = [sys.executable, tmp_path / "script.py", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len([p for p in folder.iterdir() if p.read_text()]) == 2)
    return process, [int(path.read_text()) for path in folder.iterdir()]


def send(process, number):
    """As a terminal does: Ctrl-C to all of them; anything else to the first alone."""
    if number == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, number))


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_end_with_the_first_process_and_leave_nothing_half_written(number, tmp_path):
    process, pids = unfinished(tmp_path)
    send(process, number)
    _, said = process.communicate(timeout=120)
    wait_until(lambda: not any(map(alive, pids)))
    assert not list((tmp_path / "files").iterdir())
    assert "Traceback" not in said
    assert ("stopped" in said) == (number == "SIGINT")


@pytest.mark.parametrize("seconds", [0, 0.03, 0.3])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_repeated_signal_leaves_no_process_and_no_traceback(number, seconds, tmp_path):
    """Again and again until the first process is gone, as of one who has no patience."""
    process, pids = unfinished(tmp_path)
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        send(process, number)
        time.sleep(seconds)
    _, said = process.communicate(timeout=120)  # which waits for all that could write to it
    wait_until(lambda: not any(map(alive, pids)))
    assert not list((tmp_path / "files").iterdir())
    assert "Traceback" not in said


def loaded(_):
    return sorted(sys.modules)


def test_workers_load_no_jax():
    with workers.pool(2) as pool:
        assert "jax" not in next(iter(pool.map(loaded, range(1))))


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_answered_in_words():
    expected = pytest.raises(UserError, match=r"one of 2 worker processes was killed.*num_workers")
    with expected, workers.pool(2) as pool:
        list(pool.map(die, range(3)))


def test_one_worker_is_a_thread_that_drops_what_has_not_begun():
    done = []

    def work(n):
        done.append((n, os.getpid()))
        time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt), workers.pool(1) as pool:
        tasks = [pool.submit(work, n) for n in range(5)]
        tasks[0].result()
        raise KeyboardInterrupt
    assert {pid for _, pid in done} == {os.getpid()}
    assert len(done) <= 2


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert workers.cores() == 3
