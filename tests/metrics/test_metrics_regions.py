import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.metrics.regions import bounding_box, region_masks


def labeled(*labels):
    return np.array(labels, dtype=np.float32).reshape(1, 1, -1)


@pytest.mark.parametrize("enhancing", [3, 4])
def test_regions_hold_the_labels_that_brats_defines(enhancing):
    segmentation = labeled(0, 1, 2, enhancing)
    masks = region_masks(segmentation, np.ones((1, 1, 4), bool))
    found = {name: mask.ravel().tolist() for name, mask in masks.items()}
    assert found == {
        "brain": [True, True, True, True],
        "healthy": [True, False, False, False],
        "whole_tumor": [False, True, True, True],
        "tumor_core": [False, True, False, True],
        "enhancing_tumor": [False, False, False, True],
    }


def test_no_region_reaches_outside_the_brain():
    rng = np.random.default_rng(0)
    brain = rng.random((5, 6, 7)) < 0.5
    masks = region_masks(rng.integers(0, 4, (5, 6, 7)), brain)
    assert not any((mask & ~brain).any() for mask in masks.values())
    np.testing.assert_array_equal(masks["healthy"] ^ masks["whole_tumor"], brain)


def test_without_a_segmentation_there_is_only_the_brain():
    assert list(region_masks(None, np.ones((2, 2, 2), bool))) == ["brain"]


def test_an_absent_region_is_an_empty_mask():
    masks = region_masks(labeled(0, 2), np.ones((1, 1, 2), bool))
    assert not masks["tumor_core"].any()
    assert masks["whole_tumor"].any()


@pytest.mark.parametrize("labels", [(0, 5), (0, 0.5), (0, 1, 3, 4), (-1, 0)])
def test_labels_of_unknown_meaning_are_refused(labels):
    with pytest.raises(UserError, match="relabel"):
        region_masks(labeled(*labels), np.ones((1, 1, len(labels)), bool))


def test_a_bounding_box_is_tight_then_widened_within_the_frame():
    mask = np.zeros((10, 20, 30), bool)
    mask[4, 1:3, 25:30] = True
    assert bounding_box(mask, margin=0) == (slice(4, 5), slice(1, 3), slice(25, 30))
    shape = mask[bounding_box(mask, margin=2)].shape
    assert shape == (5, 5, 7)
