"""The notebook, cell by cell in a real kernel, on a checkpoint that four devices have just made."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from cdm_jax.data.nifti import read_geometry
from tests.helpers import copy_run

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/restore_checkpoint.ipynb"
TARGETS = ("t1c", "t2f")
# Stands for Colab's module: every upload is the next of the files in CDM_UPLOADS.
COLAB = """
import os, pathlib

uploads = iter(os.environ["CDM_UPLOADS"].split(":"))


class output:
    enable_custom_widget_manager = staticmethod(lambda: print("widgets enabled"))


class files:
    download = staticmethod(lambda path: print("downloaded", path))

    @staticmethod
    def upload():
        path = pathlib.Path(next(uploads))
        return {path.name: path.read_bytes()}
"""


# What a GPU runtime of Colab had installed in August 2026, of what this package needs.
COLAB_PACKAGES = {
    "numpy": "2.1.3",
    **dict.fromkeys(("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt"), "0.7.2"),
    "orbax-checkpoint": "0.12.4",
    "grain": "0.2.18",
    "ipykernel": "6.17.1",
}
JAX = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt")


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(folder, **variables):
    """The notebook after every cell has run in a folder, by a kernel that sees one device."""
    notebook = read()
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{folder / 'modules'}",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment | {name: str(value) for name, value in variables.items()})
    return notebook


def shown(notebook):
    """For each code cell the text that it prints, and the kinds of what it shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    kinds = [{kind for output in cell.outputs for kind in output.get("data", ())} for cell in cells]
    return cells, texts, kinds


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """Where the notebook runs: a bundle that four devices trained, and a patient with T1 and T2."""
    root = tmp_path_factory.mktemp("notebook")
    workdir = copy_run(finished_run, root / "elsewhere", ("mrm", "mdn"))
    command = [sys.executable, "-m", "cdm_jax.main", "--config=configs/phantom.py:cunet,smoke"]
    devices = {"JAX_NUM_CPU_DEVICES": "4", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    result = subprocess.run(
        [*command, "--config.pipeline=()", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | devices,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "4 devices" in result.stdout
    shutil.copytree(workdir / "cunet", root / "runs/brats/cunet")
    patient = min(path for path in (workdir / "patients").iterdir() if path.is_dir())
    for path in patient.glob("*-t[12][nw].nii*"):
        (root / "patient" / patient.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "patient" / patient.name)
    shutil.rmtree(workdir)
    return root


def test_the_notebook_is_committed_without_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) == 7
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbformat.validate(read())


@pytest.mark.slow
def test_every_cell_runs_and_shows_a_patient(folder):
    cells, texts, kinds = shown(execute(folder, CDM_SAMPLES=2))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "from runs/brats/cunet" in texts[2]
    assert "t1, t2 -> t1c, t2f" in texts[2] and "running here on 1 x" in texts[2]
    assert "text/markdown" in kinds[2]  # the model card
    assert "image/png" in kinds[4]
    assert "application/vnd.jupyter.widget-view+json" in kinds[5]
    assert "Not in Colab: give your own files to model.synthesize" in texts[6]
    assert "{'t1': '<t1 file>', 't2': '<t2 file>'}" in texts[6]

    (patient,) = (folder / "patient").iterdir()
    synthetic = folder / "synthetic" / patient.name
    acquired = read_geometry(next(patient.glob("*-t1n.nii*")))
    for target in TARGETS:
        for name in (f"{patient.name}-{target}", f"{patient.name}-{target}-deviation"):
            assert read_geometry(synthetic / f"{name}.nii.gz").shape == acquired.shape
            assert f"{name}.nii.gz" in texts[3]


@pytest.mark.slow
def test_in_colab_ones_own_images_go_up_and_their_synthesis_comes_down(folder):
    (patient,) = (folder / "patient").iterdir()
    uploads = [next(patient.glob(f"*-{name}.nii*")) for name in ("t1n", "t2w")]
    module = folder / "modules/google/colab"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(COLAB)
    _, texts, kinds = shown(
        execute(folder, CDM_SAMPLES=1, CDM_UPLOADS=":".join(map(str, uploads)), CDM_OUTPUT="colab")
    )
    assert "widgets enabled" in texts[5]
    assert "Choose your t1 image" in texts[6] and "Choose your t2 image" in texts[6]
    assert "image/png" in kinds[6]
    for target in TARGETS:
        assert f"downloaded colab/mine/mine-{target}.nii.gz" in texts[6]
        assert (folder / f"colab/mine/mine-{target}.nii.gz").exists()


@pytest.mark.slow
def test_without_a_checkpoint_one_line_says_what_to_do(tmp_path):
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        execute(tmp_path, CDM_MODEL="nowhere")
    assert error.value.ename == "UserError"
    assert "no checkpoint of a system in nowhere: give the folder of a finished run" in str(
        error.value
    )
    assert "Traceback" not in str(error.value)


def installed_by_the_cell(monkeypatch, *, gpu, loaded=()):
    """What the install cell asks of pip in Colab, and what it prints, without pip's running."""
    cell = next(cell.source for cell in read().cells if cell.cell_type == "code")
    asked, printed = [], []
    names = {"print": printed.append}

    def run_line_magic(magic, line):
        asked.append((magic, shlex.split(line.format(**names))))

    names["get_ipython"] = lambda: types.SimpleNamespace(run_line_magic=run_line_magic)
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        patched.setattr(importlib.metadata, "version", COLAB_PACKAGES.__getitem__)
        patched.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpu else None)
        patched.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "jax"})
        sys.modules.update({name: types.ModuleType(name) for name in loaded})
        exec(TransformerManager().transform_cell(cell), names)
    ((magic, (command, *arguments)),) = asked
    assert (magic, command) == ("pip", "install")
    return arguments, printed


