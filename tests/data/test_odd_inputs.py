"""Inputs as users have them: odd layouts, files, grids and values, each with its right ending."""

import gzip
import pathlib

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data import contrast, formats, grids
from cdm_jax.data.native import read_native
from cdm_jax.data.subjects import find_subjects, find_with_faults, subject_of
from cdm_jax.data.walk import image_files
from cdm_jax.errors import UserError
from tests.odd_inputs import AFFINE, IDS, NAMES, SHAPE, head, patient, save


def native(root: pathlib.Path):
    (subject,) = find_subjects(root, modalities=("t1", "t2"))
    return read_native(subject, ("t1", "t2"))


@pytest.fixture
def plain(tmp_path):
    return native(patient(tmp_path / "plain").parent)


def assert_same_images(found, expected):
    np.testing.assert_array_equal(found.brain, expected.brain)
    for name, image in expected.images.items():
        np.testing.assert_allclose(found.images[name], image, atol=1e-6)


class TestLayouts:
    def find(self, root):
        return find_subjects(root, modalities=("t1", "t2"), optional=("t1c", "t2f"))

    def test_bids_with_sessions_contrast_agent_and_further_entities(self, tmp_path):
        for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"):
            save(tmp_path / f"sub-01/anat/sub-01_{name}.nii.gz", head("t1"))
            entity, _, suffix = name.rpartition("_")
            stem = "_".join(filter(None, ["sub-02_ses-pre_acq-3d", entity, "run-1", suffix]))
            save(tmp_path / f"sub-02/ses-pre/anat/{stem}.nii.gz", head("t1"))
        one, two = self.find(tmp_path)
        assert (one.subject_id, one.patient_id) == ("sub-01", "sub-01")
        assert (two.subject_id, two.patient_id) == ("sub-02_ses-pre", "sub-02")
        assert one.images["t1c"].name == "sub-01_ce-gadolinium_T1w.nii.gz"
        assert two.images["t1"].name == "sub-02_ses-pre_acq-3d_run-1_T1w.nii.gz"
        assert set(one.images) == set(two.images) == {"t1", "t2", "t1c", "t2f"}

    def test_a_folder_called_nii_names_the_file_in_it(self, tmp_path):
        for modality in ("t1", "t2"):
            folder = f"{IDS[0]}-{NAMES[modality]}.nii"
            save(tmp_path / IDS[0] / folder / f"0057_brain_{modality}.nii", head(modality))
        (subject,) = self.find(tmp_path)
        assert subject.subject_id == IDS[0]
        assert subject.images["t2"].name == "0057_brain_t2.nii"
        assert subject_of(subject.images["t1"], "t1") == IDS[0]

    def test_patients_side_by_side_in_one_folder(self, tmp_path):
        for number in (1, 2):
            for modality in ("t1", "t2"):
                save(tmp_path / f"BraTS20_Training_{number:03d}_{modality}.nii", head(modality))
        subjects = self.find(tmp_path)
        ids = ["BraTS20_Training_001", "BraTS20_Training_002"]
        assert [s.subject_id for s in subjects] == [s.patient_id for s in subjects] == ids
        assert [subject_of(s.images["t1"], "t1") for s in subjects] == ids

    def test_folders_of_one_name_are_told_apart_by_those_above(self, tmp_path):
        for name in ("P001/preop", "P001/postop", "P002/preop"):
            for modality in ("t1", "t2"):
                save(tmp_path / name / f"scan_{modality}.nii.gz", head(modality))
        assert [(s.subject_id, s.patient_id) for s in self.find(tmp_path)] == [
            ("P001_postop", "P001"),
            ("P001_preop", "P001"),
            ("P002_preop", "P002"),
        ]

    def test_names_may_hold_dots_spaces_and_signs(self, tmp_path):
        names = ["1.2.840.113619.2", "1.2.840.113619.3", "Müller & Söhne #1"]
        for name in names:
            patient(tmp_path / "étude (50 %)", name)
        found = self.find(tmp_path)
        assert [s.subject_id for s in found] == [s.patient_id for s in found] == names

    def test_what_a_mac_leaves_is_passed_over(self, tmp_path):
        folder = patient(tmp_path)
        for path in [*folder.iterdir()]:
            for place in (folder, tmp_path / "__MACOSX" / IDS[0]):
                place.mkdir(parents=True, exist_ok=True)
                (place / f"._{path.name}").write_bytes(b"\0\5\26\7")
        (folder / ".DS_Store").write_bytes(b"\0")
        (subject,) = self.find(tmp_path)
        assert {path.parent for path in subject.images.values()} == {folder}

    def test_a_patient_copied_to_two_places_is_not_two_patients(self, tmp_path):
        for place in "ab":
            for modality in ("t1", "t2"):
                save(tmp_path / place / "BraTS2021_1" / f"BraTS2021_1_{modality}.nii", head("t1"))
        with pytest.raises(UserError, match="BraTS2021_1 has two files for t1"):
            self.find(tmp_path)

    def test_links_to_folders_are_followed_each_folder_once(self, tmp_path):
        store = patient(tmp_path / "store", IDS[1])
        root = patient(tmp_path / "data", IDS[0]).parent
        (root / IDS[1]).symlink_to(store)
        (root / "again").symlink_to(store)
        (root / "round").symlink_to(root)
        (store / "back").symlink_to(root)
        assert [s.subject_id for s in self.find(root)] == list(IDS[:2])
        assert len(image_files(root)) == 4

    def test_images_that_are_not_stripped_are_called_so(self, tmp_path):
        save(tmp_path / "u/UPENN-GBM-00001_11_T1_unstripped.nii.gz", head("t1"))
        with pytest.raises(UserError, match=r"1 images that are not skull-stripped.*strip them"):
            self.find(tmp_path)

    def test_a_patient_who_lacks_a_source_or_is_ambiguous_is_told_apart(self, tmp_path):
        patient(tmp_path, IDS[0])
        patient(tmp_path, IDS[1], ("t1",))
        patient(tmp_path / "a", IDS[2])
        patient(tmp_path / "b", IDS[2])
        found, faults = find_with_faults(tmp_path, modalities=("t1", "t2"))
        assert [s.subject_id for s in found] == [IDS[0]]
        assert str(faults[IDS[1]]) == f"{IDS[1]} without t2"
        assert "two files for t1" in str(faults[IDS[2]])


