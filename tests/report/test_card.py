"""The card says what the checkpoint and the records say, and what nobody may overlook."""

import numpy as np
import pytest
import yaml

from cdm_jax.cards import write_card
from cdm_jax.data.dataset import load_dataset
from cdm_jax.errors import UserError
from cdm_jax.evaluate import evaluate_run
from cdm_jax.report.card import (
    FILE,
    LICENSES,
    PARTS,
    model_card,
    parameter_counts,
)
from tests.helpers import copy_run, smoke_config

FACTS = {"sampler": "DDIM, 30 steps"}
LIMITS = ["The row `oracle` is a leak."]
PATIENTS = dict(zip(PARTS, (50, 6, 24), strict=True))


def provenance(stage="cunet", name="phantom", targets=("t1c", "t2f")):
    return {
        "config": {
            "stage": stage,
            "seed": 3,
            "data": {"name": name, "sources": ["t1", "t2"], "targets": list(targets), "size": 64},
            stage: {"method": f"cdm.{stage}", "train": {"num_steps": 1000}},
        },
        "batch_size": 8,
        "split": "d2e1704e45ec",
        "scales": {"t1c": 1234.56, "t2f": 321.0},
    }


def card(stage="cunet", translates=True, records=(), facts=FACTS, limits=LIMITS, **changes):
    return model_card(
        provenance=provenance(stage, **changes),
        parameters={stage: 1_234_567, "mrm": 89_000},
        patients=PATIENTS,
        translates=translates,
        facts=facts,
        limits=limits,
        records=records,
    )


def test_neighbors_are_told_where_there_are_any():
    saved = provenance()
    assert "64 x 64 pixels\n" in card()
    saved["config"]["data"]["context"] = 2
    told = model_card(
        provenance=saved,
        parameters={"cunet": 1},
        patients=PATIENTS,
        translates=True,
        facts={},
        limits=[],
    )
    assert "64 x 64 pixels, sources with 2 more to each side\n" in told


def records(patients=4):
    """Rows whose PSNR is 10 for the first of them, 11 for the next, and so on."""
    names = ["copy", "resampled_truth", "cunet", "cunet/oracle", "m1", "pix2pix"]
    return [
        {
            "subject": f"P{i}-000",
            "patient": f"P{i}",
            "split": "d2e1704e45ec",
            "conventions": {"paper": "aaaa11", "volume": "beef02"},
            "checkpoint": {"cunet": "f1f1f1", "m1": "e2e2e2", "pix2pix": "d3d3d3"},
            "rows": {
                name: {
                    convention: {t: {"psnr": 10.0 + place, "ssim": 0.9, "mae": 0.01}}
                    for convention in ("paper", "volume")
                    for t in ("t1c",)
                }
                for place, name in enumerate(names)
            },
        }
        for i in range(patients)
    ]


def head(text):
    opening, front, body = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front), body


@pytest.mark.parametrize("name", [*LICENSES, "real", ""])
def test_the_head_is_yaml_that_model_hubs_read(name):
    front, body = head(card(name=name))
    assert front["library_name"] == "cdm_jax"
    assert front["license"] == ("cc-by-4.0" if name == "upenn_gbm" else "other")
    assert ("license_name" in front) == (front["license"] == "other")
    assert "not-for-clinical-use" in front["tags"]
    assert front["datasets"] == [name or "unnamed"]
    note = LICENSES[name].note if name in LICENSES else "not known to this software: add yours"
    assert note in body


def test_the_facts_are_those_of_the_checkpoint():
    text = card()
    for fact in (
        "t1, t2 to t1c, t2f",
        "64 x 64 pixels",
        "1,234,567 of its own; frozen mrm 89,000",
        "1000 steps of 8 slices, seed 3",
        "50 to train on, 6 to validate, 24 to test, never seen; split by patient, d2e1704e45ec",
        "t1c 1235, t2f 321",
        "99.5th percentile",
        "DDIM, 30 steps",
        "Not for clinical use",
    ):
        assert fact in text, fact