def test_the_install_cell_asks_for_the_plugin_where_there_is_a_gpu(monkeypatch):
    for gpu, extras in ((True, "cuda12,notebook"), (False, "notebook")):
        arguments, printed = installed_by_the_cell(monkeypatch, gpu=gpu)
        expected = [f"cdm_jax[{extras}] @ git+<this repository>", "numpy==2.1.3"]
        assert arguments == ["--quiet", *expected]
        assert not printed


def test_the_install_cell_says_where_a_restart_is_needed(monkeypatch):
    _, (line,) = installed_by_the_cell(monkeypatch, gpu=True, loaded=("jax",))
    assert "restart the session" in line


@pytest.fixture
def colab(tmp_path):
    """Python 3.13 that takes Colab's packages for installed."""
    python = shutil.which("python3.13") or sys.executable
    # A version manager's launcher may stand for a version that is not chosen.
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    if not said.stdout.startswith("Python 3.13"):
        pytest.skip("Colab has Python 3.13, which is not here")
    subprocess.run([python, "-m", "venv", tmp_path / "colab"], check=True)
    (site,) = (tmp_path / "colab/lib/python3.13").glob("site-packages")
    for name, version in COLAB_PACKAGES.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)
    return tmp_path / "colab/bin/python"


@pytest.mark.slow
def test_installing_in_colab_leaves_one_version_of_jax_and_needs_no_restart(colab, monkeypatch):
    """pip resolves the cell's requirements against what Colab has; nothing is installed."""
    arguments, _ = installed_by_the_cell(monkeypatch, gpu=True)
    arguments = [word.replace("git+<this repository>", f"file://{ROOT}") for word in arguments]
    report = colab.parents[1] / "report.json"
    command = [colab, "-m", "pip", "install", "--dry-run", "--report", report, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    new = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    versions = {name: (COLAB_PACKAGES | new)[name] for name in JAX}
    assert len(set(versions.values())) == 1, versions
    assert versions["jax"] != "0.7.2"  # this package needs a newer one
    # What the kernel has loaded, or Colab itself depends on, stays as it is.
    assert not new.keys() & {"numpy", "ipykernel", "orbax-checkpoint", "grain"}, new
