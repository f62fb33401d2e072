"""Odd inputs to the commands: every readable image gives a result, all else one clear line.

Inputs are built from scratch; those of `test_shared_cases.py` are made by others.
"""

import dataclasses
import json
import re

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import zoom

from cdm_jax import api, commands, main, outputs, synthesize
from cdm_jax.data.native import read_native
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from cdm_jax.files import is_full
from cdm_jax.score import score_folders
from cdm_jax.scoring import usable_segmentation
from cdm_jax.writer import say_once
from tests.odd_inputs import AFFINE, IDS, NAMES, SHAPE, head, patient, save


class TestScore:
    @pytest.fixture
    def folders(self, tmp_path):
        """Truth of two patients, and predictions that are the truth."""
        for subject in IDS[:2]:
            patient(tmp_path / "truth", subject, ("t1", "t2", "t1c"))
            patient(tmp_path / "made", subject, ("t1c",))
        return tmp_path / "made", tmp_path / "truth", tmp_path / "out"

    @pytest.mark.parametrize("content, said", [
        ("", "t1c.json is not JSON"), ('{"reference_scale": "x"}', "reference_scale 'x'"),
    ])  # fmt: skip
    def test_a_bad_sidecar_fails_its_patient_alone(self, folders, content, said, capsys):
        (folders[0] / IDS[0] / f"{IDS[0]}-t1c.json").write_text(content)
        with pytest.raises(UserError, match=rf"1 of 2 subjects failed \({IDS[0]}\)"):
            score_folders(*folders)
        assert said in " ".join(capsys.readouterr().out.split())
        assert [path.stem for path in folders[2].glob("*.json")] == [IDS[1]]

    def test_anothers_sidecar_says_nothing(self, folders):
        for subject in IDS[:2]:
            (folders[0] / subject / f"{subject}-t1c.json").write_text('["t1c"]')
        records = score_folders(*folders)
        assert [record["scales"]["t1c"] for record in records] == ["the truth's unit"] * 2

    @pytest.mark.parametrize("low, high", [(0, 1), (-1, 1)])
    def test_a_prediction_that_is_the_truth_is_perfect_in_any_unit(self, folders, low, high):
        for folder in folders[:2]:
            for path in folder.rglob("*.nii.gz"):
                values = nib.load(path).get_fdata()
                save(path, low + (high - low) * values / values.max())
        for record in score_folders(*folders):
            assert record["rows"]["prediction"]["volume"]["t1c"]["mae"] == pytest.approx(0)

    def test_without_a_tumor_its_regions_are_undefined(self, folders):
        for subject in IDS[:2]:
            patient(folders[1], subject, ("segmentation",), segmentation=np.zeros(SHAPE, np.uint8))
        for record in score_folders(*folders):
            scores = record["rows"]["prediction"]["volume"]["t1c"]
            regions = {name: region["psnr"] for name, region in scores["regions"].items()}
            assert regions.pop("healthy") == scores["psnr"]
            assert regions == dict.fromkeys(("whole_tumor", "tumor_core", "enhancing_tumor"))

    def test_volumes_of_one_slice_are_scored(self, tmp_path):
        """Of a prediction that is a fixed part of the truth the error is known."""
        images = {name: head(name)[..., 9:10] for name in ("t1", "t2", "t1c")}
        patient(tmp_path / "truth", modalities=tuple(images), **images)
        patient(tmp_path / "made", modalities=("t1c",), t1c=0.9 * images["t1c"])
        (record,) = score_folders(tmp_path / "made", tmp_path / "truth", tmp_path / "out")
        scores = record["rows"]["prediction"]["volume"]["t1c"]
        brain = images["t1c"][images["t1c"] > 0]
        brain = brain / np.percentile(brain, 99.5)
        by_hand = np.abs(np.clip(0.9 * brain, 0, 1) - np.clip(brain, 0, 1)).mean()
        assert scores["mae"] == pytest.approx(by_hand, rel=1e-3)
        assert scores["z_gradient"] is None

    def test_what_label_4_is_taken_for_is_told_once(self, folders, capsys):
        say_once.cache_clear()
        for subject in IDS[:2]:
            labels = np.where(head("t1") > 800, 4, np.where(head("t1") > 600, 2, 0))
            patient(folders[1], subject, ("segmentation",), segmentation=labels.astype(np.uint8))
        records = score_folders(*folders)
        assert "enhancing_tumor" in records[0]["rows"]["prediction"]["volume"]["t1c"]["regions"]
        assert capsys.readouterr().out.count("label 4 of the segmentations is read as enh") == 1

    def test_labels_of_another_shape_or_place_are_left_out_and_said(self, tmp_path):
        labels = np.where(head("t1") > 800, 3, np.where(head("t1") > 600, 2, 0)).astype(np.uint8)
        for given, left_out in (((labels,), False), ((labels[:-4],), True),
                                ((labels, np.eye(4)), True)):  # fmt: skip
            patient(tmp_path / "x", modalities=("t1", "t2", "segmentation"), segmentation=given)
            (subject,) = find_subjects(tmp_path / "x", modalities=("t1", "t2"))
            brain = read_native(subject, ("t1", "t2")).brain
            found, said = usable_segmentation(subject, brain)
            assert (found is None) == left_out
            assert ("no tumor regions are scored" in said) == left_out


