"""The overview picture: of the right slices, with the values that it was given."""

import matplotlib.image
import numpy as np

from cdm_jax.report.overview import save_overview, slices_to_show


def _brain():
    brain = np.zeros((20, 12, 10), bool)
    brain[5:16, 2:10, 3:8] = True
    return brain


def test_the_slices_shown_lie_within_the_brain_and_rise():
    assert slices_to_show(_brain(), 5) == [7, 8, 10, 12, 13]


def test_the_picture_has_a_column_a_panel_and_shows_its_values(tmp_path):
    brain = _brain()
    panels = [("dark", np.zeros(brain.shape)), ("bright", np.ones(brain.shape))]
    save_overview(tmp_path / "new" / "p.png", panels, brain)
    image = matplotlib.image.imread(tmp_path / "new" / "p.png")[..., :3].mean(axis=-1)
    left, right = np.array_split(image[image.shape[0] // 4 :], 2, axis=1)
    assert left.max() < 0.05
    assert (right > 0.95).mean() > 0.5
    assert not list(tmp_path.glob("**/*.partial"))
