"""The page and its picture: whole, safe against names that look like HTML, of the right place."""

import base64
import html.parser

import matplotlib.image
import numpy as np
import pytest

from cdm_jax.report.overview import Panel, save_overview, slices_to_show
from cdm_jax.report.page import Picture, save_page
from cdm_jax.report.tables import results_table
from tests.report.test_tables import cohort

VOID = {"meta", "img"}


class Reader(html.parser.HTMLParser):
    """Reads a page: its texts, its images, and whether every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.texts, self.images, self.links, self._open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def close(self):
        super().close()
        assert not self._open


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "patient.png"
    matplotlib.image.imsave(path, np.random.default_rng(0).random((4, 6)), format="png")
    return Picture(path=path, caption='<script>alert("x")</script> & others')


@pytest.fixture
def page(tmp_path, picture):
    table = results_table(cohort({"cunet": 24.0, "m1": 23.0}), "volume", reference="m1")
    path = tmp_path / "folder" / "index.html"
    save_page(path, title="A < B", notice="Not for use", pictures=[picture], tables=[("T", table)])
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def test_names_are_shown_as_they_are_and_never_run(page, picture):
    assert picture.caption in page.texts
    assert page.texts.count("A < B") == 2  # heading and title
    assert [image["alt"] for image in page.images] == [picture.caption]


def test_pictures_are_within_the_page_to_the_byte(page, picture):
    (source,) = page.links
    data = source.removeprefix("data:image/png;base64,")
    assert base64.b64decode(data) == picture.path.read_bytes()


def test_every_system_and_its_numbers_are_in_the_table(page):
    for row, psnr in (("cunet", 24.0), ("m1", 23.0)):
        place = page.texts.index(row)
        offset = np.random.default_rng(0).normal(size=8).mean()
        assert page.texts[place + 1].startswith(f"{psnr + offset:.2f}")


def _brain():
    brain = np.zeros((20, 12, 10), bool)
    brain[5:16, 2:10, 3:8] = True
    return brain


def test_the_slices_shown_lie_within_the_brain_and_rise():
    assert slices_to_show(_brain(), 5) == [7, 8, 10, 12, 13]


def test_the_picture_has_a_column_a_panel_and_shows_its_values(tmp_path):
    brain = _brain()
    panels = [Panel("dark", np.zeros(brain.shape)), Panel("bright", np.ones(brain.shape))]
    save_overview(tmp_path / "new" / "p.png", panels, brain)
    image = matplotlib.image.imread(tmp_path / "new" / "p.png")[..., :3].mean(axis=-1)
    left, right = np.array_split(image[image.shape[0] // 4 :], 2, axis=1)
    assert left.max() < 0.05
    assert (right > 0.95).mean() > 0.5
    assert not list(tmp_path.glob("**/*.partial"))
