"""One checkpoint for whatever is missing, from patients who lack modalities to NIfTI."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import checkpoint, commands, inference
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from cdm_jax.evaluate_patterns import as_fixed
from cdm_jax.synthesize import synthesize_folder
from cdm_jax.tasks import task_of
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


def test_volumes_of_any_modalities_keep_their_scale(trained):
    """And so does the regression that stands beside them."""
    config, workdir, _ = trained
    for stage in ("cunet", "m1"):
        assert not inference.load_system(workdir / stage, 1).provenance.correction
        assert not (workdir / stage / "volume_scale.json").exists()
    fixed, _ = as_fixed(config, load_dataset(config, workdir), "t1+t2")
    assert config.volume_scale and not fixed.volume_scale


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


def test_the_report_maps_every_pattern_and_shows_images_of_the_first(trained):
    config, workdir, _ = trained
    commands.report(config=config, workdir=workdir, patients=1)
    text = (workdir / "report/index.html").read_text()
    found = text.split('id="patterns"')[1].split("</section>")[0]
    for pattern, missing in ((PATTERNS[0], 2), (PATTERNS[1], 1)):
        lines = [line for line in found.split("<tr>") if pattern.replace("+", ", ") in line]
        (line,) = (line for line in lines if "<td>cunet</td>" in line)
        assert line.count("color-mix") == missing and line.count("<td>given</td>") == 2 - missing
        records = (workdir / "evaluation/test" / pattern).glob("*.json")
        scores = [json.loads(path.read_text())["rows"]["cunet"]["volume"] for path in records]
        for target in scores[0]:
            mean = np.mean([one[target]["psnr"] for one in scores])
            assert f">{mean:.2f}</td>" in line
    images = workdir / "report/images/cunet"
    made = {path.name.split("-")[-1] for path in images.rglob("*.nii.gz")}
    assert {"t1c.nii.gz", "t2f.nii.gz"} <= made and not {"t1.nii.gz", "t2.nii.gz"} & made


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


def test_each_pattern_has_intervals_of_its_own(trained, capsys):
    """From the images alone: what validation patients lack is covered as asked, by pattern."""
    config, workdir, _ = trained
    commands.calibrate(config=config, workdir=workdir, samples=2, level=0.8)
    assert "from t1, t1c, t2" in capsys.readouterr().out
    model, dataset, multipliers = cdm_jax.load(workdir), load_dataset(config, workdir), []
    for pattern in PATTERNS:
        saved = json.loads((workdir / "cunet/patterns" / pattern / "intervals.json").read_text())
        multipliers.append(saved["multipliers"])
        _, fixed = as_fixed(config, dataset, pattern)
        for target in multipliers[-1]:
            covered = []
            for subject in fixed.validation:
                files = dataset.subjects[subject.subject_id].images
                given = {name: files[name] for name in pattern.split("+")}
                made = model.synthesize(given, samples=2, subject=subject.subject_id)
                truth = nib.load(files[target]).get_fdata()
                unit = np.clip(truth / np.percentile(truth[truth != 0], 99.5), 0, 1)
                lower, upper = (
                    images[target].get_fdata() / model.system.provenance.scales[target]
                    for images in (made.lower, made.upper)
                )
                brain = np.any([nib.load(path).get_fdata() != 0 for path in given.values()], axis=0)
                covered.append(np.mean(((lower <= unit + 1e-5) & (unit <= upper + 1e-5))[brain]))
            assert np.mean(covered) == pytest.approx(0.8, abs=5e-3)
    assert multipliers[0].keys() == {"t1c", "t2f"} and multipliers[1].keys() == {"t2f"}
    capsys.readouterr()
    assert not model.synthesize({"t1": files["t1"]}, samples=2).lower
    told = " ".join(capsys.readouterr().out.split())
    assert "no intervals from t1: calibrated are t1+t1c+t2, t1+t2" in told
    assert not (workdir / "cunet" / "intervals.json").exists()


def synthesized(workdir, patient, output, **options):
    return synthesize_folder(patient, output, workdir / "cunet", samples=1, **options)


def patient_of(workdir, root, names, number=-1):
    """A folder with some of a simulated patient's images."""
    folder = root / "patient"
    folder.mkdir(parents=True)
    for name, path in images(workdir, number).items():
        if name in names:
            shutil.copy(path, folder)
    return folder


def test_the_command_makes_what_each_patient_lacks(trained, tmp_path, capsys):
    _, workdir, _ = trained
    cohort = tmp_path / "cohort"
    for number, names in ((-1, ("t1", "t2f")), (-2, ALL)):
        patient_of(workdir, cohort / str(number), names, number)
    synthesized(workdir, cohort, tmp_path / "out")
    made = sorted(path.name.split("-")[-1] for path in (tmp_path / "out").rglob("*.nii.gz"))
    assert made == ["t1c.nii.gz", "t2.nii.gz"]
    assert "lacks nothing: it has t1, t1c, t2, t2f" in " ".join(capsys.readouterr().out.split())


def test_what_is_there_is_made_anew_where_that_is_asked_for_and_is_not_read(trained, tmp_path):
    _, workdir, _ = trained
    folder = patient_of(workdir, tmp_path, ALL)
    (damaged,) = folder.glob("*t1c*")
    damaged.write_bytes(damaged.read_bytes()[:500])
    synthesized(workdir, folder, tmp_path / "out", make=["t1c"], replace=True)
    (sidecar,) = (tmp_path / "out").rglob("*.json")
    told = json.loads(sidecar.read_text())
    assert told["modality"] == "t1c" and set(told["sources"]) == {"t1", "t2", "t2f"}
    with pytest.raises(UserError, match="--replace makes what is there"):
        synthesized(workdir, folder, tmp_path / "out", replace=True)
    with pytest.raises(UserError, match="pd is not made by"):
        synthesized(workdir, folder, tmp_path / "out", make=["pd"])


def test_all_fourteen_patterns_of_a_real_patient_keep_their_geometry(trained, real_data):
    _, workdir, _ = trained
    model = cdm_jax.load(workdir)
    subject = find_subjects(real_data, modalities=ALL)[0]
    patterns = task_of(model.system.provenance.config.data).patterns()
    assert len(patterns) == 14
    for given in patterns:
        made = model.synthesize({name: subject.images[name] for name in given})
        assert set(made) == set(ALL) - set(given)
        reference = nib.load(subject.images[given[0]])
        for image in made.values():
            assert image.shape == reference.shape
            for ours, theirs in (
                (image.affine, reference.affine),
                (image.header["srow_x"], reference.header["srow_x"]),
                (image.header["pixdim"], reference.header["pixdim"]),
            ):
                np.testing.assert_array_equal(ours, theirs)
