"""A cohort is prepared on all cores where there is room, and failures have names."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from cdm_jax import workers
from cdm_jax.data import cohort
from cdm_jax.data.cohort import check_room, prepare
from cdm_jax.data.prepare import PrepareSettings
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from tests.data.test_prepare import SETTINGS, write_subject


@pytest.fixture
def subjects(tmp_path):
    return [write_subject(tmp_path / "data", name) for name in ("one", "two", "three")]


@pytest.fixture
def numbers(monkeypatch):
    """How many processes are asked for; a thread does the work."""
    asked, pool = [], workers.pool
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(workers, "pool", lambda number: asked.append(number) or pool(1))
    return asked


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


@pytest.mark.parametrize(("given", "expected"), [(0, 2), (1, 1), (9, 3)])
def test_processes_are_as_many_as_cores_unless_told_and_not_more_than_subjects(
    given, expected, subjects, tmp_path, numbers
):
    assert len(prepare(subjects, SETTINGS, tmp_path / "cache", num_workers=given)) == 3
    assert numbers == [expected]
    prepare(subjects, SETTINGS, tmp_path / "cache", num_workers=given)
    assert len(numbers) == 1  # of what is done nothing is asked


def test_the_space_is_said_before_anything_is_prepared(
    subjects, tmp_path, numbers, monkeypatch, capsys
):
    free(monkeypatch, 5e9)
    build = cohort._build
    monkeypatch.setattr(cohort, "_build", lambda *a, **b: print("it begins") or build(*a, **b))
    prepare(subjects, SETTINGS, tmp_path / "cache")
    said = capsys.readouterr().out
    assert "preparing 3 subjects: about 0.0 GB" in said
    assert f"{tmp_path / 'cache'}, where 5.0 GB are free, 2 at a time" in said
    assert said.index("preparing") < said.index("it begins")


def test_the_space_is_a_share_of_all_slices_of_those_that_are_missing(
    subjects, tmp_path, monkeypatch
):
    each = 10 * 16 * 16 * 3 * 2 * cohort.STORED  # ten slices of three modalities
    free(monkeypatch, 3 * each - 1)
    with pytest.raises(UserError, match=r"^preparing 3 subjects takes about 0.0 GB, and .*cache"):
        prepare(subjects, SETTINGS, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    free(monkeypatch, 3 * each)
    prepare(subjects[:2], SETTINGS, tmp_path / "cache", num_workers=1)
    free(monkeypatch, each)
    assert len(prepare(subjects, SETTINGS, tmp_path / "cache", num_workers=1)) == 3


def test_a_disk_that_is_too_small_is_answered_with_what_to_do(subjects, tmp_path, monkeypatch):
    free(monkeypatch, 41.26e9)
    monkeypatch.setattr(cohort, "_height", lambda _: 137 * 1251 // 3)
    settings = PrepareSettings(
        sources=("t1", "t2"), targets=("t1c", "t2f"), size=256, minimum_brain=0.01
    )
    expected = (
        rf"takes about 49\.4 GB, and {tmp_path} has 41\.3 GB free: make room, or give a folder on "
        r"another disk, --config\.data\.cache=<folder>, or a smaller --config\.data\.size"
    )
    with pytest.raises(UserError, match=expected):
        check_room(subjects, settings, tmp_path)


def test_a_file_that_cannot_be_read_is_named_when_it_is_due_and_not_before(subjects, tmp_path):
    subjects[0].images["t1"].write_bytes(b"no header")
    assert "3 subjects" in check_room(subjects, SETTINGS, tmp_path)


@pytest.mark.parametrize("missing", ["t1", "t2"])
def test_the_space_is_known_of_a_subject_who_lacks_any_modality(missing, subjects, tmp_path):
    whole = cohort.cache_bytes(subjects, SETTINGS)
    subjects[0].images[missing].unlink()
    found = find_subjects(tmp_path / "data", modalities=SETTINGS.images, require_all=False)
    assert len(found) == 3
    assert cohort.cache_bytes(found, SETTINGS) == whole > 0


FAILURES = {
    "of the user's": (UserError("no brain"), UserError, "one: no brain"),
    "with a name": (UserError("one has no brain"), UserError, ": one has no brain"),
    "of memory": (MemoryError(), UserError, "one: memory ran out; set --config.data.num_workers"),
    "unknown": (RuntimeError("a bug"), RuntimeError, "a bug"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_subject_is_named(kind, subjects, tmp_path, monkeypatch):
    error, raised, expected = FAILURES[kind]
    original = cohort.prepare_subject

    def fail(subject, settings):
        if subject.subject_id == "one":
            raise error
        return original(subject, settings)

    monkeypatch.setattr(cohort, "prepare_subject", fail)
    with pytest.raises(raised) as caught:
        prepare(subjects, SETTINGS, tmp_path / "cache", num_workers=1)
    assert expected in str(caught.value)
    notes = getattr(caught.value, "__notes__", [])
    assert notes == (["while one was prepared"] if raised is RuntimeError else [])


def test_the_estimate_is_near_what_real_patients_take(real_data, tmp_path):

    settings = PrepareSettings(
        sources=("t1", "t2"), targets=("t1c", "t2f"), size=64, minimum_brain=0.01
    )
    for name in ("brats2021", "brats2023"):
        modalities = settings.sources + settings.targets
        [subject] = find_subjects(real_data / name, modalities=modalities)
        (cached,) = prepare([subject], settings, tmp_path, num_workers=1)
        estimated = cohort._height(subject.images["t1"]) * 64 * 64 * 4 * 2 * cohort.STORED
        assert cached.path.stat().st_size == pytest.approx(estimated, rel=0.1)
        assert np.median(cached.slices[:, 0]) == 0
