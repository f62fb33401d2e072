"""Scoring anybody's folder of synthetic images."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from cdm_jax import main
from cdm_jax.data.intensity import brain_mask, measure
from cdm_jax.data.nifti import read_volume, write_like
from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions import CONVENTIONS, fingerprint
from cdm_jax.phantom import PhantomSettings, write_cohort
from cdm_jax.score import score_folders


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Two simulated patients as BraTS2023 folders."""
    root = tmp_path_factory.mktemp("truth")
    write_cohort(root, PhantomSettings(num_patients=2, shape=(40, 40, 30), voxel_mm=5.0), 1)
    return root


def patients(root):
    return sorted(root.glob("BraTS*"))


def blurred(truth, output, scale, sidecar=None):
    """Predictions of T1c in units of `scale` times the truth's [0, 1]."""
    for patient in patients(truth):
        path = patient / f"{patient.name}-t1c.nii.gz"
        image = measure(read_volume(path)).apply(gaussian_filter(read_volume(path), 0.6))
        target = output / patient.name / path.name
        write_like(target, image * scale(path), path, description="test")
        if sidecar:
            name = target.name.replace(".nii.gz", ".json")
            (target.parent / name).write_text(json.dumps({"reference_scale": scale(path)}))
    return output


def rows(records, convention="volume"):
    return [record["rows"]["prediction"][convention]["t1c"] for record in records]


def test_scores_are_those_of_the_images_by_hand(truth, tmp_path):
    made = blurred(truth, tmp_path / "made", lambda _: 1.0)
    found = rows(score_folders(made, truth, tmp_path / "out"))
    for patient, scores in zip(patients(truth), found, strict=True):
        images = {
            name: read_volume(patient / f"{patient.name}-{name}.nii.gz")
            for name in ("t1n", "t2w", "t2f", "t1c")
        }
        brain = brain_mask({name: images[name] for name in ("t1n", "t2w", "t2f")})
        peak = np.percentile(images["t1c"][brain], 99.5)
        predicted = read_volume(made / patient.name / f"{patient.name}-t1c.nii.gz")
        scale = measure(images["t1c"]).scale
        pair = [np.clip(images["t1c"] / peak, 0, 1), np.clip(predicted * scale / peak, 0, 1)]
        expected = peak_signal_noise_ratio(*(image[brain] for image in pair), data_range=1)
        assert scores["psnr"] == pytest.approx(expected, abs=0.05)
        assert 15 < scores["psnr"] < 50
        assert set(scores["regions"]) >= {"whole_tumor", "healthy"}


def enhancing(patient, t1c):
    """Where a T1c enhances, and the tumor, of a patient's folder, by hand."""
    t1 = read_volume(patient / f"{patient.name}-t1n.nii.gz")
    labels = np.asarray(nib.load(patient / f"{patient.name}-seg.nii.gz").dataobj).T
    brain = t1 > 0
    gain = t1c / np.median(t1c[brain]) - t1 / np.median(t1[brain])
    return (gain > 0.2) & brain, labels > 0


def test_enhancement_is_scored_where_t1_was_not_predicted(truth, tmp_path):
    made = blurred(truth, tmp_path / "made", lambda _: 1.0)
    found = rows(score_folders(made, truth, tmp_path / "out"))
    overlaps = []
    for patient, scores in zip(patients(truth), found, strict=True):
        name = f"{patient.name}-t1c.nii.gz"
        real, tumor = enhancing(patient, read_volume(patient / name))
        synthetic, _ = enhancing(patient, read_volume(made / patient.name / name))
        voxel_ml = 5.0**3 / 1000
        for numbers, region in (
            (scores, np.ones_like(tumor)),
            (scores["regions"]["whole_tumor"], tumor),
        ):
            volumes = [voxel_ml * (shown & region).sum() for shown in (synthetic, real)]
            # The intensity rule clips what is brightest, here of T1.
            near = {"rel": 0.01, "abs": 2 * voxel_ml}
            assert numbers["enhancing_ml"] == pytest.approx(volumes[0], **near)
            assert numbers["true_enhancing_ml"] == pytest.approx(volumes[1], **near)
        both = 2 * (synthetic & real).sum() / (synthetic.sum() + real.sum())
        assert scores["enhancement_dice"] == pytest.approx(both, abs=0.02)
        overlaps.append(both)
    assert min(overlaps) > 0.2 and max(overlaps) < 1
    assert "Enhancement: T1c less T1" in (tmp_path / "out/tables.md").read_text()

    both = tmp_path / "both"
    for patient in patients(truth):
        shutil.copytree(made / patient.name, both / patient.name)
        shutil.copy(patient / f"{patient.name}-t1n.nii.gz", both / patient.name)
    for scores in rows(score_folders(both, truth, tmp_path / "out_of_both")):
        assert "enhancing_ml" not in scores


