import dataclasses
import functools
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data import cohort
from cdm_jax.data.intensity import measure
from cdm_jax.data.nifti import read_volume
from cdm_jax.data.prepare import (
    FULL_SCALE,
    PrepareSettings,
    median_scales,
    prepare_subject,
    quantize,
)
from cdm_jax.data.resample import to_frame
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.errors import UserError

SETTINGS = PrepareSettings(
    sources=("t1", "t2"), targets=("t1c",), size=16, minimum_brain=32 / (14 * 14)
)
prepare = functools.partial(cohort.prepare, num_workers=1)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_subject(folder: Path, name: str, modalities=("t1", "t2", "t1c"), **changes) -> Subject:
    """A brain of 7 slices that grows upwards, 8 x 1 to 8 x 7 voxels of a 14 x 10 slice."""
    generator = np.random.default_rng(sum(name.encode()))
    images = {}
    for modality in modalities:
        volume = np.zeros((10, 14, 10), np.float32)
        for z in range(1, 8):
            volume[z, 3:11, 2 : 2 + z] = generator.uniform(100, 900, (8, z))
        images[modality] = folder / name / f"{name}_{modality}.nii.gz"
        images[modality].parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume.T, LPS), images[modality])
    content = {"subject_id": name, "patient_id": f"patient of {name}", "images": images}
    return Subject(**(content | changes))


@pytest.fixture
def subjects(tmp_path):
    return [write_subject(tmp_path / "data", name) for name in ("one", "two", "three")]


