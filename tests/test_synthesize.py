"""What a clinician's engineer gets: NIfTI on the input's grid, sidecars, a picture."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cdm_jax.data.intensity import brain_mask
from cdm_jax.data.nifti import read_volume
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from cdm_jax.synthesize import synthesize_folder

MODALITIES = ("t1", "t2", "t1c", "t2f")
GRID_FIELDS = (
    *("dim", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


@pytest.fixture(scope="module")
def patient(finished_run, tmp_path_factory):
    """A patient of whom only T1 and T2 were acquired, on an oblique grid of his own."""
    subject = find_subjects(finished_run / "patients", modalities=MODALITIES)[0]
    folder = tmp_path_factory.mktemp("input") / subject.subject_id
    folder.mkdir()
    affine = np.array([[0, 4.5, 0.3, -70], [-5, 0, 0, 90], [0, 0.4, 5.5, -60], [0, 0, 0, 1.0]])
    for name in ("t1", "t2"):
        image = nib.load(subject.images[name])
        volume = np.asanyarray(image.dataobj)[:, ::-1].transpose(1, 0, 2)
        new = nib.Nifti1Image(volume, affine)
        new.set_qform(affine, code=1)
        new.set_sform(affine, code=2)
        nib.save(new, folder / subject.images[name].name)
    return folder


@pytest.fixture(scope="module")
def written(finished_run, patient, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    synthesize_folder(patient, output, finished_run / "cunet", samples=3)
    return output / patient.name


def test_outputs_have_the_inputs_grid_to_the_bit(patient, written):
    reference = nib.load(next(patient.glob("*t1n*")))
    for name in ("t1c", "t2f", "t1c-deviation", "t2f-deviation"):
        image = nib.load(written / f"{patient.name}-{name}.nii.gz")
        for field in GRID_FIELDS:
            ours, theirs = image.header[field], reference.header[field]
            assert ours.tobytes() == theirs.tobytes(), field
        assert b"SYNTHETIC" in image.header["descrip"].tobytes()


def test_voxels_outside_the_brain_are_zero_and_inside_they_carry_the_stated_scale(patient, written):
    sources = {name: read_volume(next(patient.glob(f"*{name}*"))) for name in ("t1n", "t2w")}
    brain = brain_mask(sources)
    for target in ("t1c", "t2f"):
        volume = read_volume(written / f"{patient.name}-{target}.nii.gz")
        sidecar = json.loads((written / f"{patient.name}-{target}.json").read_text())
        assert not volume[~brain].any()
        assert 0 < volume.max() <= sidecar["reference_scale"] * (1 + 1e-6)


def test_the_sidecar_says_what_it_is_and_where_it_comes_from(patient, written):
    sidecar = json.loads((written / f"{patient.name}-t1c.json").read_text())
    assert sidecar["synthetic"] is True
    assert "Not for clinical use" in sidecar["notice"]
    assert sidecar["samples"] == 3
    assert sidecar["sources"].keys() == {"t1", "t2"}
    assert len(sidecar["sources"]["t1"]["sha256"]) == 64
    assert sidecar["checkpoint"]


def test_samples_deviate_and_the_overview_shows_them(patient, written):
    assert read_volume(written / f"{patient.name}-t1c-deviation.nii.gz").max() >= 0
    overview = np.asarray(Image.open(written / f"{patient.name}.png").convert("L"))
    assert overview.shape[1] > 400
    assert overview.std() > 10


def test_a_result_depends_neither_on_the_cohort_nor_on_the_order(
    finished_run, patient, written, tmp_path
):
    cohort = tmp_path / "cohort"
    shutil.copytree(patient, cohort / patient.name)
    other = next(
        p for p in sorted((finished_run / "patients").glob("BraTS*")) if p.name != patient.name
    )
    shutil.copytree(other, cohort / "BraTS-GLI-99999-000")
    for path in (cohort / "BraTS-GLI-99999-000").iterdir():
        path.rename(path.with_name(path.name.replace(other.name, "BraTS-GLI-99999-000")))
    folders = synthesize_folder(cohort, tmp_path / "out", finished_run / "cunet", samples=3)
    assert len(folders) == 2
    for name in ("t1c", "t2f", "t1c-deviation"):
        again = read_volume(tmp_path / "out" / patient.name / f"{patient.name}-{name}.nii.gz")
        np.testing.assert_array_equal(again, read_volume(written / f"{patient.name}-{name}.nii.gz"))


def test_a_plain_unet_translates_too(finished_run, patient, tmp_path):
    synthesize_folder(patient, tmp_path, finished_run / "m1", samples=1)
    assert not list(tmp_path.glob("*/*deviation*"))
    assert len(list(tmp_path.glob("*/*.nii.gz"))) == 2


def test_a_subject_that_is_done_is_left_alone_and_made_anew_for_other_samples(
    finished_run, patient, tmp_path
):
    def synthesize(samples):
        (folder,) = synthesize_folder(patient, tmp_path, finished_run / "cunet", samples=samples)
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    first = synthesize(1)
    assert synthesize(1) == first
    sidecar = next(tmp_path.glob("*/*-t1c.json"))
    sidecar.unlink()  # as after a kill: sidecars are written last
    again = synthesize(1)
    assert all(again[name] > first[name] for name in first)
    assert synthesize(2).keys() > first.keys()


def test_mistakes_are_named(finished_run, patient, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        synthesize_folder(patient, tmp_path, tmp_path / "nothing", samples=1)
    with pytest.raises(UserError, match="is not a folder"):
        synthesize_folder(tmp_path / "nobody", tmp_path, finished_run / "m1", samples=1)
    lacking = tmp_path / "BraTS-GLI-00001-000"
    lacking.mkdir()
    shutil.copy(next(patient.glob("*t1n*")), lacking / "BraTS-GLI-00001-000-t1n.nii.gz")
    with pytest.raises(UserError, match="has no t2"):
        synthesize_folder(lacking, tmp_path / "out", finished_run / "m1", samples=1)
