"""Words for rows, the choice of patients, curves, and the viewer's scripts."""

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.report import patients, rows, viewer
from cdm_jax.report.curves import curves, final_values
from tests.report import samples


def test_each_system_is_judged_by_the_mean_of_its_samples():
    headline = rows.headline_rows(samples.records())
    assert headline == {"cunet": "cunet/mean_of_4", "m1": "m1"}
    assert [rows.samples_of(row) for row in headline.values()] == [4, 1]


def test_words_for_rows():
    assert rows.meaning("cunet/mean_of_4") == "mean of 4 samples of cunet"
    assert "true targets" in rows.meaning("m2/oracle")
    assert rows.meaning("somebody's") == ""
    assert [rows.is_result(row) for row in ("m1", "a/oracle", "resampled_truth")] == [1, 0, 0]


def test_the_patients_shown_are_the_strongest_enhancement_the_best_and_the_worst():
    records = samples.records()
    ranked = sorted(records, key=lambda r: r["rows"]["m1"]["volume"]["t1c"]["psnr"])
    names = [record["subject"] for record in ranked]
    chosen = patients.choose(records, "m1", "volume", 5)
    expected = list(dict.fromkeys(["P0-000", names[-1], names[0], *names]))
    assert list(chosen) == expected
    assert "enhances most" in chosen["P0-000"]
    assert list(patients.choose(records, "m1", "volume", 2)) == expected[:2]


def test_without_regions_the_best_comes_first():
    records = samples.cohort({"copy": 3.0, "a": 20.0}, patients=4)
    for record in records:
        for scores in record["rows"].values():
            for target in scores["volume"].values():
                target.pop("regions")
    first, reason = next(iter(patients.choose(records, "a", "volume", 1).items()))
    values = {r["subject"]: r["rows"]["a"]["volume"]["t1c"]["psnr"] for r in records}
    assert first == max(values, key=values.get)
    assert reason == "the best PSNR of a"


def test_numbers_for_the_browser_and_for_a_patients_page():
    records = samples.records()
    records[0]["rows"]["m1"]["volume"]["t2f"]["psnr"] = None
    data = patients.subject_values(records)
    assert list(data["values"]) == ["volume", "volume, enhancing tumor"]
    assert data["columns"][:2] == [["t1c", "psnr", 2], ["t1c", "ssim", 3]]
    assert data["values"]["volume"]["m1"]["P0-000"][3] is None
    assert data["values"]["volume, enhancing tumor"]["m1"]["P1-000"][:3] == [8.0, 0.4, 0.29]
    tables = patients.subject_tables(records[0])
    assert list(tables) == ["volume", "volume, enhancing tumor"]
    assert tables["volume"].at["m1", "T2f PSNR"] == "–"
    assert tables["volume, enhancing tumor"].at["m1", "T1c MAE"] == "0.3000"


def test_curves_are_split_into_losses_and_validation_metrics():
    lines = [
        {"step": 10, "loss": 1.0, "gradient_norm": 9.0},
        {"step": 20, "loss": 0.5, "validation/loss": 0.7, "validation/psnr_t2f": 20.0},
        {"step": 30, "loss": float("nan"), "final/explained": 0.83},
    ]
    losses, psnr = curves("cunet", lines)
    assert losses.title == "cunet: losses"
    assert losses.text == "Steps 10 to 20: loss from 1 to 0.5; validation loss from 0.7 to 0.7."
    assert (psnr.title, psnr.text) == (
        "cunet: validation PSNR",
        "Steps 20 to 20: validation psnr t2f from 20 to 20.",
    )
    assert ET.fromstring(losses.svg).tag.endswith("svg")
    assert final_values(lines) == {"explained": "0.83"}
    assert curves("empty", [{"step": 1}]) == []


def test_opacity_in_niivue_is_linear_in_the_error():
    """Its opacity is the square of the value over the threshold of 1000."""
    values = np.array([-0.3, -0.15, 0.0, 0.03, 0.3], np.float32).reshape(1, 1, 5)
    stored = viewer.overlay_values(values, 0.3).ravel() / viewer.OPAQUE
    np.testing.assert_allclose(np.sign(stored) * stored**2, values.ravel() / 0.3, atol=1e-3)


BUNDLE = (
    'var a=class{};var X9=class{};function f({m:A}){if(!v){console.log("Creating new Niivue '
    'instance");let B=A.get("opts")??{},C=g(B);v=new X9(C)}}export{f as default};\n'
)


def test_the_bundle_becomes_a_classic_script_that_hands_out_the_class():
    script = viewer.classic_script(BUNDLE)
    assert "export" not in script
    assert "globalThis.Niivue = X9;" in script
    assert script.startswith("(() => {")


@pytest.mark.parametrize("change", [("Niivue", "Other"), ("export{", "hide{")])
def test_a_bundle_of_another_form_is_refused(change):
    with pytest.raises(UserError, match="built in a way"):
        viewer.classic_script(BUNDLE.replace(*change))


def test_the_installed_niivue_is_of_the_form_that_is_known():
    pytest.importorskip("ipyniivue", reason="pip install ipyniivue: no viewer without it")
    script = viewer.niivue_script()
    assert re.search(r"globalThis\.Niivue = [\w$]+;", script)
    assert len(script) > 1e6


def test_a_volume_travels_as_a_script_to_the_byte():
    script = viewer.volume_script("P0/t1", b"\x1f\x8b\x00\xff")
    name, data = re.fullmatch(r'cdmVolume\("(.*)", "(.*)"\);\n', script).groups()
    assert name == "P0/t1"
    assert base64.b64decode(data) == b"\x1f\x8b\x00\xff"
