"""The report as a reader meets it: sliders, tables, keyboard, labels, narrow screens."""

import io

import numpy as np
import PIL.Image
import pytest

from tests.report import samples

PAGES = ("index.html", "patients/P0-000.html", "patients/P1-000.html")
WIDTHS = (390, 1280)

# Names of what can be operated or looked at and has no name for a screen reader.
NAMELESS = """() => [...document.querySelectorAll(
    "a, button, input, select, summary, canvas, img, table, section, nav, [role=img], [role=region]"
  )]
  .filter((element) => {
    const labeled = (element.getAttribute("aria-labelledby") || "").split(" ")
      .map((id) => document.getElementById(id)?.textContent).join("");
    const words = [element.getAttribute("aria-label"), labeled, element.alt,
      ...[...(element.labels || [])].map((label) => label.textContent),
      element.caption?.textContent,
      element.matches("a, button, summary") ? element.textContent : ""];
    return !words.some((text) => text && text.trim());
  }).map((element) => element.outerHTML.slice(0, 200))"""

# Smallest contrast of text with what lies behind it (WCAG 2, relative luminance).
CONTRAST = """() => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  let least = [21, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.matches("script, style, noscript, option")) continue;
    const [one, other] = [parse(getComputedStyle(element).color).slice(0, 3), behind(element)]
      .map(luminance);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 200)];
  }
  return least;
}"""


def pixels(locator):
    """Colors of an element, without its edge, which the page shines through."""
    image = PIL.Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return np.asarray(image).astype(int)[3:-3, 3:-3]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_opens_from_disk_without_a_complaint_and_fits(open_page, name, width):
    page = open_page(name, width=width)
    assert page.heard == []
    assert {url.partition(":")[0] for url in page.asked} <= {"file", "data"}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_run_opens_from_disk_and_fits(open_page, published, width):
    (patient,) = (path.name for path in (published / "images" / "m1").iterdir())
    for name in ("index.html", f"patients/{patient}.html"):
        page = open_page(name, root=published.as_uri(), width=width)
        assert page.heard == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(CONTRAST)[0] >= 4.5
    assert pixels(page.locator(".slice").nth(2)).max() > 100


def test_a_page_opens_from_a_server_and_asks_nobody_else(open_page, served):
    page = open_page("index.html", root=served)
    assert page.heard == []
    assert all(url.startswith((served, "data:")) for url in page.asked)


@pytest.mark.parametrize("name", PAGES)
def test_everything_has_a_name_and_text_stands_out(open_page, name):
    page = open_page(name)
    assert page.evaluate(NAMELESS) == []
    ratio, element = page.evaluate(CONTRAST)
    assert ratio >= 4.5, element


def test_the_slider_moves_through_the_slices_by_keyboard(open_page):
    page = open_page("patients/P0-000.html")
    truth = page.locator(".slice").nth(2)
    slider = page.get_by_label("Axial slice")
    assert pixels(truth).max() > 240  # it opens on the bright spot
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert pixels(truth).max() < 160
    count = int(samples.brain().any(axis=(1, 2)).sum())
    place = int(slider.input_value()) + 1
    assert slider.get_attribute("aria-valuetext").startswith(f"slice {place} of {count}")
    assert page.locator(".gallery output").text_content() == f"{place} of {count}"
    assert truth.get_attribute("aria-label") == f"Truth: t1c, P0-000, slice {place} of {count}"
    page.keyboard.press("ArrowLeft")
    assert pixels(truth).max() > 240


def test_error_and_uncertainty_lie_over_the_syntheses_alone(open_page):
    page = open_page("patients/P0-000.html")
    truth, cunet, m1 = (page.locator(".slice").nth(place) for place in (2, 3, 4))
    before = [pixels(panel) for panel in (truth, cunet, m1)]
    page.get_by_label("error").check()
    spot = pixels(cunet)
    assert (spot[..., 2] - spot[..., 0]).max() > 80  # blue: the bright spot is missing
    assert (pixels(truth) == before[0]).all()
    page.get_by_label("uncertainty").check()
    colors = pixels(cunet)
    assert (colors[..., 0] - colors[..., 2]).max() > 40  # yellow
    assert (pixels(m1) == before[2]).all()
    assert page.get_by_text("one image only").first.is_visible()


def test_the_table_of_patients_sorts_by_keyboard_and_says_so(open_page):
    page = open_page("index.html")
    table = page.locator("#patients-table")
    button = table.get_by_role("button", name="T1c PSNR")
    column = table.locator("tbody td:nth-child(2)")

    def values():
        return [float(text) for text in column.all_text_contents()]

    button.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    heading = table.locator("thead th").nth(1)
    assert heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert values() == sorted(values(), reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    assert "by T1c PSNR, descending" in page.locator("#patients-state").text_content()


def test_the_table_of_patients_shows_another_row_and_region(open_page):
    page = open_page("index.html")
    page.get_by_label("Row").select_option("m1")
    page.get_by_label("Measured by").select_option("volume, enhancing tumor")
    line = page.locator("#patients-table tbody tr", has_text="P2-000")
    assert line.locator("td").all_text_contents()[:3] == ["8.00", "0.400", "0.2800"]


def test_all_controls_are_reached_by_tab_and_seen(open_page):
    page = open_page("index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    seen = set()
    while True:
        page.keyboard.press("Tab")
        reached = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        if reached == "BODY":
            break
        seen.add(reached)
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(style) != "none", reached
    assert {"slice-P0-000", "slice-P3-000", "row", "place", "BUTTON", "A"} <= seen


def test_without_scripts_the_numbers_are_there(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{report.as_uri()}/index.html")
    assert page.locator("#patients-table tbody tr").count() == 5
    assert "cunet/mean_of_4" in page.locator("#summary").inner_text()
    context.close()
