"""README and docs/: links lead somewhere, what is named exists, tables are those of the records."""

import importlib.util
import json
import pathlib
import re
import sys

import pytest

from benchmarks import day_one, scaling
from cdm_jax.records import AVERAGE, WHOLE, per_patient
from configs import brats, phantom
from experiments import (
    enhancement,
    fine_tuning,
    neighbors,
    quantiles,
    real,
    seeds,
    segmenter,
    shipped,
    volume_scale,
)
from experiments.records import load_results
from experiments.study import Study
from experiments.uncertainty import values

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = [DOCS / "generated", DOCS / "reference/api", DOCS / "results"]  # by programs
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if not any(m in p.parents for m in MADE)),
]
TEXT = {path: path.read_text() for path in PAGES}
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """What GitHub and MyST call the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_resolves(page):
    text = without_code(TEXT[page])
    targets = LINK.findall(text) + re.findall(r"^```{include} (\S+)", TEXT[page], re.MULTILINE)
    for target in targets:
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() or DOCS / "generated" in file.parents, f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


def test_every_page_is_reached_from_the_index():
    listed = set()
    for page, text in TEXT.items():
        for tree in re.findall(r"```{toctree}\n(.*?)```", text, flags=re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert {p for p in PAGES if DOCS in p.parents} - listed == {DOCS / "index.md"}


def test_config_values_that_are_named_exist():
    configs = [brats.get_config("all"), phantom.get_config("all")]
    for page, text in TEXT.items():
        for key in re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)=", text):
            for part in (found := configs[1], *key.split("."))[1:]:
                assert part in found, f"{page}: --config.{key}"
                found = found[part]


def test_experiments_and_benchmarks_that_are_named_exist():
    modules = r"-m (experiments|benchmarks)\.(\w+)"
    named = {found for text in TEXT.values() for found in re.findall(modules, text)}
    assert {room for room, _ in named} == {"experiments", "benchmarks"}
    for room, name in named:
        assert (ROOT / room / f"{name}.py").exists(), name


def test_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "".join(TEXT.values()))
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_readme_is_short():
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 150


def table(text):
    """Name of a row to its cells, of all Markdown tables in a text; marks are left out."""
    rows = [
        re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line[:2] == "| "
    ]
    return {name: [cell.replace("†", "") for cell in cells] for name, *cells in rows}


def committed(path):
    """PSNR and SSIM of both targets in the convention `volume` of a committed table."""
    rows = table((ROOT / path).read_text().split("Convention paper", 1)[1])
    return {
        name: [cells[n] for n in (0, 1, 3, 4)] for name, cells in rows.items() if len(cells) > 4
    }


def test_the_readmes_results_are_those_of_the_committed_tables():
    results = TEXT[ROOT / "README.md"].split("## Results")[1].split("## Systems")[0]
    shown = {name: cells for name, cells in table(results).items() if "±" in cells[0]}
    known = committed("docs/results/phantom/table1.md") | committed(
        "docs/results/phantom/table3.md"
    )
    assert len(shown) == 15
    assert shown == {name: known[name] for name in shown}


def test_the_readmes_demo_is_that_of_the_committed_table():
    demo = TEXT[ROOT / "README.md"].split("## Demo")[1].split("## Your data")[0]
    rows = {name: cells for name, cells in table(demo).items() if "±" in cells[0]}
    shown = {re.match("`(.*?)`", name)[1]: cells for name, cells in rows.items()}
    known = committed("experiments/results/phantom/demo.md")
    assert len(shown) == 4
    assert shown == {name: known[name] for name in shown}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (seeds, "phantom/seeds.md"),
        (neighbors, "phantom/neighbors.md"),
        (real, "real_leave_one_out.md"),
        (scaling, "scaling.md"),
        (day_one, "day_one.md"),
    ],
    ids=["seeds", "neighbors", "real", "scaling", "day_one"],
)
def test_what_is_drawn_from_a_record_is_committed(module, name, tmp_path, monkeypatch):
    (tmp_path / "phantom").mkdir()
    monkeypatch.setattr(module, "DOCS", tmp_path)
    module.show()
    assert (tmp_path / name).read_text() == (DOCS / "results" / name).read_text()


@pytest.mark.parametrize(
    "module", [quantiles, enhancement, segmenter, volume_scale], ids=lambda m: m.NAME
)
def test_what_is_drawn_of_a_study_is_committed(module, tmp_path, monkeypatch):
    (tmp_path / "phantom").mkdir()
    monkeypatch.setattr("experiments.study.DOCS", tmp_path)
    module.show(Study(dataset="phantom", small=True, root="", workdir=tmp_path))
    name = f"phantom/{module.NAME}.md"
    assert (tmp_path / name).read_text() == (DOCS / "results" / name).read_text()


def test_what_is_said_of_predicted_intervals_is_that_of_the_record():
    patients = per_patient(load_results("phantom/quantiles")["records"], quantiles.CONVENTION)

    def mean(row, metric, region=WHOLE, target="t1c"):
        return values(patients, row, target, metric, region).mean()

    covered = [
        mean(f"cunet, {how}", "coverage", "enhancing_tumor")
        for how in (quantiles.STRATA, quantiles.KNOWN)
    ]
    told = "cover {:.0%}, and {:.0%} where".format(*covered).replace("%", " %")
    assert told in " ".join(TEXT[ROOT / "README.md"].split())
    results = " ".join(TEXT[DOCS / "studies/index.md"].split())
    assert (
        told.replace("cover", "They cover").replace(", and", " of enhancing tumor, and") in results
    )
    row = f"{quantiles.MANY}, {quantiles.STRATA}"
    width, deviation = (
        [f"{mean(row, name, target=target):.2f}" for target in ("t1c", "t2f")]
        for name in ("width", "deviation")
    )
    assert "curve is {} for T1c and {} for T2-FLAIR".format(*width) in results
    assert "({} and {} by the samples' deviation)".format(*deviation) in results
    page = " ".join(TEXT[DOCS / "studies/intervals.md"].split())
    told = "covers {:.0%} of enhancing tumor, and {:.0%} where".format(*covered)
    assert told.replace("%", " %") in page
    for metric, target, said in (
        ("width", "t1c", "T1c ({} to {})"),
        ("width", "t2f", "T2-FLAIR ({} to {})"),
        ("scaled", "t1c", "the areas are {} to {} and"),
        ("scaled", "t2f", " and {} to {}. The deviation"),
    ):
        areas = [
            f"{mean(f'{system}, {quantiles.STRATA}', metric, target=target):.2f}"
            for system in quantiles.SYSTEMS
        ]
        assert said.format(min(areas), max(areas)) in page


def test_what_is_said_of_the_model_that_ships_is_that_of_its_record():
    scored = load_results("shipped")["real"]
    means = shipped.table({"t1+t2": scored["t1+t2"]}).droplevel("sources")[["t1c", "t2f"]]
    model, regression = (
        means.loc[row].round(1).to_list() for row in ("shipped model", "regression")
    )
    readme = " ".join(TEXT[ROOT / "README.md"].split())
    told = "scores {} / {} where the regression scores {} / {}"
    assert told.format(*model, *regression) in readme
    gained = means.loc["shipped model"] - means.loc["regression"]
    page = " ".join(TEXT[DOCS / "how_to/one_patient.md"].split())
    assert f"it is {gained.mean():.1f} dB above a regression" in page
    assert "(T1c {:.1f}, T2-FLAIR {:.1f} dB)".format(*gained) in page
    results = " ".join(TEXT[DOCS / "studies/index.md"].split())
    assert "is {:.1f} dB (T1c) and {:.1f} dB (T2-FLAIR) better than".format(*gained) in results


def test_what_is_said_of_fine_tuning_is_that_of_its_record(tmp_path, monkeypatch):
    means = fine_tuning.comparison().loc["t1+t2", ["t1c", "t2f"]]
    page = " ".join(TEXT[DOCS / "how_to/one_patient.md"].split())
    told = (
        "as it ships scores {:.2f} / {:.2f} dB (T1c / T2-FLAIR, from T1 and T2), fine-tuned on the "
        "other three with simulated patients {:.2f} / {:.2f}, without these {:.2f} / {:.2f}, and a "
        "network that was trained on the three alone {:.2f} / {:.2f}."
    )
    ways = ["shipped model", "mixed", "fine-tuned", "real"]
    assert told.format(*means.loc[ways].to_numpy().ravel()) in page
    free = fine_tuning.comparison("psnr_best_gain").loc["t1+t2", ["t1c", "t2f"]].loc[ways]
    assert (free.idxmax() == "shipped model").all() and (free.idxmin() == "real").all()
    monkeypatch.setattr(fine_tuning, "DOCS", tmp_path)
    fine_tuning.show()
    name = "fine_tuning.md"
    assert (tmp_path / name).read_text() == (DOCS / "results" / name).read_text()


def test_the_profile_that_is_read_out_is_the_committed_one():
    record = json.loads((ROOT / "benchmarks/results/phantom/profile.json").read_text())
    (step,) = [row for row in record["rows"] if (row["stage"], row["part"]) == ("cunet", "step")]
    total, seconds = step["operation_milliseconds"], step["seconds"]
    shares = {kind: f"{value / total:.0%}" for kind, value in step["kinds"].items()}
    text = " ".join((ROOT / "docs/how_to/profile.md").read_text().split())
    for said in (
        f"{1e3 * seconds:.0f} ms a step, {step['slices'] / seconds:.0f} slices/s, "
        f"{step['flops'] / 1e9:.0f} GFLOP at {step['flops'] / 1e9 / seconds:.0f} GFLOP/s",
        f"Convolutions take {shares['convolution']}, elementwise operations "
        f"{shares['elementwise']}, moving data {shares['moving data']}",
        f"pooling is {step['kinds']['pooling'] / total:.1%} now",
    ):
        assert said in text, said


def test_what_is_said_of_the_map_of_enhancement_is_that_of_its_record():
    phantoms = load_results("phantom/enhancement")["phantoms"]
    tables = {name: per_patient(one["records"], enhancement.MAP) for name, one in phantoms.items()}

    def of(name, row, metric):
        return values(tables[name], row, "t1c", metric)

    told, hidden = (
        [of(name, row, "uptake_auroc").mean() for row in ("CDM", "M1")] for name in phantoms
    )
    results = " ".join(TEXT[DOCS / "studies/index.md"].split())
    assert "the ROC curve of {:.2f} (M1 {:.2f}); where they do not".format(*told) in results
    assert "where they do not, {:.2f} ({:.2f})".format(*hidden) in results
    most, true = of("told", "CDM", "most_ml"), of("told", "CDM", "tumor_ml")
    assert f"holds for {100 * (true <= most).mean():.0f} % of {len(most)} unseen" in results
    assert f"{most.mean():.1f} ml and {phantoms['told']['blind_ml']:.1f} ml" in results


def test_what_is_said_of_a_segmenter_is_that_of_its_record():
    patients = per_patient(load_results("phantom/segmenter")["records"], segmenter.CONVENTION)
    without, synthetic, acquired = (
        values(patients, row, AVERAGE, "dice").mean()
        for row in (segmenter.NOTHING, "CDM", segmenter.ACQUIRED)
    )
    results = " ".join(TEXT[DOCS / "studies/index.md"].split())
    told = (
        f"mean Dice is {without:.2f} with T1 and T2 alone, {synthetic:.2f} with CDM's images "
        f"beside them and {acquired:.2f} with acquired ones"
    )
    assert told in results
    assert 0.2 < (synthetic - without) / (acquired - without) < 0.3  # "by a quarter"


@pytest.fixture(scope="module")
def config_reference():
    path = DOCS / "config_reference.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_every_config_value_has_a_meaning(config_reference):
    assert config_reference.undocumented() == []


def test_the_reference_holds_every_config_value(config_reference):
    page = config_reference.page()
    for name in ("data.size", "cunet.error_scale", "resvit.pretrained", "phantom.scanner"):
        assert f"| `{name}` |" in page
    assert "| `sampler.num_steps` | `30` |  | N of DDIM |" in page  # and not that of `profile`
    assert "| `cunet.optimizer.learning_rate`" not in page  # once for all stages
    assert "| `<stage>.optimizer.learning_rate` | `0.0001` | `0.004` |" in page
    assert "| `reggan.optimizer.schedule` | `constant`" not in page  # as cunet's
    assert "| `pix2pix.optimizer.schedule` | `linear_decay` |  |" in page
    assert "| Of the network that encodes the sources:" in page  # a comment above its line
