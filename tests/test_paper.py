"""The whole paper by one command: its estimate, what it refuses, and a trial from end to end."""

import csv
import json
import re
import shutil
import statistics
from types import SimpleNamespace

import jax
import pytest

from cdm_jax import commands
from cdm_jax.data import cohort
from cdm_jax.data.subjects import Subject
from cdm_jax.rows import system_of
from configs import common
from experiments import costs, estimate, paper, study, sweep, table1, table3
from experiments.study import DOCS, Study
from tests import helpers

SHEET = (DOCS / "day_one.md").read_text()


def sheet(name, column, part="Training"):
    """A number of a part of the committed day-one sheet."""
    lines = SHEET.split(f"## {part}")[1].split("##")[0].splitlines()
    line = next(line for line in lines if line.startswith(f"| {name} "))
    return float(line.split("|")[column].replace(",", "").split()[0])


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A study of as many patients as BraTS2023 has, of whom there is nothing but the names."""
    subjects = [
        Subject(subject_id=name, patient_id=name, images={"t1": tmp_path / name})
        for name in map(str, range(1251))
    ]
    monkeypatch.setattr(estimate, "find_subjects", lambda *_, **__: subjects)
    monkeypatch.setattr(cohort, "_height", lambda _: 155)
    return Study(
        dataset="brats", small=False, root=str(tmp_path), workdir=tmp_path / "runs" / "brats"
    )


def free(monkeypatch, number):
    """Lets every disk have so many bytes free."""
    usage = SimpleNamespace(free=number)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage)


def test_the_estimate_of_brats_is_that_of_the_committed_sheet(large):
    found = estimate.Estimate(large, paper.ROWS)
    assert found.parts == {"train": 788, "validation": 88, "test": 375}
    hours = {stage: found.training_hours(stage) for stage in found.missing}
    for stage in ("mrm", "cunet", "resvit", "rcg"):
        assert hours[stage] == pytest.approx(sheet(stage, 4), abs=0.051)
    assert sum(hours.values()) == pytest.approx(sheet("**all**", 4), abs=0.1)
    slices, checkpoints = found.disk().values()
    assert slices / 1e9 == pytest.approx(sheet("cache", 2, "Disk"), abs=0.5)
    assert checkpoints / 2**30 == pytest.approx(sheet("checkpoints", 2, "Disk"), abs=0.5)
    for system in ("cunet", "diffusion"):
        told = sheet(system, 3, "Evaluation")
        assert found.translating_hours([system], 30) == pytest.approx(told, abs=0.0051)


def test_all_devices_share_what_is_computed_and_all_cores_what_is_scored(large, monkeypatch):
    one = estimate.Estimate(large, paper.ROWS)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(estimate.workers, "cores", lambda: 3 * one.cores)
    eight = estimate.Estimate(large, paper.ROWS)
    assert eight.training_hours("rcg") == pytest.approx(sheet("rcg", 6), abs=0.051)
    assert one.translating_hours(["cunet"], 30) == 8 * eight.translating_hours(["cunet"], 30)
    assert one.scoring_hours(5) == pytest.approx(3 * eight.scoring_hours(5))


def test_a_rate_that_was_timed_on_this_device_replaces_the_assumed_one(
    large, tmp_path, monkeypatch
):
    rows = [
        {"stage": "cunet", "precision": "tf32", "tflop_per_second": 2.0},
        {"stage": "cunet", "precision": "bf16", "tflop_per_second": 9.0},
        {"stage": "m1", "precision": "tf32", "tflop_per_second": 4.0},
        {"stage": "rcg", "precision": "tf32", "error": "no memory"},
    ]
    kind = jax.devices()[0].device_kind
    for name in ("day_one", "parameters"):
        shutil.copy(costs.MEASURED / f"{name}.json", tmp_path)
    before = estimate.Estimate(large, paper.ROWS)
    assert "ASSUMED" in before.markdown()
    record = {"device": kind, "parts": {"steps": {"rows": rows}}}
    (tmp_path / "accelerator.json").write_text(json.dumps(record))
    monkeypatch.setattr(costs, "MEASURED", tmp_path)
    after = estimate.Estimate(large, paper.ROWS)
    for stage, rate in (("cunet", 2e12), ("m1", 4e12), ("rcg", 3e12)):  # the last: their median
        ratio = after.training_hours(stage) / before.training_hours(stage)
        assert ratio == pytest.approx(156e12 * 0.3 / rate)
    assert "ASSUMED" not in after.markdown()
    (tmp_path / "accelerator.json").write_text(json.dumps(record | {"device": "another"}))
    assert costs.rates(kind).stages == {}


def test_what_is_done_costs_nothing_more(large, monkeypatch):
    whole = estimate.Estimate(large, paper.ROWS)
    before = whole.disk()
    monkeypatch.setattr(estimate.checkpoint, "finished", lambda folder: folder.name != "mrm")
    cached = large.workdir / "cache/slices"
    cached.parent.mkdir(parents=True)
    with cached.open("wb") as file:
        file.truncate(10**10)  # takes no place
    left = estimate.Estimate(large, paper.ROWS)
    assert left.missing == ["mrm"]
    after = left.disk()
    assert after[whole.cache] == before[whole.cache] - 10**10
    assert after[large.workdir] / 2**30 == pytest.approx(3 * sheet("mrm", 9), rel=0.02)
    assert "| cunet | done |" in left.markdown()


def test_a_stage_that_a_device_cannot_hold_is_named_with_what_to_set(large):
    found = estimate.Estimate(large, paper.ROWS)
    fits, is_too_large = "there are 64.0 GiB", "TOO LITTLE: set --config.rcg.train.batch_size"
    for limit, word in ((64, fits), (24, is_too_large)):
        *_, how = found._largest_step(limit * 2**30)
        assert how.startswith("rcg, 12 slices")
        assert word in how
    assert "LITTLE" not in found._largest_step(64 * 2**30)[2] + found._largest_step(None)[2]


def run_nothing(monkeypatch):
    """Lets a study that trains fail."""
    monkeypatch.setattr(Study, "run", lambda *_: pytest.fail("it has begun"))


def test_nothing_begins_where_a_disk_is_too_small(large, monkeypatch, capsys):
    run_nothing(monkeypatch)
    command = ["--dataset=brats", f"--root={large.root}", f"--workdir={large.workdir.parent}"]
    free(monkeypatch, 80e9)  # enough for slices alone, or for checkpoints alone
    with pytest.raises(SystemExit, match=r"has 80 GB free, and 10[45] GB are needed: make room"):
        paper.main(command)
    free(monkeypatch, 120e9)
    paper.main([*command, "--estimate"])
    assert "1,251 subjects, about 788 to train" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="it has begun"):
        paper.main(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=brats"], "error: --root is missing: give the folder of patients, or --smoke"),
        (["--dataset=brats", "--root=nowhere"], "error: data.root nowhere is not a folder"),
        (
            ["--dataset=upenn_gbm", "--root=nowhere", "--config.cunet.trian.num_steps=3"],
            "error: the config has no key cunet.trian",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, message, monkeypatch):
    run_nothing(monkeypatch)
    with pytest.raises(SystemExit, match=re.escape(message)) as refused:
        paper.main(arguments)
    assert "\n" not in str(refused.value)


def test_one_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(SystemExit, match="this is one of 4 processes: start it once"):
        paper.main(["--dataset=brats", "--root=x"])


def test_the_page_holds_the_data_sets_that_were_run_to_the_end(tmp_path):
    for name in ("table2.md", "table3.md", "table4.md", "figure4.svg"):
        (tmp_path / "upenn_gbm").mkdir(exist_ok=True)
        (tmp_path / "upenn_gbm" / name).write_text(f"content of {name}")
    (tmp_path / "brats").mkdir()
    (tmp_path / "brats/table1.md").write_text("stopped after its first table")
    text = paper.page(tmp_path)
    assert "## Table II: UPenn-GBM\n\ncontent of table2.md" in text
    assert "(upenn_gbm/figure5.png)" in text
    assert "BraTS" not in text and "stopped" not in text


# A trial from end to end. Other systems are trained and translate in tests/methods; with no
# overrides the command runs them all, in eight minutes of a core a data set.
CDM = ("mrm", "mdn", "cunet", "m1")
OTHERS = {"brats": ("m1_1x1", "mdn_joint", "m2"), "upenn_gbm": ()}


@pytest.fixture
def trial(monkeypatch, tmp_path):
    """Runs the smoke form of a data set, and gives its workdir and the folder of its tables."""
    monkeypatch.setattr(commands, "_cache_compilations", lambda _: None)  # tests have their own
    monkeypatch.setattr(study, "DOCS", tmp_path / "docs")
    monkeypatch.setattr("experiments.records.RESULTS", tmp_path / "results")

    def run(dataset, *arguments):
        stages = (*CDM, *OTHERS[dataset], "diffusion")
        systems = tuple(stage for stage in stages if stage not in common.PARTS or stage == "cunet")
        paper.main(
            [
                *(f"--dataset={dataset}", "--smoke", f"--workdir={tmp_path / 'runs'}"),
                *(f"--config.pipeline={stages}", f"--config.evaluate.systems={systems}"),
                *arguments,
            ]
        )

    yield run
    assert not (tmp_path / "docs").exists() and not (tmp_path / "results").exists()


def table(folder, name):
    """Mean PSNR of T1c of each system of a table."""
    with (folder / f"{name}_volume.csv").open() as file:
        return {
            line["system"]: float(line["mean"])
            for line in csv.DictReader(file)
            if (line["modality"], line["metric"]) == ("t1c", "psnr")
        }


def scored(workdir, rows, part="test"):
    """The same of rows, from the patients' own records."""
    paths = sorted((workdir / "evaluation" / part).glob("*.json"))
    records = [json.loads(path.read_text())["rows"] for path in paths]
    assert len(records) == 2
    return {
        name: pytest.approx(
            statistics.mean(record[row]["volume"]["t1c"]["psnr"] for record in records), abs=1e-4
        )
        for row, name in rows.items()
    }