class TestFiles:
    @pytest.mark.parametrize(
        "ending, kind",
        [
            (".NII.GZ", nib.Nifti1Image),
            (".nii", nib.Nifti2Image),
            (".mgz", nib.MGHImage),
            (".mgh", nib.MGHImage),
            (".img", nib.Nifti1Pair),
        ],
    )
    def test_other_kinds_and_endings_read_alike(self, tmp_path, plain, ending, kind):
        for modality in ("t1", "t2"):
            path = tmp_path / "x" / IDS[0] / f"{IDS[0]}-{NAMES[modality]}{ending}"
            save(path, head(modality), kind=kind)
        assert_same_images(native(tmp_path / "x"), plain)

    def test_analyze_has_no_orientation_and_takes_that_of_the_image_beside_it(
        self, tmp_path, plain
    ):
        folder = patient(tmp_path / "x", modalities=("t2",))
        image = nib.AnalyzeImage(head("t1"), None)
        image.header.set_zooms((4, 4, 5))
        nib.save(image, folder / f"{IDS[0]}-t1n.img")
        found = native(tmp_path / "x")
        assert_same_images(found, plain)
        assert found.notes == ("t1: states no orientation, taken to be stored as t2",)

    def test_gzip_is_known_by_its_content(self, tmp_path, plain):
        folder = patient(tmp_path / "x")
        one, two = (folder / f"{IDS[0]}-{name}.nii.gz" for name in ("t1n", "t2w"))
        one.rename(one.with_suffix(""))
        two.write_bytes(gzip.decompress(two.read_bytes()))
        assert_same_images(native(tmp_path / "x"), plain)

    def test_one_of_two_files_of_the_same_content_is_taken(self, tmp_path, plain):
        folder = patient(tmp_path / "x")
        packed = folder / f"{IDS[0]}-t1n.nii.gz"
        unpacked = packed.with_suffix("")
        unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
        assert_same_images(native(tmp_path / "x"), plain)
        save(unpacked, head("t1", seed=1))
        with pytest.raises(UserError, match="two files for t1"):
            native(tmp_path / "x")

    @pytest.mark.parametrize(
        "content, said",
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
            (b"/annex/objects/MD5E-s1--0.nii.gz\n", "a git-annex pointer"),
            (b"<!DOCTYPE html><html></html>", "a web page"),
            (bytes(128) + b"DICM" + bytes(9), "is DICOM"),
            (b"", r"is empty \(0 bytes\)"),
            (b"\x1f\x8b\x08", "truncated, corrupt"),
        ],
    )
    def test_what_is_no_image_is_named(self, tmp_path, content, said):
        path = tmp_path / "t1.nii.gz"
        path.write_bytes(content)
        for read in (formats.open_image, formats.read_image):
            with pytest.raises(UserError, match=rf"t1\.nii\.gz .*{said}"):
                read(path)

    def test_a_dead_link_and_a_folder_of_dicom_are_named(self, tmp_path):
        (tmp_path / "t1.nii.gz").symlink_to("../.git/annex/none")
        with pytest.raises(UserError, match=r"link to \.\./\.git/annex/none, which is not there"):
            formats.open_image(tmp_path / "t1.nii.gz")
        (tmp_path / "series").mkdir()
        (tmp_path / "series/0001").write_bytes(bytes(128) + b"DICM")
        with pytest.raises(UserError, match="series is a folder of DICOM: convert it"):
            formats.open_image(tmp_path / "series")
        with pytest.raises(UserError, match=r"saw DICOM such as 0001: convert it"):
            find_subjects(tmp_path / "series", modalities=("t1",))


