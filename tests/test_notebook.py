"""The notebook, cell by cell in a real kernel, on a checkpoint that four devices have just made."""

import os
import pathlib
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest

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
    assert "t1, t2 -> t1c, t2f" in texts[2] and "running here on 1 x" in texts[2]
    assert "text/markdown" in kinds[2]  # the model card
    assert "image/png" in kinds[4]
    assert "application/vnd.jupyter.widget-view+json" in kinds[5]
    assert "Not in Colab: put mine-t1n.nii.gz and mine-t2w.nii.gz" in texts[6]

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
        execute(tmp_path, CDM_WORKDIR="nowhere")
    assert error.value.ename == "UserError"
    assert "no checkpoint in nowhere/cunet: copy a finished run's folder 'cunet'" in str(
        error.value
    )
    assert "Traceback" not in str(error.value)
