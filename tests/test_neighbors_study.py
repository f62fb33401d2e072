"""The study of what neighbors of a slice buy."""

import pytest

from cdm_jax.data.subjects import find_subjects
from experiments import neighbors, records
from tests.helpers import copy_run


def record(patient, psnr, step):
    scores = {"psnr": psnr, "z_gradient": step}
    return {
        "subject": patient,
        "patient": patient,
        "split": "abc",
        "conventions": {"volume": "def"},
        "rows": {"m1": {"volume": {"t1c": scores, "t2f": scores}}},
    }


def runs(patients=6):
    """Of two seeds whose neighbors gain 1 and 3 dB, and steadiness in one of them."""
    made = {}
    for context, gain in (("0", 0.0), ("1", 1.0)):
        made[context] = {
            str(seed): [
                record(f"p{k}", 20 + k + gain * (1 + 2 * seed), 0.05 - 0.01 * gain * seed)
                for k in range(patients)
            ]
            for seed in range(2)
        }
    return {"fixed": made, "t1": made}


def test_a_patients_gain_is_the_mean_over_seeds():
    found = runs()
    gain = neighbors.gain(found["fixed"], "1", "t2f", "psnr")
    assert (gain.mean, gain.n) == (pytest.approx(2.0), 6)
    assert neighbors.gain(found["t1"], "1", "t1c", "z_gradient").mean == pytest.approx(-0.005)
    text = neighbors.report({"command": "c", "overrides": ["--o"], "runs": found})
    lines = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()]
    assert ["t1+t2, fixed", "t1c"] in lines and ["t1", "t2f"] in lines
    assert "+2.00 [+2.00, +2.00]" in text and "-0.0050 [-0.0050, -0.0050]" in text
    assert "6 validation patients of the phantom and 2 seeds" in text


@pytest.mark.slow
def test_networks_with_and_without_neighbors_are_scored_on_validation_patients(
    finished_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(neighbors, "CONTEXTS", (0, 1))
    tasks = {"fixed": "m1,smoke", "any": "m1,any,smoke"}
    monkeypatch.setattr(neighbors, "TASKS", tasks)
    monkeypatch.setattr(neighbors.common.cdm, "PATTERNS", ("t1+t2", "t1"))
    monkeypatch.setattr(neighbors, "DOCS", tmp_path)
    (tmp_path / "phantom").mkdir()
    saved = {}
    monkeypatch.setattr(records, "save_results", lambda name, content: saved.update(content))
    monkeypatch.setattr(neighbors, "load_results", lambda name: saved)
    monkeypatch.setattr(records, "load_results", lambda name: saved)
    run = copy_run(finished_run, tmp_path / "run")
    neighbors.main(["--seeds=0", f"--workdir={run}"])
    patients = {s.patient_id for s in find_subjects(run / "patients", modalities=("t1",))}
    assert set(saved["runs"]) == {"fixed", "t1+t2", "t1"}
    for found in saved["runs"].values():
        scored = {r["patient"] for r in found["1"]["0"]}
        assert scored and scored < patients
        assert scored == {r["patient"] for r in found["0"]["0"]}
        assert found["0"] != found["1"]
    assert "Made by" in (tmp_path / "phantom" / "neighbors.md").read_text()
