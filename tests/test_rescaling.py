"""The scale of a trained system's volumes is fitted to validation patients and then used."""

import json
import math

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import commands, inference, rescaling, shipped
from cdm_jax.data.correction import FILE, Correction, save_correction
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.volume_scale import Curve, tops
from cdm_jax.sampling import SubjectSampler
from cdm_jax.synthesize import synthesize_folder
from tests import helpers

HALF = Curve(offsets=[math.log(0.5)], powers=[0.0], lowest=0.1, highest=1.0, scans=8)


@pytest.fixture
def stage(finished_run, tmp_path):
    return helpers.copy_run(finished_run, tmp_path / "run", ("m1",)) / "m1"


@pytest.fixture
def halved(stage, finished_run, monkeypatch):
    """A stage with the curve that halves T2-FLAIR."""
    monkeypatch.setattr(rescaling, "fit_curves", lambda scans: {"t2f": HALF})
    config = inference.load_system(stage, 1).provenance.config
    rescaling.rescale_stage(stage, load_dataset(config, finished_run))
    return stage


def test_scans_are_those_of_validation_patients_as_predicted(stage, finished_run):
    """By hand, from what the system predicts."""
    system = inference.load_system(stage, 8)
    dataset = load_dataset(system.provenance.config, finished_run)
    scans = rescaling.measure(SubjectSampler(system, 1), dataset.validation)
    assert list(scans) == ["t1c", "t2f"]
    assert {len(ones) for ones in scans.values()} == {len(dataset.validation)}
    subject = dataset.validation[0]
    slices = subject.slices / np.float32(65535)
    stored = {"source": subject.slices[..., :2]}
    key = inference.subject_key(system.provenance.config.seed, subject.subject_id)
    made = SubjectSampler(system, 1).volumes(stored, key)["mean"]
    brain = (slices[..., :2] > 0).any(axis=-1)
    for channel, target in enumerate(("t1c", "t2f")):
        image, truth = made[..., channel][brain], slices[..., 2 + channel][brain]
        top, values, acquired = scans[target][0]
        assert top == tops(made, brain)[channel]
        step = math.ceil(len(image) / len(values))
        np.testing.assert_array_equal(values, image[::step])
        np.testing.assert_allclose(acquired, truth[::step], rtol=1e-6)


def test_volumes_images_and_sidecars_are_on_the_scale_of_the_curve(halved, finished_run, tmp_path):
    plain = finished_run / "m1"
    before, after = (inference.load_system(folder, 8) for folder in (plain, halved))
    assert before.fingerprint != after.fingerprint
    dataset = load_dataset(before.provenance.config, finished_run)
    subject = dataset.test[0]
    patient = next(iter(dataset.subjects[subject.subject_id].images.values())).parent
    made = {
        name: synthesize_folder(patient, tmp_path / name, folder, samples=1)[0]
        for name, folder in (("before", plain), ("after", halved))
    }
    for target, factor in (("t1c", 1.0), ("t2f", 0.5)):
        one, other = (
            nib.load(folder / f"{folder.name}-{target}.nii.gz").get_fdata()
            for folder in made.values()
        )
        assert one.max() > 0
        np.testing.assert_allclose(other, factor * one, rtol=1e-5, atol=1e-4)
        told = json.loads((made["after"] / f"{made['after'].name}-{target}.json").read_text())
        assert ("volume_scale" in told) == (target == "t2f")
    assert told["volume_scale"]["offsets"] == HALF.offsets


def test_curves_are_fitted_once_and_again_for_other_weights(halved, finished_run, monkeypatch):
    dataset = load_dataset(inference.load_system(halved, 1).provenance.config, finished_run)
    calls = []
    monkeypatch.setattr(rescaling, "measure", lambda *_: calls.append("measured") or {})
    rescaling.rescale_stage(halved, dataset)
    assert not calls
    save_correction(halved, Correction(curves={"t2f": HALF}), "of other weights")
    assert not inference.load_system(halved, 1).provenance.correction
    rescaling.rescale_stage(halved, dataset)
    assert calls == ["measured"]
    assert inference.load_system(halved, 1).provenance.correction.curves == {"t2f": HALF}


def test_training_patients_are_seen_only_where_too_few_validate(stage, finished_run, monkeypatch):
    dataset = load_dataset(inference.load_system(stage, 1).provenance.config, finished_run)
    seen = []
    monkeypatch.setattr(rescaling, "measure", lambda _, subjects: seen.append(subjects) or {})
    rescaling.rescale_stage(stage, dataset)
    (stage / FILE).unlink()
    monkeypatch.setattr(rescaling, "FEW", len(dataset.validation) + 1)
    rescaling.rescale_stage(stage, dataset)
    (stage / FILE).unlink()
    monkeypatch.setattr(rescaling, "LEAST", len(dataset.validation))
    rescaling.rescale_stage(stage, dataset)
    validation = tuple(dataset.validation)
    assert seen == [(*validation, *dataset.train), (*validation, dataset.train[0]), validation]


def test_what_makes_no_images_has_no_curves(finished_run, tmp_path):
    run = helpers.copy_run(finished_run, tmp_path / "run", ("mrm",))
    config = helpers.smoke_config("mrm")
    rescaling.rescale_stage(run / "mrm", load_dataset(config, finished_run))
    assert not (run / "mrm" / FILE).exists()


def test_an_exported_model_keeps_its_curves(halved, tmp_path):
    shipped.export(halved, tmp_path / "exported")
    _, provenance = shipped.load_model(tmp_path / "exported")
    assert provenance.correction.curves == {"t2f": HALF}
    assert cdm_jax.load(halved).system.provenance.correction == provenance.correction


def test_train_fits_curves_unless_told_not_to(finished_run, tmp_path, monkeypatch):
    """Of a finished run of a former version, too."""
    run = helpers.copy_run(finished_run, tmp_path / "run", ("m1",))
    seen = []
    monkeypatch.setattr(commands, "rescale_stage", lambda folder, _: seen.append(folder.name))
    config = helpers.smoke_config("m1")
    config.pipeline = ()
    config.volume_scale = False
    commands.train(config=config, workdir=run)
    assert not seen
    config.volume_scale = True
    commands.train(config=config, workdir=run)
    assert seen == ["m1"]
