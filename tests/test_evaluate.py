"""Records of a run: complete, reproducible, refused where they would deceive."""

import json

import numpy as np
import pytest

from cdm_jax import evaluate
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from tests import helpers
from tests.helpers import STAGES, compilations, copy_run, smoke_config

AUDITS = ("mean_of_2", "mean_representation", "oracle", "null", "mean", "shuffled")


@pytest.fixture(scope="module")
def evaluated(finished_run, tmp_path_factory):
    workdir = copy_run(finished_run, tmp_path_factory.mktemp("evaluated") / "run", STAGES)
    config = smoke_config("cdm")
    dataset = load_dataset(config, workdir)
    return workdir, dataset, evaluate.evaluate_run(config, workdir, dataset)


def test_each_test_patient_has_a_record_with_every_row(evaluated):
    _, dataset, records = evaluated
    assert {record["subject"] for record in records} == {s.subject_id for s in dataset.test}
    rows = {"copy", "brain_mean", "regression", "resampled_truth", "m1", "cunet"}
    rows |= {f"cunet/{name}" for name in AUDITS}
    for record in records:
        assert record["rows"].keys() == rows
        for scores in record["rows"].values():
            assert scores.keys() == {"paper", "volume"}
            assert scores["volume"].keys() == {"t1c", "t2f"}
        assert record["split"] == dataset.split_hash
        assert record["checkpoint"].keys() == {"cunet", "m1"}


def test_the_truth_scores_the_cap_and_the_copy_is_the_copy(evaluated):
    _, dataset, records = evaluated
    subject = next(s for s in dataset.test if s.subject_id == records[0]["subject"])
    rows = records[0]["rows"]
    assert rows["resampled_truth"]["paper"]["t1c"]["psnr"] == 100
    unit = np.asarray(subject.slices).astype(np.float64) / 65535
    expected = np.abs(unit[..., 0] - unit[..., 2]).mean(axis=(1, 2)).mean()
    assert rows["copy"]["paper"]["t1c"]["mae"] == pytest.approx(expected, rel=1e-3)


def test_a_second_evaluation_reads_the_records_back(evaluated, monkeypatch):
    workdir, dataset, records = evaluated

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(evaluate._Evaluation, "_rows", never)
    assert evaluate.evaluate_run(smoke_config("cdm"), workdir, dataset) == json.loads(
        json.dumps(records)
    )


def test_a_system_is_compiled_once_for_patients_of_different_numbers_of_slices(evaluated, caplog):
    workdir, dataset, _ = evaluated
    assert len({len(subject.slice_indices) for subject in dataset.test}) > 1
    with compilations(caplog) as compiled:
        evaluate.evaluate_run(smoke_config("cdm"), workdir, dataset, "again")
    assert sum("jit(run)" in message for message in compiled) == 2, compiled  # cunet and m1


def test_other_settings_make_new_records(evaluated, monkeypatch):
    workdir, dataset, _ = evaluated
    asked = []
    original = evaluate._Evaluation._rows
    monkeypatch.setattr(evaluate._Evaluation, "_rows", lambda *a: asked.append(a) or original(*a))
    config = smoke_config("cdm")
    config.evaluate.systems = ("m1",)
    config.evaluate.part = "validation"
    assert evaluate.evaluate_run(config, workdir, dataset)
    assert len(asked) == len(dataset.validation)


def test_a_system_evaluated_later_joins_the_records_of_the_others(evaluated, tmp_path, monkeypatch):
    workdir, dataset, records = evaluated
    later = copy_run(workdir, tmp_path / "run", STAGES)
    config = smoke_config("m1")
    assert config.evaluate.systems == ("m1",)
    first = evaluate.evaluate_run(config, later, dataset)
    assert all("cunet" not in record["rows"] for record in first)
    asked = []
    original = evaluate._Evaluation._rows

    def watched(self, subject, other, stages, trained_only):
        asked.append((stages, trained_only))
        return original(self, subject, other, stages, trained_only)

    monkeypatch.setattr(evaluate._Evaluation, "_rows", watched)
    joined = evaluate.evaluate_run(smoke_config("cdm"), later, dataset)
    assert asked == [(["cunet"], True)] * len(dataset.test)
    for ours, whole in zip(joined, records, strict=True):
        assert json.loads(json.dumps(ours["rows"])) == json.loads(json.dumps(whole["rows"]))
        assert ours["checkpoint"] == whole["checkpoint"]


def test_a_system_of_another_split_is_refused(evaluated, tmp_path):
    workdir, _, _ = evaluated
    other = copy_run(workdir, tmp_path / "run", STAGES)
    (other / "split.json").unlink()
    config = smoke_config("cdm", split_seed=3)
    with pytest.raises(UserError, match="training patients may be among the test"):
        evaluate.evaluate_run(config, other, load_dataset(config, other))


def test_one_source_and_three_targets(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run")
    config = smoke_config("m1", sources=("t2",), targets=("t1", "t1c", "t2f"))
    dataset = helpers.train("m1", workdir, config)
    assert dataset.copies == ("t2", "t2", "t2")
    records = evaluate.evaluate_run(config, workdir, dataset)
    for subject, record in zip(dataset.test, records, strict=True):
        unit = np.asarray(subject.slices).astype(np.float64) / 65535
        for t, target in enumerate(("t1", "t1c", "t2f"), start=1):
            expected = np.abs(unit[..., 0] - unit[..., t]).mean(axis=(1, 2)).mean()
            assert record["rows"]["copy"]["paper"][target]["mae"] == pytest.approx(
                expected, rel=1e-3
            )
            assert np.isfinite(record["rows"]["m1"]["volume"][target]["psnr"])


def test_an_untrained_system_is_named(evaluated, tmp_path):
    workdir, dataset, _ = evaluated
    other = copy_run(workdir, tmp_path / "run", ("cunet", "mrm", "mdn"))
    with pytest.raises(UserError, match="m1 has not been trained"):
        evaluate.evaluate_run(smoke_config("cdm"), other, dataset)


def test_an_empty_part_is_refused(evaluated):
    workdir, dataset, _ = evaluated
    config = smoke_config("cdm")
    config.evaluate.part = "examination"
    with pytest.raises(UserError, match="no patients in part 'examination'"):
        evaluate.evaluate_run(config, workdir, dataset)
