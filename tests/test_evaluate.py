"""Records of a run: complete, reproducible, refused where they would deceive."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cdm_jax import draws, evaluate, inference, scoring
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from cdm_jax.methods.cdm.cunet import CrossConditioned
from cdm_jax.rows import REFERENCE_ROWS, rows_of
from tests import helpers
from tests.helpers import STAGES, compilations, copy_run, smoke_config

AUDITS = ("mean_of_2", "mean_representation", "oracle", "null", "mean", "shuffled")


def never(*_):
    raise AssertionError("computed or read though nobody asked")


def plain(tree):
    return json.loads(json.dumps(tree))


def approximately(scores):
    """Two programs for the same image may differ in the last digits."""
    return {
        name: None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)
        for name, value in scores.items()
    }


def assert_alike(rows, others):
    for row, conventions in rows.items():
        for convention, targets in conventions.items():
            for target, scores in targets.items():
                expected = dict(others[row][convention][target])
                scores = dict(scores)
                regions, wanted = scores.pop("regions", {}), expected.pop("regions", {})
                assert scores == approximately(expected), (row, convention, target)
                assert regions == {name: approximately(s) for name, s in wanted.items()}


@pytest.fixture
def asked(monkeypatch):
    """The rows whose images are computed, a list a subject."""
    found = []
    original = evaluate._Evaluation._images

    def watched(self, subject, other, rows):
        found.append(list(rows))
        return original(self, subject, other, rows)

    monkeypatch.setattr(evaluate._Evaluation, "_images", watched)
    return found


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

    monkeypatch.setattr(inference.System, "volumes", never)
    monkeypatch.setattr(evaluate, "fit_non_learned", never)
    monkeypatch.setattr(scoring, "read_native", never)
    assert evaluate.evaluate_run(smoke_config("cdm"), workdir, dataset) == json.loads(
        json.dumps(records)
    )


def test_a_system_is_compiled_once_for_patients_of_different_numbers_of_slices(evaluated, caplog):
    workdir, dataset, _ = evaluated
    everybody = (*dataset.test, *dataset.train, *dataset.validation)
    numbers = {len(subject.slice_indices): subject for subject in everybody}
    assert len(numbers) > 1
    dataset = dataclasses.replace(dataset, test=tuple(numbers.values()))
    with compilations(caplog) as compiled:
        evaluate.evaluate_run(smoke_config("cdm"), workdir, dataset, "again")
    assert sum("jit(images)" in message for message in compiled) == 2, compiled  # cunet and m1


def test_other_settings_make_new_records(evaluated, asked):
    workdir, dataset, _ = evaluated
    config = smoke_config("cdm")
    config.evaluate.systems = ("m1",)
    config.evaluate.part = "validation"
    assert evaluate.evaluate_run(config, workdir, dataset)
    assert asked == [[*REFERENCE_ROWS, "m1"]] * len(dataset.validation)


def test_a_system_evaluated_later_joins_the_records_of_the_others(evaluated, tmp_path, asked):
    workdir, dataset, records = evaluated
    later = copy_run(workdir, tmp_path / "run", STAGES)
    config = smoke_config("m1")
    assert config.evaluate.systems == ("m1",)
    first = evaluate.evaluate_run(config, later, dataset)
    assert all("cunet" not in record["rows"] for record in first)
    asked.clear()
    joined = evaluate.evaluate_run(smoke_config("cdm"), later, dataset)
    of_cunet = ["cunet", *(f"cunet/{name}" for name in AUDITS)]
    assert asked == [of_cunet] * len(dataset.test)
    for ours, whole in zip(joined, records, strict=True):
        assert plain(ours["rows"]) == plain(whole["rows"])
        assert ours["checkpoint"] == whole["checkpoint"]


def test_only_the_rows_asked_for_are_computed(evaluated, monkeypatch, caplog):
    """Neither the other network nor an audit is compiled, nothing is fitted."""
    workdir, dataset, records = evaluated
    config = smoke_config("cdm")
    config.evaluate.rows = ("cunet", "cunet/mean_of_2")
    monkeypatch.setattr(evaluate, "fit_non_learned", never)
    monkeypatch.setattr(CrossConditioned, "audits", lambda *_: dict.fromkeys(AUDITS[1:], never))
    with compilations(caplog) as compiled:
        found = evaluate.evaluate_run(config, workdir, dataset, "two rows")
    assert sum("jit(images)" in message for message in compiled) == 1, compiled
    for record, whole in zip(found, records, strict=True):
        assert record["rows"].keys() == {"cunet", "cunet/mean_of_2"}
        assert record["checkpoint"] == {"cunet": whole["checkpoint"]["cunet"]}
        assert_alike(record["rows"], whole["rows"])


def test_one_sample_alone_is_the_first_of_several(evaluated, monkeypatch):
    workdir, dataset, records = evaluated
    config = smoke_config("cdm")
    config.evaluate.rows = ("cunet",)
    drawn, original = [], CrossConditioned.translate

    def watched(self, model, sources, key, num_samples):
        drawn.append(num_samples)
        return original(self, model, sources, key, num_samples)

    monkeypatch.setattr(CrossConditioned, "translate", watched)
    for record, whole in zip(
        evaluate.evaluate_run(config, workdir, dataset, "one row"), records, strict=True
    ):
        assert record["rows"].keys() == {"cunet"}
        assert_alike(record["rows"], whole["rows"])
    assert drawn == [1]


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.split(jax.random.key(3), 4)])
def test_the_keys_of_samples_do_not_depend_on_their_number(key):
    one, many = (jax.random.key_data(draws.split(key, number)) for number in (1, 8))
    assert np.array_equal(one, many[:1])


def test_a_wider_evaluation_computes_what_the_narrow_one_left_out(evaluated, tmp_path, asked):
    workdir, dataset, records = evaluated
    later = copy_run(workdir, tmp_path / "run", STAGES)
    config, narrow = smoke_config("cdm"), ("copy", "m1", "cunet", "cunet/null")
    config.evaluate.rows = narrow
    for record in evaluate.evaluate_run(config, later, dataset):
        assert record["rows"].keys() == set(narrow)
    asked.clear()
    whole = evaluate.evaluate_run(smoke_config("cdm"), later, dataset)
    assert asked == [[row for row in records[0]["rows"] if row not in narrow]] * len(dataset.test)
    for record, expected in zip(whole, records, strict=True):
        assert record["rows"].keys() == expected["rows"].keys()
        assert_alike(record["rows"], expected["rows"])
        assert record["checkpoint"] == expected["checkpoint"]
    asked.clear()
    assert plain(evaluate.evaluate_run(config, later, dataset)) == plain(whole)
    assert not any(asked)


def test_no_row_of_another_checkpoint_stays_beside_a_new_one(evaluated, tmp_path, asked):
    workdir, dataset, records = evaluated
    later = copy_run(workdir, tmp_path / "run", STAGES)
    folder = later / "evaluation" / "test"
    folder.mkdir(parents=True)
    for record in records:
        old = {**record, "checkpoint": record["checkpoint"] | {"cunet": "another"}}
        (folder / f"{record['subject']}.json").write_text(json.dumps(old))
    config = smoke_config("cdm")
    config.evaluate.rows = ("cunet", "m1")
    found = evaluate.evaluate_run(config, later, dataset)
    assert asked == [["cunet"]] * len(dataset.test)
    for record, whole in zip(found, records, strict=True):
        assert record["checkpoint"] == whole["checkpoint"]
        assert record["rows"].keys() == {*REFERENCE_ROWS, "m1", "cunet"}


def test_an_unknown_row_is_refused_with_those_that_there_are(evaluated):
    workdir, dataset, _ = evaluated
    config = smoke_config("cdm")
    config.evaluate.rows = ("cunet", "cunet/mean_of_8")
    with pytest.raises(UserError, match=r"cunet/mean_of_8: .* cunet, cunet/mean_of_2, .* m1;"):
        evaluate.evaluate_run(config, workdir, dataset)


def test_the_mean_of_one_sample_is_no_row_of_its_own(finished_run):
    method = inference.load_system(finished_run / "cunet", 2).method
    assert rows_of("cunet", method, 1)[:2] == ("cunet", "cunet/mean_representation")
    assert rows_of("cunet", method, 3)[:2] == ("cunet", "cunet/mean_of_3")


def test_slices_are_scored_without_reading_volumes(evaluated, monkeypatch):
    workdir, dataset, records = evaluated
    config = smoke_config("cdm")
    config.evaluate.update({"rows": ("copy",), "conventions": ("paper",)})
    monkeypatch.setattr(scoring, "read_native", never)
    for record, whole in zip(
        evaluate.evaluate_run(config, workdir, dataset, "slices"), records, strict=True
    ):
        assert record["rows"]["copy"] == {"paper": whole["rows"]["copy"]["paper"]}


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


def test_a_patient_who_cannot_be_scored_stops_no_other(evaluated, tmp_path, capsys):
    workdir, dataset, records = evaluated
    first, *others = dataset.test
    files = dataset.subjects[first.subject_id]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(files.images["t1c"].read_bytes()[:500])
    damaged = dataclasses.replace(files, images={**files.images, "t1c": broken})
    subjects = {**dataset.subjects, first.subject_id: damaged}
    config = smoke_config("cdm")
    config.evaluate.rows = ("copy",)
    expected = rf"1 of 2 subjects failed \({first.subject_id}\), all others are done"
    with pytest.raises(UserError, match=expected) as error:
        one_broken = dataclasses.replace(dataset, subjects=subjects)
        evaluate.evaluate_run(config, workdir, one_broken, "one broken")
    assert f"{broken} cannot be read" in str(error.value)
    assert f"failed: {first.subject_id}:" in capsys.readouterr().out
    folder = workdir / "evaluation/one broken"
    written = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert written.keys() == {f"{subject.subject_id}.json" for subject in others}
    for record, whole in zip(written.values(), records[1:], strict=True):
        assert record["rows"]["copy"] == plain(whole["rows"]["copy"])


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
