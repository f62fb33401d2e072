"""Cohorts on disk."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.phantom import PhantomSettings, cohort, simulate_patient, write_cohort
from cdm_jax.phantom.patient import VERSIONS

SMALL = PhantomSettings(num_patients=3, shape=(32, 32, 24), voxel_mm=6.0)


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    root = tmp_path_factory.mktemp("brats")
    write_cohort(root, SMALL, num_workers=1)
    return root


def test_names_are_those_of_brats_2023(brats):
    names = {path.relative_to(brats).as_posix() for path in brats.rglob("*-000/*")}
    suffixes = ("t1n", "t1c", "t2w", "t2f", "seg")
    patients = [f"BraTS-GLI-{index:05d}-000" for index in range(3)]
    assert names == {f"{name}/{name}-{end}.nii.gz" for name in patients for end in suffixes}
    assert {path.name for path in brats.iterdir()} == {*patients, "phantom.json"}


def test_files_hold_the_patient_in_lps_geometry(brats):
    patient = simulate_patient(SMALL, 2)
    folder = brats / "BraTS-GLI-00002-000"
    for suffix, modality in {"t1n": "t1", "t1c": "t1c", "t2w": "t2", "t2f": "t2f"}.items():
        image = nib.load(folder / f"{folder.name}-{suffix}.nii.gz")
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_data_dtype() == np.int16
        assert image.header.get_zooms() == (6.0, 6.0, 6.0)
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_fdata(), patient.images[modality], atol=0.5)
        np.testing.assert_array_equal(image.get_qform(), image.get_sform())
    labels = nib.load(folder / f"{folder.name}-seg.nii.gz")
    assert labels.header.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(labels.dataobj), patient.segmentation)


def test_several_workers_write_the_same_bytes_as_one(brats, tmp_path):
    write_cohort(tmp_path, SMALL, num_workers=2)
    assert contents(tmp_path) == contents(brats)


def test_an_interrupted_run_is_taken_up_where_it_stopped(brats, tmp_path, monkeypatch):
    def interrupted(settings, index):
        if index >= 2:
            raise KeyboardInterrupt
        return simulate_patient(settings, index)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "simulate_patient", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path, SMALL, num_workers=1)
    assert not (tmp_path / "phantom.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("BraTS*/*")}
    assert len(finished) == 10
    (tmp_path / ".BraTS-GLI-00002-000.partial").mkdir()  # As a killed process leaves it.
    write_cohort(tmp_path, SMALL, num_workers=1)
    assert contents(tmp_path) == contents(brats)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_finished_cohort_is_left_as_it_is(brats, monkeypatch):
    monkeypatch.setattr(cohort, "simulate_patient", None)
    write_cohort(brats, SMALL, num_workers=1)


def test_a_folder_of_other_settings_is_refused_with_what_differs(brats):
    other = dataclasses.replace(SMALL, seed=7)
    with pytest.raises(UserError, match="seed 0 instead of 7"):
        write_cohort(brats, other, num_workers=1)


def test_an_unfinished_cohort_of_other_settings_is_refused(tmp_path):
    (tmp_path / "phantom.json.partial").write_text(json.dumps({"num_patients": 9}))
    with pytest.raises(UserError, match="num_patients 9 instead of 3"):
        write_cohort(tmp_path, SMALL, num_workers=1)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "BraTS-GLI-00000-000").mkdir()
    with pytest.raises(UserError, match="no phantom cohort"):
        write_cohort(tmp_path, SMALL, num_workers=1)


def test_upenn_gbm_has_its_own_names_and_labels(tmp_path):
    settings = dataclasses.replace(SMALL, num_patients=2, layout="upenn_gbm")
    write_cohort(tmp_path, settings, num_workers=1)
    name = "UPENN-GBM-00002_11"
    images = {path.name for path in (tmp_path / "images_structural" / name).iterdir()}
    assert images == {f"{name}_{end}.nii.gz" for end in ("T1", "T1GD", "T2", "FLAIR")}
    segmentations = sorted((tmp_path / "automated_segm").iterdir())
    assert segmentations[1].name == f"{name}_automated_approx_segm.nii.gz"
    labels = np.stack([np.asarray(nib.load(path).dataobj) for path in segmentations])
    expected = np.stack([simulate_patient(settings, index).segmentation for index in range(2)])
    np.testing.assert_array_equal(labels == 4, expected == 3)
    assert set(np.unique(labels)) <= {0, 1, 2, 4} and (labels == 4).any()


def test_a_cohort_of_an_earlier_version_is_refused(brats, tmp_path):
    shutil.copytree(brats, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "phantom.json"
    held = json.loads(path.read_text())
    assert held.pop("version") == VERSIONS["fixed"] == 4
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match="version 1 instead of 4"):
        write_cohort(tmp_path, SMALL, num_workers=1)


def test_a_cached_patient_is_never_simulated_again(brats, tmp_path, monkeypatch):
    monkeypatch.setenv("CDM_PHANTOM_CACHE", str(tmp_path / "cache"))
    write_cohort(tmp_path / "first", SMALL, num_workers=1)
    assert contents(tmp_path / "first") == contents(brats)
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "simulate_patient", None)
        fewer = dataclasses.replace(SMALL, num_patients=2)
        write_cohort(tmp_path / "second", fewer, num_workers=1)
    name = "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz"
    assert contents(tmp_path / "second")[name] == contents(brats)[name]


def test_the_fingerprint_changes_with_all_that_changes_an_image():
    same = dataclasses.replace(SMALL, num_patients=9)
    assert same.fingerprint() == SMALL.fingerprint()
    changes = [{"seed": 5}, {"protocol": "random"}, {"predictable": 0.5}, {"scanner": "mprage"}]
    others = {dataclasses.replace(SMALL, **change).fingerprint() for change in changes}
    assert len(others | {SMALL.fingerprint()}) == 5
