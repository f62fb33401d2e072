"""The study of the map of enhancement: what it counts and says, and a run of it to its end."""

import dataclasses
import math

import numpy as np
import pytest

from cdm_jax.metrics.conformal import detection
from cdm_jax.phantom import PhantomSettings
from cdm_jax.phantom.patient import simulate_body, simulate_patient
from cdm_jax.records import per_patient
from experiments import enhancement as study
from experiments.study import Study


def records(uptake, brier=0.05, patients=6):
    """Records with this area of uptake in every patient, and this score."""
    map_scores = {"auroc": 0.9, "brier": brier, "flat_brier": 0.1, "enhancing": 0.3}
    volumes = {"enhancing_ml": 2.0, "true_enhancing_ml": 3.0, "enhancement_dice": 0.6}
    regions = dict.fromkeys(study.JUDGED, map_scores) | {
        "0": {"part": 0.9, "predicted": 0.01, "observed": 0.02},
        "0.8": {"part": 0.1, "predicted": 0.85, "observed": 0.8},
    }
    told = {"uptake_auroc": uptake, "most_ml": 5.0, "tumor_ml": 3.0, "regions": regions}
    shown = {study.MAP: {"t1c": told}}
    found = {study.VOLUME: {"t1c": volumes | {"regions": {"whole_tumor": volumes}}}}
    rows = {}
    for system in study.SYSTEMS.values():
        rows |= {system: shown | found, f"{system}, upper quantile": found}
    rows |= {"copy": found, "regression": found}
    return [
        {"subject": f"s{n}", "patient": f"p{n}", "split": "a", "conventions": {}, "rows": rows}
        for n in range(patients)
    ]


@pytest.mark.parametrize(
    ("phantom", "area", "verdict"),
    [
        ("told", 0.8, "is as informative as asked"),
        ("told", 0.79, "is NOT as informative"),
        ("hidden", 0.47, "is uninformative"),
        ("hidden", 0.46, "is NOT uninformative"),
        ("hidden", 0.54, "is NOT uninformative"),
    ],
)
def test_what_is_said_of_uptake_follows_the_numbers(phantom, area, verdict):
    said = study.uptake_sentence(per_patient(records(area), study.MAP), phantom, "M1")
    assert verdict in said
    assert f"AUROC {area:.3f} [" in said and "within 6 patients' tumors" in said
    nobody = per_patient(records(math.nan), study.MAP)
    assert "no patient has enough" in study.uptake_sentence(nobody, phantom, "M1")


def test_what_is_said_of_the_brier_score_follows_the_numbers():
    for brier, verdict in ((0.05, ", better than"), (0.2, ", WORSE than"), (0.1, ", NO better")):
        patients = per_patient(records(0.8, brier), study.MAP)
        assert verdict in study.brier_sentence(patients, "M1", "brain")


def test_what_is_said_of_the_bound_follows_the_numbers():
    patients = per_patient(records(0.8), study.MAP)
    said = study.bound_sentence(patients, "M1", 9.0)
    assert "holds for 1.000 [" in said and "less than the bound that sees no image, 9.0" in said
    assert "in the mean it is 5.0 ml" in said and "In truth there are 3.0 ml" in said
    assert "MORE than the bound" in study.bound_sentence(patients, "M1", 4.0)


def test_the_whole_text_stands_on_the_record_alone():
    maps = {stage: {"promise": f"promise of {stage}"} for stage in study.SYSTEMS}
    phantoms = {
        name: {"maps": maps, "blind_ml": 9.0, "records": records(area)}
        for name, area in (("told", 0.9), ("hidden", 0.5))
    }
    content = {"command": "python -m x", "overrides": ["--a=b"], "phantoms": phantoms}
    text = study.report(content)
    for part in ("python -m x", "--a=b", "promise of m1", "Means over 6 unseen patients", "R²"):
        assert part in text
    assert "CDM, where T1 and T2 do not tell the local uptake: AUROC 0.500" in text
    assert "| 0.8 to 0.9 |" in text and "0.850" in text and "10.00%" in text
    for row in ("copy", "regression", "M1", "CDM", "M1, upper quantile"):
        assert f"| {row}, in the tumor" in text


def test_a_map_is_ranked_by_uptake_within_one_patient():
    uptake = np.full((2, 4, 5), np.nan, np.float32)
    uptake[0] = np.arange(20).reshape(4, 5)
    volume = np.where(np.isfinite(uptake), uptake, 99.0)  # elsewhere it may say anything
    assert study.uptake_auroc(volume, uptake) == 1
    assert study.uptake_auroc(-volume, uptake) == 0
    assert study.uptake_auroc(np.ones_like(volume), uptake) == 0.5
    uptake[0, 0, 0] = np.nan
    assert math.isnan(study.uptake_auroc(volume, uptake))  # of 19 voxels


def test_shared_noise_and_partial_volume_make_no_map_informative_of_uptake():
    """A map of T1's noise and of the part that enhances tells the true gain, but no uptake."""
    rng, by_uptake, by_gain = np.random.default_rng(0), [], []
    for _ in range(300):
        uptake = np.exp(0.4 * rng.standard_normal((4, 5, 5))).astype(np.float32)
        part, noise = rng.uniform(0.5, 1, uptake.shape), 0.2 * rng.standard_normal(uptake.shape)
        gain, blind = part * uptake - noise, 3 * part - noise
        by_uptake.append(study.uptake_auroc(blind, uptake))
        by_gain.append(detection((gain > np.median(gain)).ravel(), blind.ravel()))
    assert np.mean(by_gain) > 0.6
    assert np.mean(by_uptake) == pytest.approx(0.5, abs=0.01)


def test_the_uptake_is_that_of_the_simulated_tumor():
    """Where T1 and T2 tell it, it follows what is simulated of them, and T1c follows it."""
    settings = PhantomSettings(shape=(32, 32, 24), voxel_mm=6.0, predictable=1.0)
    index = 14  # whose tumor is large and solid
    body = simulate_body(settings, index)
    filled = body.tissues["enhancing"] > study.FILLED
    assert filled.sum() > study.LEAST
    uptake, lesion = np.log(body.uptake[filled]), body.lesion[filled]
    assert np.corrcoef(uptake, lesion)[0, 1] > 0.99
    image = simulate_patient(settings, index).images["t1c"][body.brain]
    assert np.corrcoef(uptake, image[filled])[0, 1] > 0.5
    hidden = simulate_body(dataclasses.replace(settings, predictable=0.0), index)
    np.testing.assert_array_equal(hidden.lesion, body.lesion)
    assert abs(np.corrcoef(np.log(hidden.uptake[filled]), lesion)[0, 1]) < 0.5


@pytest.mark.slow
def test_the_study_runs_to_its_end(tmp_path):
    """With networks that learn nothing; its record is told."""
    here = Study(
        dataset="phantom",
        small=False,
        root="",
        workdir=tmp_path / "run",
        smoke=True,
        output=tmp_path / "output",
    )
    here.output.mkdir()
    study.measure(here)
    study.show(here)
    text = (here.output / "enhancement.md").read_text()
    assert "CDM, upper quantile, in the tumor" in text
    found = here.load(study.NAME)["phantoms"]
    assert found.keys() == study.PHANTOMS.keys()
    for phantom in found.values():
        assert phantom["maps"]["cunet"]["table"]["raw"]
        (record, *_) = phantom["records"]
        assert record["rows"]["M1"][study.MAP]["t1c"]["regions"]["brain"]["brier"] > 0
