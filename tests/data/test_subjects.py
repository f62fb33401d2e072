"""Folders as they come: every layout found, every ambiguity named."""

import logging
import re
from pathlib import Path

import pytest

from cdm_jax.data.subjects import Subject, find_subjects, subject_of
from cdm_jax.errors import UserError

MODALITIES = ("t1", "t1c", "t2", "t2f")
BRATS_2023 = ["t1n", "t1c", "t2w", "t2f", "seg"]
BRATS_2021 = ["t1", "t1ce", "t2", "flair", "seg"]
UPENN = ["T1", "T1GD", "T2", "FLAIR"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def add_brats_2023(root: Path, name: str, suffix: str = ".nii.gz") -> None:
    touch(root, *(f"{name}/{name}-{modality}{suffix}" for modality in BRATS_2023))


def add_brats_2021(root: Path, name: str, suffix: str = ".nii.gz") -> None:
    touch(root, *(f"{name}/{name}_{modality}{suffix}" for modality in BRATS_2021))


def add_upenn(root: Path, name: str) -> None:
    touch(root, *(f"images_structural/{name}/{name}_{modality}.nii.gz" for modality in UPENN))
    unstripped = f"images_structural_unstripped/{name}/{name}"
    touch(root, *(f"{unstripped}_{modality}_unstripped.nii.gz" for modality in UPENN))


def names(subjects: list[Subject]) -> list[tuple[str, str]]:
    return [(subject.subject_id, subject.patient_id) for subject in subjects]


class TestLayouts:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize(
        "subject_id, patient_id",
        [
            ("BraTS-GLI-00020-001", "BraTS-GLI-00020"),
            ("BraTS-GLI-02063-101", "BraTS-GLI-02063"),
            ("BraTS-MEN-00004-000", "BraTS-MEN-00004"),
            ("BraTS-PED-00012-000", "BraTS-PED-00012"),
            ("BraTS-SSA-00002-000", "BraTS-SSA-00002"),
            ("BraTS-GoAT-00001", "BraTS-GoAT-00001"),
        ],
    )
    def test_brats_2023(self, tmp_path, subject_id, patient_id, suffix):
        add_brats_2023(tmp_path / "TrainingData", subject_id, suffix)
        (subject,) = find_subjects(tmp_path, modalities=MODALITIES)
        folder = tmp_path / "TrainingData" / subject_id
        assert (subject.subject_id, subject.patient_id) == (subject_id, patient_id)
        assert list(subject.images) == list(MODALITIES)
        files = [*subject.images.values(), subject.segmentation]
        assert files == [folder / f"{subject_id}-{name}{suffix}" for name in BRATS_2023]

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize(
        "name",
        ["BraTS2021_01306", "Brats18_2013_2_1", "BraTS20_Training_001", "Brats18_TCIA02_1_1"],
    )
    def test_brats_2018_to_2021(self, tmp_path, name, suffix):
        add_brats_2021(tmp_path / "HGG", name, suffix)
        (subject,) = find_subjects(tmp_path, modalities=MODALITIES)
        assert (subject.subject_id, subject.patient_id) == (name, name)
        files = [*subject.images.values(), subject.segmentation]
        folder = tmp_path / "HGG" / name
        assert files == [folder / f"{name}_{modality}{suffix}" for modality in BRATS_2021]

    def test_upenn_gbm_prefers_the_experts_segmentation(self, tmp_path):
        for name in ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00002_11"):
            add_upenn(tmp_path, name)
        expert = "images_segm/UPENN-GBM-00001_11_segm.nii.gz"
        automatic = "automated_segm/UPENN-GBM-0000{}_11_automated_approx_segm.nii.gz"
        touch(tmp_path, expert, automatic.format(1), automatic.format(2))
        subjects = find_subjects(tmp_path, modalities=MODALITIES)
        assert names(subjects) == [
            ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
            ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
            ("UPENN-GBM-00002_11", "UPENN-GBM-00002"),
        ]
        segmentations = [subject.segmentation for subject in subjects]
        assert segmentations == [tmp_path / expert, None, tmp_path / automatic.format(2)]
        first = [path.name for path in subjects[0].images.values()]
        assert first == [f"UPENN-GBM-00001_11_{modality}.nii.gz" for modality in UPENN]

    def test_all_layouts_at_once_sorted(self, tmp_path):
        add_upenn(tmp_path / "c", "UPENN-GBM-00001_11")
        add_brats_2021(tmp_path / "b", "BraTS2021_00001")
        add_brats_2023(tmp_path / "a", "BraTS-GLI-00001-000")
        found = [subject.subject_id for subject in find_subjects(tmp_path, modalities=MODALITIES)]
        assert found == ["BraTS-GLI-00001-000", "BraTS2021_00001", "UPENN-GBM-00001_11"]

    @pytest.mark.parametrize(
        "add, name", [(add_brats_2023, "BraTS-GLI-00001-000"), (add_brats_2021, "BraTS2021_00001")]
    )
    def test_root_may_be_one_patient(self, tmp_path, monkeypatch, add, name):
        add(tmp_path, name)
        add(tmp_path, name[:-1] + "7")
        (subject,) = find_subjects(tmp_path / name, modalities=MODALITIES)
        monkeypatch.chdir(tmp_path / name)
        assert find_subjects(".", modalities=MODALITIES) == [subject]
        assert subject.subject_id == name

    def test_only_the_modalities_asked_for(self, tmp_path):
        add_brats_2023(tmp_path, "BraTS-GLI-00001-000")
        (subject,) = find_subjects(tmp_path, modalities=("t2", "t1"))
        assert list(subject.images) == ["t2", "t1"]

    def test_hidden_files_are_passed_over_and_links_followed_once(self, tmp_path):
        add_brats_2021(tmp_path / "data", "BraTS2021_00001")
        add_brats_2021(tmp_path / "data" / ".trash", "BraTS2021_00001")
        add_brats_2021(tmp_path / "elsewhere", "BraTS2021_00002")
        touch(tmp_path / "data", "BraTS2021_00001/.7-BraTS2021_00001_t1.nii.gz")
        (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "above").symlink_to(tmp_path)
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
        found = find_subjects(tmp_path / "data", modalities=MODALITIES)
        assert [subject.subject_id for subject in found] == ["BraTS2021_00001", "BraTS2021_00002"]


class TestPatterns:
    def test_subject_is_the_folder_unless_the_pattern_says(self, tmp_path):
        touch(tmp_path, "ann/T1.nii.gz", "ann/T2.nii.gz", "flat/bob_t1_bet.nii", "flat/bob_t2.nii")
        patterns = {"t1": "T1.nii.gz | {subject}_t1_bet", "t2": "T2.nii.gz|{subject}_t2.nii.gz"}
        subjects = find_subjects(tmp_path, modalities=("t1", "t2"), patterns=patterns)
        assert names(subjects) == [("ann", "ann"), ("bob", "bob")]
        assert subjects[1].images["t1"] == tmp_path / "flat/bob_t1_bet.nii"

    def test_patient_over_sessions(self, tmp_path):
        for session in ("ses-1", "ses-2"):
            touch(tmp_path, f"sub-1/{session}/anat/sub-1_{session}_T1w.nii.gz")
        pattern = "{patient}/*/anat/{subject}_T1w.nii.gz"
        subjects = find_subjects(tmp_path, modalities=("t1",), patterns={"t1": pattern})
        assert names(subjects) == [("sub-1_ses-1", "sub-1"), ("sub-1_ses-2", "sub-1")]

    def test_time_points_are_known_under_any_pattern(self, tmp_path):
        touch(tmp_path, "BraTS-GLI-00020-000/T1.nii.gz", "BraTS-GLI-00020-001/T1.nii.gz")
        subjects = find_subjects(tmp_path, modalities=("t1",), patterns={"t1": "T1.nii.gz"})
        assert {subject.patient_id for subject in subjects} == {"BraTS-GLI-00020"}

    def test_a_name_that_repeats_must_agree(self, tmp_path):
        touch(tmp_path, "ann/ann_t1.nii.gz", "bob/ann_t1.nii.gz")
        pattern = {"t1": "{subject}/{subject}_t1"}
        (subject,) = find_subjects(tmp_path, modalities=("t1",), patterns=pattern)
        assert subject.images["t1"] == tmp_path / "ann/ann_t1.nii.gz"

    def test_signs_other_than_wildcards_are_literal(self, tmp_path):
        touch(tmp_path, "ann/a+b(1).nii.gz", "bob/aab1.nii.gz", "cid/a/b/T.nii.gz")
        patterns = {"t1": "a+b(?).nii.gz|cid/*/T.nii.gz"}
        subjects = find_subjects(tmp_path, modalities=("t1",), patterns=patterns)
        assert names(subjects) == [("ann", "ann")]

    def test_a_pattern_is_the_whole_name(self, tmp_path):
        touch(tmp_path, "ann/T1.nii.gz", "ann/postT1.nii.gz", "ann/T1.nii.old.nii.gz")
        (subject,) = find_subjects(tmp_path, modalities=("t1",), patterns={"t1": "T1.nii.gz"})
        assert subject.images["t1"] == tmp_path / "ann/T1.nii.gz"

    def test_segmentation_pattern(self, tmp_path):
        touch(tmp_path, "ann/T1.nii.gz", "ann/mask.nii.gz")
        patterns = {"t1": "T1.nii.gz", "segmentation": "mask.nii.gz"}
        (subject,) = find_subjects(tmp_path, modalities=("t1",), patterns=patterns)
        assert subject.segmentation == tmp_path / "ann/mask.nii.gz"

    def test_every_modality_needs_a_pattern(self, tmp_path):
        with pytest.raises(UserError, match="no pattern for the modality 't2'"):
            find_subjects(tmp_path, modalities=("t1", "t2"), patterns={"t1": "T1.nii.gz"})


class TestSubjectOfAFile:
    @pytest.mark.parametrize("add", [add_brats_2023, add_brats_2021, add_upenn])
    def test_it_is_the_one_under_whom_the_folder_lists_it(self, tmp_path, add, monkeypatch):
        add(tmp_path, "UPENN-GBM-00001_11")
        (subject,) = find_subjects(tmp_path, modalities=MODALITIES)
        monkeypatch.chdir(tmp_path)
        for name, path in subject.images.items():
            assert subject_of(path.relative_to(tmp_path), name) == subject.subject_id

    def test_patterns_count_and_any_other_name_is_its_folders(self, tmp_path):
        path = tmp_path / "eve/scan_7_T1.nii"
        assert subject_of(path, "t1", {"t1": "scan_{subject}_T1"}) == "7"
        assert subject_of(path, "t1", {"t1": "scan_*_T1"}) == "eve"
        assert subject_of(path.with_name("anything.nii"), "t1") == "eve"


class TestTrouble:
    def test_incomplete_subjects_are_left_out_and_counted(self, tmp_path, caplog):
        for number in range(3):
            add_brats_2021(tmp_path, f"BraTS2021_{number}")
        (tmp_path / "BraTS2021_1/BraTS2021_1_t1ce.nii.gz").unlink()
        with caplog.at_level(logging.WARNING):
            subjects = find_subjects(tmp_path, modalities=MODALITIES)
        assert [subject.subject_id for subject in subjects] == ["BraTS2021_0", "BraTS2021_2"]
        (message,) = caplog.messages
        assert message.startswith("1 of 3 subjects")
        assert message.endswith("the first is BraTS2021_1 without t1c")

    def test_incomplete_subjects_are_kept_on_request(self, tmp_path, caplog):
        add_brats_2021(tmp_path, "BraTS2021_1")
        (tmp_path / "BraTS2021_1/BraTS2021_1_t1ce.nii.gz").unlink()
        (subject,) = find_subjects(tmp_path, modalities=MODALITIES, require_all=False)
        assert list(subject.images) == ["t1", "t2", "t2f"] and not caplog.messages

    def test_only_what_is_needed_has_to_be_there(self, tmp_path, caplog):
        for number in range(3):
            add_brats_2021(tmp_path, f"BraTS2021_{number}")
        (tmp_path / "BraTS2021_0/BraTS2021_0_t1ce.nii.gz").unlink()
        (tmp_path / "BraTS2021_1/BraTS2021_1_t2.nii.gz").unlink()
        needed = {"modalities": ("t1", "t2"), "optional": ("t1c", "adc")}
        subjects = find_subjects(tmp_path, **needed)
        assert [list(subject.images) for subject in subjects] == [["t1", "t2"], ["t1", "t2", "t1c"]]
        assert caplog.messages[0].endswith("the first is BraTS2021_1 without t2")
        patterns = {"t1": "{subject}/*_t1", "t2": "{subject}/*_t2"}
        found = find_subjects(tmp_path, **needed, patterns=patterns)
        assert [list(subject.images) for subject in found] == [["t1", "t2"]] * 2
        with pytest.raises(UserError, match=r"no subject with t1, adc in .*BraTS2021_0 has no adc"):
            find_subjects(tmp_path, modalities=("t1", "adc"), optional=("t2f",))

    def test_nothing_found_says_what_was_seen_and_what_to_do(self, tmp_path):
        touch(tmp_path, "ann/scan.nii.gz")
        with pytest.raises(UserError) as error:
            find_subjects(tmp_path, modalities=("t1", "t2"))
        (line,) = str(error.value).splitlines()
        for part in (str(tmp_path), "BraTS 2023", "UPenn-GBM", "1 NIfTI files", "ann/scan.nii.gz"):
            assert part in line
        suggestion = dict(re.findall(r'(\w+)="(.*?)"', line))
        touch(tmp_path, *(f"eve/x_{name}.nii.gz" for name in suggestion))
        found = find_subjects(tmp_path, modalities=tuple(suggestion), patterns=suggestion)
        assert names(found) == [("eve", "eve")]

    def test_nobody_complete_names_what_lacks(self, tmp_path):
        add_brats_2021(tmp_path, "BraTS2021_1")
        with pytest.raises(UserError, match="BraTS2021_1 has no adc"):
            find_subjects(tmp_path, modalities=(*MODALITIES, "adc"))

    def test_an_empty_folder_and_none(self, tmp_path):
        with pytest.raises(UserError, match=r"no \.nii, \.nii\.gz, \.mgz or \.img file"):
            find_subjects(tmp_path, modalities=MODALITIES)
        with pytest.raises(UserError, match="no folder"):
            find_subjects(tmp_path / "gone", modalities=MODALITIES)

    def test_two_files_for_one_modality_are_named(self, tmp_path):
        add_brats_2021(tmp_path, "BraTS2021_1")
        touch(tmp_path, "BraTS2021_1/BraTS2021_1_t2.nii")
        with pytest.raises(UserError, match=r"BraTS2021_1 has two files for t2.*\.nii.*\.nii\.gz"):
            find_subjects(tmp_path, modalities=MODALITIES)

    def test_one_name_in_two_places_is_not_merged(self, tmp_path):
        add_brats_2023(tmp_path / "a", "BraTS-GLI-00001-000")
        add_brats_2023(tmp_path / "b", "BraTS-GLI-00001-000")
        with pytest.raises(UserError, match="two files for t1"):
            find_subjects(tmp_path, modalities=MODALITIES)

    def test_segmentations_without_images_do_no_harm(self, tmp_path):
        add_brats_2021(tmp_path, "BraTS2021_1")
        touch(tmp_path, "results/BraTS2021_1_seg.nii.gz", "results/BraTS2021_2_seg.nii.gz")
        (subject,) = find_subjects(tmp_path, modalities=MODALITIES)
        assert subject.segmentation == tmp_path / "BraTS2021_1/BraTS2021_1_seg.nii.gz"


class TestRealPatients:
    def test_known_layouts_are_found_by_themselves(self, real_data):
        subjects = find_subjects(real_data, modalities=MODALITIES)
        assert names(subjects) == [
            ("BraTS-GLI-00001-000", "BraTS-GLI-00001"),
            ("BraTS2021_01306", "BraTS2021_01306"),
        ]
        assert all(subject.segmentation for subject in subjects)

    def test_all_four_are_found_by_patterns(self, real_data):
        patterns = {
            "t1": "*-t1n.nii.gz | *_t1.nii.gz | *_t1_bet.nii.gz | T1.nii.gz",
            "t1c": "*-t1c.nii.gz | *_t1ce.nii.gz | *_t1c_bet.nii.gz | T1POST.nii.gz",
            "t2": "*-t2w.nii.gz | *_t2.nii.gz | *_t2_bet.nii.gz | T2.nii.gz",
            "t2f": "*-t2f.nii.gz | *_flair.nii.gz | *_fla_bet.nii.gz | FLAIR.nii.gz",
            "segmentation": "*-seg | *_seg",
        }
        subjects = find_subjects(real_data, modalities=MODALITIES, patterns=patterns)
        assert names(subjects) == [
            ("BraTS-GLI-00001-000", "BraTS-GLI-00001"),
            ("BraTS2021_01306", "BraTS2021_01306"),
            ("TCGA-DU-7294", "TCGA-DU-7294"),
            ("patient19", "patient19"),
        ]
        assert [subject.segmentation is not None for subject in subjects] == [
            True,
            True,
            False,
            False,
        ]
