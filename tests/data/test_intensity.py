import logging

import numpy as np
import pytest

from cdm_jax.data.intensity import Intensity, brain_mask, measure
from cdm_jax.errors import UserError


def head(brain: np.ndarray, background: float = 0.0) -> np.ndarray:
    """A box of brain voxels with two voxels of background around it."""
    return np.pad(brain.astype(np.float32), 2, constant_values=background)


RAMP = np.arange(1.0, 1001.0).reshape(10, 10, 10)  # Its 99.5th percentile is 995.005.


def test_the_scale_is_the_percentile_of_the_brain_without_its_background():
    intensity = measure(head(RAMP))
    assert intensity.offset == 0
    assert intensity.scale == pytest.approx(995.005, rel=1e-6)


def test_apply_is_linear_up_to_the_scale_and_clips_outside():
    values = np.array([-5.0, 0.0, 50.0, 200.0, 300.0], np.float32)
    scaled = Intensity(offset=0.0, scale=200.0).apply(values)
    np.testing.assert_allclose(scaled, [0, 0, 0.25, 1, 1])
    assert scaled.dtype == np.float32


def test_undo_reverses_apply_within_the_range():
    intensity = Intensity(offset=-1.0, scale=1.75)
    values = np.linspace(-1, 0.75, 50, dtype=np.float32)
    np.testing.assert_allclose(intensity.undo(intensity.apply(values)), values, atol=1e-6)


def test_the_scale_does_not_depend_on_how_much_background_there_is():
    padded = np.pad(head(RAMP), 5)
    assert measure(padded) == measure(head(RAMP))


def test_scaling_the_file_scales_the_scale_and_leaves_the_result():
    once, thrice = head(RAMP), head(3 * RAMP)
    assert measure(thrice).scale == pytest.approx(3 * measure(once).scale)
    np.testing.assert_allclose(measure(thrice).apply(thrice), measure(once).apply(once), rtol=1e-5)


def test_a_file_scaled_to_minus_one_to_one_is_shifted_and_reported(caplog):
    scaled = head(RAMP / 500 - 1, background=-1.0)
    with caplog.at_level(logging.WARNING):
        intensity = measure(scaled, "patient t1")
    assert intensity.offset == -1
    assert intensity.scale == pytest.approx(995.005 / 500, rel=1e-5)
    assert "patient t1" in caplog.text and "-1" in caplog.text
    np.testing.assert_allclose(
        intensity.apply(scaled), measure(head(RAMP)).apply(head(RAMP)), atol=1e-6
    )


def test_a_few_negative_voxels_are_brain_and_become_zero(caplog):
    brain = RAMP.copy()
    brain[0, 0, :4] = -7
    volume = head(brain)
    with caplog.at_level(logging.INFO):
        intensity = measure(volume, "patient t2")
    assert intensity.offset == 0
    assert intensity.apply(volume).min() == 0
    assert "patient t2: 4 voxels" in caplog.text
    assert brain_mask({"t2": volume}).sum() == 1000


@pytest.mark.parametrize("value", [0.0, -1.0, 40.0])
def test_an_empty_volume_is_named_in_the_error(value):
    with pytest.raises(UserError, match=r"patient_t1\.nii"):
        measure(np.full((4, 5, 6), value, np.float32), "patient_t1.nii")


def test_a_brain_darker_than_its_background_is_refused():
    with pytest.raises(UserError, match="brighter"):
        measure(head(-RAMP))


def test_the_mask_is_the_union_of_the_modalities():
    first, second = np.zeros((2, 3, 10, 10), np.float32)
    first[1, 4, 4], second[1, 5, 5], second[2, 4, 4] = 3, -2, 8
    mask = brain_mask({"t1": first, "t2": second})
    assert {tuple(voxel) for voxel in np.argwhere(mask)} == {(1, 4, 4), (1, 5, 5), (2, 4, 4)}


def test_each_modality_of_the_mask_has_its_own_background():
    brain = RAMP[:4, :4, :4] / 500 - 1
    mask = brain_mask({"t1": head(brain, -1.0), "t2": head(RAMP[:4, :4, :4])})
    assert mask.sum() == 64


def test_without_a_common_border_value_the_background_is_zero():
    volume = np.random.default_rng(0).integers(1, 10, (6, 8, 8)).astype(np.float32)
    assert measure(volume).offset == 0
    assert brain_mask({"t1": volume}).all()