class TestGrids:
    def read(self, root, **options):
        (subject,) = find_subjects(root, modalities=("t1", "t2"))
        return grids.read_on_one_grid(subject.images, **options)

    @pytest.mark.parametrize("moved", [3e-4, 1e-3, 2e-3])
    def test_rounding_makes_no_other_grid(self, tmp_path, plain, moved):
        affine = AFFINE.copy()
        affine[:3, 3] += moved
        patient(tmp_path / "x", t2=(head("t2"), affine))
        assert_same_images(native(tmp_path / "x"), plain)

    @pytest.mark.parametrize("codeless", ["t1", "t2"])
    def test_a_file_without_orientation_takes_that_of_the_one_beside_it(
        self, tmp_path, plain, codeless
    ):
        folder = patient(tmp_path / "x")
        save(folder / f"{IDS[0]}-{NAMES[codeless]}.nii.gz", head(codeless), code=0)
        found = self.read(tmp_path / "x")
        other = {"t1": "t2", "t2": "t1"}[codeless]
        assert found.notes == (f"{codeless}: states no orientation, taken to be stored as {other}",)
        assert NAMES[other] in found.reference.name
        assert_same_images(native(tmp_path / "x"), plain)

    def test_two_files_without_orientation_are_told(self, tmp_path):
        folder = patient(tmp_path / "x")
        for modality in ("t1", "t2"):
            save(folder / f"{IDS[0]}-{NAMES[modality]}.nii.gz", head(modality), code=0)
        (note,) = native(tmp_path / "x").notes
        assert note == "t1, t2: no orientation is stated, left and right may be swapped"

    def test_another_grid_is_refused_with_a_way_on(self, tmp_path):
        patient(tmp_path / "x", t2=(head("t2")[..., ::2], AFFINE @ np.diag([1, 1, 2, 1])))
        with pytest.raises(UserError, match=r"t1 and t2: .*shape.*--resample_to=<modality>"):
            self.read(tmp_path / "x")
        with pytest.raises(UserError, match="cannot resample onto t3: choose one of t1, t2"):
            self.read(tmp_path / "x", resample_to="t3")

    @pytest.mark.parametrize("onto", ["t1", "t2"])
    def test_resampling_keeps_places_in_the_world(self, tmp_path, onto):
        """Coordinates as values: trilinear interpolation gives them back exactly."""
        fine = np.diag([1.0, 1, 1, 1])
        fine[:3, 3] = [-10, -10, -10]
        coarse = np.array([[0, -2.0, 0, 6], [2, 0, 0, -8], [0, 0, 2.5, -9], [0, 0, 0, 1]])
        shapes = {"t1": (20, 21, 22), "t2": (7, 7, 7)}
        for name, affine in (("t1", fine), ("t2", coarse)):
            index = np.indices(shapes[name]).reshape(3, -1)
            places = affine[:3, :3] @ index + affine[:3, 3:]
            values = (100 + places[0] + 2 * places[1] + 4 * places[2]).reshape(shapes[name])
            patient(tmp_path / "x", modalities=(name,), **{name: (values, affine)})
        found = self.read(tmp_path / "x", resample_to=onto)
        other = {"t1": "t2", "t2": "t1"}[onto]
        assert found.resampled == (other,)
        assert NAMES[onto] in found.reference.name
        inside = found.volumes[other] != 0
        assert inside.sum() > 200
        np.testing.assert_allclose(
            found.volumes[other][inside], found.volumes[onto][inside], rtol=1e-5
        )

    def test_what_has_no_orientation_cannot_be_resampled(self, tmp_path):
        folder = patient(tmp_path / "x")
        save(folder / f"{IDS[0]}-t2w.nii.gz", head("t2")[..., ::2], code=0)
        with pytest.raises(UserError, match=r"t2: .*states no orientation.*cannot be resampled"):
            self.read(tmp_path / "x", resample_to="t1")


