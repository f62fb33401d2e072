"""The command report on a run: images by every system, pages, and what is said where it cannot."""

import json

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data.nifti import read_labels, read_volume
from cdm_jax.errors import UserError
from cdm_jax.publish import _focus, _synthesis, publish_run
from cdm_jax.report.patients import targets_of
from tests import helpers


@pytest.fixture(scope="module")
def run(evaluated_run, tmp_path_factory):
    """A workdir of its own with an evaluation: config, workdir, dataset."""
    return helpers.evaluated(evaluated_run, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def page(run):
    return publish_run(*run, 1)


def test_images_of_the_patients_shown_are_made_by_every_system(run, page):
    _, workdir, dataset = run
    assert page == workdir / "report" / "index.html"
    images = workdir / "report" / "images"
    (shown,) = {path.parent.name for path in images.rglob("*.nii.gz")}
    assert shown in {subject.subject_id for subject in dataset.test}
    samples = {}
    for system in ("cunet", "m1"):
        sidecar = json.loads((images / system / shown / f"{shown}-t1c.json").read_text())
        samples[system] = sidecar["samples"]
    assert samples == {"cunet": 2, "m1": 1}  # as many as the row that the tables score
    assert (images / "cunet" / shown / f"{shown}-t1c-deviation.nii.gz").exists()


def test_the_pages_tell_of_the_run(run, page):
    _, _, dataset = run
    text = page.read_text()
    counts = f"{len(dataset.train)} train, {len(dataset.validation)} validation"
    for part in (dataset.split_hash, counts, "simulated", "not for clinical use", "cunet/oracle"):
        assert part in text
    for stage in helpers.STAGES:
        assert f'id="stage-{stage}"' in text
    pages = {path.stem for path in (page.parent / "patients").glob("*.html")}
    assert pages == {subject.subject_id for subject in dataset.test}


def test_a_repeated_report_synthesizes_nothing_anew(run, page):
    images = list((page.parent / "images").rglob("*.nii.gz"))
    times = [path.stat().st_mtime_ns for path in images]
    page.unlink()
    assert publish_run(*run, 1).exists()
    assert [path.stat().st_mtime_ns for path in images] == times


def test_the_width_of_an_interval_is_read_from_its_ends(tmp_path):
    """In units of the reference scale; where there are no ends there is nothing to show."""
    volume = np.zeros((3, 4, 5), np.float32)
    for ending, value in {"": 50.0, "-lower": 30.0, "-upper": 80.0}.items():
        image = nib.Nifti1Image((volume + value).T, np.diag([-1.0, -1, 1, 1]))
        nib.save(image, tmp_path / f"P-t1c{ending}.nii.gz")
    (tmp_path / "P-t1c.json").write_text('{"reference_scale": 100.0}')

    def shown():
        brain, grid = volume == 0, tmp_path / "P-t1c.nii.gz"
        return _synthesis(str(tmp_path / "P-t1c"), "m1", "", "t1c", volume, brain, grid)

    found = shown()
    np.testing.assert_allclose(found.interval, 0.5, rtol=1e-6)
    assert found.nifti.keys() == {"image", "error", "interval"}
    (tmp_path / "P-t1c-upper.nii.gz").unlink()
    assert shown().interval is None


def test_a_system_whose_checkpoint_is_gone_keeps_its_numbers(run, page, tmp_path):
    workdir = run[1]
    (workdir / "m1").rename(tmp_path / "m1")
    try:
        text = publish_run(*run, 1).read_text()
    finally:
        (tmp_path / "m1").rename(workdir / "m1")
    assert "m1 has numbers but no images" in text
    assert "Synthesis: t1c by m1" not in text


def test_the_focus_is_in_the_enhancing_tumors_largest_slice(run):
    _, _, dataset = run
    for prepared in dataset.test:
        subject = dataset.subjects[prepared.subject_id]
        labels = read_labels(subject.segmentation)
        brain = read_volume(subject.images["t1"]) != 0
        z, y, x = _focus(subject, brain)
        assert brain[z].any()
        if (enhancing := np.isin(labels, (3, 4)) & brain).any():
            assert enhancing[z].sum() == enhancing.sum(axis=(1, 2)).max()
            assert y in range(brain.shape[1]) and x in range(brain.shape[2])


def test_what_was_not_evaluated_cannot_be_reported(run, tmp_path):
    config, _, dataset = run
    with pytest.raises(UserError, match="run the command evaluate"):
        publish_run(config, tmp_path, dataset, 1)


def test_records_of_another_split_are_refused(run, tmp_path):
    config, workdir, dataset = run
    folder = tmp_path / "evaluation" / "test"
    folder.mkdir(parents=True)
    for path in (workdir / "evaluation" / "test").glob("*.json"):
        record = json.loads(path.read_text())
        assert targets_of([record]) == ["t1c", "t2f"]
        (folder / path.name).write_text(json.dumps(record | {"split": "other"}))
    with pytest.raises(UserError, match="of split other"):
        publish_run(config, tmp_path, dataset, 1)
