"""The study of one checkpoint for whatever is missing."""

import json

import pytest

from cdm_jax.data.subjects import find_subjects
from experiments import any_to_any
from experiments import records as kept
from experiments.any_to_any import ANY, COMPLETE, LACKING, PAPER, PATTERNS, SINGLE, targets_of

PATIENTS = 8


def records(pattern, level, rows=("m1",)):
    """Of patients who differ by 1 dB, and a little from run to run."""
    return [
        {
            "subject": f"p{k}",
            "patient": f"p{k}",
            "split": "abc",
            "conventions": {"volume": "def"},
            "rows": {
                row: {"volume": {t: {"psnr": level + k} for t in targets_of(pattern)}}
                for row in rows
            },
        }
        for k in range(PATIENTS)
    ]


def runs():
    """Two seeds: the checkpoint is .1 dB behind, and .5 where T2 is missing; T2 costs it 1 dB."""
    seeds = {"0": -0.25, "1": 0.25}
    both = ("cunet", "m1")
    levels = dict.fromkeys(PATTERNS, 20.0) | {"t1": 21.0}
    found = {
        ANY: {
            p: {s: records(p, level + d, both) for s, d in seeds.items()}
            for p, level in levels.items()
        },
        "dedicated": {},
    }
    for pattern in (PAPER, *SINGLE):
        behind = 0.5 if "t2" in targets_of(pattern) else 0.1
        rows = both if pattern == PAPER else ("m1",)
        found["dedicated"][pattern] = {s: records(pattern, 20 + behind, rows) for s in seeds}
    for name, level in ((LACKING, 19.5), (COMPLETE, 19.0)):
        found[name] = {p: {s: records(p, level) for s in seeds} for p in PATTERNS}
    return found


def test_differences_are_paired_by_patient_over_the_mean_of_seeds():
    found = any_to_any.beside_dedicated(runs())["difference"]
    assert found["t1+t1c+t2f", "t2", "m1"].mean == pytest.approx(-0.5)
    rest = found.drop(("t1+t1c+t2f", "t2", "m1"))
    assert [one.mean for one in rest] == pytest.approx([-0.1] * 7)
    assert {one.n for one in found} == {PATIENTS}
    assert all(one.interval == pytest.approx((one.mean, one.mean)) for one in found)


def test_the_three_answers_are_those_of_the_record():
    behind, chain, lacking = any_to_any.findings(runs())
    assert "in 7 of 8 comparisons; furthest behind it is by -0.50" in behind
    assert "worse beyond its interval in 2 of 4 steps" in chain  # from T1 to T1 and T2
    assert "change +0.50 dB in the mean: better beyond the interval in 9 of 9" in lacking
    text = any_to_any.report({"command": "c", "scale": "small", "runs": runs()})
    assert "8 unseen phantom patients and 2 seeds" in text


@pytest.mark.slow
def test_a_seed_is_trained_scored_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(any_to_any, "SCALE", "smoke")
    monkeypatch.setattr(any_to_any, "DOCS", tmp_path)
    (tmp_path / "phantom").mkdir()
    saved = {}
    monkeypatch.setattr(kept, "save_results", lambda name, content: saved.update(content))
    monkeypatch.setattr(any_to_any, "load_results", lambda name: saved)
    monkeypatch.setattr(kept, "load_results", lambda name: saved)
    run = tmp_path / "run"
    any_to_any.main(["--seeds=3", f"--workdir={run}"])
    assert set(saved["runs"]) == {ANY, "dedicated", LACKING, COMPLETE}
    assert set(saved["runs"]["dedicated"]) == {PAPER, *SINGLE}
    scored = {
        record["patient"]
        for patterns in saved["runs"].values()
        for seeds in patterns.values()
        for record in seeds["3"]
    }
    split = json.loads((run / "split.json").read_text())
    assert scored == set(split["test"])
    assert "One checkpoint is at most" in (tmp_path / "phantom" / "any_to_any.md").read_text()

    found = find_subjects(run / "patients_lacking", modalities=any_to_any.ALL, require_all=False)
    lacking = {s.patient_id for s in found if len(s.images) == 3}
    complete = json.loads((run / "split_complete.json").read_text())
    assert set(split["train"]) - set(complete["train"]) == lacking
    assert len(lacking) == -(-len(split["train"]) // 2)
    assert {k: complete[k] for k in ("validation", "test")} == {
        k: split[k] for k in ("validation", "test")
    }
