"""What corrects whole volumes: its file and its use."""

import json
import random

import numpy as np

from cdm_jax.data.correction import FILE, Correction, read_correction, save_correction
from cdm_jax.data.ends import Ends
from cdm_jax.data.volume_scale import Curve
from cdm_jax.errors import UserError
from tests.stress import mutations

CURVE = Curve(offsets=[0.1], powers=[0.0], lowest=0.5, highest=0.9, scans=9)
# Of one source there are nine known values. Softplus of what the network gives is 1 and 2.
ENDS = Ends(
    layers=[{"kernel": [[0.0, 0.0]] * 9, "bias": np.log(np.expm1([1, 2])).tolist()}],
    lowest=[0.0] * 9,
    highest=[1.0] * 9,
    scans=9,
)


def test_a_correction_is_read_for_the_model_that_it_was_fitted_to_alone(tmp_path):
    assert read_correction(tmp_path, "abc") is None
    for found in (Correction(), Correction(curves={"t2f": CURVE}, ends={"t1c": ENDS})):
        save_correction(tmp_path, found, "abc")
        assert read_correction(tmp_path, "abc") == found
        assert read_correction(tmp_path, "another") is None


def test_no_changed_value_is_read_as_a_correction(tmp_path):
    found, path, refused = Correction(curves={"t2f": CURVE}, ends={"t1c": ENDS}), tmp_path / FILE, 0
    for seed in range(300):
        save_correction(tmp_path, found, "abc")
        written = json.loads(path.read_text())
        mutations.damage_json(random.Random(seed), path)
        try:
            assert read_correction(tmp_path, "abc") == found
            assert json.loads(path.read_text()) == written
        except UserError as error:
            assert "volume_scale.json is damaged" in str(error)
            refused += 1
    assert refused > 250


def test_ends_are_predicted_of_the_corrected_mean():
    stored = np.zeros((2, 6, 6, 1), np.uint16)
    stored[:, 1:5, 1:5] = 30_000
    brain = stored[..., 0] > 0
    mean = np.where(brain, 0.5, 0.0)[..., None].astype(np.float32)
    volumes = {"mean": mean, "lower": 0.9 * mean, "upper": 1.1 * mean}
    both = Correction(curves={"t1c": CURVE}, ends={"t1c": ENDS})
    found = both.apply(volumes, stored, ("t1c",))
    expected = 0.5 * np.exp(0.1)
    for name, value in (("mean", expected), ("lower", expected - 0.1), ("upper", expected + 0.2)):
        np.testing.assert_allclose(found[name][brain], value, rtol=1e-6)
        assert not found[name][~brain].any()
    np.testing.assert_array_equal(volumes["lower"], 0.9 * mean)
    alone = both.apply({"mean": mean}, stored, ("t1c",))
    np.testing.assert_array_equal(alone["mean"], found["mean"])
    assert both.apply(volumes, stored, ("t1",)) == volumes
    empty = np.zeros_like(stored)
    assert both.apply(volumes, empty, ("t1c",)) == volumes
    assert not Correction()
    assert both