class TestValues:
    def test_nan_around_the_brain_is_background_and_within_an_error(self, tmp_path, plain):
        volumes = {name: head(name) for name in ("t1", "t2")}
        patient(tmp_path / "x", **{n: np.where(v > 0, v, np.nan) for n, v in volumes.items()})
        found = native(tmp_path / "x")
        assert_same_images(found, plain)
        assert found.notes == tuple(
            f"{name}: NaN around the brain is taken as background" for name in ("t1", "t2")
        )
        volumes["t1"][13, 15, 10] = np.nan
        patient(tmp_path / "y", **volumes)
        with pytest.raises(UserError, match=r"t1n\.nii\.gz has 1 voxels that are NaN"):
            native(tmp_path / "y")

    def test_residue_of_splines_is_background(self, tmp_path, plain):
        rng = np.random.default_rng(0)
        volumes = {name: head(name) for name in ("t1", "t2")}
        residue = {n: np.where(v > 0, v, rng.normal(0, 1e-6, SHAPE)) for n, v in volumes.items()}
        patient(tmp_path / "x", **residue)
        assert_same_images(native(tmp_path / "x"), plain)

    def test_a_good_pair_raises_no_doubt(self, plain):
        assert plain.notes == ()

    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda one, two: (two, one), "t1, t2: look swapped"),
            (lambda one, two: (one + np.abs(np.random.default_rng(0).normal(0, 9, SHAPE)), two),
             "t1: no constant background"),
            (lambda one, two: (np.where(one > 0, (one - 700) / 150, 0), two),
             "of the brain is darker than the background"),
            (lambda one, two: (one, one), "t1, t2: hold the same image"),
            (lambda one, two: (one, np.roll(two, 13, 0)), "t1, t2: the brains overlap by"),
        ],
    )  # fmt: skip
    def test_what_looks_wrong_is_told_and_not_refused(self, tmp_path, change, said):
        one, two = change(head("t1"), head("t2"))
        patient(tmp_path / "x", t1=one, t2=two)
        assert any(said in note for note in native(tmp_path / "x").notes)

    def test_real_patients_raise_no_doubt_of_a_swap(self, real_data):
        patterns = {"t1": "*-t1n|*_t1|*_t1_bet|T1", "t2": "*-t2w|*_t2|*_t2_bet|T2"}
        subjects = find_subjects(real_data, modalities=("t1", "t2"), patterns=patterns)
        assert len(subjects) == 4
        for subject in subjects:
            volumes = grids.read_on_one_grid(subject.images).volumes
            assert contrast.swapped(volumes) is None
            changed = {"t1": volumes["t2"], "t2": volumes["t1"]}
            assert contrast.swapped(changed) == ("t1", "t2")
