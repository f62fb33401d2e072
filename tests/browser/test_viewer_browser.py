"""NiiVue in the report: it draws, its views show one place, it is operated by keyboard."""

import importlib.util
import io

import numpy as np
import PIL.Image
import pytest

from tests.browser.test_report_browser import CONTRAST, NAMELESS
from tests.report import samples

STATUS = "document.getElementById('status').textContent"
VIEWS = ("input", "synthesis", "truth")
PLACES = "cdmViewers.map((v) => [...v.frac2vox(v.scene.crosshairPos)])"

pytestmark = [
    pytest.mark.slow,  # shaders are compiled and run by the CPU
    pytest.mark.skipif(
        importlib.util.find_spec("ipyniivue") is None,
        reason="no NiiVue here: pip install ipyniivue",
    ),
]


@pytest.fixture
def viewer(open_page):
    """Opens a viewer and waits until it has drawn."""

    def viewer(**where):
        page = open_page("viewer/P0-000.html", **where)
        page.wait_for_function(f"window.cdmViewers || {STATUS}.includes('cannot')")
        assert page.locator("#status").text_content() == ""
        return page

    return viewer


def colors(page, view):
    image = PIL.Image.open(io.BytesIO(page.locator(f"#{view}-canvas").screenshot()))
    return np.asarray(image.convert("RGB")).astype(int)


def gray(page, view):
    """Pixels that are neither black nor part of a colored crosshair."""
    image = colors(page, view)
    return (np.ptp(image, axis=-1) < 12) & (image.mean(axis=-1) > 40)


@pytest.mark.parametrize("width", [390, 1280])
def test_all_views_are_drawn_from_disk_without_a_complaint(viewer, width):
    page = viewer(width=width)
    for view in VIEWS:
        assert gray(page, view).mean() > 0.02, view
    assert page.heard == []
    assert {url.partition(":")[0] for url in page.asked} <= {"file", "data", "blob"}
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_drawn_from_a_server_that_alone_is_asked(viewer, served):
    page = viewer(root=served)
    assert gray(page, "truth").mean() > 0.02
    assert page.heard == []
    assert all(url.startswith((served, f"blob:{served}", "data:")) for url in page.asked)


def test_it_opens_at_the_focus_and_reads_the_values_there(viewer):
    page = viewer()
    z, y, x = samples.FOCUS
    _, rows, columns = samples.SHAPE
    focus = [columns - 1 - x, rows - 1 - y, z]
    assert page.evaluate(PLACES) == [focus] * 3
    text = page.locator("#values").text_content()
    assert text == "At the crosshair: input 0.50, synthesis 0.50, truth 1.00."


def test_a_slider_moves_the_crosshair_of_all_views(viewer):
    page = viewer()
    before = page.evaluate(PLACES)
    slider = page.get_by_label("Crosshair bottom to top")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    moved = [[x, y, z - 1] for x, y, z in before]
    assert page.evaluate(PLACES) == moved
    place = f"{moved[0][2] + 1} of {samples.SHAPE[0]}"
    assert slider.get_attribute("aria-valuetext").startswith(place)
    assert "truth 0.50" in page.locator("#values").text_content()


def test_a_click_into_one_view_moves_the_others(viewer):
    page = viewer()
    before = page.evaluate(PLACES)
    box = page.locator("#truth-canvas").bounding_box()
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.7 * box["height"])
    page.wait_for_function(f"JSON.stringify({PLACES}) !== '{before}'.replaceAll(' ', '')")
    places = page.evaluate(PLACES)
    assert places[0] == places[1] == places[2]
    shown = [int(page.locator(f"#cross-{axis}").input_value()) for axis in "xyz"]
    assert shown == places[0]


def test_choices_change_what_is_shown(viewer):
    page = viewer()
    page.get_by_label("Target").select_option("t2f")
    page.get_by_label("System").select_option("m1")
    page.wait_for_function(
        "document.getElementById('synthesis-title').textContent === 'Synthesis: t2f by m1'"
    )
    page.get_by_label("Over the synthesis").select_option("deviation")
    page.wait_for_function(f"{STATUS}.includes('one image only')")
    assert page.heard == []


def test_errors_are_drawn_over_the_synthesis_in_blue(viewer):
    page = viewer()

    def blue():
        image = colors(page, "synthesis")
        return int(((image[..., 2] - image[..., 0]) > 30).sum())

    assert blue() == 0
    page.get_by_label("View").select_option("axial")
    page.get_by_label("Crosshair left to right").press("PageUp")  # off the spot
    page.get_by_label("Over the synthesis").select_option("error")
    page.wait_for_function("cdmViewers[1].volumes.length === 2")
    for _ in range(40):
        if blue():
            break
        page.wait_for_timeout(250)
    assert blue() > 20


def test_everything_has_a_name_and_text_stands_out(viewer):
    page = viewer()
    assert page.evaluate(NAMELESS) == []
    ratio, element = page.evaluate(CONTRAST)
    assert ratio >= 4.5, element
    for view in VIEWS:
        canvas = page.locator(f"#{view}-canvas")
        canvas.focus()
        assert (
            page.evaluate("getComputedStyle(document.activeElement.parentElement).outlineStyle")
            == "solid"
        )


def test_a_missing_volume_is_said_and_not_hidden(open_page, report):
    volume = report / "volumes" / "P3-000" / "truth-t2f-image.js"
    page = open_page("viewer/P3-000.html")
    page.wait_for_function("window.cdmViewers")
    content = volume.read_bytes()
    volume.unlink()
    page.get_by_label("Target").select_option("t2f")
    page.wait_for_function(f"{STATUS}.includes('cannot')")
    assert "truth-t2f-image.js" in page.locator("#status").text_content()
    volume.write_bytes(content)
