"""The command for an accelerator: parts outlive each other's errors, and keep to their time."""

import dataclasses
import json
import time
from concurrent.futures import Future

import numpy as np
import pytest

from benchmarks import accelerator
from benchmarks.parts import session, tables

DONE = {"a": 1}


@pytest.fixture
def empty(tmp_path):
    """A session with nothing in its record, and an hour."""
    return session.Session(
        smoke=True, workdir=tmp_path, patients=Future(), deadline=time.monotonic() + 3600, parts={}
    )


def fails(_):
    yield DONE
    raise RuntimeError("out of\nmemory")


def works(_):
    yield DONE


def test_a_part_that_fails_is_named_and_does_not_stop_the_others(empty):
    saved = []
    parts = {"first": (fails, 1), "second": (works, 1)}
    accelerator.run(parts, empty, 60, lambda: saved.append(json.dumps(empty.parts)))
    first, second = empty.parts["first"], empty.parts["second"]
    assert first["rows"] == [DONE] and first["error"] == "RuntimeError: out of memory"
    assert second["rows"] == [DONE] and "error" not in second
    assert json.loads(saved[0]) == {"first": {"rows": [DONE]}}  # written before the error
    assert "The part was ended by an error: RuntimeError: out of memory." in tables.markdown(
        {"devices": 1, "device": "x", "jax": "", "minutes": 1, "size": 1, "batch": 1}
        | {"command": "", "parts": empty.parts}
    )


def test_a_spent_budget_skips_parts_and_rows(empty, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def spends_all(_):
        yield DONE
        now[0] = 61.0

    parts = {"first": (spends_all, 1), "second": (works, 1)}
    accelerator.run(parts, empty, 60, lambda: None)
    assert empty.parts["first"] == {"rows": [DONE], "seconds": 61}
    assert empty.parts["second"] == {"rows": [], "skipped": session.NO_TIME, "seconds": 0}
    late = dataclasses.replace(empty, deadline=60)
    (row,) = session.in_time(late, [({"x": 1}, lambda: DONE)])
    assert row == {"x": 1, "skipped": session.NO_TIME}


def test_time_that_a_part_leaves_is_the_next_ones(empty):
    left = []

    def measured(own):
        left.append(own.left())
        yield DONE

    accelerator.run({"first": (works, 1), "second": (measured, 1)}, empty, 60, lambda: None)
    assert left[0] == pytest.approx(60, abs=1)


def test_a_row_that_fails_says_so(empty):
    def skipped():
        raise session.SkippedError("no GPU")

    jobs = [({"x": 1}, lambda: 1 / 0), ({"x": 2}, skipped), ({"x": 3}, lambda: DONE)]
    assert list(session.in_time(empty, jobs)) == [
        {"x": 1, "error": "ZeroDivisionError: division by zero"},
        {"x": 2, "skipped": "no GPU"},
        {"x": 3, **DONE},
    ]


def test_a_precision_that_the_config_lacks_is_skipped():
    config = session.brats.get_config("all")
    if "precision" in config:
        assert session.with_precision(config, "bf16").precision == "bfloat16"
    else:
        with pytest.raises(session.SkippedError, match="precision"):
            session.with_precision(config, "bf16")


def test_tables_have_every_column_of_the_rows():
    lines = tables.table([{"stage": "mrm", "tflop": 1234.5}, {"stage": "a|b", "passed": True}])
    assert lines[1:] == [
        "| stage | tflop | passed |",
        "| --- | ---: | --- |",
        "| mrm | 1,234 |  |",
        "| a\\|b |  | yes |",
    ]


def test_an_unknown_part_and_a_missing_record_are_refused(tmp_path, capsys):
    for arguments in (["--parts=steps,sampler"], ["--show", f"--record={tmp_path / 'none.json'}"]):
        with pytest.raises(SystemExit):
            accelerator.main(arguments)
    printed = capsys.readouterr().err
    assert "unknown part 'sampler'" in printed and "there is no record" in printed


@pytest.mark.slow
def test_the_smoke_form_runs_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator.records, "RESULTS", tmp_path)
    accelerator.main(["--smoke", "--minutes=60"])
    path = tmp_path / "accelerator_cpu.json"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no GPU's record, no remains
    parts = json.loads(path.read_text())["parts"]
    assert list(parts) == list(accelerator.PARTS)
    errors = {name: part for name, part in parts.items() if "error" in json.dumps(part)}
    assert not errors
    assert all(row["passed"] for row in parts["checks"]["rows"])
    timed = [row for row in parts["steps"]["rows"] if "milliseconds" in row]
    assert {row["stage"] for row in timed} == {"mrm", "mdn", "cunet"}
    assert all(row["share_of_peak"] > 0 and row["planned_gib"] > 0 for row in timed)
    assert {row["sampler"] for row in parts["samplers"]["rows"]} == {"cunet", "mdn", "diffusion"}
    assert all(row["seconds"] > 0 for row in parts["patient"]["rows"] if "skipped" not in row)
    assert parts["tracing"]["rows"][0]["milliseconds"] > 0
    trained = {row["what"]: row for row in parts["training"]["rows"]}
    assert trained["m1"]["steps"] == trained["cunet"]["steps"] == 4
    assert np.isfinite(trained["PSNR of cunet, dB"]["t1c"])
    accelerator.main(["--show", f"--record={path}"])
    assert capsys.readouterr().out.count("**training.**") == 2
