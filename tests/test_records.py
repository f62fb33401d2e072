"""The record's type and file, and what is gathered from many of them."""

import json
import math
import pathlib

import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.metrics.aggregate import summarize
from cdm_jax.records import (
    AVERAGE,
    WHOLE,
    check_comparable,
    check_record,
    per_patient,
    read_record,
    read_records,
    tidy,
    write_record,
)

RESULTS = pathlib.Path(__file__).parents[1] / "experiments/results"


def record(subject, psnr, *, patient=None, split="s1", volume="v1", row="cdm", regions=None):
    scores = {"psnr": psnr, "ssim": 0.9, "mae": 0.01, "regions": regions or {}}
    return {
        "subject": subject,
        "patient": patient or subject,
        "split": split,
        "conventions": {"volume": volume},
        "rows": {row: {"volume": {"t1c": scores}}},
    }


def test_a_tidy_table_has_a_line_for_each_number():
    core = {"tumor_core": {"psnr": 15.0, "ssim": None}}
    table = tidy([record("A-000", 20.0, patient="A", regions=core), record("B-000", 30.0)])
    assert list(table.itertuples(index=False, name=None))[:4] == [
        ("A-000", "A", "cdm", "volume", "t1c", WHOLE, "psnr", 20.0),
        ("A-000", "A", "cdm", "volume", "t1c", WHOLE, "ssim", 0.9),
        ("A-000", "A", "cdm", "volume", "t1c", WHOLE, "mae", 0.01),
        ("A-000", "A", "cdm", "volume", "t1c", "tumor_core", "psnr", 15.0),
    ]
    assert math.isnan(table["value"][4])
    assert table["subject"].tolist() == ["A-000"] * 5 + ["B-000"] * 3


def test_time_points_are_averaged_to_their_patient():
    records = [
        record("P2-000", 10.0, patient="P2"),
        record("P1-000", 20.0, patient="P1"),
        record("P1-001", 30.0, patient="P1"),
        record("P1-002", None, patient="P1"),
        record("P1-003", math.nan, patient="P1"),
        record("P3-000", None, patient="P3"),
    ]
    values = per_patient(records, "volume")["cdm", "t1c", WHOLE, "psnr"]
    assert list(values.index) == ["P1", "P2", "P3"]
    np.testing.assert_array_equal(values, [25, 10, np.nan])
    assert summarize(values).n == 2


def test_regions_and_rows_that_a_patient_lacks_are_nan_in_place():
    core = {"tumor_core": {"psnr": 15.0, "ssim": None, "mae": 0.1}}
    records = [record("A", 20.0, regions=core), record("B", 30.0), record("C", 1.0, row="other")]
    values = per_patient(records, "volume")
    assert list(values.index) == ["A", "B", "C"]
    np.testing.assert_array_equal(values["cdm", "t1c", "tumor_core", "psnr"], [15, np.nan, np.nan])
    assert values["cdm", "t1c", "tumor_core", "ssim"].isna().all()
    np.testing.assert_array_equal(values["other", "t1c", WHOLE, "psnr"], [np.nan, np.nan, 1])


def test_the_average_over_targets_is_that_of_patients_who_have_all():
    records = [record("A", 20.0), record("B", 30.0), record("C", 40.0)]
    for one, value in zip(records, (21.0, 33.0, None), strict=True):
        one["rows"]["cdm"]["volume"]["t2f"] = {"psnr": value}
    values = per_patient(records, "volume")
    np.testing.assert_array_equal(values["cdm", AVERAGE, WHOLE, "psnr"], [20.5, 31.5, np.nan])
    assert values["cdm", AVERAGE, WHOLE, "ssim"].isna().all()  # T2f has none


def test_a_record_is_read_as_it_was_written(tmp_path):
    one = record("A", math.nan, regions={"healthy": {"psnr": 15.0}})
    more = {"size": 64, "checkpoint": {"cdm": "abc"}}
    write_record(tmp_path / "A.json", one | more)
    read = read_record(tmp_path / "A.json")
    assert read["rows"]["cdm"]["volume"]["t1c"].pop("psnr") is None
    del one["rows"]["cdm"]["volume"]["t1c"]["psnr"]
    assert read == one | more
    assert read_records(tmp_path)[0]["subject"] == "A"


def test_every_committed_record_is_one():
    def found(tree):
        if isinstance(tree, dict) and "subject" in tree:
            yield tree
        elif isinstance(tree, dict | list):
            for branch in tree.values() if isinstance(tree, dict) else tree:
                yield from found(branch)

    paths = sorted(RESULTS.rglob("*.json"))
    records = [r for path in paths for r in found(json.loads(path.read_text()))]
    assert len(records) > 100
    for one in records:
        assert check_record(one, "committed") is one


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"subject": "A", "patie', r"A\.json is not JSON"),
        ("[1, 2]", r"A\.json is not a record.*no mapping"),
        ("{}", "'subject' is missing"),
        (json.dumps({**record("A", 1.0), "patient": 3}), "'patient' is missing or of another type"),
        (json.dumps({**record("A", 1.0), "rows": {"cdm": 1}}), "'rows' is not row -> convention"),
        (json.dumps(record("A", "high")), "metric -> number or null"),
        (json.dumps(record("A", 1.0, regions={"healthy": 1.0})), "metric -> number or null"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(tmp_path, text, fault):
    (tmp_path / "A.json").write_text(text)
    with pytest.raises(UserError, match=fault) as error:
        read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_convention_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match="choose from volume"):
        per_patient([record("A", 1.0)], "papre")


def test_records_of_one_split_and_convention_are_comparable():
    check_comparable([record("A", 1.0), record("B", 2.0), record("A", 2.0, row="unet")])
    other_convention = {**record("C", 2.0), "conventions": {"paper": "p1"}}
    check_comparable([record("A", 1.0), other_convention])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (record("B", 2.0, split="s2"), r"split differs: s1 \(as in A\), s2 \(as in B\)"),
        (record("B", 2.0, volume="v2"), r"convention 'volume' differs: v1 \(as in A\), v2"),
        (record("A", 2.0), "subject A has 2 evaluations of row 'cdm'"),
    ],
)
def test_mixed_records_are_refused(other, message):
    records = [record("A", 1.0), other]
    with pytest.raises(UserError, match=message):
        check_comparable(records)
    with pytest.raises(UserError, match=message):
        per_patient(records, "volume")


def test_no_records_are_refused():
    with pytest.raises(UserError, match="there are no records"):
        check_comparable([])
