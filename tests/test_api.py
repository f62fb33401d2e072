"""The Python API: what a notebook gets is what the command writes, to the bit."""

import pathlib
import shutil
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import api
from cdm_jax.data.nifti import GRID_FIELDS
from cdm_jax.errors import UserError
from cdm_jax.outputs import ENDINGS
from cdm_jax.synthesize import synthesize_folder
from tests.helpers import oblique_patient, save_wide_intervals

ROOT = pathlib.Path(__file__).parents[1]
TARGETS = ("t1c", "t2f")
IMAGES = {name: end for name, end in ENDINGS.items() if name != "enhancement"}  # of each target
SAMPLES = 2


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A run whose C-UNet has intervals for two samples."""
    folder = tmp_path_factory.mktemp("api") / "run"
    for stage in ("mrm", "cunet", "m1"):
        shutil.copytree(finished_run / stage, folder / stage)
    save_wide_intervals(folder / "cunet", SAMPLES)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return cdm_jax.load(run)


@pytest.fixture(scope="module")
def patient(finished_run, tmp_path_factory):
    return oblique_patient(finished_run, tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def paths(patient):
    """The files of the patient's sources; T2 is given as text."""
    return {"t1": next(patient.glob("*-t1n*")), "t2": str(next(patient.glob("*-t2w*")))}


@pytest.fixture(scope="module")
def result(model, paths):
    return model.synthesize(paths, samples=SAMPLES)


@pytest.fixture(scope="module")
def command(run, patient, tmp_path_factory):
    """The start of the names of what the command writes."""
    output = tmp_path_factory.mktemp("output")
    (folder,) = synthesize_folder(patient, output, run, samples=SAMPLES)
    return folder / folder.name


def assert_equal(found, expected):
    """Both have the same voxels, and the same grid in their headers, to the bit."""
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_array_equal(found.affine, expected.affine)
    for field in (*GRID_FIELDS, "datatype", "descrip", "scl_slope", "scl_inter", "intent_code"):
        assert found.header[field].tobytes() == expected.header[field].tobytes(), field


def test_the_api_gives_what_the_command_writes_to_the_bit(result, command, paths, tmp_path):
    given = nib.load(paths["t1"])
    assert result.subject == command.name
    assert list(result) == list(TARGETS)
    assert len(result) == 2
    for target in TARGETS:
        assert result[target] is result.mean[target]
        for name, ending in IMAGES.items():
            image = getattr(result, name)[target]
            assert_equal(image, nib.load(f"{command}-{target}{ending}.nii.gz"))
            for field in GRID_FIELDS:
                assert image.header[field].tobytes() == given.header[field].tobytes(), field
            nib.save(image, tmp_path / "saved.nii.gz")
            assert_equal(nib.load(tmp_path / "saved.nii.gz"), image)
    assert result["t1c"].get_fdata().max() > 0
    assert not np.array_equal(result["t1c"].get_fdata(), result["t2f"].get_fdata())


def test_images_and_arrays_give_the_same_as_files(model, result, paths):
    loaded = {name: nib.load(path) for name, path in paths.items()}
    before = loaded["t1"].header.copy()
    arrays = {n: (np.asanyarray(i.dataobj, np.float64), i.affine) for n, i in loaded.items()}
    mixed = {"t2": arrays["t2"], "t1": loaded["t1"]}
    for images in (loaded, mixed):
        found = model.synthesize(images, samples=SAMPLES)
        assert found.subject == result.subject  # nibabel knows the file
        for name in IMAGES:
            for target in TARGETS:
                assert_equal(getattr(found, name)[target], getattr(result, name)[target])
    assert loaded["t1"].header == before
    found = model.synthesize(arrays, samples=SAMPLES, subject=result.subject)
    for target in TARGETS:
        expected = np.asanyarray(result[target].dataobj)
        np.testing.assert_array_equal(np.asanyarray(found[target].dataobj), expected)
        np.testing.assert_array_equal(found[target].affine, loaded["t1"].affine)


def test_draws_depend_on_the_subjects_name_alone(model, result, paths):
    arrays = {name: nib.load(path) for name, path in paths.items()}
    arrays = {name: (np.asanyarray(i.dataobj), i.affine) for name, i in arrays.items()}
    unnamed = model.synthesize(arrays, samples=SAMPLES)
    assert unnamed.subject == "subject"
    again = model.synthesize(paths, samples=SAMPLES, subject="subject")
    for one, other, same in (
        (unnamed["t1c"], again["t1c"], True),
        (unnamed["t1c"], result["t1c"], False),
    ):
        assert np.array_equal(one.get_fdata(), other.get_fdata()) is same


