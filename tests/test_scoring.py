"""Subjects are scored side by side while others are computed: bounded, in order, to the bit."""

import itertools
import json
import pathlib
import threading
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from cdm_jax import evaluate, scoring
from cdm_jax.data.cohort import prepare
from cdm_jax.data.nifti import read_volume
from cdm_jax.data.prepare import FULL_SCALE, PrepareSettings
from cdm_jax.data.subjects import find_subjects
from cdm_jax.phantom import PhantomSettings, write_cohort
from tests.helpers import smoke_config


def plain(tree):
    return json.loads(json.dumps(tree))


def test_a_subject_is_scored_while_the_next_one_is_computed(evaluated, monkeypatch):
    workdir, dataset, records = evaluated
    assert len(dataset.test) > 1
    config = smoke_config("cdm")
    config.evaluate.rows = ("copy",)
    begun = {subject.subject_id: threading.Event() for subject in dataset.test}
    following = dict(itertools.pairwise(begun))
    images, score = evaluate._Evaluation._images, scoring.score

    def computed(self, subject, other, rows):
        begun[subject.subject_id].set()
        return images(self, subject, other, rows)

    def scored(job):
        name = following.get(job.subject.subject_id, job.subject.subject_id)
        assert begun[name].wait(timeout=20), f"{name} waits for {job.subject.subject_id}"
        return score(job)

    monkeypatch.setattr(evaluate._Evaluation, "_images", computed)
    monkeypatch.setattr(scoring, "score", scored)
    found = evaluate.evaluate_run(config, workdir, dataset, "ahead")
    assert [record["subject"] for record in found] == [record["subject"] for record in records]
    for record, whole in zip(found, records, strict=True):
        assert record["rows"]["copy"] == whole["rows"]["copy"]


@pytest.mark.parametrize(("number", "rows", "held"), [(1, 5, 2), (2, 9, 2), (4, 5, 3), (4, 1, 5)])
def test_no_more_subjects_are_held_than_keep_the_workers_at_work(
    evaluated, monkeypatch, number, rows, held
):
    """Computed, and not written yet, when the next one has been computed."""
    _, dataset, _ = evaluated
    made, written, most = [], [], []
    images = {f"row {row}": np.zeros((1, 1, 1, 1), np.float32) for row in range(rows)}

    class Pool(Executor):
        def submit(self, _, job):
            future = Future()
            future.set_result(({row: {} for row in job.images}, ""))
            return future

    def computed():
        for name in range(9):
            made.append(name)
            most.append(len(made) - len(written))
            yield evaluate._Pending(dataset.test[0], pathlib.Path(str(name)), {"rows": {}}, images)

    monkeypatch.setattr(evaluate, "write_record", lambda *given: written.append(given))
    paths = list(evaluate._Scoring(dataset, (), Pool(), number, {}).run(computed()))
    assert max(most) == held
    assert paths == [path for path, _ in written] == [pathlib.Path(str(name)) for name in made]
    assert all(record["rows"].keys() == images.keys() for _, record in written)


def test_each_row_is_in_one_job_and_small_jobs_are_not_parted(evaluated):
    _, dataset, _ = evaluated
    subject, files = dataset.test[0], dataset.subjects[dataset.test[0].subject_id]
    images = {f"row {n}": np.zeros((1, 1, 1, 1), np.float32) for n in range(11)}
    for at_most, sizes in ((1, [11]), (2, [6, 5]), (16, [4, 4, 3])):
        jobs = scoring.jobs(subject, files, ("paper",), images, at_most)
        assert [len(job.images) for job in jobs] == sizes
        assert [row for job in jobs for row in job.images] == list(images)


def test_processes_give_the_records_that_one_thread_gives(evaluated):
    workdir, dataset, records = evaluated
    config = smoke_config("cdm")
    config.data.num_workers = 2
    config.evaluate.rows = ("copy", "brain_mean", "regression", "resampled_truth", "m1")
    found = evaluate.evaluate_run(config, workdir, dataset, "processes")
    for record, whole in zip(found, records, strict=True):
        assert record["subject"] == whole["subject"]
        assert record["rows"].keys() == set(config.evaluate.rows)
        assert plain(record["rows"]) == {row: plain(whole["rows"])[row] for row in record["rows"]}


@pytest.mark.parametrize("broken", ["_images", "score"])
def test_an_error_leaves_whole_records_of_the_subjects_before(
    evaluated, tmp_path, monkeypatch, broken
):
    workdir, dataset, records = evaluated
    config, last = smoke_config("cdm"), dataset.test[-1].subject_id
    config.evaluate.rows = ("copy",)
    place = scoring if broken == "score" else evaluate._Evaluation
    original = getattr(place, broken)

    def fail(*arguments):
        subject = arguments[0].subject if broken == "score" else arguments[1]
        if subject.subject_id == last:
            raise OSError("the disk is gone")
        return original(*arguments)

    monkeypatch.setattr(place, broken, fail)
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate.evaluate_run(config, workdir, dataset, f"broken {broken}")
    found = {path.name for path in (workdir / "evaluation" / f"broken {broken}").iterdir()}
    assert found == {f"{s.subject_id}.json" for s in dataset.test[:-1]}
    (first,) = dataset.test[:-1]
    record = json.loads(
        (workdir / f"evaluation/broken {broken}/{first.subject_id}.json").read_text()
    )
    assert record["rows"]["copy"] == records[0]["rows"]["copy"]


def test_t1c_is_scored_with_the_t1_that_it_is_subtracted_from(tmp_path):
    root = tmp_path / "patients"
    write_cohort(root, PhantomSettings(num_patients=1, shape=(40, 40, 30), voxel_mm=5.0), 1)
    (files,) = find_subjects(root, modalities=("t1", "t2", "t1c", "t2f"))

    def scored(sources, row, target):
        settings = PrepareSettings(
            sources=sources, targets=("t1c", "t2f"), size=40, minimum_brain=0.01
        )
        (subject,) = prepare([files], settings, tmp_path / "_".join(sources), num_workers=1)
        unit = np.asarray(subject.slices).astype(np.float32) / FULL_SCALE
        images = {"truth": unit[..., len(sources) :], "copy": unit[..., [0, 0]]}
        job = scoring.Job(subject=subject, files=files, conventions=("volume",), images=images)
        return scoring.score(job)[0][row]["volume"][target]

    truth = scored(("t1", "t2"), "truth", "t1c")
    assert truth["enhancement_dice"] > 0.95
    assert truth["enhancing_ml"] == pytest.approx(truth["true_enhancing_ml"], rel=0.05)
    volumes = {name: read_volume(files.images[name]) for name in ("t1", "t2", "t1c")}
    brain = (volumes["t1"] != 0) | (volumes["t2"] != 0)
    t1, t1c = (volumes[name][brain] for name in ("t1", "t1c"))
    shown = t1c / np.median(t1c) - t1 / np.median(t1) > 0.2
    assert truth["true_enhancing_ml"] == pytest.approx(shown.sum() * 0.125, rel=0.05)
    assert scored(("t1", "t2"), "copy", "t1c")["enhancing_ml"] == 0
    assert "enhancing_ml" not in scored(("t1", "t2"), "truth", "t2f")
    assert "enhancing_ml" not in scored(("t2",), "truth", "t1c")
