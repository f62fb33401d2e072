"""Commands of the program in processes of their own, on parts of a CPU."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.on_devices import SHARED

ROOT = pathlib.Path(__file__).parents[1]
BATCH, STEPS = 8, 20

COMMANDS = f"""
import sys
from cdm_jax import main, parallel
parallel.MIN_SHARDED_SIZE = {SHARED}
for line in sys.argv[2:]:
    if main.main(["cdm_jax.main", *sys.argv[1].split(), *line.split()]):
        sys.exit(1)
"""


class Topology(NamedTuple):
    """So many processes, with so many devices each, in this mode."""

    processes: int
    devices: int
    mode: str


ALONE = Topology(1, 1, "jit")
# Each mode and each number of processes and devices, not each pair of them: compiling is dear.
OTHERS = [
    Topology(1, 1, "pmap"),
    Topology(1, 4, "jit"),
    Topology(1, 4, "fsdp"),
    Topology(2, 2, "pmap"),
    Topology(2, 2, "fsdp"),
]


def _environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time goes into compiling
        "JAX_COMPILATION_CACHE_DIR": "",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A command in a process of its own; its output goes to a file, which never blocks it."""

    def __init__(self, arguments: list[str], devices: int, **variables: str):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `finish`)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=_environment(devices) | variables,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def finish(self, timeout: float = 900) -> tuple[int, str]:
        """Waits for its end: the exit status and all that it printed."""
        try:
            status = self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
            with self._output:
                self._output.seek(0)
                text = self._output.read()
        return status, text


def start(topology: Topology, *lines: str) -> list[Process]:
    """Starts command lines of the program, one after the other, in each of the processes."""
    number, port = topology.processes, free_port()
    several = (
        [
            f"--coordinator_address=127.0.0.1:{port} --num_processes={number} --process_id={place}"
            for place in range(number)
        ]
        if number > 1
        else [""]
    )
    return [Process(["-c", COMMANDS, flags, *lines], topology.devices) for flags in several]


def run(topology: Topology, *lines: str) -> list[str]:
    """What each process printed; all of them have to end well."""
    ends = [process.finish() for process in start(topology, *lines)]
    for status, text in ends:
        assert status == 0, text[-3000:]
    return [text for _, text in ends]


def line(stage: str, workdir: pathlib.Path, topology: Topology) -> str:
    """Trains a smoke stage for `STEPS` steps with batches of `BATCH` on all devices together."""
    each = BATCH // (topology.processes * topology.devices)
    values = {
        "train.num_steps": STEPS,
        "train.batch_size_per_device": each,
        "train.log_every": 1,
        "train.validate_every": STEPS,
        "train.checkpoint_every": STEPS // 2,
    }
    text = " ".join(f"--config.{stage}.{name}={value}" for name, value in values.items())
    return (
        f"--config=configs/phantom.py:{stage},smoke --workdir={workdir} --config.pipeline=() "
        f"--config.parallel={topology.mode} {text}"
    )


def report_of(process: Process) -> dict:
    """The line of JSON with which `tests/on_devices.py` ends."""
    status, text = process.finish()
    assert status == 0, text[-3000:]
    return json.loads(text.splitlines()[-1])


def child(*arguments: str, devices: int) -> Process:
    """Starts `tests/on_devices.py` in a process with so many devices."""
    return Process(["-m", "tests.on_devices", *arguments], devices)


def wait_until(there: Callable[[], bool], process: Process) -> None:
    """Waits for something that a process is about to do."""
    deadline = time.monotonic() + 300
    while not there():
        assert time.monotonic() < deadline and process.process.poll() is None
        time.sleep(0.005)


def kill(victim: Process, other: Process) -> str:
    """Kills one of two processes: what the other prints before it ends, within a minute."""
    victim.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    status, printed = other.finish(timeout=90)
    assert time.monotonic() - killed < 60
    victim.finish()
    assert status != 0
    return printed