class TestSynthesize:
    """By the command, with a small trained system."""

    @pytest.fixture
    def call(self, finished_run, tmp_path, capsys):
        def call(source, *flags, output=tmp_path / "out"):
            given = [f"--workdir={finished_run / 'm1'}", f"--input={source}", f"--output={output}"]
            status = main.main(["cdm-jax", "synthesize", *given, *flags])
            captured = capsys.readouterr()
            assert captured.err.count("\n") == (status != 0), captured.err
            return status, " ".join(captured.out.split()), captured.err

        return call

    def test_a_bad_patient_stops_no_other(self, call, tmp_path):
        for subject in IDS:
            patient(tmp_path / "in", subject)
        bad = tmp_path / "in" / IDS[1] / f"{IDS[1]}-t2w.nii.gz"
        bad.write_bytes(bad.read_bytes()[:500])
        patient(tmp_path / "in", "BraTS-GLI-00004-000", ("t1",))
        status, said, error = call(tmp_path / "in")
        assert status == 1
        assert f"2 of 4 subjects failed (BraTS-GLI-00004-000, {IDS[1]})" in error
        assert "BraTS-GLI-00004-000 without t2" in said
        assert f"{IDS[1]}: t2: {bad} cannot be read" in said
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [IDS[0], IDS[2]]
        assert not list(tmp_path.rglob("*.partial"))

    def test_a_patient_who_lacks_a_source_is_told_of_a_model_that_would_do(self, call, tmp_path):
        patient(tmp_path / "in", modalities=("t1",))
        status, _, error = call(tmp_path / "in")
        assert status == 1 and f"{IDS[0]} has no t2" in error
        assert error.rstrip().endswith("and so does one of configs/<data set>.py:any")
        patient(tmp_path / "in", IDS[1])
        status, said, error = call(tmp_path / "in")
        assert status == 1 and f"1 of 2 subjects failed ({IDS[0]})" in error
        assert said.count("the model that ships takes any of T1") == 1
        (tmp_path / "nobody").mkdir()
        assert "the model that ships" not in call(tmp_path / "nobody")[2]

    def test_what_is_found_stands_in_the_sidecar(self, call, tmp_path):
        patient(tmp_path / "in", t1=head("t2"), t2=head("t1"))
        status, said, _ = call(tmp_path / "in")
        note = "t1, t2: look swapped by their contrast: check the names"
        assert status == 0 and note in said
        path = next((tmp_path / "out").rglob("*-t1c.json"))
        assert json.loads(path.read_text())["notes"] == [note]
        before = path.stat().st_mtime_ns
        assert call(tmp_path / "in")[0] == 0
        assert path.stat().st_mtime_ns == before

    def test_a_patient_unlike_the_training_patients_is_told(self, call, tmp_path, monkeypatch):
        def load(*given):
            model = load_model(*given)
            known = {"mean brightness of t1": (0.1, 0.2), "median of t2": (0.1, 0.9)}
            origin = dataclasses.replace(model.system.provenance, ranges=known)
            system = dataclasses.replace(model.system, provenance=origin)
            return api.TrainedModel(model.folder, system)

        load_model = api.load
        patient(tmp_path / "in")
        status, said, _ = call(tmp_path / "in")  # its checkpoint says no ranges
        assert status == 0 and "training patients" not in said
        monkeypatch.setattr(api, "load", load)
        status, said, _ = call(tmp_path / "in", output=tmp_path / "other")
        note = "unlike the training patients: mean brightness of t1 0.641"
        assert status == 0 and note in said and "(theirs 0.1 to 0.2): check the images" in said
        path = next((tmp_path / "other").rglob("*-t1c.json"))
        (found,) = json.loads(path.read_text())["notes"]
        assert found.startswith(note)

    @pytest.mark.parametrize(
        "t1, t2, said",
        [
            (head("t2"), head("t1"), "look swapped by their contrast"),
            (head("t1") + 9 * np.random.default_rng(0).random(SHAPE), head("t2"),
             "no constant background, so that all counts as brain"),
        ],
        ids=["swapped", "skull"],
    )  # fmt: skip
    def test_what_cannot_be_right_is_said_before_it_is_written(
        self, call, tmp_path, monkeypatch, t1, t2, said
    ):
        def refuse(*_):
            raise UserError("nothing was written")

        monkeypatch.setattr(synthesize, "_write_images", refuse)
        patient(tmp_path / "in", t1=t1, t2=t2)
        status, out, error = call(tmp_path / "in")
        assert (status, error) == (1, "error: nothing was written\n")
        assert said in out

    @pytest.mark.parametrize(
        "values, said",
        [
            (0 * head("t2"), "nothing is brighter than the background"),
            (np.stack([head("t2")] * 2, -1), r"has shape \(26, 30, 20, 2\): give one 3D volume"),
            (head("t2")[..., 10], r"has shape \(26, 30\): give one 3D volume"),
            (
                np.zeros(SHAPE, [(color, "u1") for color in "RGB"]),
                "holds colors: give a file of real",
            ),
        ],
        ids=["empty", "two volumes", "one slice", "colors"],
    )
    def test_what_is_no_volume_of_a_brain_is_refused_by_its_file(
        self, call, tmp_path, values, said
    ):
        folder = patient(tmp_path / "in", t2=values)
        status, _, error = call(tmp_path / "in")
        assert status == 1
        assert re.search(f"{folder / IDS[0]}-t2w.nii.gz:? {said}", error)
        assert not (tmp_path / "out").exists()

    def test_a_volume_of_one_slice_gives_one(self, call, tmp_path):
        patient(tmp_path / "in", t1=head("t1")[..., 9:10], t2=head("t2")[..., 9:10])
        assert call(tmp_path / "in")[0] == 0
        made = nib.load(next((tmp_path / "out").rglob("*-t1c.nii.gz")))
        assert made.shape == (26, 30, 1) and np.ptp(made.dataobj) > 0

    @pytest.mark.parametrize("onto", ["t1", "t2"])
    def test_other_grids_are_resampled_on_request(self, call, tmp_path, onto):
        coarse = AFFINE @ np.diag([1, 1, 2, 1])
        folder = patient(tmp_path / "in", t2=(head("t2")[..., ::2], coarse))
        assert "--resample_to=<modality>" in call(tmp_path / "in")[2]
        assert not (tmp_path / "out").exists()
        assert call(tmp_path / "in", f"--resample_to={onto}")[0] == 0
        made = nib.load(next((tmp_path / "out").rglob("*-t1c.nii.gz")))
        given = nib.load(folder / f"{IDS[0]}-{NAMES[onto]}.nii.gz")
        assert made.shape == given.shape
        np.testing.assert_array_equal(made.affine, given.affine)
        sidecar = json.loads(next((tmp_path / "out").rglob("*-t1c.json")).read_text())
        assert sidecar["resample_to"] == onto
        assert sidecar["resampled"] == [{"t1": "t2", "t2": "t1"}[onto]]

    @pytest.mark.parametrize("fault", ["other grid", "truncated", "empty"])
    def test_an_acquired_target_stops_nothing(self, call, tmp_path, fault):
        folder = patient(tmp_path / "in", modalities=("t1", "t2", "t1c"))
        path = folder / f"{IDS[0]}-t1c.nii.gz"
        if fault == "truncated":
            path.write_bytes(path.read_bytes()[:500])
        else:
            values = zoom(head("t1c"), 0.5) if fault == "other grid" else 0 * head("t1c")
            save(path, values)
        status, said, _ = call(tmp_path / "in")
        assert status == 0 and "the picture lacks t1c as acquired" in said
        assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 2

    def test_a_source_given_again_as_a_target_is_told(self, call, tmp_path):
        patient(tmp_path / "in", modalities=("t1", "t2", "t1c"), t1c=head("t1"))
        status, said, _ = call(tmp_path / "in")
        assert status == 0 and f"{IDS[0]}: t1, t1c as acquired: hold the same image" in said

    def test_an_acquired_image_is_never_overwritten(self, call, tmp_path):
        folder = patient(tmp_path / "in", modalities=("t1", "t2", "t1c"))
        path = folder / f"{IDS[0]}-t1c.nii.gz"
        before = path.read_bytes()
        status, _, error = call(tmp_path / "in", output=tmp_path / "in")
        assert status == 1 and "is there already and is of no synthetic image" in error
        assert path.read_bytes() == before
        assert len(list(folder.iterdir())) == 3

    @pytest.mark.parametrize("ending", [".nii", ".mgz", ".json"])
    def test_nor_is_what_lies_beside_it_under_another_ending(self, call, tmp_path, ending):
        """An unpacked image would have a twin of its name, and a sidecar would be replaced."""
        path = patient(tmp_path / "in") / f"{IDS[0]}-t1c{ending}"
        path.write_text('{"EchoTime": 0.003}')
        status, _, error = call(tmp_path / "in", output=tmp_path / "in")
        assert status == 1 and f"{path} is there already" in error
        assert path.read_text() == '{"EchoTime": 0.003}'
        assert len(list(path.parent.iterdir())) == 3

    def test_bids_in_and_out(self, call, tmp_path):
        for modality, suffix in (("t1", "T1w"), ("t2", "T2w")):
            save(tmp_path / f"in/sub-01/ses-1/anat/sub-01_ses-1_{suffix}.nii.gz", head(modality))
        output = tmp_path / "in/derivatives/cdm_jax"
        assert call(tmp_path / "in", "--bids", "--samples=1", output=output)[0] == 0
        folder = output / "sub-01/ses-1/anat"
        assert sorted(path.name for path in folder.iterdir()) == [
            "sub-01_ses-1.png",
            "sub-01_ses-1_ce-gadolinium_desc-synthetic_T1w.json",
            "sub-01_ses-1_ce-gadolinium_desc-synthetic_T1w.nii.gz",
            "sub-01_ses-1_desc-synthetic_FLAIR.json",
            "sub-01_ses-1_desc-synthetic_FLAIR.nii.gz",
        ]
        description = json.loads((output / "dataset_description.json").read_text())
        assert {"Name", "BIDSVersion", "GeneratedBy"} <= description.keys()
        assert description["DatasetType"] == "derivative"
        (made,) = find_subjects(output, modalities=("t1c", "t2f"))
        assert made.subject_id == "sub-01_ses-1"


