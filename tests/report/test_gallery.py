"""Sprites: the right slices in the right colors."""

import io

import numpy as np
import PIL.Image
import pytest

from cdm_jax.report import gallery
from cdm_jax.report.site import Site
from tests.report import samples


def pixels(path):
    return np.asarray(PIL.Image.open(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return folder, gallery.save_gallery(Site(folder), samples.case("P0-000"))


def test_rows_are_inputs_truth_and_systems_of_each_target(saved):
    titles = {target: [panel.title for panel in row] for target, row in saved[1].rows.items()}
    for target in ("t1c", "t2f"):
        made = [f"Truth: {target}", f"Synthesis: {target} by cunet", f"Synthesis: {target} by m1"]
        assert titles[target] == ["Input: t1", "Input: t2", *made]


def test_a_sprite_holds_every_slice_with_brain_and_starts_at_the_focus(saved):
    folder, shown = saved
    filled = np.flatnonzero(samples.brain().any(axis=(1, 2))).tolist()
    assert shown.slices == filled
    assert filled[shown.start] == samples.FOCUS[0]
    truth = pixels(folder / shown.rows["t1c"][2].sprite)
    height = truth.shape[0] // len(filled)
    bright = np.argwhere(truth == 255)
    assert (bright[:, 0] // height).tolist() == [shown.start]
    assert shown.aspect == pytest.approx(truth.shape[1] / height)


def test_the_window_is_the_brain_with_a_margin_within_the_volume():
    brain = np.zeros((4, 30, 40), bool)
    brain[1:3, 10:20, 0:5] = True
    z, y, x = gallery._window(brain)
    assert z.tolist() == [1, 2]
    assert (y, x) == (slice(8, 22, 1), slice(0, 7, 1))


def test_a_large_volume_is_thinned():
    z, y, _ = gallery._window(np.ones((155, 600, 100), bool))
    assert len(z) == gallery.MOST_SLICES
    assert (z[0], z[-1]) == (0, 154)
    assert len(range(*y.indices(600))) <= gallery.MOST_PIXELS


def test_errors_are_blue_where_too_dark_and_orange_where_too_bright():
    limit = gallery.ERROR_LIMIT
    error = np.array([-2 * limit, -limit / 2, 0.0, limit, limit], np.float32)[None, None]
    brain = np.array([True, True, True, True, False])[None, None]
    colors = gallery.error_colors(error, brain)[0, 0]
    assert colors[:, 3].tolist() == [255, 128, 0, 255, 0]
    assert (colors[:2, :3] == gallery.TOO_DARK).all()
    assert (colors[3, :3] == gallery.TOO_BRIGHT).all()


def test_a_spot_that_no_system_shows_is_blue_in_the_error_sprite(saved):
    folder, shown = saved
    colors = pixels(folder / shown.rows["t1c"][3].overlays["error"])
    opaque = colors[colors[..., 3] > 0]
    assert opaque.tolist() == [[*gallery.TOO_DARK, 255]]


def test_only_systems_with_samples_have_a_deviation(saved):
    folder, shown = saved
    *others, cunet, m1 = shown.rows["t1c"]
    assert [set(panel.overlays) for panel in others] == [set()] * 3
    assert set(m1.overlays) == {"error"}
    colors = pixels(folder / cunet.overlays["deviation"])
    height = colors.shape[0] // len(shown.slices)
    middle = colors[height * 5 + height // 2, colors.shape[1] // 2]
    assert middle.tolist() == [*gallery.DEVIATION, 128]  # 0.05 of a limit of 0.1


def test_only_calibrated_systems_have_an_interval(saved):
    folder, shown = saved
    assert shown.has_intervals
    *others, cunet, m1 = shown.rows["t1c"]
    assert not any("interval" in panel.overlays for panel in (*others, m1))
    colors = pixels(folder / cunet.overlays["interval"])
    height = colors.shape[0] // len(shown.slices)
    middle = colors[height * 5 + height // 2, colors.shape[1] // 2]
    assert middle.tolist() == [*gallery.INTERVAL, 128]  # 0.25 of a limit of 0.5
    outside = colors[:height][
        ~samples.brain()[shown.slices[0]][gallery._window(samples.brain())[1:]]
    ]
    assert not outside[:, 3].any()
    none = gallery.save_gallery(Site(folder / "none"), samples.case("P0-000", calibrated=()))
    assert not none.has_intervals


def test_a_png_is_the_slices_below_one_another():
    slices = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(pixels(io.BytesIO(gallery.sprite(slices))), slices.reshape(6, 4))
