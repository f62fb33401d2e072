"""A disk that becomes full: said once, and what it cut short stops nobody who goes on."""

import json
import sys
import threading
import types

import pytest

from cdm_jax import files
from cdm_jax.files import read_lines
from cdm_jax.writer import Writer

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("place, name", [(threading, "excepthook"), (sys, "unraisablehook")])
def test_threads_and_exit_handlers_say_it_once(place, name, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    told = threading.Event()
    monkeypatch.setattr(files, "FULL_TOLD", told)
    files.hear_full_disks()
    others = types.SimpleNamespace(exc_value=ValueError("another error"))
    full = types.SimpleNamespace(exc_value=FULL)
    closed = types.SimpleNamespace(exc_value=OSError("handle is closed"))
    for found in (full, others, closed):
        getattr(place, name)(found)
    told.set()  # by the command's own line
    for found in (full, closed, others):
        getattr(place, name)(found)
    assert shown == [others, closed, others]
    assert capsys.readouterr().err == f"warning: {files.NO_SPACE}\n"


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3, "lo{"step": 4, "loss": 1.0}', "3"])
def test_a_line_that_was_cut_short_is_dropped(cut, tmp_path):
    whole = [{"step": step, "loss": 0.1 * step} for step in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in whole)
    (tmp_path / "metrics.jsonl").write_text(text + cut)
    assert read_lines(tmp_path / "metrics.jsonl") == whole
    with Writer(tmp_path, 2) as writer:
        writer.scalars(3, {"loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == text + '{"step": 3, "loss": 0.5}\n'
