"""Inputs of the kinds that users report, made by the scripts of a folder beside the project.

`make_inputs.py` and `make_reports.py` make them from simulated patients. CDM_CASES names their
folder; where there is none, these tests are skipped. Faults of the same kinds, made from scratch,
are in `test_cases.py` and `data/test_odd_inputs.py`.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from cdm_jax import api, main
from cdm_jax.data.subjects import find_subjects
from cdm_jax.phantom import PhantomSettings, write_patient
from cdm_jax.writer import say_once

SCRIPTS = pathlib.Path(
    os.environ.get("CDM_CASES", pathlib.Path(__file__).parents[2] / "shared" / "cases")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SCRIPTS.is_dir(),
        reason="no cases here: set CDM_CASES to the folder of the scripts that make them",
    ),
]

ID = "BraTS-GLI-00019-000"
OTHERS = tuple(f"BraTS-GLI-{number:05d}-000" for number in range(8))
PATIENTS = (*range(8), 19)  # those that the scripts read
TARGETS = ("t1c", "t2f")

# Of the plain files in another form, so that the same images are made: case to what is said of it.
QUIET = [
    "inputs/both_nii_and_gz", "inputs/gz_named_nii", "inputs/origin_jitter", "inputs/plain",
    "inputs/symlinked", "reports/analyze_pair", "reports/background_tiny",
    "reports/complete_patient", "reports/dtype_float64", "reports/dtype_int32_big_endian",
    "reports/dtype_uint16", "reports/gz_named_nii", "reports/kaggle_folders", "reports/mac_files",
    "reports/mgz", "reports/nifti2", "reports/nii_beside_gz", "reports/nii_named_gz",
    "reports/origin_2e_3", "reports/origin_3e_4", "reports/plain", "reports/slope_and_inter",
    "reports/uppercase_ending",
]  # fmt: skip
LIKE_PLAIN = dict.fromkeys(QUIET, "") | {
    "inputs/nan_background": "t1: NaN around the brain is taken as background",
    "reports/background_minus_one": "t1: values lie in [-1, 1]: scaled already",
    "reports/corrupt_target": "the picture lacks t1c as acquired",
    "reports/duplicate_t1c": "t1, t1c as acquired: hold the same image",
    "reports/empty_target": "the picture lacks t1c as acquired",
    "reports/nan_background": "t1: NaN around the brain is taken as background",
    "reports/t2_without_codes": "t2: states no orientation, taken to be stored as t1",
    "reports/target_of_fewer_slices": "the picture lacks t1c as acquired",
    "reports/target_of_other_grid": "the picture lacks t1c as acquired",
    "reports/targets_of_other_grid": "the picture lacks t1c as acquired",
}
# Of one patient on a grid, or of values, of his own.
READ = {
    "inputs/skull_on": "t1: no constant background",
    "inputs/swapped": "t1, t2: look swapped by their contrast",
    "reports/both_without_codes": "t1, t2: no orientation is stated",
    "reports/oblique": "",
    "reports/single_slice": "",
    "reports/skull_and_noise": "t1: no constant background",
    "reports/thick_axial": "",
    "reports/trailing_axis": "",
}
# Case to the subjects that are found; of the first the plain files are in some of them.
COHORTS = {
    "inputs/bids": ("sub-01",),
    "reports/bids": ("sub-01",),
    "reports/brats20_with_355": tuple(
        f"BraTS20_Training_{number:03d}" for number in (1, 2, 3, 4, 5, 355)
    ),
    "reports/cohort_with_gaps": OTHERS,
    "reports/flat_cohort": ("BraTS20_Training_001", "BraTS20_Training_002"),
    "reports/linked_folder": (OTHERS[0], ID),
    "reports/names_with_dots": ("1.2.840.113619.2", "1.2.840.113619.3"),
    "reports/names_with_spaces": ("Müller & Söhne #1",),
    "reports/same_inner_folder": ("P001_preop", "P002_preop"),
    "reports/upenn_both": ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
}
# Case to a pattern of the line that it is refused by.
REFUSED = {
    "inputs/different_grid": r"-t1n\.nii\.gz and .*-t2w\.nii\.gz lie on different .*--resample_to=",
    "inputs/only_t1": rf"{ID} has no t2; .* the model that ships takes any of T1, T1c, T2 and",
    "inputs/uppercase": r"saw 2 NIfTI files such as .*-T1N\.NII\.GZ; for other names",
    "reports/all_zero_t2": r"-t2w\.nii\.gz: nothing is brighter than the background",
    "reports/broken_link": r"-t2w\.nii\.gz is a link to \S+none\.nii\.gz, which is not there",
    "reports/dicom_folder": r"saw DICOM such as \S+/t1/0000\.dcm: convert it",
    "reports/lfs_pointer": r"-t2w\.nii\.gz is a Git LFS pointer, not the image itself: run",
    "reports/rgb": r"-t1n\.nii\.gz holds colors: give",
    "reports/t2_of_other_grid": r"-t1n\.nii\.gz and .*-t2w\.nii\.gz lie on different grids",
    "reports/time_series": r"-t2w\.nii\.gz has shape \(\d+, \d+, \d+, 2\): give one 3D volume",
    "reports/truncated": r"-t2w\.nii\.gz cannot be read as an image .*truncated",
    "reports/two_dimensions": r"-t1n\.nii\.gz has shape \(\d+, \d+\): give one 3D volume a file",
    "reports/upenn_unstripped_only": r"8 images that are not skull-stripped, such as \S+: strip",
    "reports/zero_bytes": r"-t2w\.nii\.gz is empty \(0 bytes\)",
}
ONE_BAD = "reports/one_bad_of_three"
SCORED = {  # case to what is said of it, if anything
    "score_labels": "",
    "score_labels_identity": rf"no tumor regions .*{ID}-seg\.nii\.gz lie on different grids \(vox",
    "score_labels_none": "",
    "score_labels_other_shape": rf"no tumor regions .*{ID}-seg\.nii\.gz lie on .* \(shape",
    "score_labels_pediatric": "label 4 of the segmentations is read as enhancing tumor",
    "score_labels_post_treatment": "label 4 of the segmentations is read as enhancing tumor",
    "score_minus_one_range": "",
    "score_single_slice": "",
    "score_unit_range": "",
}
UNSCORED = {
    "score_bad_sidecar": rf"pred/{ID}/{ID}-t1c\.json is not JSON",
    "score_other_grid": rf"pred/{ID}/{ID}-t1c\.nii\.gz lie on different grids",
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """The simulated patients that the scripts read."""
    root = tmp_path_factory.mktemp("patients")
    for number in PATIENTS:
        write_patient(root, PhantomSettings(shape=(48, 48, 48), voxel_mm=4.0), number)
    return root


@pytest.fixture(scope="module")
def cases(patients, tmp_path_factory):
    """The folder of all cases, `inputs/<case>` and `reports/<case>`."""
    root = tmp_path_factory.mktemp("cases")
    for name, folder in (("inputs", patients / ID), ("reports", "")):
        words = [sys.executable, SCRIPTS / f"make_{name}.py", root / name, folder]
        variables = os.environ | {"PHANTOM": str(patients), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(list(filter(None, words)), env=variables, check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def models():
    """Loads each trained system once."""
    patch = pytest.MonkeyPatch()
    patch.setattr(api, "load", functools.cache(api.load))
    yield
    patch.undo()


@pytest.fixture
def call(finished_run, models, capsys):
    """Runs a command: its status, what it says in one line, and its error, a line if any."""

    def call(command, *flags):
        say_once.cache_clear()
        if command == "synthesize" and not any(flag.startswith("--workdir") for flag in flags):
            flags = (f"--workdir={finished_run / 'm1'}", "--samples=1", *flags)
        status = main.main(["cdm-jax", command, *flags])
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (status != 0), captured.err
        return status, " ".join(captured.out.split()), captured.err

    return call


@pytest.fixture(scope="module")
def plain(cases, finished_run, models, tmp_path_factory):
    """What is made of the plain files."""
    output = tmp_path_factory.mktemp("plain")
    words = [f"--workdir={finished_run / 'm1'}", f"--input={cases / 'inputs/plain'}"]
    assert main.main(["cdm-jax", "synthesize", *words, f"--output={output}", "--samples=1"]) == 0
    return {target: made(output, ID, target) for target in TARGETS}


def made(output, subject, target):
    return nib.load(output / subject / f"{subject}-{target}.nii.gz")


def test_every_case_is_one_of_these(cases):
    found = {str(p.relative_to(cases)) for p in cases.glob("*/*") if not p.name.endswith("_store")}
    scored = [f"reports/{name}" for name in (*SCORED, *UNSCORED)]
    known = [*LIKE_PLAIN, *READ, *COHORTS, *REFUSED, ONE_BAD, *scored]
    assert found == set(known)
    assert len(known) == len(found) >= 77


class TestSynthesize:
    @pytest.mark.parametrize("case", [*LIKE_PLAIN, *READ])
    def test_what_can_be_read_gives_images_on_its_own_grid(
        self, case, cases, patients, call, plain, tmp_path
    ):
        status, said, _ = call("synthesize", f"--input={cases / case}", f"--output={tmp_path}")
        assert status == 0
        wanted = (LIKE_PLAIN | READ)[case]
        assert wanted in said if wanted else f"{ID}:" not in said
        folder = patients if case in LIKE_PLAIN else cases / case
        given = nib.load(folder / ID / f"{ID}-t1n.nii.gz")
        for target in TARGETS:
            image = made(tmp_path, ID, target)
            assert image.shape == given.shape
            np.testing.assert_allclose(image.affine, given.affine, atol=1e-6)
            values = np.asarray(image.dataobj)
            assert np.isfinite(values).all() and np.ptp(values) > 0
            if case in LIKE_PLAIN:
                expected = np.asarray(plain[target].dataobj)
                # As if scaled by others, a source differs by the rounding of 16 bits.
                np.testing.assert_allclose(values, expected, atol=1e-4 * expected.max())

    @pytest.mark.parametrize("case", COHORTS)
    def test_each_patient_of_a_cohort_is_found(self, case, cases, call, plain, tmp_path):
        assert call("synthesize", f"--input={cases / case}", f"--output={tmp_path}")[0] == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(COHORTS[case])
        images = [np.asarray(made(tmp_path, name, "t1c").dataobj) for name in COHORTS[case]]
        for number, image in enumerate(images):
            assert not any(np.array_equal(image, other) for other in images[:number])
        if case not in ("reports/brats20_with_355", "reports/cohort_with_gaps"):
            expected = np.asarray(plain["t1c"].dataobj)
            assert any(np.array_equal(image, expected) for image in images)

    @pytest.mark.parametrize("case", REFUSED)
    def test_what_cannot_be_read_is_refused_in_one_line(self, case, cases, call, tmp_path):
        output = tmp_path / "out"
        status, _, error = call("synthesize", f"--input={cases / case}", f"--output={output}")
        assert status == 1
        assert str(cases / case) in error
        assert re.search(REFUSED[case], error), error
        assert not output.exists()

    def test_a_cohort_goes_on_past_its_bad_patient(self, cases, call, tmp_path):
        status, said, error = call(
            "synthesize", f"--input={cases / ONE_BAD}", f"--output={tmp_path}"
        )
        assert status == 1
        assert f"1 of 3 subjects failed ({OTHERS[1]})" in error
        assert f"failed: {OTHERS[1]}: t2: {cases / ONE_BAD / OTHERS[1]}" in said
        assert sorted(path.name for path in tmp_path.iterdir()) == [OTHERS[0], OTHERS[2]]

    @pytest.mark.parametrize("case", ["inputs/different_grid", "reports/t2_of_other_grid"])
    @pytest.mark.parametrize("onto, slices", [("t1", 48), ("t2", 24)])
    def test_other_grids_are_resampled(self, case, onto, slices, cases, call, tmp_path):
        words = (f"--input={cases / case}", f"--output={tmp_path}", f"--resample_to={onto}")
        assert call("synthesize", *words)[0] == 0
        assert made(tmp_path, ID, "t1c").shape == (48, 48, slices)

    def test_t1_alone_is_enough_for_the_model_that_ships(self, cases, call, tmp_path):
        words = [f"--input={cases / 'inputs/only_t1'}", f"--output={tmp_path}", "--samples=1"]
        assert main.main(["cdm-jax", "synthesize", *words]) == 0
        found = sorted(path.name for path in tmp_path.rglob("*.nii.gz"))
        assert found == [f"{ID}-{name}.nii.gz" for name in ("t1c", "t2", "t2f")]

    def test_acquired_images_are_not_overwritten(self, cases, call):
        folder = cases / "reports/complete_patient"
        before = {path: path.read_bytes() for path in folder.rglob("*.*")}
        status, _, error = call("synthesize", f"--input={folder}", f"--output={folder}")
        assert status == 1 and f"{ID}-t1c.nii.gz is there already" in error
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before

    def test_labels_of_patient_355_are_found(self, cases):
        """Whose file has the name that a tool gave it."""
        root = cases / "reports/brats20_with_355"
        *others, last = find_subjects(root, modalities=("t1", "t2"))
        assert last.segmentation == root / last.subject_id / "W39_1998.09.19_Segm.nii"
        assert all(one.segmentation.name == f"{one.subject_id}_seg.nii" for one in others)


class TestScore:
    @pytest.fixture
    def score(self, cases, call, tmp_path):
        """Scores a case: the record, and what is said."""

        def score(case):
            folder, output = cases / "reports" / case, tmp_path / case
            words = (f"--input={folder / 'pred'}", f"--truth={folder / 'truth'}")
            status, said, _ = call("score", *words, f"--output={output}")
            assert status == 0
            record = json.loads((output / f"{ID}.json").read_text())
            return record["rows"]["prediction"], said

        return score

    @pytest.mark.parametrize("case", SCORED)
    def test_remarks_are_those_expected(self, case, score):
        _, said = score(case)
        about_labels = "no tumor regions" in said or "label 4" in said
        assert about_labels == bool(SCORED[case]) and re.search(SCORED[case], said)

    @pytest.mark.parametrize("case", UNSCORED)
    def test_what_cannot_be_scored_is_refused_in_one_line(self, case, cases, call, tmp_path):
        folder = cases / "reports" / case
        words = (f"--input={folder / 'pred'}", f"--truth={folder / 'truth'}")
        status, _, error = call("score", *words, f"--output={tmp_path}")
        assert status == 1 and re.search(UNSCORED[case], error), error
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("case", ["score_unit_range", "score_minus_one_range"])
    def test_the_truth_is_perfect_in_any_range(self, case, score):
        for convention, targets in score(case)[0].items():
            for scores in targets.values():
                assert scores["ssim"] in (None, pytest.approx(1)), convention
                assert not scores["mae"], convention
        assert {s["psnr"] for s in score(case)[0]["volume"].values()} == {100}

    def test_the_error_is_where_it_was_made(self, score, patients):
        """By hand: half of the truth is left in the enhancing tumor, and 99 % elsewhere."""
        scores = score("score_labels")[0]["volume"]
        labels = np.asarray(nib.load(patients / ID / f"{ID}-seg.nii.gz").dataobj)
        for target in TARGETS:
            truth = np.asarray(nib.load(patients / ID / f"{ID}-{target}.nii.gz").dataobj)
            scale = np.percentile(truth[truth != 0], 99.5)
            regions = {"enhancing_tumor": (labels == 3, 0.5), "healthy": (labels == 0, 0.99)}
            for name, (place, left) in regions.items():
                values = truth[place & (truth > 0)] / scale
                by_hand = np.abs(np.clip(left * values, 0, 1) - np.clip(values, 0, 1)).mean()
                found = scores[target]["regions"][name]["mae"]
                assert found == pytest.approx(by_hand, rel=0.02), (target, name)

    def test_labels_that_cannot_be_used_change_nothing_else(self, score):
        expected = score("score_labels")[0]
        for case in ("score_labels_identity", "score_labels_other_shape"):
            found = score(case)[0]
            assert not found["volume"]["t1c"]["regions"]
            for target in TARGETS:
                assert found["paper"][target] == expected["paper"][target]
                assert found["volume"][target]["psnr"] == expected["volume"][target]["psnr"]

    def test_label_4_is_enhancing_tumor(self, score):
        """So it is after treatment here; of the pediatric labels it is edema, as is said."""
        expected, after, pediatric = (
            score(f"score_labels{name}")[0]["volume"]["t1c"]["regions"]
            for name in ("", "_post_treatment", "_pediatric")
        )
        assert after == expected
        assert pediatric["whole_tumor"] == expected["whole_tumor"]
        assert pediatric["enhancing_tumor"]["psnr"] > expected["enhancing_tumor"]["psnr"] + 20

    def test_without_a_tumor_its_regions_are_undefined(self, score):
        scores = score("score_labels_none")[0]["volume"]["t1c"]
        regions = {name: region["psnr"] for name, region in scores["regions"].items()}
        assert regions.pop("healthy") == scores["psnr"]
        assert set(regions.values()) == {None}

    def test_one_slice_is_scored(self, score):
        scores, _ = score("score_single_slice")
        for target in TARGETS:
            assert 20 < scores["volume"][target]["psnr"] < 30  # of 90 % of the truth
            assert 20 < scores["paper"][target]["psnr"] < 30
            assert scores["volume"][target]["z_gradient"] is None