def check_tables(run, folder, systems, absent):
    """Compares all tables with the records; `absent` are the systems that were not trained."""
    for name, rows in ((systems, table1.ROWS), ("table3", table3.ROWS)):
        present = {row: text for row, text in rows.items() if system_of(row) not in absent}
        assert table(folder, name) == scored(run, present)
    steps = table(folder, "table4")
    for n in sweep.STEPS:
        own = scored(run, {"cunet": f"N = {n}"}, "test" if n == 30 else f"cunet_{n}_steps")
        assert own.items() <= steps.items()
    for figure in ("figure4", "figure5"):
        assert {(folder / f"{figure}.{kind}").stat().st_size > 5000 for kind in study.FORMATS} == {
            True
        }


@pytest.mark.slow
def test_brats_gives_the_papers_tables(trial, finished_run, tmp_path, monkeypatch):
    run, folder = tmp_path / "runs/brats", tmp_path / "runs/paper/brats"
    run.mkdir(parents=True)
    monkeypatch.setattr(sweep, "seconds_a_slice", lambda *_: 0.001)  # the other test takes times
    helpers.copy_run(finished_run, run, CDM)  # of such patients; only the data set's name differs
    trial("brats", f"--root={run / 'patients'}", "--config.data.name=phantom")
    untrained = {"pix2pix", "cyclegan", "gcgan", "cut", "reggan", "resvit", "rcg"}
    check_tables(run, folder, "table1", untrained)
    page = (tmp_path / "runs/paper/paper.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    names = ("Table I", "Table III", "Table IV", "Figure 4", "Figure 5")
    assert titles == [f"## {name}: BraTS2023" for name in names]
    assert page.count("**A trial of the program by networks that learn nothing.**") == 3
    assert "Not trained on this cohort: Pix2pix, CycleGAN, GcGAN, CUT, RegGAN, ResViT." in page
    assert "31.92 / 0.941 / 0.0117" in page  # what the paper prints


@pytest.mark.slow
def test_upenn_gbm_goes_on_where_it_was_stopped(trial, tmp_path, monkeypatch):
    run, folder = tmp_path / "runs/upenn_gbm", tmp_path / "runs/paper/upenn_gbm"
    timed, seconds = [], sweep.seconds_a_slice

    def stopped(made_study, stage, steps):
        if len(timed) == 2:
            raise KeyboardInterrupt
        return timed.append(steps) or seconds(made_study, stage, steps)

    monkeypatch.setattr(sweep, "seconds_a_slice", stopped)
    with pytest.raises(SystemExit, match="stopped: the same command goes on"):
        trial("upenn_gbm")
    assert len(list((run / "patients").rglob("UPENN-GBM-*_T1.nii.gz"))) == 6
    assert not (tmp_path / "runs/paper/paper.md").exists()
    monkeypatch.setattr(sweep, "seconds_a_slice", lambda _, __, n: timed.append(n) or n / 1000)
    monkeypatch.setattr(commands, "train_stage", no_training(commands.train_stage))
    trial("upenn_gbm")
    assert timed == [*sweep.STEPS, *sweep.STEPS]  # of CDM, then of Diffusion: none twice
    untrained = {"m1_1x1", "m2", "pix2pix", "cyclegan", "gcgan", "cut", "reggan", "resvit", "rcg"}
    check_tables(run, folder, "table2", untrained)
    page = (tmp_path / "runs/paper/paper.md").read_text()
    assert "## Table II: UPenn-GBM" in page and "BraTS2023" not in page
    assert "33.34 / 0.959 / 0.0117" in page
    assert "printed in Table III" not in page  # which the paper has of BraTS2023 alone


def no_training(train_stage):
    """The same, where nothing may be left to train."""

    def checked(*arguments):
        assert train_stage(*arguments) is False
        return False

    return checked
