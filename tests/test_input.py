"""The study of the training input: it times every part, and its record is printed."""

import io
import json
import sys

import pytest

from benchmarks import input as study
from benchmarks import input_worker
from benchmarks.records import load_results


def test_a_worker_times_the_pipeline_and_its_parts(tmp_path, monkeypatch, capsys):
    for name, value in {"SIZE": 8, "SUBJECTS": 2, "SLICES": 12, "SECONDS": 0.05}.items():
        monkeypatch.setattr(input_worker, name, value)
    monkeypatch.setattr(sys, "stdin", io.StringIO('["rate", 6, 2]\n["parts", 6]\n["bytes"]\n'))
    input_worker.worker(tmp_path)
    rate, parts, size = map(json.loads, capsys.readouterr().out.splitlines())
    assert rate["slices_a_second"] > 0 and rate["processor_us_a_slice"] > 0
    assert list(parts) == ["plan", "read", "put", "to floats in the step"]
    assert all(value >= 0 for value in parts.values())
    whole = 8 * 8 * 4 * 2
    assert 0.4 * whole < size["a_slice"] < 0.8 * whole + 128


def test_the_committed_record_has_every_setting_of_both_codes():
    content = load_results(study.NAME)
    lines = study.tables(content)
    for code in ("before", "now"):
        assert content["commits"][code]
        for batch, threads in ((12, 1), (12, 2), (12, 4), (96, 1), (96, 2), (96, 4)):
            assert any(line.startswith(f"| {batch} | {threads} | {code} |") for line in lines)
        assert any(line.startswith(f"| 96 | {code} |") for line in lines)


def test_what_eight_devices_take_is_twelve_slices_each_in_the_time_of_their_step():
    """C-UNet's step of 12 slices is estimated at 34.6 ms in docs/many_devices.md."""
    assert study.needed("cunet") == pytest.approx(8 * 12 / 34.6e-3, rel=2e-3)
