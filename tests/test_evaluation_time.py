"""The study of an evaluation's time: what it measures and prints."""

import pytest

from benchmarks import evaluation_time
from tests.helpers import STAGES, copy_run


def test_the_table_shows_medians_over_the_turns(monkeypatch, capsys):
    turns = [{"rows": 7, "seconds": s, "processor_seconds": 2 * s} for s in (1.0, 30.0, 4.0)]
    content = {"machine": "CPU", "cases": {"x": {"told": "tiny", "found": {"now": turns}}}}
    monkeypatch.setattr(evaluation_time, "load_results", lambda name: content)
    evaluation_time.show()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "now" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["now", "7", "4.0", "8.0"]


@pytest.mark.slow
def test_the_rows_asked_for_are_timed_in_a_process_of_its_own(finished_run, tmp_path):
    workdir = copy_run(finished_run, tmp_path / "run", STAGES)
    case = evaluation_time.Case("tiny", "smoke", {}, 2)
    variant = evaluation_time.Variant("now", ("m1",), ("copy", "m1"))
    found = evaluation_time.timed(evaluation_time.ROOT, case, workdir, variant)
    assert found["rows"] == 2
    assert found.keys() == {"rows", "seconds", "processor_seconds"}
