"""One checkpoint for whatever is missing, from patients who lack modalities to NIfTI."""

import json

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import checkpoint, commands
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from configs import phantom
from tests.helpers import copy_run

ALL = ("t1", "t1c", "t2", "t2f")
PATTERNS = ("t1+t2", "t1+t1c+t2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    """Config and workdir of a tiny run of `any`; one patient to train on lacks T2."""
    workdir = tmp_path_factory.mktemp("any")
    copy_run(finished_run, workdir)
    config = phantom.get_config("any,smoke")
    config.evaluate.update({"patterns": PATTERNS, "conventions": ("volume",), "rows": ()})
    config.data.num_workers = 1
    lacking = load_dataset(config, workdir).train[0].subject_id
    (path,) = (workdir / "patients" / lacking).glob("*t2w*")
    path.unlink()
    commands.train(config=config, workdir=workdir)
    return config, workdir, lacking


def images(workdir, number=0):
    subject = find_subjects(workdir / "patients", modalities=ALL)[number]
    return {name: str(path) for name, path in subject.images.items()}


def test_patients_who_lack_a_modality_are_trained_on(trained):
    config, workdir, lacking = trained
    subjects = {s.subject_id: s for s in load_dataset(config, workdir).train}
    assert set(subjects[lacking].intensities) == {"t1", "t1c", "t2f"}
    assert (np.asarray(subjects[lacking].slices)[..., 2] == 0).all()
    assert checkpoint.finished(workdir / "cunet")


def test_each_pattern_is_scored_as_the_fixed_task_that_it_is(trained):
    config, workdir, _ = trained
    for pattern in PATTERNS:
        paths = list((workdir / "evaluation/test" / pattern).glob("*.json"))
        assert len(paths) == len(load_dataset(config, workdir).test)
        rows = json.loads(paths[0].read_text())["rows"]
        missing = set(ALL) - set(pattern.split("+"))
        assert {"regression", "cunet", "m1", "cunet/oracle"} <= set(rows)
        assert all(set(scores["volume"]) == missing for scores in rows.values())
    table = (workdir / "evaluation/test/patterns_volume.csv").read_text()
    assert table.startswith("sources,system,t1c,t2f\nt1+t2,copy,")


@pytest.mark.parametrize("given", [("t1",), ("t2", "t1c"), ("t1", "t1c", "t2f")])
def test_what_is_missing_is_made_on_the_grid_of_what_is_there(trained, given):
    _, workdir, _ = trained
    model, files = cdm_jax.load(workdir), images(workdir, -1)
    made = model.synthesize({name: files[name] for name in given})
    assert set(made) == set(ALL) - set(given)
    reference = nib.load(files[given[0]])
    for image in made.values():
        assert image.shape == reference.shape
        np.testing.assert_array_equal(image.affine, reference.affine)
        assert np.isfinite(image.get_fdata()).all() and image.get_fdata().any()


def test_some_of_what_is_missing_can_be_asked_for(trained):
    _, workdir, _ = trained
    model, files = cdm_jax.load(workdir), images(workdir, -1)
    whole = model.synthesize({"t1": files["t1"]}, subject="x")
    part = model.synthesize({"t1": files["t1"]}, subject="x", make=["t2f"])
    assert set(part) == {"t2f"}
    np.testing.assert_allclose(
        part["t2f"].get_fdata(), whole["t2f"].get_fdata(), rtol=1e-5, atol=1e-4
    )
    with pytest.raises(UserError, match="to nothing"):
        model.synthesize(files)