def test_before_an_evaluation_there_are_no_numbers():
    assert "Not evaluated yet" in card()
    assert "| System |" not in card()
    assert "see the card of the system that uses it" in card("mdn", translates=False)
    assert "load_model(bundle)" in card("mdn", translates=False)


def test_the_loading_text_is_the_python_api():
    text = card()
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
    assert 'cdm_jax.load("<the folder of this card>")' in text
    assert 'model.synthesize({"t1": "<t1 file>", "t2": "<t2 file>"}, samples=8)' in text
    assert "cdm_jax.load(" not in card("mdn", translates=False)


def test_the_numbers_are_this_systems_beside_untrained_rows_and_m1():
    text = card(records=records())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = [row[0].strip("| ") for row in rows]
    own = ["copy", "resampled_truth", "cunet", "cunet/oracle", "m1"]
    assert names == ["System", *own] * 2
    assert [float(row[1].split()[0].strip("†")) for row in rows[1:6]] == [10, 11, 12, 13, 14]
    for part in ("`paper`", "`volume`", "(aaaa11)", "(beef02)", "4 patients", "f1f1f1"):
        assert part in text, part
    assert "Not evaluated yet" not in text
    assert "pix2pix" not in text


def test_m1_stands_beside_nothing_but_untrained_rows():
    text = card("m1", records=records(), facts={}, limits=())
    names = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if "| " in line]
    assert "m1" in names and "copy" in names and "cunet" not in names
    assert "differs from" not in text
    assert "oracle" not in text and "DDIM" not in text


def test_limits_follow_what_was_trained_on_what():
    assert "simulated patients only" in card()
    assert "simulated patients only" not in card(name="brats")
    assert "a leak" in card()
    assert "Enhancement" in card()
    assert "Enhancement" not in card(targets=("t2f",))


def test_records_of_two_splits_make_no_card():
    mixed = records()
    mixed[0]["split"] = "other"
    with pytest.raises(UserError, match="split differs"):
        card(records=mixed)


def test_parameters_are_counted_in_every_kind_of_tree():
    model = {
        "params": {
            "network": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)},
            "null": np.ones(2),
        },
        "statistics": {"mean": np.zeros(99)},
        "frozen": {"mrm": {"params": [{"w": np.zeros((2, 2))}, np.zeros(1)], "statistics": {}}},
    }
    assert parameter_counts("cunet", model) == {"cunet": 18, "mrm": 5}


@pytest.mark.slow
def test_a_run_writes_cards_and_its_evaluation_fills_them_in(finished_run, tmp_path):
    """After training, and after an evaluation of two systems."""
    workdir = copy_run(finished_run, tmp_path / "run", ("mrm", "mdn", "cunet", "m1"))
    dataset = load_dataset(smoke_config("cdm"), workdir)
    for stage in ("mrm", "mdn", "cunet", "m1"):
        write_card(workdir / stage, dataset)
    before = {s: (workdir / s / FILE).read_text() for s in ("mrm", "mdn", "cunet", "m1")}
    assert all("Not evaluated yet" in before[stage] for stage in ("cunet", "m1"))
    assert all("makes no images by itself" in before[stage] for stage in ("mrm", "mdn"))
    config = smoke_config("cdm")
    evaluated = evaluate_run(config, workdir, dataset)
    after = {s: (workdir / s / FILE).read_text() for s in before}
    assert {s for s in before if before[s] != after[s]} == {"cunet", "m1"}
    assert evaluated[0]["checkpoint"]["cunet"] in after["cunet"]
    assert "sampler: DDIM, 4 steps" in before["cunet"] and "a leak" in before["cunet"]
    assert "sampler" not in before["m1"] and "a leak" not in before["m1"]
    assert "| cunet/oracle " in after["cunet"] and "| cunet/oracle " not in after["m1"]
    assert "| m1 " in after["cunet"] and dataset.split_hash in after["cunet"]

    config.sampler.num_steps = 2
    evaluate_run(config, workdir, dataset)
    evaluate_run(config, workdir, dataset, "sweep")
    assert {s: (workdir / s / FILE).read_text() for s in before} == after
