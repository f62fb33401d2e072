"""Several processes: one that dies, one that is asked to stop, a cohort that they share."""

import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from cdm_jax import checkpoint
from cdm_jax.writer import SAVED
from tests.helpers import copy_run
from tests.processes import ALONE, STEPS, Topology, kill, line, run, start, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_pair_goes_on_exactly(
    finished_run, victim, tmp_path
):
    two, half = Topology(2, 1, "jit"), 50

    def command(workdir: pathlib.Path) -> str:
        text = line("m1", workdir, two).replace(f"num_steps={STEPS}", f"num_steps={2 * half}")
        return text.replace(f"checkpoint_every={STEPS // 2}", f"checkpoint_every={half}")

    whole = copy_run(finished_run, tmp_path / "whole")
    run(two, command(whole))

    workdir = copy_run(finished_run, tmp_path / "run")
    started = start(two, command(workdir))
    wait_until((workdir / f"m1/checkpoints/{half}/commit_success.txt").exists, started[0])
    printed = kill(started[victim], started[1 - victim])
    # Our words where Python still runs; JAX's own where its runtime notices first and ends it.
    clear = ("continues from its last checkpoint", "heartbeat", "task was preempted/died")
    assert any(words in printed for words in clear), printed
    assert f"goes on from step {half}" in run(two, command(workdir))[0]
    metrics = [(run / "m1/metrics.jsonl").read_text() for run in (workdir, whole)]
    assert metrics[0] == metrics[1]
    models = [checkpoint.load_model(run / "m1")[0] for run in (workdir, whole)]
    jax.tree.map(np.testing.assert_array_equal, *models)


@pytest.mark.slow
def test_a_request_to_stop_one_process_saves_all_at_the_same_step(finished_run, tmp_path):
    two = Topology(2, 1, "jit")
    workdir = copy_run(finished_run, tmp_path / "run")
    text = line("m1", workdir, two).replace(f"num_steps={STEPS}", "num_steps=100000")
    started = start(two, text.replace("checkpoint_every=", "checkpoint_every=100000"))
    metrics = workdir / "m1/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 5, started[0])
    started[1].process.send_signal(signal.SIGTERM)
    ends = [process.finish(timeout=120) for process in started]
    printed = [text for _, text in ends]
    assert [status for status, _ in ends] == [SAVED] * 2, printed
    steps = {re.search(r"saved at step (\d+)", text)[1] for text in printed}
    assert len(steps) == 1, printed
    assert (workdir / "m1/checkpoints" / steps.pop()).is_dir()


def cohort(command: str, workdir: pathlib.Path) -> tuple[str, pathlib.Path]:
    """A command line that works on patients one by one, and the folder of what it writes."""
    if command == "synthesize":
        output = workdir / "out"
        return (
            f"synthesize --workdir={workdir} --input={workdir / 'patients'} --output={output} "
            "--samples=2"
        ), output
    return (
        f"evaluate --workdir={workdir} --config=configs/phantom.py:cdm,smoke "
        "--config.evaluate.part=train"  # three patients; of the test part there are two
    ), workdir / "evaluation/train"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Each file below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


SYSTEM = ("mrm", "mdn", "cunet", "m1")


@pytest.fixture(scope="module")
def unbroken(finished_run, tmp_path_factory):
    """What one process writes, by the command."""
    workdir = copy_run(finished_run, tmp_path_factory.mktemp("unbroken") / "run", SYSTEM)
    commands = {name: cohort(name, workdir) for name in ("synthesize", "evaluate")}
    run(ALONE, *(text for text, _ in commands.values()))
    return {name: contents(output) for name, (_, output) in commands.items()}


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(unbroken, finished_run, tmp_path):
    """Synthesis of a cohort byte for byte, and the records of an evaluation."""
    workdir = copy_run(finished_run, tmp_path / "run", SYSTEM)
    commands = {name: cohort(name, workdir) for name in unbroken}
    run(Topology(2, 1, "jit"), *(text for text, _ in commands.values()))
    assert len(unbroken["synthesize"]) > 10
    for name, (_, output) in commands.items():
        found = contents(output)
        assert found.keys() == unbroken[name].keys()
        for file, content in found.items():
            assert content == unbroken[name][file], file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "last", "victim", "after"),
    [
        ("synthesize", "*-t2f.json", 1, ALONE),  # the last file of a patient
        ("evaluate", "*.json", 0, Topology(2, 1, "jit")),
    ],
    ids=["synthesize", "evaluate"],
)
def test_after_a_kill_only_the_missing_patients_are_done(
    unbroken, finished_run, command, last, victim, after, tmp_path
):
    workdir = copy_run(finished_run, tmp_path / "run", SYSTEM)
    text, output = cohort(command, workdir)
    started = start(Topology(2, 1, "jit"), text)
    wait_until(lambda: any(output.rglob(last)), started[victim])
    kill(started[victim], started[1 - victim])
    times = {path: path.stat().st_mtime_ns for path in output.rglob(last)}
    number = sum(pathlib.PurePath(name).match(last) for name in unbroken[command])
    assert 0 < len(times) < number
    run(after, text)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(output) == unbroken[command]
