"""The loop: exact resuming, one compilation, refusals, what it leaves on disk."""

import collections
import json
import logging
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cdm_jax import checkpoint, commands, memory, parallel, run, train
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from cdm_jax.main import STOPPED
from cdm_jax.methods.cdm.cunet import CrossConditioned
from cdm_jax.tasks import Task
from cdm_jax.writer import SAVED, Writer
from configs.common import SYSTEMS
from tests import helpers
from tests.helpers import STAGES, compilations, copy_run, smoke_config

BEFORE = {"mrm": (), "mdn": ("mrm",), "cunet": ("mrm", "mdn"), "m1": ()}


def model_leaves(folder):
    model, _ = checkpoint.load_model(folder)
    return jax.tree_util.tree_leaves_with_path(model)


def assert_same_model(folder, other):
    for (path, ours), (_, theirs) in zip(model_leaves(folder), model_leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("stage", ["mdn", "cunet"])
def test_a_killed_run_compiles_once_and_continues_to_bit_identical_parameters(
    stage, finished_run, tmp_path, monkeypatch, caplog
):
    workdir = copy_run(finished_run, tmp_path / "run", BEFORE[stage])
    with compilations(caplog) as compiled:
        kill_and_continue(stage, workdir, finished_run, monkeypatch)
    assert_compiled(compiled, 2)  # once before the kill, once after it


@pytest.mark.slow
@pytest.mark.parametrize("system", [s for s in SYSTEMS if s not in ("cdm", "m1", "all")])
def test_a_killed_run_of_each_stage_of_any_other_system_does_so_too(
    system, finished_run, tmp_path, monkeypatch, caplog
):
    known = tuple(stage for stage in SYSTEMS[system] if stage in STAGES)
    whole, broken = (copy_run(finished_run, tmp_path / name, known) for name in ("whole", "broken"))
    for stage in SYSTEMS[system]:
        if stage in known:
            continue
        with compilations(caplog) as compiled:
            helpers.train(stage, whole)
            kill_and_continue(stage, broken, whole, monkeypatch)
        assert_compiled(compiled, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [STAGES, ("m1,any",)], ids=["fixed", "any"])
def test_a_killed_run_that_sees_neighbors_does_so_too(
    stages, finished_run, tmp_path, monkeypatch, caplog
):
    whole, broken = (copy_run(finished_run, tmp_path / name) for name in ("whole", "broken"))
    for stage in stages:
        with compilations(caplog) as compiled:
            helpers.train(stage, whole, smoke_config(stage, context=1))
            kill_and_continue(stage, broken, whole, monkeypatch, context=1)
        assert_compiled(compiled, 3)


def assert_compiled(compiled, trainings):
    """The step and the validation once in each training."""
    for function in ("jit(step)", "jit(validate)"):
        assert sum(function in message for message in compiled) == trainings, compiled


def kill_and_continue(argument, workdir, whole, monkeypatch, **data):
    """Trains a stage with a break, and compares it with that of the run without one."""
    write, stage = Writer.scalars, argument.partition(",")[0]

    def die_at_step_three(self, step, values):
        if step == 3:
            raise RuntimeError("killed")
        write(self, step, values)

    monkeypatch.setattr(Writer, "scalars", die_at_step_three)
    with pytest.raises(RuntimeError, match="killed"):
        helpers.train(argument, workdir, smoke_config(argument, **data))
    monkeypatch.undo()
    assert not checkpoint.finished(workdir / stage)
    helpers.train(argument, workdir, smoke_config(argument, **data))
    assert_same_model(workdir / stage, whole / stage)
    lines = (workdir / stage / "metrics.jsonl").read_text()
    assert lines == (whole / stage / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_process_killed_after_a_checkpoint_continues_to_bit_identical_parameters(
    finished_run, tmp_path, pytestconfig
):
    whole, broken = (copy_run(finished_run, tmp_path / name) for name in ("whole", "broken"))
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:m1,smoke"]
    for name, value in (("num_steps", 200), ("checkpoint_every", 20), ("validate_every", 200)):
        command.append(f"--config.m1.train.{name}={value}")

    def run(workdir):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=pytestconfig.rootpath, stdout=subprocess.PIPE
        )

    run(whole).communicate()
    with run(broken) as process:
        while checkpoint.provenance(broken / "m1") is None:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not checkpoint.finished(broken / "m1")
    output, _ = run(broken).communicate()
    assert b"m1 goes on from step" in output
    assert checkpoint.finished(whole / "m1")
    assert checkpoint.finished(broken / "m1")
    assert_same_model(broken / "m1", whole / "m1")


def test_a_request_to_stop_saves_and_the_same_command_goes_on(finished_run, tmp_path, capsys):
    workdir = copy_run(finished_run, tmp_path / "run")
    config = smoke_config("m1")
    config.m1.train.checkpoint_every = 100
    dataset = load_dataset(config, workdir)
    seen = []

    def terminate(self, step, values):
        if step == 1 and not seen:
            seen.append(threading.current_thread())
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "scalars", terminate)
        with pytest.raises(SystemExit) as stopped:
            train.train_stage(config, workdir, dataset)
    assert stopped.value.code == SAVED not in (0, 1, 2, STOPPED)
    assert "stopped, saved at step 1; the same command goes on\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train.train_stage(config, workdir, dataset)
    assert_same_model(workdir / "m1", finished_run / "m1")


