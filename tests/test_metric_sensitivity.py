"""The study of what each metric notices: distortions of one error, and what its record says."""

import json

import numpy as np
import pytest

from cdm_jax.phantom import PhantomSettings, simulate_patient
from cdm_jax.phantom.patient import VERSIONS
from experiments import metric_sensitivity as study
from experiments.records import load_results

SETTINGS = PhantomSettings(seed=3, shape=(40, 44, 36), voxel_mm=5.0)


@pytest.fixture(scope="module")
def scan():
    return next(study.scans(SETTINGS, 1))


@pytest.fixture(scope="module")
def record():
    return load_results(study.NAME)


def test_a_patient_without_the_tumor_is_the_same_person():
    index = next(
        n for n in range(20) if (simulate_patient(SETTINGS, n).segmentation == 3).sum() > 50
    )
    patient, healthy = (simulate_patient(SETTINGS, index, with_tumor=w) for w in (True, False))
    assert not healthy.segmentation.any()
    tumor = patient.segmentation > 0
    for name, image in patient.images.items():
        brain, difference = image > 0, np.abs(image - healthy.images[name])
        np.testing.assert_array_equal(healthy.images[name] > 0, brain)
        assert difference[brain & ~tumor].mean() < 0.03 * image[brain].mean()
        assert difference[tumor].mean() > 5 * difference[brain & ~tumor].mean()
    assert healthy.images["t1c"][patient.segmentation == 3].mean() < 0.9 * (
        patient.images["t1c"][patient.segmentation == 3].mean()
    )


@pytest.mark.parametrize("name", study.DISTORTIONS)
def test_each_distortion_gets_the_error_that_is_asked_for(scan, name):
    np.testing.assert_allclose(study.distorted(scan, name, 0), scan.truth * scan.brain, atol=1e-9)
    amount = study.amount_for(scan, name, 2e-3)
    image = study.distorted(scan, name, amount)
    assert np.mean((image - scan.truth)[scan.brain] ** 2) == pytest.approx(2e-3, rel=1e-3)
    assert image.min() >= 0 and image.max() <= 1 and not image[~scan.brain].any()


def test_the_lesion_is_removed_from_the_tumor_and_invented_on_the_other_side(scan):
    tumor = scan.labels > 0
    change = np.abs(study.distorted(scan, "removed lesion", 1) - scan.truth)
    assert change[tumor].sum() > 0.7 * change.sum() > 0  # mass effect is around it
    invented = study.distorted(scan, "invented lesion", 1) - scan.truth
    mirrored = tumor[..., ::-1] & scan.brain
    assert np.abs(invented)[mirrored].sum() > 0.7 * np.abs(invented).sum() > 0


def test_ranks_begin_with_the_worst_in_each_metrics_own_direction():
    numbers = {title: 0.5 for title in study.COLUMNS}
    patient = {"a": dict(numbers), "b": dict(numbers), "c": dict(numbers)}
    patient["a"]["SSIM"], patient["b"]["GMSD"] = 0.1, 0.9
    patient["c"]["the same in the tumor"] = None
    found = study.ranks(patient)
    assert found["SSIM"].to_dict() == {"a": 1, "b": 2.5, "c": 2.5}
    assert found["GMSD"].to_dict() == {"a": 2.5, "b": 1, "c": 2.5}
    assert np.isnan(found.at["c", "the same in the tumor"])


def test_the_record_has_one_psnr_a_patient(record):
    assert record["version"] == VERSIONS["fixed"]
    assert len(record["patients"]) == 24
    for patient in record["patients"]:
        assert list(patient) == list(study.DISTORTIONS)
        levels = [numbers["PSNR"] for numbers in patient.values()]
        assert max(levels) - min(levels) < 0.01
        assert patient[study.REFERENCE]["amount"] == pytest.approx(1, abs=1e-3)


def test_what_the_page_says_of_the_metrics_is_in_the_record(record):
    _, ranked = study.tables(record["patients"])
    # A lesion that is gone is the mildest error by MAE, and the worst where enhancement is judged.
    assert ranked["MAE"].idxmax() == "removed lesion"
    for title in ("PSNR in the tumor", "Dice of enhancement", "the same in the tumor"):
        assert ranked[title].idxmin() == "removed lesion", title
    assert ranked["PSNR, best gain"].idxmax() == "gain"
    assert ranked["GMSD"].idxmin() == ranked["SSIM"].idxmin() == "noise"
    assert ranked.at["removed lesion", "GMSD"] < ranked.at["blur", "GMSD"]


def test_what_is_drawn_from_the_record_is_committed(tmp_path, monkeypatch):
    committed = (study.DOCS / "metric_sensitivity.md").read_text()
    monkeypatch.setattr(study, "DOCS", tmp_path)
    study.main(["--show"])
    assert (tmp_path / "metric_sensitivity.md").read_text() == committed


def test_a_small_study_is_measured_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "DOCS", tmp_path)
    monkeypatch.setattr(study, "SETTINGS", SETTINGS)
    kept = {}
    monkeypatch.setattr(study, "save_results", lambda name, content: kept.update({name: content}))
    monkeypatch.setattr(study, "load_results", lambda name: json.loads(json.dumps(kept[name])))
    study.main(["--patients=1"])
    assert list(kept[study.NAME]["patients"][0]) == list(study.DISTORTIONS)
    assert "removed lesion" in (tmp_path / "metric_sensitivity.md").read_text()
