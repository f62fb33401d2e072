"""The segmenter as the judge: what the study says of made-up patients, and that it runs."""

import dataclasses

import pytest

from cdm_jax.records import per_patient
from experiments import segmenter as study
from experiments.study import Study
from tests.helpers import STAGES, copy_run


def records(gain, patients=6):
    """Patients of whom each synthesis has this much more Dice than the row without any."""
    made = []
    for n in range(patients):
        base = 0.5 + 0.01 * n
        own = dict.fromkeys(study.SYNTHESES, base + gain + 0.002 * n)
        own |= {study.NOTHING: base, study.ACQUIRED: 0.9, study.COPY: 0.1}
        rows = {
            row: {study.CONVENTION: {r: {"dice": d, "hd95": 10 * d} for r in study.REGIONS}}
            for row, d in own.items()
        }
        identity = {"subject": f"s{n}", "patient": f"p{n}", "split": "a", "conventions": {}}
        made.append(identity | {"rows": rows})
    return made


@pytest.mark.parametrize(
    ("gain", "patients", "said"),
    [
        (0.1, 6, "Synthesis beats the segmenter that needs none by M1, CDM, CDM mean of 8: "),
        (-0.004, 6, "Synthesis does NOT beat the segmenter that needs none: "),
        (-0.1, 6, "does NOT beat the segmenter that needs none (M1, CDM, CDM mean of 8: worse"),
        (0.1, 2, "Too few patients to tell whether synthesis beats"),
    ],
)
def test_what_is_said_follows_the_numbers(gain, patients, said):
    found = study.verdict(per_patient(records(gain, patients), study.CONVENTION))
    assert said in found
    mean = gain + 0.002 * (patients - 1) / 2
    assert f"M1 {mean:+.3f}" in found


def test_the_whole_text_stands_on_the_record_alone():
    content = {"command": "python -m x", "overrides": ["--y"], "records": records(0.1)}
    content["real"] = records(0.1, 2)
    text = study.report(content)
    for part in ("python -m x", "phantom patients (6)", "Real patients (2)", "374 mm"):
        assert part in text
    for row in study.ROWS:
        assert text.count(f"| {row} ") >= 4
    only = study.report({**content, "real": []})
    assert "Real patients" not in only


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """The study of a run that has every stage but the segmenter."""
    folder = tmp_path_factory.mktemp("segmenter")
    copy_run(finished_run, folder / f"run_{study.NAME}", STAGES)
    workdir = folder / "run"
    return Study(dataset="phantom", small=True, root="", workdir=workdir, smoke=True, output=folder)


def check(records):
    for record in records:
        assert set(record["rows"]) == set(study.ROWS)
        for scores in record["rows"].values():
            for region in study.REGIONS:
                assert 0 <= scores[study.CONVENTION][region]["dice"] <= 1
                assert 0 <= scores[study.CONVENTION][region]["hd95"] <= 374


@pytest.mark.slow
def test_it_trains_the_judge_and_scores_unseen_phantom_patients(run):
    study.measure(run)
    content = run.load(study.NAME)
    assert len(content["records"]) == 2
    assert "real" not in content
    check(content["records"])
    assert study.verdict(per_patient(content["records"], study.CONVENTION)) in study.report(content)


@pytest.mark.slow
def test_real_patients_are_scored_whose_segmentation_can_be_read(run, real_data):
    study.measure(dataclasses.replace(run, root=str(real_data)))
    (record,) = run.load(study.NAME)["real"]
    assert record["subject"] == "BraTS-GLI-00001-000"  # the other one has labels 3 and 4
    check([record])