def written(folder: Path) -> dict[str, int]:
    """The files of a cache, with the time at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sixteen_bits_keep_values_to_a_hundred_thousandth():
    values = np.random.default_rng(0).uniform(0, 1, 10_000).astype(np.float32)
    assert np.abs(quantize(values) / FULL_SCALE - values).max() < 1e-5
    np.testing.assert_array_equal(quantize(np.array([-0.1, 0.0, 1.0, 1.2])), [0, 0, 65535, 65535])


def test_slices_with_any_brain_are_stored_and_those_with_enough_are_for_training(subjects):
    prepared = prepare_subject(subjects[0], SETTINGS)
    assert prepared.native_shape == (10, 14, 10)
    assert prepared.slice_indices == (1, 2, 3, 4, 5, 6, 7)
    assert prepared.training == (3, 4, 5, 6)  # 8 z >= 32 voxels of the 14 x 14 square


def test_channels_are_the_framed_modalities_in_order(subjects):
    prepared = prepare_subject(subjects[0], SETTINGS)
    assert prepared.slices.shape == (7, 16, 16, 3)
    for channel, modality in enumerate(("t1", "t2", "t1c")):
        volume = read_volume(subjects[0].images[modality])
        framed = to_frame(measure(volume).apply(volume), 16)[1:8]
        stored = prepared.slices[..., channel] / FULL_SCALE
        np.testing.assert_allclose(stored, np.clip(framed, 0, 1), atol=1e-5)
        assert prepared.intensities[modality] == measure(volume)


def test_brain_is_looked_for_in_the_sources_only(tmp_path):
    subject = write_subject(tmp_path, "one")
    image = nib.load(subject.images["t1c"])
    values = image.get_fdata(dtype=np.float32)
    values[5, 5, 9] = 500
    nib.save(nib.Nifti1Image(values, LPS), subject.images["t1c"])
    assert prepare_subject(subject, SETTINGS).slice_indices == (1, 2, 3, 4, 5, 6, 7)


def test_a_subject_without_targets_is_prepared_from_its_sources(tmp_path):
    with_targets = prepare_subject(write_subject(tmp_path / "a", "one"), SETTINGS)
    without = prepare_subject(write_subject(tmp_path / "b", "one", ("t1", "t2")), SETTINGS)
    assert without.targets == () and set(without.intensities) == {"t1", "t2"}
    np.testing.assert_array_equal(without.slices, with_targets.slices[..., :2])


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UserError, match="one has no t2"):
        prepare([write_subject(tmp_path, "one", ("t1", "t1c"))], SETTINGS, tmp_path / "cache")


@pytest.mark.parametrize("sources, targets", [((), ("t1",)), (("t1", "t2"), ("t2",))])
def test_settings_that_leak_or_lack_modalities_are_refused(sources, targets):
    with pytest.raises(UserError, match="sources"):
        PrepareSettings(sources=sources, targets=targets, size=8, minimum_brain=0.0)


def test_the_cache_gives_what_preparing_in_memory_gives(subjects, tmp_path):
    for _ in range(2):  # Built, then found.
        for subject, cached in zip(
            subjects, prepare(subjects, SETTINGS, tmp_path / "cache"), strict=True
        ):
            fresh = prepare_subject(subject, SETTINGS)
            for field in dataclasses.fields(fresh):
                np.testing.assert_equal(getattr(cached, field.name), getattr(fresh, field.name))


def test_a_second_call_and_a_new_subject_rebuild_nothing(subjects, tmp_path):
    folder = tmp_path / "cache"
    prepare(subjects, SETTINGS, folder)
    before = written(folder)
    prepare([write_subject(tmp_path / "data", "four"), *subjects], SETTINGS, folder)
    after = written(folder)
    assert before.items() < after.items() and len(after) == len(before) + 2


def test_a_moved_data_set_rebuilds_nothing(subjects, tmp_path):
    folder = tmp_path / "cache"
    prepare(subjects, SETTINGS, folder)
    before = written(folder)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    moved = [
        dataclasses.replace(
            subject,
            images={
                name: tmp_path / "elsewhere" / path.relative_to(tmp_path / "data")
                for name, path in subject.images.items()
            },
        )
        for subject in subjects
    ]
    prepare(moved, SETTINGS, folder)
    assert written(folder) == before


@pytest.mark.parametrize(
    "changes",
    [{"size": 20}, {"minimum_brain": 0.1}, {"targets": ()}, {"sources": ("t2", "t1")}],
)
def test_each_setting_has_its_own_cache(subjects, tmp_path, changes):
    folder = tmp_path / "cache"
    prepare(subjects[:1], SETTINGS, folder)
    prepare(subjects[:1], dataclasses.replace(SETTINGS, **changes), folder)
    assert len(written(folder)) == 4


def test_a_changed_file_rebuilds_its_subject_only(subjects, tmp_path):
    folder = tmp_path / "cache"
    prepare(subjects, SETTINGS, folder)
    before = written(folder)
    os.utime(subjects[1].images["t2"], ns=(1, 1))
    prepare(subjects, SETTINGS, folder)
    new = set(written(folder)) - set(before)
    assert len(new) == 2 and all(name.startswith("two-") for name in new)


def test_a_segmentation_or_a_new_patient_name_rebuilds_nothing(subjects, tmp_path):
    folder = tmp_path / "cache"
    prepare(subjects[:1], SETTINGS, folder)
    before = written(folder)
    renamed = dataclasses.replace(
        subjects[0], patient_id="renamed", segmentation=tmp_path / "segmentation.nii.gz"
    )
    assert prepare([renamed], SETTINGS, folder)[0].patient_id == "renamed"
    assert written(folder) == before


def test_an_interrupted_build_goes_on_where_it_was(subjects, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "cache"
    prepare(subjects, SETTINGS, whole)
    one, two = prepare(subjects[:2], SETTINGS, folder)
    two.path.with_suffix(".json").unlink()  # Killed between the two files ...
    (folder / f"{two.path.name}.0.partial").write_bytes(b"half")  # ... or within one.
    untouched = one.path.stat().st_mtime_ns
    prepare(subjects, SETTINGS, folder)
    assert one.path.stat().st_mtime_ns == untouched
    assert contents(whole).items() <= contents(folder).items()


def test_slices_that_were_cut_short_are_made_again(subjects, tmp_path):
    folder = tmp_path / "cache"
    path = prepare(subjects, SETTINGS, folder)[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    prepare(subjects, SETTINGS, folder)
    assert path.read_bytes() == whole


def test_a_failed_write_leaves_nothing_behind(subjects, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        prepare(subjects, SETTINGS, tmp_path / "cache")
    assert written(tmp_path / "cache") == {}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_file_of_bad_voxels_is_named_after_the_others_are_done(subjects, tmp_path, num_workers):
    folder = tmp_path / "cache"
    path = subjects[0].images["t2"]
    values = nib.load(path).get_fdata(dtype=np.float32)
    values[4, 6, 5] = np.inf
    nib.save(nib.Nifti1Image(values, LPS), path)
    with pytest.raises(UserError, match=r"1 of 3 subjects .*one_t2\.nii\.gz"):
        prepare(subjects, SETTINGS, folder, num_workers=num_workers)
    assert len(written(folder)) == 4
    assert len(prepare(subjects[1:], SETTINGS, folder)) == 2


@pytest.mark.parametrize("kept", [200, 0.9], ids=["no header", "no end"])
def test_a_truncated_file_is_refused_before_anything_is_done(subjects, tmp_path, kept):
    path = subjects[2].images["t2"]
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(
        UserError, match=r"^1 of 3 subjects .* nothing was done: three: t2: .*doctor"
    ):
        prepare(subjects, SETTINGS, tmp_path / "cache")
    assert written(tmp_path / "cache") == {}
    path.write_bytes(content)
    assert len(prepare(subjects, SETTINGS, tmp_path / "cache")) == 3


def test_processes_write_the_same_bytes_as_one(subjects, tmp_path):
    alone = prepare(subjects, SETTINGS, tmp_path / "alone")
    together = prepare(subjects, SETTINGS, tmp_path / "together", num_workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")
    assert (
        [s.subject_id for s in together]
        == [s.subject_id for s in alone]
        == [
            "one",
            "two",
            "three",
        ]
    )


def test_the_reference_scale_is_the_median_over_those_who_have_the_modality(tmp_path):
    scales = []
    for number, factor in enumerate((1, 3, 10)):
        subject = write_subject(tmp_path, "same")
        for path in subject.images.values():
            values = nib.load(path).get_fdata(dtype=np.float32)
            nib.save(nib.Nifti1Image(values * factor, LPS), path)
        missing = {"t1c"} if number == 2 else set()
        images = {name: path for name, path in subject.images.items() if name not in missing}
        scales.append(prepare_subject(dataclasses.replace(subject, images=images), SETTINGS))
    reference, base = median_scales(scales), scales[0].intensities
    assert reference["t1"] == pytest.approx(3 * base["t1"].scale, rel=1e-5)
    assert reference["t1c"] == pytest.approx(2 * base["t1c"].scale, rel=1e-5)


@pytest.mark.parametrize("cohort", ["brats2021", "brats2023"])
def test_real_patients_are_prepared(real_data, cohort):
    settings = PrepareSettings(
        sources=("t1", "t2"), targets=("t1c", "t2f"), size=64, minimum_brain=0.05
    )
    modalities = settings.sources + settings.targets
    [subject] = find_subjects(real_data / cohort, modalities=modalities)
    prepared = prepare_subject(subject, settings)
    assert 100 < len(prepared.training) < len(prepared.slice_indices) < 155
    assert 0.05 < (prepared.slices > FULL_SCALE // 20).mean() < 0.6
    assert prepared.slices.max() == FULL_SCALE
    assert np.median(prepared.slices[:, 0]) == 0  # The first rows are background.
