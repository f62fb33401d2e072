"""Splits: by patient, seeded, and steady once they are written."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from cdm_jax.data.splits import Split, load_or_make, load_split, make_split, save_split
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError


def patients(count: int) -> list[str]:
    return [f"P{number:04}" for number in range(count)]


def subjects(count: int, time_points: int = 1) -> list[Subject]:
    return [
        Subject(subject_id=f"{patient}-{time}", patient_id=patient, images={"t1": Path(patient)})
        for patient in patients(count)
        for time in range(time_points)
    ]


class TestMakeSplit:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50, 1251])
    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("fractions", [(0.3, 0.1), (0.0, 0.0), (0.01, 0.99), (0.99, 0.01)])
    def test_parts_are_disjoint_and_cover_everyone(self, count, seed, fractions):
        test, validation = fractions
        split = make_split(
            patients(count), seed=seed, test_fraction=test, validation_fraction=validation
        )
        assert sorted((*split.train, *split.validation, *split.test)) == patients(count)
        assert split.train
        assert bool(split.test) == (test > 0 and count >= 2)
        assert bool(split.validation) == (validation > 0 and count - len(split.test) >= 3)

    def test_the_papers_share_of_brats(self):
        split = make_split(patients(1251), seed=0)
        assert (len(split.train), len(split.validation), len(split.test)) == (788, 88, 375)

    def test_order_and_repeats_do_not_matter(self):
        shuffled = np.random.default_rng(5).permutation(patients(40) * 2).tolist()
        assert make_split(shuffled, seed=3) == make_split(patients(40), seed=3)

    def test_the_seed_matters(self):
        hashes = {make_split(patients(40), seed=seed).hash for seed in range(20)}
        assert len(hashes) == 20

    def test_every_patient_is_as_likely_to_be_tested(self):
        draws = 400
        tested = [p for seed in range(draws) for p in make_split(patients(10), seed=seed).test]
        counts = np.array([tested.count(patient) for patient in patients(10)])
        expected, spread = 0.3 * draws, np.sqrt(draws * 0.3 * 0.7)
        assert (np.abs(counts - expected) < 4 * spread).all()

    def test_leave_one_out(self):
        split = make_split(patients(10), seed=0, test_patients=["P0004"])
        assert split.test == ("P0004",)
        assert len(split.train) + len(split.validation) == 9

    def test_excluded_patients_are_nowhere(self):
        split = make_split(patients(10), seed=0, exclude=["P0001", "P0002", "not on disk"])
        assert split.patients == set(patients(10)) - {"P0001", "P0002"}

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"test_patients": ["P0001-000"]}, "P0001-000 is not among the 5 patients"),
            ({"test_patients": ["P0001"], "exclude": ["P0001"]}, "P0001 is not among"),
            ({"exclude": patients(5)}, "no patient to split"),
            ({"test_fraction": 1.0}, "fraction is 1.0"),
            ({"validation_fraction": -0.1}, "fraction is -0.1"),
        ],
    )
    def test_mistakes_are_named(self, settings, message):
        with pytest.raises(UserError, match=message):
            make_split(patients(5), seed=0, **settings)


class TestSplit:
    def test_time_points_of_a_patient_stay_together(self):
        scans = subjects(20, time_points=3)
        split = make_split((scan.patient_id for scan in scans), seed=0)
        parts = split.assign(scans)
        assert list(parts) == ["train", "validation", "test"]
        for name, part in parts.items():
            assert len(part) == 3 * len(getattr(split, name))
            assert {scan.patient_id for scan in part} == set(getattr(split, name))

    def test_patients_outside_are_left_out(self):
        split = make_split(patients(5), seed=0)
        assert sum(map(len, split.assign(subjects(7)).values())) == 5

    def test_nobody_is_in_two_parts(self):
        with pytest.raises(UserError, match="lists b more than once"):
            Split(train=("a", "b"), validation=(), test=("b",))

    def test_hash_depends_on_the_parts_alone(self):
        split = Split(train=("a", "b"), validation=("c",), test=("d",))
        assert split.hash == Split(train=("b", "a"), validation=("c",), test=("d",)).hash
        assert split.hash != Split(train=("a", "b"), validation=("d",), test=("c",)).hash
        assert len(split.hash) == 12 and int(split.hash, 16) >= 0


class TestFiles:
    def test_what_is_saved_is_loaded(self, tmp_path):
        split = make_split(patients(20), seed=0)
        save_split(split, tmp_path / "new" / "split.json")
        assert load_split(tmp_path / "new" / "split.json") == split
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["split.json"]

    def test_tampering_is_noticed(self, tmp_path):
        path = tmp_path / "split.json"
        save_split(make_split(patients(20), seed=0), path)
        content = json.loads(path.read_text())
        content["train"].append(content["test"].pop())
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="changed by hand"):
            load_split(path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": 1}', '{"train": ["a"'])
    def test_other_files_are_refused(self, tmp_path, text):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(UserError, match="not a split file"):
            load_split(tmp_path / "split.json")

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match="no split file"):
            load_split(tmp_path / "split.json")


class TestLoadOrMake:
    def test_the_file_wins(self, tmp_path):
        path = tmp_path / "split.json"
        split = load_or_make(path, subjects(20), seed=0)
        assert split == make_split(patients(20), seed=0)
        assert load_or_make(path, subjects(20), seed=1) == split

    def test_a_cohort_that_grew_moves_nobody(self, tmp_path, caplog):
        path = tmp_path / "split.json"
        split = load_or_make(path, subjects(20), seed=0)
        with caplog.at_level(logging.WARNING):
            assert load_or_make(path, subjects(22), seed=0) == split
        (message,) = caplog.messages
        assert message.startswith("2 patients on disk") and message.endswith("P0020")

    def test_excluded_patients_are_not_called_new(self, tmp_path, caplog):
        path = tmp_path / "split.json"
        for _ in range(2):
            load_or_make(path, subjects(20), seed=0, exclude=["P0003"])
        assert not caplog.messages

    def test_a_cohort_that_shrank_is_refused(self, tmp_path):
        load_or_make(tmp_path / "split.json", subjects(20), seed=0)
        with pytest.raises(UserError, match=r"not on disk \(2, such as P0018\)"):
            load_or_make(tmp_path / "split.json", subjects(18), seed=0)

    @pytest.mark.parametrize(
        "settings, message",
        [({"exclude": ["P0003"]}, "to be excluded"), ({"test_patients": ["P0003"]}, "test part")],
    )
    def test_settings_that_the_file_breaks_are_refused(self, tmp_path, settings, message):
        load_or_make(tmp_path / "split.json", subjects(20), seed=0)
        with pytest.raises(UserError, match=message):
            load_or_make(tmp_path / "split.json", subjects(20), seed=0, **settings)