class TestOutputs:
    def test_bids_names_of_others_hold_letters_and_digits(self, tmp_path):
        files = outputs.outputs_of(IDS[0], tmp_path, bids=True)
        name = "sub-BraTSGLI00001000_ce-gadolinium_desc-deviation_T1w.nii.gz"
        assert files.image("t1c", "deviation") == tmp_path / "sub-BraTSGLI00001000/anat" / name

    def test_a_raw_dataset_is_not_turned_into_derivatives(self, tmp_path):
        (tmp_path / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9"}')
        with pytest.raises(UserError, match=r"is a raw BIDS dataset.*derivatives/cdm_jax"):
            outputs.start_bids(tmp_path, ["t1c"])
        with pytest.raises(UserError, match="adc has no BIDS name"):
            outputs.start_bids(tmp_path / "new", ["adc"])

    def test_a_full_disk_is_known_behind_other_errors(self):
        def chain(cause):
            try:
                try:
                    raise cause
                finally:
                    raise ValueError("handle is closed")
            except ValueError as error:
                return error

        assert is_full(chain(OSError(28, "No space left on device")))
        assert is_full(RuntimeError("write failed: No space left on device [OS error 28]"))
        assert not is_full(chain(OSError(13, "Permission denied")))

    @pytest.mark.parametrize(
        "error",
        [OSError(28, "No space left on device"), RuntimeError("x: No space left on device [28]")],
        ids=["of Python", "of a library"],
    )
    def test_a_full_disk_is_answered_in_one_line(self, error, monkeypatch, capsys, tmp_path):
        def write(**_):
            raise error

        monkeypatch.setattr(commands, "synthesize", write)
        output = tmp_path / "made"
        words = ["synthesize", f"--input={tmp_path}", f"--output={output}"]
        assert main.main(["cdm-jax", *words]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"error: no space is left on the disk of {output}: what was finish")
        assert "is kept there" in said and "the same command again: it goes on" in said
