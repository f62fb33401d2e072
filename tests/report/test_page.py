"""The report's files: whole, linked, safe against names that look like HTML, nothing from afar."""

import html.parser
import re

import pytest

from cdm_jax.errors import UserError
from cdm_jax.report import page, viewer
from tests.report import samples

VOID = {"meta", "img", "input", "link", "br"}


class Reader(html.parser.HTMLParser):
    """Reads a page: its texts, its links, and whether every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.texts, self.links, self.ids, self.pictures = [], [], [], []
        self._open = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.links += re.findall(r"url\('([^']*)'\)", values.get("style") or "")
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img" or values.get("role") == "img":
            self.pictures.append(values)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def close(self):
        super().close()
        assert not self._open


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.save(tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def pages(folder):
    return {path: read(path) for path in folder.rglob("*.html")}


def test_there_is_a_page_for_every_patient_and_a_viewer_for_those_shown(folder, pages):
    names = {str(path.relative_to(folder)) for path in pages}
    assert names >= {"index.html", *(f"patients/P{n}-000.html" for n in range(5))}
    viewers = {name for name in names if name.startswith("viewer/")}
    assert viewers in ({"viewer/P0-000.html", "viewer/P3-000.html"}, set())


def test_every_link_leads_to_a_file_or_a_place_of_the_folder(pages):
    for path, reader in pages.items():
        assert len(reader.ids) == len(set(reader.ids)), path
        for link in reader.links:
            file, _, place = link.partition("#")
            if link == "data:,":
                continue
            assert not file or (path.parent / file).resolve().is_file(), (path, link)
            assert not place or file or place in reader.ids, (path, link)


def test_every_picture_has_words_for_those_who_do_not_see_it(pages):
    for path, reader in pages.items():
        for picture in reader.pictures:
            words = [picture.get(name) for name in ("alt", "aria-label", "aria-labelledby")]
            assert any(words), path


def test_the_first_page_tells_what_was_done_and_what_not_to_do(folder, pages):
    texts = pages[folder / "index.html"].texts
    for text in ("A < B", "Not for clinical use.", "made up", "Two of five.", "cunet"):
        assert text in texts
    assert any("split cafe01" in text for text in texts)


def test_leaks_and_ceilings_are_no_results_and_not_in_the_headline_table(folder):
    text = (folder / "index.html").read_text()
    headline, tables = (text.partition('id="tables"')[n] for n in (0, 2))
    headline = headline.partition('id="images"')[0]
    assert "cunet/mean_of_4" in headline
    for row in ("cunet/oracle", "resampled_truth"):
        assert f">{row}</span>" not in headline
        assert re.search(rf'class="no-result"><span class="row-name">{row}<', tables)
    assert "LEAK, not a result" in tables


def test_numbers_of_a_patient_are_those_of_the_record(folder, pages):
    texts = [text for text in pages[folder / "patients" / "P2-000.html"].texts if text]
    expected = samples.records()[2]["rows"]["cunet/oracle"]["volume"]["t1c"]["psnr"]
    assert texts[texts.index("cunet/oracle") + 2] == f"{expected:.2f}"


def test_names_are_shown_as_they_are_and_never_run(tmp_path):
    bad = "<script>alert(1)</script>"
    samples.save(tmp_path, title=bad, selection=bad, subjects=())
    assert bad in read(tmp_path / "index.html").texts
    assert bad not in (tmp_path / "index.html").read_text()


def test_a_second_report_takes_the_place_of_the_first(tmp_path):
    samples.save(tmp_path)
    kept = tmp_path / "images" / "cunet" / "P0-000.nii.gz"
    kept.parent.mkdir(parents=True)
    kept.touch()
    samples.save(tmp_path, subjects=("P0-000",))
    assert kept.exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert (tmp_path / "sprites" / "P0-000" / "cunet-t1c.png").exists()
    assert not list((tmp_path / "sprites" / "P3-000").iterdir())
    assert not (tmp_path / "viewer" / "P3-000.html").exists()


def test_without_niivue_the_page_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "_package", lambda: None)
    samples.save(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "pip install ipyniivue" in text
    assert "viewer/" not in text
    assert not (tmp_path / "viewer").exists()
    assert (tmp_path / "sprites" / "P0-000").is_dir()


def test_records_that_cannot_be_compared_write_nothing(tmp_path):
    mixed = [*samples.records(), *samples.cohort({"x": 1.0}, split="other")]
    with pytest.raises(UserError, match="split differs"):
        samples.save(tmp_path, records=mixed)
    assert not list(tmp_path.iterdir())


def test_a_run_without_trained_systems_has_a_report_too(tmp_path):
    rows = samples.cohort({"copy": 12.0, "regression": 20.0}, targets=("ct",))
    samples.save(tmp_path, subjects=(), records=rows, reference=None)
    assert "regression" in read(tmp_path / "index.html").texts


def test_every_asset_is_package_data():
    for name in page.ASSETS:
        assert page.asset(name)
