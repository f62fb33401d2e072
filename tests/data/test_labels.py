"""Segmentations as a channel of prepared slices."""

import dataclasses
import functools

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data import cohort
from cdm_jax.data.cache import cache_path
from cdm_jax.data.labels import REGIONS, depth_to_frame, read_segmentation, tumor_depth
from cdm_jax.data.pipeline import SliceSource, plain_plans
from cdm_jax.data.prepare import FULL_SCALE, PrepareSettings, prepare_subject
from cdm_jax.errors import UserError
from cdm_jax.methods import segmenter
from tests.data.test_prepare import LPS, write_subject

PLAIN = PrepareSettings(sources=("t1", "t2"), targets=(), size=14, minimum_brain=0.01)
LABELED = dataclasses.replace(PLAIN, targets=("segmentation",))
prepare = functools.partial(cohort.prepare, num_workers=1)


def labels(enhancing=3):
    """Edema around a core around enhancing tumor, in the brain of `write_subject`."""
    volume = np.zeros((10, 14, 10), np.int16)
    volume[4:8, 4:10, 2:6] = 2
    volume[4:8, 5:9, 3:6] = 1
    volume[5:7, 6:8, 4:6] = enhancing
    return volume


def write_labeled(folder, name, volume):
    path = folder / name / f"{name}_seg.nii.gz"
    subject = write_subject(folder, name, ("t1", "t2"), segmentation=path)
    nib.save(nib.Nifti1Image(volume.T, LPS), path)
    return subject


def test_the_method_has_the_same_regions_in_the_same_order():
    assert segmenter.REGIONS == REGIONS


@pytest.mark.parametrize("enhancing", [3, 4])
def test_depth_counts_the_regions_of_either_convention(enhancing):
    volume = labels(enhancing)
    depth = tumor_depth(volume) * len(REGIONS)
    for label, regions in ((0, 0), (2, 1), (1, 2), (enhancing, 3)):
        assert np.array_equal(depth == regions, volume == label)


def test_unknown_labels_are_refused():
    with pytest.raises(UserError, match="labels 0, 5"):
        tumor_depth(np.full((1, 1, 2), 5, np.int16) * np.arange(2, dtype=np.int16))


def test_a_frame_of_the_same_size_keeps_the_depth():
    depth = tumor_depth(labels())
    framed = depth_to_frame(depth, 14)
    assert np.array_equal(framed[:, :, 2:-2], depth)
    assert not framed[:, :, :2].any()


def test_a_smaller_frame_keeps_regions_nested_and_as_large():
    rng = np.random.default_rng(0)
    depth = np.zeros((1, 64, 64), np.float32)
    for level, half in enumerate((20, 12, 6), 1):
        depth[:, 30 - half : 30 + half, 34 - half : 34 + half] = level / 3
    framed = depth_to_frame(depth, 32)
    assert set(np.unique(np.rint(framed * 3))) == {0, 1, 2, 3}
    for level in (0, 1, 2):
        pixels = [(np.rint(3 * image) > level).sum() for image in (depth, framed)]
        assert pixels[1] == pytest.approx(pixels[0] / 4, rel=0.05)
    ragged = rng.integers(0, 4, (2, 40, 40)) / 3
    assert set(np.unique(np.rint(depth_to_frame(ragged.astype(np.float32), 24) * 3))) <= set(
        range(4)
    )


def test_the_segmentation_is_the_last_channel(tmp_path):
    subject = write_labeled(tmp_path / "data", "one", labels())
    (prepared,) = prepare([subject], LABELED, tmp_path / "cache")
    assert prepared.targets == ("segmentation",)
    assert set(prepared.intensities) == {"t1", "t2"}
    stored = prepared.slices[..., -1].astype(float) * len(REGIONS) / FULL_SCALE
    kept = list(prepared.slice_indices)
    assert np.array_equal(stored[:, :, 2:-2], np.rint(tumor_depth(labels())[kept] * 3))
    batch = SliceSource([prepared]).read(plain_plans(np.arange(2)))
    assert batch["images"].shape == (2, 14, 14, 3)


def test_other_caches_know_nothing_of_it(tmp_path):
    """The same file, of the same content, whether or not there is a segmentation."""
    bare = write_subject(tmp_path / "data", "one", ("t1", "t2"))
    labeled = write_labeled(tmp_path / "data", "one", labels())
    assert cache_path(bare, PLAIN, tmp_path) == cache_path(labeled, PLAIN, tmp_path)
    assert cache_path(labeled, LABELED, tmp_path) != cache_path(labeled, PLAIN, tmp_path)
    one, other = (prepare_subject(labeled, settings).slices for settings in (PLAIN, LABELED))
    assert np.array_equal(one, other[..., :2])


def test_a_subject_without_one_cannot_be_trained_on(tmp_path):
    subject = write_subject(tmp_path / "data", "one", ("t1", "t2"))
    (prepared,) = prepare([subject], LABELED, tmp_path / "cache")
    assert prepared.targets == ()
    with pytest.raises(UserError, match="every subject to train on needs all the targets"):
        SliceSource([prepared])
    with pytest.raises(UserError, match="one has no segmentation"):
        read_segmentation(subject)
