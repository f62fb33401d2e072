"""The command line as a user meets it: help, as a subprocess, with one line for each mistake."""

import inspect
import os
import pathlib
import pkgutil
import shlex
import signal
import subprocess
import sys
import time
import tomllib

import pytest

import cdm_jax
from cdm_jax import arguments, commands
from cdm_jax import main as command_line
from cdm_jax.config import load_config
from cdm_jax.usage import COMMANDS, PROCESSES
from tests.helpers import copy_run

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments, capsys):
    code = command_line.main(["cdm_jax.main", *arguments])
    return code, capsys.readouterr().err


def said(*arguments, capsys):
    """What a call that has to succeed writes."""
    assert command_line.main(["cdm-jax", *arguments]) == 0
    written = capsys.readouterr()
    assert not written.err
    return written.out


def test_help_names_every_command_on_one_screen(capsys):
    text = said("--help", capsys=capsys)
    assert text == said("-h", capsys=capsys)
    for name, command in COMMANDS.items():
        assert f"  {name} " in text and command.summary in text
    assert text.count("\n  cdm-jax ") == 2  # examples
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100


def test_without_arguments_the_help_is_an_error(capsys):
    """A script that lost its arguments does not seem to have worked."""
    assert command_line.main(["cdm-jax"]) == 2
    written = capsys.readouterr()
    assert written.err.strip() == arguments.overview().strip()
    assert not written.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_with_its_needs_flags_defaults_and_two_examples(name, capsys):
    text = said(name, "--help", capsys=capsys)
    words = " ".join(text.split())
    assert "Needs " in words
    for flag in COMMANDS[name].flags:
        assert f"--{flag.name} {flag.value}" in words
        if flag.default and flag not in PROCESSES:
            assert f"default {flag.default}" in words
        assert not flag.required or f"{flag.text}; required" in words
    _, examples = text.split("examples:\n")
    assert len(examples.strip().splitlines()) == 2
    for line in examples.strip().splitlines():
        program, *words = shlex.split(line)
        parsed = arguments.parse(words)
        assert (program, parsed.command) == ("cdm-jax", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_the_keywords_of_the_commands_function(name):
    flags = {flag.name for flag in COMMANDS[name].flags} - {flag.name for flag in PROCESSES}
    assert flags == inspect.signature(getattr(commands, name)).parameters.keys()


def test_the_version_is_the_packages(capsys):
    assert said("--version", capsys=capsys) == f"cdm-jax {cdm_jax.__version__}\n"


def test_the_script_calls_main():
    with open(ROOT / "pyproject.toml", "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert pkgutil.resolve_name(scripts[arguments.PROGRAM]) is command_line.main


def test_help_and_mistakes_do_not_wait_for_jax():
    script = (
        "import sys, cdm_jax\n"
        "from cdm_jax.main import main\n"
        "assert main(['', '--help']) == main(['', 'train', '--help']) == 0\n"
        "assert main(['', '--config=configs/phantom.py:mnd']) == 2\n"
        "assert not {'jax', 'nibabel', 'pandas'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_flags_may_stand_before_the_command_and_apart_from_their_values():
    expected = arguments.parse(["report", "--workdir=train", "--patients=2"])
    assert expected.options["patients"] == 2
    assert arguments.parse(["--workdir", "train", "report", "--patients", "2"]) == expected


def test_flags_without_a_command_train():
    words = ["--config=configs/brats.py:mdn", "--config.mdn.width", "3", "--noconfig.data.flips"]
    parsed = arguments.parse(words)
    assert parsed.command == "train"
    assert parsed.options["config"] == "configs/brats.py:mdn"
    assert parsed.overrides == ("--config.mdn.width", "3", "--noconfig.data.flips")


def test_overrides_have_the_types_of_what_they_replace():
    overrides = ["--config.mdn.width", "3", "--noconfig.data.flips", "--config.data.copies=('t1',)"]
    config = load_config(
        f"{ROOT}/configs/phantom.py:mdn,size=64", [*overrides, "--config.data.root=3"]
    )
    assert (config.stage, config.data.size) == ("mdn", 64)
    assert (config.mdn.width, config.data.flips, config.data.root) == (3, False, "3")
    assert config.data.copies == ("t1",)
    with pytest.raises(AttributeError):
        config.mdn.widht = 3


def test_a_config_file_finds_its_package_from_anywhere(tmp_path, monkeypatch):
    """A console script's search path does not have the folder that it is called in."""
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if pathlib.Path(p).resolve() != ROOT])
    monkeypatch.chdir(tmp_path)
    assert load_config(f"{ROOT}/configs/phantom.py:mdn").stage == "mdn"


BUGS = {
    "config file": "def get_config(argument=''):\n    return None.config\n",
    "type": "def get_config():\n    return len(3)\n",
    "key": "def get_config():\n    return {}['stage']\n",
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_programming_error_keeps_its_traceback(bug, tmp_path):
    (tmp_path / "bug.py").write_text(BUGS[bug])
    with pytest.raises((AttributeError, TypeError, KeyError)):
        command_line.main(["cdm-jax", f"--config={tmp_path}/bug.py"])


MISTAKES = {
    "unknown command": (["trian"], "unknown command 'trian' (did you mean train?): allowed are"),
    "unknown stage": (
        ["--config=configs/brats.py:mnd"],
        "unknown stage 'mnd' (did you mean mdn?): allowed are mrm",
    ),
    "unknown flag": (
        ["evaluate", "--wokdir=runs"],
        "evaluate takes no flag --wokdir (did you mean --workdir?): allowed are --config",
    ),
    "flag cut short": (["evaluate", "--work=runs"], "evaluate takes no flag --work"),
    "another command's flag": (
        ["evaluate", "--samples=3"],
        "evaluate takes no flag --samples (it belongs to calibrate, synthesize)",
    ),
    "an override of no config": (
        ["evaluate", "--config.data.root=x"],
        "--config.data.root=x overrides a config: give --config",
    ),
    "an override where none is taken": (
        ["score", "--config.data.root=x"],
        "score takes no flag --config.data.root",
    ),
    "two commands": (["train", "evaluate"], "unexpected 'evaluate' after train"),
    "a word after an override": (
        ["--config=configs/phantom.py:mdn", "--noconfig.data.flips", "evaluate"],
        "unexpected 'evaluate'",
    ),
    "no number": (["report", "--patients=all"], "'all' should be a whole number, 1 or more"),
    "a flag without its value": (["report", "--patients"], "--patients: expected one argument"),
    "unknown value": (["--config=configs/brats.py:mdn,sise=64"], "unknown value 'sise'"),
    "value of a wrong type": (["--config=configs/brats.py:mdn,size=big"], "size=<int>"),
    "no such config": (
        ["--config=configs/brast.py:mdn"],
        "no config file configs/brast.py (did you mean configs/brats.py?)",
    ),
    "unknown key": (
        ["--config=configs/phantom.py:mdn", "--config.mdn.widht=3"],
        "the config has no key mdn.widht (did you mean width?)",
    ),
    "unknown key that resembles none": (
        ["--config=configs/phantom.py:mdn", "--config.sampler.zzz=3"],
        "the config has no key sampler.zzz: config.sampler has eta, grid, num_steps",
    ),
    "key below a value": (
        ["--config=configs/phantom.py:mdn", "--config.mdn.width.x=3"],
        "config.mdn.width is a value",
    ),
    "key of a wrong type": (
        ["--config=configs/phantom.py:mdn", "--config.mdn.width=wide"],
        "wide",
    ),
    "a value after a space": (
        ["--config", "configs/brats.py:mrm", "--workdir=WORKDIR"],
        "data.root is empty",
    ),
    "a file as folder": (
        ["--workdir=pyproject.toml"],
        "Not a directory: 'pyproject.toml/patients'",
    ),
    "no data": (["--config=configs/brats.py:mrm", "--workdir=WORKDIR"], "data.root is empty"),
    "missing folder": (
        ["--config=configs/brats.py:mrm", "--config.data.root=nowhere", "--workdir=WORKDIR"],
        "data.root nowhere is not a folder",
    ),
    "no run": (["evaluate", "--workdir=nowhere"], "no trained run in nowhere"),
    "no workdir": (["evaluate"], "evaluate needs --workdir"),
    "no input": (
        ["synthesize", "--workdir=nowhere"],
        "synthesize needs --input=<folder> --output=<folder>",
    ),
    "no phantom": (
        ["phantom", "--config=configs/brats.py:mrm", "--workdir=WORKDIR"],
        "has no phantom",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line(mistake, capsys, tmp_path, monkeypatch, pytestconfig):
    given, expected = MISTAKES[mistake]
    monkeypatch.chdir(pytestconfig.rootpath)
    given = [argument.replace("WORKDIR", str(tmp_path)) for argument in given]
    code, error = call(*given, capsys=capsys)
    assert code in (1, 2)
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_ctrl_c_is_answered_in_one_line(monkeypatch, capsys, tmp_path, pytestconfig):
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setattr(commands, "prepare", stopped)
    code, error = call("prepare", f"--workdir={tmp_path}", capsys=capsys)
    expected = "error: stopped: the same command goes on with what is not done\n"
    assert (code, error) == (130, expected)


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
from cdm_jax import main
sys.exit(main.main())
"""


@pytest.mark.slow
def test_ctrl_c_again_and_again_is_answered_in_one_line(tmp_path):
    given = ["phantom", "--config=configs/phantom.py:cdm", f"--workdir={tmp_path}"]
    given += ["--config.phantom.num_patients=5000", "--config.data.num_workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *given],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("patients/BraTS*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    while process.poll() is None:
        assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.02)
    _, said = process.communicate(timeout=60)
    assert said == "error: stopped: the same command goes on with what is not done\n"


UNFIT = {
    "--config.mrm.heads=3": "cannot divide mrm.width by mrm.heads: 32 / 3 leaves a remainder; use",
    "--config.mrm.patch=0": "mrm.patch 0 is too small: use 1 or more",
    "--config.cunet.groups=5": "cunet.groups 5 do not divide all of cunet.features (8, 16, 8)",
    "--config.data.copies=('t1',)": "name one of the sources ('t1', 't2') for each of the targets",
}


@pytest.mark.parametrize("override", UNFIT)
def test_a_value_that_does_not_fit_is_answered_in_one_line(
    override, finished_run, capsys, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    config = f"--config=configs/phantom.py:{'cunet' if 'cunet' in override else 'mrm'},smoke"
    code, error = call(config, override, f"--workdir={finished_run}", capsys=capsys)
    assert code == 1
    assert UNFIT[override] in error
    assert error.count("\n") == 1


def test_a_missing_predecessor_is_named_with_the_same_command_for_its_stage(
    finished_run, tmp_path, capsys, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    workdir = copy_run(finished_run, tmp_path / "cunet", ("mrm",))
    others = [
        *("--workdir", str(workdir), f"--config.data.root={workdir / 'patients'}"),
        "--config.cunet.features=(8, 8, 16, 8)",
    ]
    for config in (["--config={}"], ["--config", "{}"]):
        given = [part.format("configs/phantom.py:cunet,smoke,size=32") for part in config]
        code, error = call("train", *given, "--config.pipeline=('cunet',)", *others, capsys=capsys)
        assert code == 1
        assert error.count("\n") == 1
        message, _, command = error.partition(" by ")
        assert message.startswith("error: stage cunet needs a finished mdn in ")
        asked = [part.format("configs/phantom.py:mdn,smoke,size=32") for part in config]
        assert shlex.split(command) == ["python", "-m", "cdm_jax.main", "train", *asked, *others]


@pytest.mark.slow
def test_the_whole_pipeline_runs_as_a_command_and_again_in_no_time(tmp_path, pytestconfig):
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:cdm,smoke"]
    command.append(f"--workdir={tmp_path}")
    first = subprocess.run(
        command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert "Convention volume" in first.stdout
    for row in ("copy", "brain_mean", "regression", "cunet/oracle", "cunet/shuffled", "m1"):
        assert row in first.stdout
    again = subprocess.run(
        command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert again.stdout.count("is finished") == 4
    assert "Traceback" not in first.stderr + again.stderr


@pytest.mark.slow
def test_a_reader_of_the_help_may_leave_before_its_end(pytestconfig):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cdm_jax.main", "--help"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_in_a_subprocess_leaves_no_traceback(tmp_path, pytestconfig):
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:nothing"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
