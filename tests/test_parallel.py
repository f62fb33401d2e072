"""One device, several, and several processes: the same numbers, the same files, a clear end."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import pytest

from cdm_jax import parallel
from cdm_jax.errors import UserError
from experiments import scaling
from tests.helpers import copy_run

ROOT = pathlib.Path(__file__).parents[1]
BATCH, STEPS = 8, 20

COMMANDS = """
import sys
from cdm_jax import main
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
OTHERS = [Topology(p, d, mode) for p, d in ((1, 4), (2, 2)) for mode in parallel.MODES]


def _environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time goes into compiling
        "JAX_COMPILATION_CACHE_DIR": "",
    }


def _port() -> int:
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
    number, port = topology.processes, _port()
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


def curve(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Each training metric over the steps."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def report_of(process: Process) -> dict:
    """The line of JSON with which `tests/on_devices.py` ends."""
    status, text = process.finish()
    assert status == 0, text[-3000:]
    return json.loads(text.splitlines()[-1])


def child(*arguments: str, devices: int) -> Process:
    """Starts `tests/on_devices.py` in a process with so many devices."""
    return Process(["-m", "tests.on_devices", *arguments], devices)


@pytest.fixture(scope="module")
def report():
    """Three steps of a stage on one and on four devices, in each mode."""
    return functools.cache(lambda stage: report_of(child("modes", stage, devices=4)))


def slow(stage):
    return pytest.param(stage, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "stage", ["mrm", "pix2pix", slow("m1"), slow("cyclegan"), slow("diffusion")]
)
def test_four_devices_compute_what_one_does(report, stage):
    """Losses, norms, BatchNorm, dropout, masks, noise and the pool of past images."""
    losses = report(stage)["losses"]
    alone = losses[f"{stage} one"]
    assert all(np.isfinite(list(row.values())).all() for row in alone)
    for mode in parallel.MODES:
        for one, other in zip(alone, losses[f"{stage} {mode}"], strict=True):
            for name, value in one.items():
                assert other[name] == pytest.approx(value, rel=5e-6, abs=1e-6), (mode, name)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("stage", ["mrm", slow("m1"), slow("diffusion")])
def test_a_step_exchanges_its_gradient_once_and_nothing_else(report, stage, mode):
    """Beside it only the logged numbers, of some bytes; no activation is gathered."""
    found = report(stage)["collectives"][f"{stage} {mode}"]
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"]["number"] <= 4
    gradient = report(stage)["bytes"][stage]
    assert 0.98 * gradient <= found["all-reduce"]["bytes"] <= gradient + 64


def test_batchnorm_exchanges_its_statistics_beside_the_gradient(report):
    for mode in ("jit", "pmap"):
        found = report("pix2pix")["collectives"][f"pix2pix {mode}"]
        assert set(found) == {"all-reduce"}
        gradient = report("pix2pix")["bytes"]["pix2pix"]
        assert gradient <= found["all-reduce"]["bytes"] <= 1.25 * gradient


@pytest.mark.parametrize("stage", ["mrm", "pix2pix", slow("diffusion")])
def test_shared_parameters_are_gathered_and_activations_are_not(report, stage):
    found, gradient = report(stage)["collectives"][f"{stage} fsdp"], report(stage)["bytes"][stage]
    assert set(found) == {"all-reduce", "all-gather"}
    assert 0 < found["all-gather"]["bytes"] <= gradient
    assert found["all-reduce"]["bytes"] <= 1.25 * gradient


@pytest.mark.slow
def test_only_the_pools_new_images_are_gathered(report):
    """What CycleGAN's pools are told: synthetic images of both kinds, 32 x 32 x 2 floats each."""
    for mode in ("jit", "pmap"):
        found = report("cyclegan")["collectives"][f"cyclegan {mode}"]["all-gather"]
        assert found["bytes"] == 2 * BATCH * 32 * 32 * 2 * 4


HLO = """
  %all-reduce.1 = f32[3,4]{1,0} all-reduce(f32[3,4]{1,0} %x), replica_groups={{0,1}}
  ROOT %all-reduce.2 = (f32[5]{0}, bf16[], pred[2]{0}) all-reduce(f32[5]{0} %y, bf16[] %z, %w)
  %gathered = f32[8,2]{1,0} all-gather(f32[4,2]{1,0} %p), dimensions={0}
  %name.all-reduce = f32[7]{0} add(f32[7]{0} %a, f32[7]{0} %b)
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    class Program:
        def as_text(self):
            return HLO

    assert scaling.collectives(Program()) == {
        "all-reduce": {"number": 2, "bytes": 48 + 20 + 2 + 2, "largest": 48},
        "all-gather": {"number": 1, "bytes": 64, "largest": 64},
    }


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="unknown parallel 'ddp': allowed are jit, pmap, fsdp"):
        parallel.all_devices("ddp")


MEET = """
import jax
from cdm_jax import parallel
parallel.start()
parallel.wait_for_all("meeting")
print(jax.process_count(), jax.process_index(), jax.device_count())
"""
SLURM = {
    "SLURM_JOB_ID": "{port}",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "{place}",
    "SLURM_LOCALID": "{place}",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "{port}.0;tcp://127.0.0.1:1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "{place}",
    "OMPI_COMM_WORLD_LOCAL_RANK": "{place}",
}


@pytest.mark.slow
@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI], ids=["slurm", "open_mpi"])
def test_processes_find_each_other_by_what_their_launcher_sets(variables):
    """The variables that srun and mpirun set; neither is needed to see that JAX reads them."""
    port = _port()
    pair = [
        Process(
            ["-c", MEET], 1, **{k: v.format(port=port, place=place) for k, v in variables.items()}
        )
        for place in range(2)
    ]
    for place, process in enumerate(pair):
        status, printed = process.finish(timeout=120)
        assert status == 0, printed[-3000:]
        assert f"2 {place} 2" in printed


def test_half_of_what_several_processes_need_is_refused():
    with pytest.raises(UserError, match="--num_processes and --process_id"):
        parallel.start(coordinator="127.0.0.1:1234")


@pytest.fixture(scope="module")
def alone(finished_run, tmp_path_factory):
    """One device's runs: MRM, MDN, C-UNet, Pix2pix, Diffusion."""
    workdir = copy_run(finished_run, tmp_path_factory.mktemp("alone") / "run")
    run(ALONE, *(line(s, workdir, ALONE) for s in ("mrm", "mdn", "cunet", "pix2pix", "diffusion")))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("topology", OTHERS, ids=str)
def test_twenty_steps_give_the_same_loss_curve(alone, finished_run, topology, tmp_path):
    """To rounding of float32; C-UNet has the same frozen stages.

    Its tolerance is larger: y differs by 1e-6 between programs, and Adam divides the first, tiny
    gradients of the learned null and of the layers that start at zero by their own size. One device
    alone, its y disturbed by 1e-6, departs as far from itself within 20 steps (2e-4).
    """
    own, built = copy_run(finished_run, tmp_path / "own"), copy_run(alone, tmp_path / "built")
    for stage in ("mrm", "mdn"):
        shutil.copytree(alone / stage, built / stage)
    places = {"mrm": own, "mdn": own, "cunet": built, "pix2pix": built, "diffusion": built}
    run(topology, *(line(stage, place, topology) for stage, place in places.items()))
    for stage, place in places.items():
        expected, found = curve(alone / stage), curve(place / stage)
        for name in expected:
            np.testing.assert_allclose(
                found[name],
                expected[name],
                rtol=2e-3 if stage == "cunet" else 2e-5,
                err_msg=f"{stage} {name}",
            )


@pytest.fixture(scope="module")
def saved(alone, finished_run, tmp_path_factory):
    """Pix2pix and Diffusion half way, saved by each topology: the later checkpoint is removed."""
    found = {}
    for topology in (ALONE, OTHERS[0], OTHERS[2], OTHERS[5]):
        workdir = copy_run(finished_run, tmp_path_factory.mktemp("saved") / "run")
        run(topology, line("pix2pix", workdir, topology))
        shutil.rmtree(workdir / "pix2pix/checkpoints" / str(STEPS))
        found[topology] = workdir
    return found


@pytest.mark.slow
def test_a_checkpoint_of_each_topology_is_restored_on_each_other(saved):
    """Bit for bit, with the iterator's position: on one device, four, and two processes of two."""
    folders = {topology: str(workdir / "pix2pix") for topology, workdir in saved.items()}
    here = report_of(child("restore", *folders.values(), devices=4))
    address = f"127.0.0.1:{_port()}"
    pair = [child("restore", address, "2", k, *folders.values(), devices=2) for k in "01"]
    there = [report_of(process) for process in pair]
    for folder in folders.values():
        states = {tuple(map(str, here[f"{folder} {mesh}"])) for mesh in ("one", *parallel.MODES)}
        for report in there:
            states |= {tuple(map(str, report[f"{folder} {mode}"])) for mode in parallel.MODES}
        assert len(states) == 1, states
        assert f"'next_index': {STEPS // 2}" in states.pop()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [(0, 2), (2, 3), (3, 1), (1, 0)],
    ids=["1->fsdp", "fsdp->2x2", "2x2->4", "4->1"],
)
def test_a_run_goes_on_with_other_devices(saved, before, after, tmp_path):
    topologies = list(saved)
    workdir = tmp_path / "run"
    shutil.copytree(saved[topologies[before]], workdir)
    topology = topologies[after]
    printed = run(topology, line("pix2pix", workdir, topology))
    assert "goes on from step 10" in printed[0]
    expected = curve(
        saved[topologies[before]] / "pix2pix"
    )  # written before the later half was lost
    for name, values in curve(workdir / "pix2pix").items():
        np.testing.assert_allclose(values, expected[name], rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_another_global_batch_does_not_continue_a_run(saved):
    text = line("pix2pix", saved[ALONE], ALONE)
    text = text.replace(f"batch_size_per_device={BATCH}", "batch_size_per_device=4")
    (process,) = start(ALONE, text)
    status, printed = process.finish()
    assert status == 1
    assert "was trained with batches of 8 slices, and 1 devices now make batches of 4" in printed


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_pair_goes_on_exactly(
    finished_run, victim, tmp_path
):
    two = Topology(2, 1, "jit")
    whole = copy_run(finished_run, tmp_path / "whole")
    run(two, line("m1", whole, two))

    workdir = copy_run(finished_run, tmp_path / "run")
    started = start(two, line("m1", workdir, two))
    metrics = workdir / "m1/metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < STEPS // 2 + 2:
        assert time.monotonic() < deadline and started[0].process.poll() is None
        time.sleep(0.02)
    started[victim].process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    status, printed = started[1 - victim].finish(timeout=90)
    assert time.monotonic() - killed < 60
    started[victim].finish()
    assert status != 0
    # Our words where Python still runs; JAX's own where its runtime notices first and ends it.
    clear = ("continues from its last checkpoint", "heartbeat", "task was preempted/died")
    assert any(words in printed for words in clear), printed
    run(two, line("m1", workdir, two))
    assert metrics.read_text() == (whole / "m1/metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_request_to_stop_one_process_saves_all_at_the_same_step(finished_run, tmp_path):
    two = Topology(2, 1, "jit")
    workdir = copy_run(finished_run, tmp_path / "run")
    text = line("m1", workdir, two).replace(f"num_steps={STEPS}", "num_steps=100000")
    started = start(two, text.replace("checkpoint_every=", "checkpoint_every=100000"))
    metrics = workdir / "m1/metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline and started[0].process.poll() is None
        time.sleep(0.02)
    started[1].process.send_signal(signal.SIGTERM)
    printed = [process.finish(timeout=120)[1] for process in started]
    steps = {re.search(r"saved at step (\d+)", text)[1] for text in printed}
    assert len(steps) == 1, printed
    assert (workdir / "m1/checkpoints" / steps.pop()).is_dir()


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(finished_run, tmp_path):
    """Synthesis of a cohort byte for byte, and the records of an evaluation."""
    two = Topology(2, 1, "jit")
    outputs = {}
    for topology in (ALONE, two):
        name = f"by_{topology.processes}"
        workdir = copy_run(finished_run, tmp_path / name, ("mrm", "mdn", "cunet", "m1"))
        output = tmp_path / f"{name}_out"
        run(
            topology,
            f"synthesize --workdir={workdir} --input={workdir / 'patients'} --output={output} "
            "--samples=2",
            f"evaluate --workdir={workdir} --config=configs/phantom.py:cdm,smoke",
        )
        outputs[topology] = {
            path.relative_to(tmp_path / f"{name}_out"): path.read_bytes()
            for path in sorted(output.rglob("*"))
            if path.is_file()
        } | {p.name: p.read_bytes() for p in (workdir / "evaluation/test").glob("*.json")}
    assert len(outputs[ALONE]) > 10
    assert outputs[ALONE].keys() == outputs[two].keys()
    for name, content in outputs[ALONE].items():
        assert content == outputs[two][name], name


COLAB = """
import pathlib, sys
import jax, numpy as np
from cdm_jax import inference
system = inference.load_system(pathlib.Path(sys.argv[1]), 2)
slices = np.full((3, 32, 32, 2), 30000, np.uint16)
compute = system.compile(
    lambda model, batch, key: {"t": system.method.translate(model, batch["source"], key, 1)[0]}
)
images = system.volumes(compute, {"source": slices}, jax.random.key(0))["t"]
assert images.shape == (3, 32, 32, 2) and np.isfinite(images).all()
assert len(jax.devices()) == 1
assert not {"cdm_jax.train", "cdm_jax.commands"} & set(sys.modules)
"""


@pytest.mark.slow
def test_one_device_restores_what_eight_saved_without_training_code(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run")
    eight = Topology(1, 8, "fsdp")
    run(eight, line("m1", workdir, eight))
    status, text = Process(["-c", COLAB, str(workdir / "m1")], devices=1).finish()
    assert status == 0, text[-3000:]
