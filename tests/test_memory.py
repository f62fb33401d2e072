"""Memory: what a program takes, which stages are refused before they train, and running out."""

import jax
import jax.numpy as jnp
import pytest

from cdm_jax import checkpoint, commands, memory, parallel
from cdm_jax import main as command_line
from cdm_jax.data.dataset import Dataset
from cdm_jax.errors import UserError
from configs import brats
from tests.helpers import smoke_config

NOBODY = Dataset(train=(), validation=(), test=(), subjects={}, copies=(), split_hash="")
EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 GiB.")
GIB = 2**30


def check(config, stages, workdir, limit):
    memory.check_pipeline(config, stages, workdir, NOBODY, limit)


def test_a_program_takes_its_arguments_results_and_what_lies_between():
    vector = jax.ShapeDtypeStruct((1024,), jnp.float32)
    for donated, expected in (((), 2 * 4096), (0, 4096)):
        program = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(vector).compile()
        assert memory.peak_bytes(program) == pytest.approx(expected, abs=256)
    between = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=0)[0]).lower(vector).compile()
    assert memory.peak_bytes(between) > 4 * 1024**2


def test_a_step_takes_no_less_than_its_state_and_more_for_a_larger_batch():
    needed = []
    for batch in (2, 8):
        config = smoke_config("mrm")
        config.mrm.train.batch_size_per_device = batch
        lowered = memory.lowered_step(config, parallel.all_devices("jit"), jax.random.key(0))
        needed.append(memory.peak_bytes(lowered.compile()))
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lowered.in_avals))
        assert needed[-1] > state
    assert needed[1] > needed[0]


def test_a_stage_that_does_not_fit_is_refused_by_name_with_the_settings_to_change(tmp_path):
    config = smoke_config("mrm")
    check(config, ("mrm",), tmp_path, GIB)
    expected = (
        r"^stage mrm needs 0\.\d GiB of each device to train, and JAX may take 0\.0 GiB: set "
        r"--config\.mrm\.train\.batch_size_per_device=2 --config\.mrm\.optimizer\.accumulate=2 .*"
        r"XLA_PYTHON_CLIENT_MEM_FRACTION=.*--config\.data\.size$"
    )
    with pytest.raises(UserError, match=expected):
        check(config, ("mrm",), tmp_path, 1000)


@pytest.mark.parametrize("mode", ["pmap", "fsdp"])
def test_the_other_ways_to_share_the_work_are_checked_too(mode, tmp_path):
    config = smoke_config("mrm")
    config.parallel = mode
    with pytest.raises(UserError, match="stage mrm needs"):
        check(config, ("mrm",), tmp_path, 1000)


def test_finished_stages_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "finished", lambda folder: folder == tmp_path / "mrm")
    check(smoke_config("mrm"), ("mrm",), tmp_path, 1)


def test_without_a_limit_nothing_is_compiled(tmp_path):
    config = smoke_config("m1")
    config.m1.groups = 0  # not to be built
    check(config, ("m1",), tmp_path, None)
    with pytest.raises(UserError, match="groups"):
        check(config, ("m1",), tmp_path, GIB)


def test_the_limit_is_that_of_the_smallest_device_and_none_on_a_cpu(monkeypatch):
    assert memory.device_limit() is None

    class Device:
        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return {"bytes_limit": self.limit, "bytes_in_use": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(60), Device(50)])
    assert memory.device_limit() == 50


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("diffusion", {}, "--config.diffusion.train.batch_size_per_device=6 --config.diffusion."),
        ("rcg", {"rcg.remat": False}, "--config.rcg.remat=true, or --config.rcg.train.batch"),
        (
            "mdn",
            {"mdn.train.batch_size_per_device": 9, "mdn.optimizer.accumulate": 2},
            "--config.mdn.train.batch_size_per_device=3 --config.mdn.optimizer.accumulate=6 ",
        ),
        ("m1", {"m1.train.batch_size_per_device": 1}, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"),
    ],
)
def test_the_remedy_keeps_the_effective_batch(stage, changes, expected):
    config = brats.get_config("all")
    config.update_from_flattened_dict(changes)
    assert memory.remedy(config, stage).startswith(expected)


# The command line.


@pytest.fixture
def call(tmp_path, monkeypatch, pytestconfig, capsys):
    """`call(*arguments)`: the exit code and what a command says, of a run without patients."""
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setattr(commands, "_dataset", lambda config, workdir: NOBODY)
    monkeypatch.setattr(commands, "find_system", lambda workdir: workdir / "m1")
    for check in ("check_evaluation", "check_uncertain"):  # nothing is trained
        monkeypatch.setattr(commands, check, lambda *_, **__: None)

    def run(*arguments):
        code = command_line.main(["cdm_jax.main", *arguments, f"--workdir={tmp_path}"])
        return code, capsys.readouterr().err

    return run


def test_no_stage_trains_before_the_last_is_known_to_fit(call, monkeypatch):
    sizes = {"mrm": 1, "mdn": 2, "cunet": 80 * GIB, "m1": 3}
    monkeypatch.setattr(memory, "_needed", lambda config, stage, dataset: sizes[stage])
    monkeypatch.setattr(memory, "device_limit", lambda: 60 * GIB)
    monkeypatch.setattr(commands, "train_stage", lambda *_: pytest.fail("it trains"))
    code, error = call("train", "--config=configs/phantom.py:cdm")
    assert code == 1
    assert error.startswith("error: stage cunet needs 80.0 GiB of each device to train")
    assert error.count("\n") == 1


COMMANDS = {
    "train": ("train_stage", "training m1 ran out", "--config.m1.train.batch_size_per_device=2"),
    "evaluate": ("evaluate_run", "the evaluation ran out", "--config.evaluate.batch_size below 12"),
    "synthesize": ("synthesize_folder", "the synthesis ran out", "MEM_FRACTION=0.95"),
    "calibrate": ("calibrate_stage", "the calibration ran out", "--samples below 40"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_running_out_of_memory_is_answered_in_one_line(command, call, monkeypatch):
    function, expected, setting = COMMANDS[command]

    def run_out(*_, **__):
        raise EXHAUSTED

    monkeypatch.setattr(commands, function, run_out)
    config = "--config=configs/phantom.py:m1,smoke"
    flags = {"synthesize": ["--input=.", "--output=."], "calibrate": [config, "--samples=40"]}
    code, error = call(command, *flags.get(command, [config]))
    assert code == 1
    assert error.startswith(f"error: {expected} of the device's memory: set ")
    assert setting in error
    assert error.count("\n") == 1
    assert "is saved" not in error


def test_training_that_ran_out_names_the_checkpoint_that_remains(tmp_path):
    for step in ("40", "200", "3.partial"):
        (tmp_path / checkpoint.FOLDER / step).mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"set less; step 200 is saved in .*: the same command goes"),
        memory.explained("training m1", "set less", tmp_path),
    ):
        raise EXHAUSTED


def test_other_errors_are_left_as_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained("it", "set"):
        raise jax.errors.JaxRuntimeError("INTERNAL: no memory of that")
