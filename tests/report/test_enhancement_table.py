"""The tables of what `volume` measures beside PSNR, SSIM and MAE."""

import math

import pytest

from cdm_jax.evaluate import show_tables
from cdm_jax.report.enhancement import enhancement_table
from cdm_jax.report.tables import ABSENT, FURTHER, results_table

MAIN = {"psnr": 20.0, "ssim": 0.9, "mae": 0.05}


def enhancing(made, true, dice):
    return {"enhancing_ml": made, "true_enhancing_ml": true, "enhancement_dice": dice}


def record(number, rows):
    """A record of patient `number`: row to (scores in the brain, scores in the tumor)."""
    return {
        "subject": f"s{number}",
        "patient": f"p{number}",
        "split": "abc",
        "conventions": {"volume": "1"},
        "rows": {
            name: {
                "volume": {
                    "t1c": MAIN | brain | {"regions": {"whole_tumor": MAIN | tumor}},
                    "t2f": MAIN | {"regions": {"whole_tumor": MAIN}},
                }
            }
            for name, (brain, tumor) in rows.items()
        },
    }


@pytest.fixture
def records():
    true, made, dice = [8.0, 2.0, 0.1, 0.0], [6.0, 0.2, 0.0, 0.9], [0.8, 0.1, 0.0, math.nan]
    return [
        record(
            n,
            {
                "m1": (enhancing(m + 20, t + 30, 0.5), enhancing(m, t, d)),
                "copy": (enhancing(0.0, t + 30, 0.0), enhancing(0.0, t, 0.0 if t else math.nan)),
            },
        )
        for n, (m, t, d) in enumerate(zip(made, true, dice, strict=True))
    ]


def test_detection_volume_and_overlap_of_a_row(records):
    lines = enhancement_table(records).texts().to_dict("index")
    places = ("in the tumor", "in the brain")
    assert list(lines) == [f"{row}, {place}" for place in places for row in ("m1", "copy")]
    m1 = lines["m1, in the tumor"]
    assert m1["detected"] == "1 of 2" and m1["none where none is"] == "1 of 2"
    assert (m1["ml"], m1["true ml"], m1["patients"]) == ("1.8", "2.5", "4")
    mean = (8 + 2 + 0.1) / 4
    spread = sum((t - mean) ** 2 for t in (8, 2, 0.1, 0))
    explained = 1 - (2**2 + 1.8**2 + 0.1**2 + 0.9**2) / spread
    assert m1["R²"] == f"{explained:.2f}"
    assert m1["Dice"].startswith("0.30 [")
    copy = lines["copy, in the tumor"]
    assert copy["detected"] == "0 of 2" and copy["none where none is"] == "2 of 2"
    assert lines["m1, in the brain"]["detected"] == ABSENT
    assert lines["m1, in the brain"]["true ml"] == "32.5"


def test_rows_without_the_numbers_are_left_out_and_undefined_ones_dashed(records):
    for one in records:
        one["rows"]["old"] = {"volume": {"t1c": dict(MAIN), "t2f": dict(MAIN)}}
        one["rows"]["m1"]["volume"]["t1c"]["regions"]["whole_tumor"] |= enhancing(None, 1.0, None)
    lines = enhancement_table(records).texts().to_dict("index")
    assert not any(name.startswith("old") for name in lines)
    assert lines["m1, in the tumor"]["ml"] == lines["m1, in the tumor"]["R²"] == ABSENT


def test_further_metrics_have_a_table_where_any_record_has_them(records, tmp_path):
    show_tables(records, ("volume",), None, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "GMSD" not in text and "Enhancement" in text
    further = {"psnr_best_gain": 25.0, "gmsd": 0.1, "z_gradient": 0.02}
    for one in records[:3]:
        for target in ("t1c", "t2f"):
            one["rows"]["m1"]["volume"][target] |= further
    show_tables(records, ("volume",), None, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "T1c PSNR, best gain" in text and "T1c GMSD" in text and "T2f step error in z" in text
    cells = results_table(records, "volume", metrics=FURTHER).texts()
    assert cells.at["m1", "T1c PSNR, best gain"] == "25.00 ± 0.00 (n=3)"
    assert cells.at["copy", "T1c GMSD"] == ABSENT


def test_records_of_earlier_versions_have_the_tables_that_they_had(records, tmp_path):
    for one in records:
        for row in one["rows"].values():
            for target in row["volume"]:
                row["volume"][target] = dict(MAIN)
    show_tables(records, ("volume",), None, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert text.count("Convention volume") == 1 and "Enhancement" not in text
    assert ABSENT in results_table(records, "volume", metrics=FURTHER).markdown()