def test_one_sample_has_no_deviation(model, paths):
    result = model.synthesize(paths)
    assert result.keys() == result.mean.keys() == set(TARGETS)
    assert not result.deviation and not result.lower and not result.upper


def test_intervals_of_other_samples_do_not_count(model, capsys):
    assert model.intervals(3) is None
    assert "--samples=3 would give intervals" in " ".join(capsys.readouterr().out.split())


def test_the_example_runs(run, paths, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "runs/brats")
    (tmp_path / "patient").mkdir()
    for name, path in paths.items():
        nib.save(nib.load(path), tmp_path / f"patient/{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    lines = api.__doc__.splitlines()
    example = "\n".join(line for line in lines if line.startswith("  ") or not line)
    assert "cdm_jax.load" in example
    exec(textwrap.dedent(example), {})
    grid = nib.load(paths["t1"]).shape
    for target in TARGETS:
        assert nib.load(f"{target}.nii.gz").shape == grid
        assert nib.load(f"{target}-deviation.nii.gz").get_fdata().max() > 0


def test_importing_the_package_does_not_wait_for_jax():
    script = "import sys, cdm_jax; cdm_jax.load; print('jax' in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_stands_for_its_cunet_or_its_only_system(run, model, tmp_path):
    assert model.folder == run / "cunet"  # from the run's folder
    assert (model.sources, model.targets) == (("t1", "t2"), TARGETS)
    assert api.find_system(run / "cunet") == run / "cunet"
    assert api.find_system(run / "m1") == run / "m1"
    shutil.copytree(run / "mrm", tmp_path / "mrm")
    with pytest.raises(UserError, match=r"no checkpoint of a system in .*: give the folder of"):
        cdm_jax.load(tmp_path)
    shutil.copytree(run / "m1", tmp_path / "m1")
    assert cdm_jax.load(str(tmp_path)).folder == tmp_path / "m1"
    shutil.copytree(run / "m1", tmp_path / "m1_again")
    with pytest.raises(UserError, match=r"has several systems: give one, .*m1, .*m1_again"):
        cdm_jax.load(tmp_path)
    with pytest.raises(UserError, match=r"mrm is a stage that makes no images by itself"):
        cdm_jax.load(run / "mrm")
    with pytest.raises(UserError, match=r"no checkpoint of a system in nowhere"):
        cdm_jax.load("nowhere")


def _small(shape=(4, 5, 6)):
    values = np.zeros(shape, np.float32)
    values[1:3, 1:3, 1:3] = 1
    return values, np.eye(4)


SMALL = _small()
MISTAKES = {
    "nothing": ({}, "t1, t2 is missing: this model needs t1, t2, got nothing"),
    "one missing": ({"t1": SMALL}, "t2 is missing: this model needs t1, t2, got t1"),
    "unknown name": (
        {"t1": SMALL, "t2w": SMALL},
        "t2w is no source of this model (did you mean t2?): it takes t1, t2",
    ),
    "a target": ({"t1": SMALL, "t2": SMALL, "t1c": SMALL}, "t1c is no source of this model"),
    "no such file": ({"t1": "nowhere.nii", "t2": SMALL}, "t1: there is no file nowhere.nii"),
    "other shape": (
        {"t1": SMALL, "t2": _small((4, 5, 7))},
        "t1 and t2: the image in memory and the image in memory lie on different grids (shape",
    ),
    "other affine": (
        {"t1": SMALL, "t2": (SMALL[0], 2 * np.eye(4))},
        "t1 and t2: the image in memory and the image in memory lie on different grids (voxels",
    ),
    "bad affine": ({"t1": (SMALL[0], np.eye(3)), "t2": SMALL}, "t1: got tuple: give the path"),
    "complex": ({"t1": (SMALL[0] * 1j, np.eye(4)), "t2": SMALL}, "t1: got tuple: give the path"),
    "not a number": ({"t1": (SMALL[0] * np.nan, np.eye(4)), "t2": SMALL}, "t1: the image in"),
    "no brain": (
        {"t1": (SMALL[0] * 0, np.eye(4)), "t2": SMALL},
        "subject t1: the image in memory: nothing is brighter",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_user_error_of_one_line(mistake, model):
    images, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        model.synthesize(images)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_fewer_than_one_sample_are_refused(model, paths):
    with pytest.raises(UserError, match="samples=0 is too few: give 1 or more"):
        model.synthesize(paths, samples=0)
