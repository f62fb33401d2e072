"""A run's segmenter judges its systems when they are evaluated."""

import types

import pytest

from cdm_jax import judge
from cdm_jax.cards import JUDGED
from cdm_jax.data.labels import REGIONS
from cdm_jax.evaluate import evaluate_run
from cdm_jax.judge import judge_run
from cdm_jax.publish import publish_run
from cdm_jax.records import read_records
from cdm_jax.report.judgements import ACQUIRED, COPY, JUDGED_BY, NOTHING
from cdm_jax.report.rows import headline_rows
from tests import helpers


def test_a_run_without_a_segmenter_is_not_judged(evaluated, tmp_path):
    workdir, dataset, records = evaluated
    config = helpers.smoke_config("cdm")
    rows = headline_rows(records)
    assert judge_run(config, workdir, dataset, dataset.test, rows, {}, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_systems_for_whatever_is_missing_are_not_judged(evaluated, tmp_path, monkeypatch):
    """Of such a run nothing is loaded, even where it has a segmenter."""
    workdir, dataset, records = evaluated
    config = helpers.smoke_config("any")
    monkeypatch.setattr(judge.checkpoint, "finished", lambda folder: True)
    told = types.SimpleNamespace(config=config)
    monkeypatch.setattr(judge.checkpoint, "provenance", lambda folder: told)
    monkeypatch.setattr(judge.checkpoint, "load_model", lambda *_: pytest.fail("loaded"))
    rows = headline_rows(records)
    assert judge_run(config, workdir, dataset, dataset.test, rows, {}, tmp_path / "none") == []


@pytest.mark.slow
def test_an_evaluation_is_judged_by_the_runs_segmenter_and_card_and_page_say_so(evaluated):
    workdir, dataset, _ = evaluated
    helpers.train("segmenter", workdir)
    config = helpers.smoke_config("cdm")
    evaluate_run(config, workdir, dataset)
    folder = workdir / "evaluation" / JUDGED.format("test")
    records = read_records(folder)
    assert len(records) == len(dataset.test)
    for record in records:
        assert set(record["rows"]) == {ACQUIRED, COPY, NOTHING, "m1", "cunet/mean_of_2"}
        for scores in record["rows"].values():
            assert set(scores[JUDGED_BY]) == set(REGIONS)
            assert all(0 <= one["dice"] <= 1 for one in scores[JUDGED_BY].values())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    evaluate_run(config, workdir, dataset)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for stage in ("m1", "cunet"):
        card = (workdir / stage / "MODEL_CARD.md").read_text()
        assert "**Finding the tumor.** A program that looks for tumors" in card
        assert "**Where it may be wrong.** No interval is calibrated" in card
    page = publish_run(config, workdir, dataset, 1).read_text()
    assert "What the images are worth to a reader" in page
    assert page.count("A program that looks for tumors") == 2
