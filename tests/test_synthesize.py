"""What a clinician's engineer gets: NIfTI on the input's grid, sidecars, a picture."""

import dataclasses
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cdm_jax import inference, outputs, synthesize
from cdm_jax.data.intensity import brain_mask
from cdm_jax.data.nifti import GRID_FIELDS, read_volume
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from cdm_jax.intervals import FILE, save_intervals
from cdm_jax.synthesize import synthesize_folder
from tests.helpers import compilations, oblique_patient, save_wide_intervals

MODALITIES = ("t1", "t2", "t1c", "t2f")


@pytest.fixture(scope="module")
def patient(finished_run, tmp_path_factory):
    """A patient of whom only T1 and T2 were acquired, on an oblique grid of his own."""
    return oblique_patient(finished_run, tmp_path_factory.mktemp("input"))


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
    assert sidecar["seed"] == 0 and sidecar["sampler"]["num_steps"] > 0


def test_samples_deviate_and_the_overview_shows_them(patient, written):
    assert read_volume(written / f"{patient.name}-t1c-deviation.nii.gz").max() >= 0
    overview = np.asarray(Image.open(written / f"{patient.name}.png").convert("L"))
    assert overview.shape[1] > 400
    assert overview.std() > 10


def test_a_cohort_is_compiled_once_and_a_result_depends_neither_on_it_nor_on_the_order(
    finished_run, patient, written, tmp_path, caplog
):
    cohort = tmp_path / "cohort"
    shutil.copytree(patient, cohort / patient.name)
    other = next(
        p for p in sorted((finished_run / "patients").glob("BraTS*")) if p.name != patient.name
    )
    shutil.copytree(other, cohort / "BraTS-GLI-99999-000")
    for path in (cohort / "BraTS-GLI-99999-000").iterdir():
        image = nib.load(path)
        lower = np.asarray(image.dataobj).copy()
        lower[:, :, lower.shape[2] // 2 :] = 0  # so that it has fewer slices
        nib.save(type(image)(lower, image.affine, image.header), path)
        path.rename(path.with_name(path.name.replace(other.name, "BraTS-GLI-99999-000")))
    with compilations(caplog) as compiled:
        folders = synthesize_folder(cohort, tmp_path / "out", finished_run / "cunet", samples=3)
    assert sum("jit(sample)" in message for message in compiled) == 1, compiled
    volumes = [read_volume(folder / f"{folder.name}-t1c.nii.gz") for folder in folders]
    one, two = (np.count_nonzero(volume.any(axis=(1, 2))) for volume in volumes)
    assert one != two
    for name in ("t1c", "t2f", "t1c-deviation"):
        again = read_volume(tmp_path / "out" / patient.name / f"{patient.name}-{name}.nii.gz")
        np.testing.assert_array_equal(again, read_volume(written / f"{patient.name}-{name}.nii.gz"))


def test_what_is_drawn_for_a_slice_does_not_depend_on_its_batch(finished_run):
    """So a patient's images are the same on one device and on eight that share larger batches."""
    stored = {"source": np.full((5, 32, 32, 2), 30000, np.uint16)}
    drawn = []
    for batch_size in (2, 5):
        system = inference.load_system(finished_run / "cunet", batch_size)
        mdn = system.method.mdn

        def represent(model, batch, key, mdn=mdn):
            y = mdn.sample(model["frozen"]["mdn"], batch["source"], key)
            return {"y": y[:, None, None, :]}

        compiled = system.compile(represent)
        drawn.append(system.volumes(compiled, stored, jax.random.key(1))["y"][:, 0, 0])
    assert np.abs(drawn[0][1:] - drawn[0][0]).max() > 1e-3  # the slices are the same, the draws not
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-5)


def test_a_plain_unet_translates_too(finished_run, patient, tmp_path):
    synthesize_folder(patient, tmp_path, finished_run / "m1", samples=1)
    assert not list(tmp_path.glob("*/*deviation*"))
    assert len(list(tmp_path.glob("*/*.nii.gz"))) == 2


def test_a_patient_who_lacks_only_one_target_gets_all_images_and_the_picture(
    finished_run, tmp_path
):
    subject = find_subjects(finished_run / "patients", modalities=MODALITIES)[0]
    folder = tmp_path / subject.subject_id
    folder.mkdir()
    for name in ("t1", "t2", "t2f"):
        shutil.copy(subject.images[name], folder)
    (output,) = synthesize_folder(folder, tmp_path / "out", finished_run / "m1", samples=1)
    assert len(list(output.glob("*.nii.gz"))) == len(list(output.glob("*.json"))) == 2
    assert (output / f"{subject.subject_id}.png").exists()


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


def _assert_same_grid(path, reference):
    ours, theirs = nib.load(path).header, nib.load(reference).header
    for field in GRID_FIELDS:
        assert ours[field].tobytes() == theirs[field].tobytes(), field


@pytest.fixture
def calibrated(finished_run, tmp_path):
    """A stage's folder with intervals for two samples, and the intervals."""
    folder = tmp_path / "stages" / "cunet"
    shutil.copytree(finished_run / "cunet", folder)
    return folder, save_wide_intervals(folder, samples=2)