def test_the_unit_of_a_prediction_does_not_matter(truth, tmp_path):
    unit = blurred(truth, tmp_path / "unit", lambda _: 1.0)
    own = blurred(truth, tmp_path / "own", lambda path: measure(read_volume(path)).scale)
    other = blurred(truth, tmp_path / "other", lambda _: 37.0, sidecar=True)
    found = [
        score_folders(folder, truth, tmp_path / f"{folder.name}_out")
        for folder in (unit, own, other)
    ]
    said = [records[0]["scales"]["t1c"] for records in found]
    assert said == ["taken as [0, 1]", "the truth's unit", "reference_scale of the sidecar"]
    for one, *others in zip(*map(rows, found), strict=True):
        for another in others:
            assert another["psnr"] == pytest.approx(one["psnr"], abs=1e-3)
            assert another["ssim"] == pytest.approx(one["ssim"], abs=1e-5)


def test_the_command_needs_no_config_and_leaves_records_and_tables(truth, tmp_path, capsys):
    made = tmp_path / "made"
    shutil.copytree(truth, made, ignore=shutil.ignore_patterns("*t1n*", "*t2w*", "*seg*", "*.json"))
    assert main.main(["cdm_jax.main", "score", f"--input={made}", f"--truth={truth}"]) == 0
    assert "Convention paper" in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in sorted((made / "scores").glob("*.json"))]
    assert len(records) == 2
    for record in records:
        assert set(record["rows"]["prediction"]) == set(CONVENTIONS)
        for name, targets in record["rows"]["prediction"].items():
            assert set(targets) == {"t1c", "t2f"}
            for scores in targets.values():
                # ResViT's validation counts empty slices as 0 dB; BraSyn's script has SSIM alone.
                share = scores["slices"] / 30 if name == "resvit" else 1
                assert scores["psnr"] in (None, pytest.approx(100 * share))
                assert (scores["ssim"] or 1) == pytest.approx(1)
                assert not scores["mae"]
    tables = (made / "scores/tables.md").read_text()
    assert all(f"Convention {name} (" in tables for name in CONVENTIONS)


@pytest.mark.parametrize("name", ["case{}", "site/case{}", "case{}/image", "case{}_a"])
def test_files_of_unknown_names_are_paired_by_their_paths(truth, tmp_path, name, capsys):
    made = blurred(truth, tmp_path / "made", lambda _: 1.0)
    for n, patient in enumerate(patients(truth)):
        for folder, source in (("ours", made), ("theirs", truth)):
            target = tmp_path / folder / f"{name.format(n)}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / patient.name / f"{patient.name}-t1c.nii.gz", target)
    shutil.copy(target, tmp_path / "theirs" / "more.nii.gz")
    found = score_folders(tmp_path / "ours", tmp_path / "theirs", tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "2 files are paired by their paths" in said
    assert "1 subjects of the truth have no prediction" in said
    for n, (patient, record) in enumerate(zip(patients(truth), found, strict=True)):
        path = f"{name.format(n)}.nii.gz"
        assert record["subject"] == record["patient"] == path
        assert json.loads((tmp_path / "out" / f"{path}.json").read_text()) == record
        image = read_volume(truth / patient.name / f"{patient.name}-t1c.nii.gz")
        predicted = read_volume(made / patient.name / f"{patient.name}-t1c.nii.gz")
        brain = image != 0
        peak = np.percentile(image[brain], 99.5)
        pair = [np.clip(image / peak, 0, 1), np.clip(predicted, 0, 1)]
        expected = peak_signal_noise_ratio(*(one[brain] for one in pair), data_range=1)
        scores = record["rows"]["prediction"]["volume"]["image"]
        # The percentile of an image that was clipped at its percentile is a little lower.
        assert scores["psnr"] == pytest.approx(expected, abs=0.05)


def test_scores_of_slices_are_not_taken_for_those_of_evaluate(truth, tmp_path):
    made = blurred(truth, tmp_path / "made", lambda _: 1.0)
    tags = score_folders(made, truth, tmp_path / "out")[0]["conventions"]
    assert tags["volume"] == fingerprint("volume")
    assert tags["paper"] == f"{fingerprint('paper')}, slices of the own grid"
    assert f"Convention paper ({tags['paper']})" in (tmp_path / "out/tables.md").read_text()


def test_mistakes_are_named(truth, tmp_path, capsys):
    assert main.main(["cdm_jax.main", "score", f"--input={truth}"]) == 2
    assert "score needs --input=<folder> --truth=<folder>" in capsys.readouterr().err
    made = blurred(truth, tmp_path / "made", lambda _: 1.0)
    patient = next(made.iterdir())
    image = next(patient.iterdir())
    shifted = nib.load(image)
    affine = shifted.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(shifted.get_fdata(), affine), image)
    with pytest.raises(UserError, match="grid"):
        score_folders(made, truth, tmp_path / "out")
    stranger = made.parent / "stranger" / "BraTS-GLI-99999-000"
    stranger.mkdir(parents=True)
    shutil.copy(image, stranger / "BraTS-GLI-99999-000-t1c.nii.gz")
    with pytest.raises(UserError, match=r"the predictions have BraTS-GLI-99999.*give each pred"):
        score_folders(stranger.parent, truth, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the predictions have no NIfTI file"):
        score_folders(tmp_path / "empty", truth, tmp_path / "out")
    with pytest.raises(UserError, match="there is no folder"):
        score_folders(tmp_path / "nowhere", truth, tmp_path / "out")
    shutil.copytree(stranger, stranger.parent / "copy" / stranger.name)
    with pytest.raises(UserError, match="two files for t1c"):
        score_folders(stranger.parent, truth, tmp_path / "out")
