"""The model that ships: a patient's folder in, NIfTI and a picture out, with nothing trained."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import shipped
from cdm_jax.data.nifti import changed_fields
from cdm_jax.errors import UserError
from cdm_jax.phantom import PhantomSettings, write_patient
from cdm_jax.tasks import JOIN

MODALITIES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "t2f": "t2f"}
LIMIT = 10e6  # bytes that a package may grow by


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """Simulated by the fixed protocol, which the model has not seen."""
    root = tmp_path_factory.mktemp("patients")
    write_patient(root, PhantomSettings(shape=(48, 48, 32), voxel_mm=4.0, seed=7), 0)
    (folder,) = root.iterdir()
    return folder


def files(patient):
    return {m: patient / f"{patient.name}-{end}.nii.gz" for m, end in MODALITIES.items()}


def test_its_files_are_small_and_say_what_they_are():
    sizes = {path.name: path.stat().st_size for path in shipped.FOLDER.iterdir() if path.is_file()}
    assert {shipped.WEIGHTS, shipped.DESCRIPTION, shipped.CARD} <= sizes.keys()
    assert sum(sizes.values()) < LIMIT
    described = json.loads((shipped.FOLDER / shipped.DESCRIPTION).read_text())
    assert described["config"]["phantom"]["protocol"] == "random"
    card = (shipped.FOLDER / shipped.CARD).read_text()
    assert "Not for\nclinical use" in card and "no real one" in card


@pytest.mark.slow
def test_a_folder_becomes_images_and_a_picture_by_one_command(patient, tmp_path):
    given = tmp_path / "in" / patient.name
    given.mkdir(parents=True)
    for modality in ("t1", "t2"):
        path = files(patient)[modality]
        os.link(path, given / path.name)
    command = [sys.executable, "-m", "cdm_jax.main", "synthesize"]
    command += [f"--input={given}", f"--output={tmp_path / 'out'}"]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the model that ships with cdm_jax" in done.stdout
    made = tmp_path / "out" / patient.name
    assert (made / f"{patient.name}.png").stat().st_size > 0
    for target in ("t1c", "t2f"):
        path = made / f"{patient.name}-{target}.nii.gz"
        assert not changed_fields(path, files(patient)["t1"])
        sidecar = json.loads(path.with_name(f"{patient.name}-{target}.json").read_text())
        assert sidecar["trained_on"] == "simulated"
        assert not {"seed", "sampler"} & set(sidecar)  # nothing is drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "target", "least"),
    [("t1+t2", "t1c", 0.5), ("t1+t1c+t2", "t2f", 0.4), ("t1c+t2+t2f", "t1", 0.7)],
)
def test_it_shows_the_tissues_of_a_scanner_that_it_has_not_seen(patient, given, target, least):
    """Correlation with the truth in the brain, as no input tells the scale."""
    images = {name: str(files(patient)[name]) for name in given.split(JOIN)}
    result = cdm_jax.load().synthesize(images)
    assert set(result) == set(MODALITIES) - set(images)
    truth = np.asarray(nib.load(files(patient)[target]).dataobj)
    brain = truth > 0
    made = np.asarray(result[target].dataobj)
    assert np.corrcoef(made[brain], truth[brain])[0, 1] > least


@pytest.mark.parametrize("name", [shipped.WEIGHTS, shipped.DESCRIPTION])
def test_weights_that_were_changed_are_refused(name, tmp_path):
    for part in (shipped.WEIGHTS, shipped.DESCRIPTION):
        shutil.copy(shipped.FOLDER / part, tmp_path)
    shipped.load_model(tmp_path)
    path = tmp_path / name
    if name == shipped.WEIGHTS:
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    else:
        described = json.loads(path.read_text())
        path.write_text(json.dumps(described | {"batch_size": described["batch_size"] + 1}))
    with pytest.raises(UserError, match="install cdm_jax again"):
        shipped.load_model(tmp_path)