@pytest.fixture
def empty_cache(tmp_path):
    """A cache of compiled programs that holds nothing yet."""
    before = jax.config.values["jax_compilation_cache_dir"]

    def use(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()

    use(tmp_path / "compiled")
    yield
    use(before)


@pytest.mark.parametrize("stage", ["cunet"])
def test_what_the_check_of_memory_compiles_is_what_training_runs(
    stage, finished_run, tmp_path, caplog, empty_cache
):
    """Frozen models of the check are shapes, those of training come from checkpoints."""
    workdir, config = copy_run(finished_run, tmp_path / "run", BEFORE[stage]), smoke_config(stage)
    dataset = load_dataset(config, workdir)
    config.pipeline = ()
    memory.check_pipeline(config, (stage,), workdir, dataset, 2**40)
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train.train_stage(config, workdir, dataset)
    said = [r.getMessage().lower() for r in caplog.records if "'jit_step'" in r.getMessage()]
    assert [text.partition(" for ")[0] for text in said] == ["persistent compilation cache hit"]


def test_a_start_traces_initialization_and_update_once(finished_run, tmp_path, monkeypatch):
    counted = collections.Counter()

    def count(name):
        original = getattr(CrossConditioned, name)

        def traced(self, *arguments):
            counted[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(CrossConditioned, name, traced)

    count("init")
    count("update")
    helpers.train("m1", copy_run(finished_run, tmp_path / "run"))
    assert counted == {"init": 1, "update": 1}


def test_a_finished_stage_is_left_alone(finished_run, capsys):
    before = (finished_run / "m1" / "metrics.jsonl").stat().st_mtime_ns
    helpers.train("m1", finished_run)
    assert (finished_run / "m1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_missing_predecessor_is_named(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run", ("mrm",))
    with pytest.raises(run.MissingStageError, match="cunet needs a finished mdn") as error:
        helpers.train("cunet", workdir)
    assert error.value.stage == "mdn"


def test_a_card_that_a_killed_run_did_not_write_is_written_by_the_next(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run", ("m1",))
    card, config = workdir / "m1/MODEL_CARD.md", smoke_config("m1")
    config.pipeline = ()
    assert not card.exists()
    commands.train(config=config, workdir=workdir)
    assert "Not evaluated yet" in card.read_text()
    card.write_text("with the numbers of an evaluation")
    commands.train(config=config, workdir=workdir)
    assert card.read_text() == "with the numbers of an evaluation"


def test_other_settings_do_not_continue_a_run(finished_run):
    config = smoke_config("mrm")
    config.mrm.width = 64
    with pytest.raises(UserError, match=r"mrm\.width: 32 -> 64"):
        helpers.train("mrm", finished_run, config)
    config = smoke_config("mdn")
    config.mrm.mask_ratio = 0.5
    config.mdn.train.num_steps = 5
    with pytest.raises(UserError, match=r"mrm\.mask_ratio: 0\.6 -> 0\.5"):
        helpers.train("mdn", finished_run, config)


def test_rematerialization_may_be_turned_on_while_a_run_goes_on(tmp_path):
    saved, config = smoke_config("diffusion"), smoke_config("diffusion")
    saved.diffusion.remat = False
    config.diffusion.remat = True
    run.check_same(config, saved, ("diffusion",), tmp_path)
    config.diffusion.dropout = 0.5
    with pytest.raises(UserError, match=r"\(diffusion\.dropout: 0\.0 -> 0\.5\)"):
        run.check_same(config, saved, ("diffusion",), tmp_path)


def test_another_split_does_not_continue_a_run(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run", ("m1",))
    (workdir / "split.json").unlink()
    with pytest.raises(UserError, match="split"):
        helpers.train("m1", workdir, smoke_config("m1", split_seed=5))


def test_slices_to_measure_are_spread_over_the_subjects_as_they_are_stored(finished_run):
    """One of every file's slices to train on at least, the last batch filled up from the start."""
    subjects = load_dataset(smoke_config("m1"), finished_run).train[:3]
    stored = np.concatenate([s.slices[list(s.training)] for s in subjects])
    chosen = np.unique(np.linspace(0, len(stored) - 1, 6).astype(int))
    task = Task(sources=("t1", "t2"), targets=("t1c", "t2f"))
    batches = list(run.slice_batches(subjects, 4, 6, parallel.local_mesh(), task))
    images = np.concatenate([np.concatenate(list(b.values()), axis=-1) for b in batches])
    assert list(batches[0]) == ["source", "target"] and len(images) == 8
    np.testing.assert_array_equal(np.rint((images + 1) * 32767.5), stored[[*chosen, *chosen[:2]]])


def test_more_steps_and_other_threads_extend_a_finished_run(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run", ("m1",))
    config = smoke_config("m1", read_threads=0)
    config.m1.train.num_steps = 5
    helpers.train("m1", workdir, config)
    steps = [json.loads(x)["step"] for x in (workdir / "m1/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 5


def test_a_run_leaves_curves_pictures_and_its_parameters(finished_run):
    for stage in STAGES:
        folder = finished_run / stage
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["step"] == 0 and "validation/loss" in lines[0]
        assert {"loss", "gradient_norm"} <= lines[1].keys()
        assert any("validation/loss" in line for line in lines)
        assert list((folder / "tensorboard").glob("events*"))
        assert "Total" in (folder / "parameters.txt").read_text()
    assert {"validation/psnr_t1c", "validation/psnr_t2f"} <= {name for one in lines for name in one}
    assert list((finished_run / "cunet/pictures").glob("*.png"))


def test_epochs_become_steps():
    config = smoke_config("m1")
    config.m1.train.update({"num_steps": 0, "num_epochs": 3})
    assert run.resolve(config, 41).m1.train.num_steps == 3 * (41 // 4)
    config.m1.train.num_epochs = 0
    with pytest.raises(UserError, match="num_steps and num_epochs"):
        run.resolve(config, 41)


def test_statistics_of_the_representation_travel_in_the_checkpoint(finished_run):
    model, _ = checkpoint.load_model(finished_run / "mrm")
    assert np.ptp(model["statistics"]["deviation"]) > 0
    inside, _ = checkpoint.load_model(finished_run / "cunet")
    np.testing.assert_array_equal(
        inside["frozen"]["mrm"]["statistics"]["mean"], model["statistics"]["mean"]
    )
    factor = inside["frozen"]["mdn"]["statistics"]["error_factor"]
    assert np.abs(factor).max() > 0
