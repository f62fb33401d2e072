"""Broken inputs: the harness sees what it should, and a short form of the long run."""

import json
import pathlib
import random

import pytest

from cdm_jax.errors import UserError
from tests.stress import fuzz, mutations

RECORD = pathlib.Path(__file__).parent / "stress" / "fuzz.json"


def outcome_of(read, tmp_path, seed=0):
    (tmp_path / "a.txt").write_text("intact")
    kind = fuzz.Kind(lambda folder: None, lambda rng, folder: ("a.txt",), read)
    return fuzz.run_case(kind, seed, tmp_path)


def refuse(text):
    def read(folder, output):
        raise UserError(text)

    return read


def test_a_result_and_a_refusal_that_names_the_file_are_no_failures(tmp_path):
    assert outcome_of(lambda folder, output: None, tmp_path) == ("result", "")
    assert outcome_of(refuse("a.txt is\nbroken"), tmp_path) == ("refused", "a.txt is broken")


def test_another_exception_a_nameless_refusal_and_a_changed_file_are_failures(tmp_path):
    assert outcome_of(lambda folder, output: {}["key"], tmp_path)[0] == "failed"
    assert outcome_of(refuse("something is broken"), tmp_path)[0] == "failed"
    changed = outcome_of(lambda folder, output: (folder / "a.txt").write_text("b"), tmp_path)
    assert changed == ("failed", "changed a file that it was given")


def test_a_case_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    def never(folder, output):
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    outcome, text = outcome_of(never, tmp_path)
    assert outcome == "failed" and "0.2 s" in text


def test_a_seed_damages_alike_each_time():
    content = bytes(range(256))
    first, again = (mutations.damage_bytes(random.Random(3), content) for _ in range(2))
    assert first == again != content


@pytest.mark.slow
def test_no_damaged_input_ends_in_a_traceback_or_a_silent_change():
    found = fuzz.fuzz(cases=420, seed=10**6, names=list(fuzz.KINDS))
    assert found["failures"] == []
    assert all(outcomes.keys() <= {"result", "refused"} for outcomes in found["outcomes"].values())
    assert all(found["outcomes"].values())  # of every kind


def test_the_record_is_of_a_long_run_without_failures():
    record = json.loads(RECORD.read_text())
    assert record["failures"] == []
    assert sum(sum(kind.values()) for kind in record["outcomes"].values()) >= 10_000
    assert set(record["outcomes"]) == set(fuzz.KINDS)
    assert record["slowest_s"] < fuzz.SECONDS and record["peak_mib"] * 2**20 < fuzz.BYTES