def test_intervals_enclose_the_mean_on_the_inputs_grid(calibrated, patient, tmp_path):
    (folder,) = synthesize_folder(patient, tmp_path / "out", calibrated[0], samples=2)
    brain = brain_mask({n: read_volume(next(patient.glob(f"*{n}*"))) for n in ("t1n", "t2w")})
    for target, multiplier in (("t1c", 3.0), ("t2f", 5.0)):
        stem = folder / f"{patient.name}-{target}"
        kinds = ("mean", "deviation", "lower", "upper")
        paths = {name: f"{stem}{outputs.ENDINGS[name]}.nii.gz" for name in kinds}
        for path in paths.values():
            _assert_same_grid(path, next(patient.glob("*t1n*")))
        images = {name: read_volume(path) for name, path in paths.items()}
        assert (images["lower"] <= images["mean"]).all()
        assert (images["mean"] <= images["upper"]).all()
        assert not images["upper"][~brain].any()
        sidecar = json.loads(stem.with_name(stem.name + ".json").read_text())
        assert sidecar["intervals"]["level"] == 0.9
        assert sidecar["intervals"]["guarantee"] == "guaranteed: at least 90.0%"
        scale = sidecar["reference_scale"]
        assert images["upper"].max() <= scale * (1 + 1e-6)
        half = multiplier * (images["deviation"] + 0.01 * scale)
        inside = brain & (images["mean"] + half < scale)
        np.testing.assert_allclose(
            (images["upper"] - images["mean"])[inside], half[inside], rtol=1e-3, atol=1e-3
        )
        assert (images["upper"] - images["lower"])[brain].min() > 0


def test_intervals_are_part_of_what_makes_a_subject_done(calibrated, patient, tmp_path, capsys):
    stage, intervals = calibrated

    def written():
        (folder,) = synthesize_folder(patient, tmp_path / "out", stage, samples=2)
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    first = written()
    assert written() == first
    assert "calibrate" not in capsys.readouterr().out
    save_intervals(stage, dataclasses.replace(intervals, multipliers={"t1c": 4.0} | {"t2f": 5.0}))
    wider = written()
    assert all(wider[name] > first[name] for name in first)
    (stage / FILE).unlink()
    without = written()
    assert not [name for name in without if "lower" in name or "upper" in name]
    assert len(without) == len(first) - 4
    assert "calibrate" not in capsys.readouterr().out  # nobody asked for intervals


def test_intervals_of_another_checkpoint_are_left_out(calibrated, patient, tmp_path, capsys):
    stage, intervals = calibrated
    save_intervals(stage, dataclasses.replace(intervals, checkpoint="another"))
    (folder,) = synthesize_folder(patient, tmp_path / "out", stage, samples=2)
    assert "`calibrate` with --samples=2 would" in " ".join(capsys.readouterr().out.split())
    assert not list(folder.glob("*lower*"))
    assert "intervals" not in json.loads(next(folder.glob("*-t1c.json")).read_text())


def test_a_subject_that_was_being_made_anew_when_killed_is_not_taken_for_done(
    finished_run, patient, tmp_path, monkeypatch
):
    def synthesized(samples):
        synthesize_folder(patient, tmp_path, finished_run / "cunet", samples=samples)
        return read_volume(next(tmp_path.glob("*/*-t1c.nii.gz")))

    three = synthesized(3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(synthesize, "save_overview", killed)
        with pytest.raises(KeyboardInterrupt):
            synthesized(1)
    assert (read_volume(next(tmp_path.glob("*/*-t1c.nii.gz"))) != three).any()
    np.testing.assert_array_equal(synthesized(3), three)


def test_mistakes_are_named(finished_run, patient, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        synthesize_folder(patient, tmp_path, tmp_path / "nothing", samples=1)
    with pytest.raises(UserError, match="is not a folder"):
        synthesize_folder(tmp_path / "nobody", tmp_path, finished_run / "m1", samples=1)
    lacking = tmp_path / "BraTS-GLI-00001-000"
    lacking.mkdir()
    shutil.copy(next(patient.glob("*t1n*")), lacking / "BraTS-GLI-00001-000-t1n.nii.gz")
    with pytest.raises(UserError, match=r"no subject with t1, t2 in .* has no t2; .* t2=[^=]*$"):
        synthesize_folder(lacking, tmp_path / "out", finished_run / "m1", samples=1)


def test_a_deterministic_system_has_one_sample_and_no_deviation(
    finished_run, patient, tmp_path, capsys
):
    (output,) = synthesize_folder(patient, tmp_path, finished_run / "m1", samples=8)
    assert "m1 is deterministic: one sample" in capsys.readouterr().out
    assert not list(output.glob("*deviation*"))
    assert json.loads(next(output.glob("*t1c.json")).read_text())["samples"] == 1
    with pytest.raises(UserError, match="too few: give 1 or more"):
        synthesize_folder(patient, tmp_path / "none", finished_run / "m1", samples=0)
