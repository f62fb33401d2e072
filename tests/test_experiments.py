"""Tables and figures: what they are drawn from, and what they say."""

import ast
import csv
import dataclasses
import io
import json
import math
import runpy
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from ml_collections import ConfigDict

from cdm_jax import inference
from cdm_jax.data.subjects import find_subjects
from cdm_jax.methods import base
from cdm_jax.report import tables
from experiments import (
    figure4,
    figure5,
    literal,
    published,
    real,
    seeds,
    study,
    sweep,
    table1,
    table2,
    table3,
    table4,
)
from experiments.records import RESULTS, SeedRecord

SMALL = study.Study(dataset="phantom", small=True, root="", workdir=None)
SECOND = dataclasses.replace(SMALL, dataset="phantom_upenn")
DRAWN = [(table1, SMALL), (table2, SECOND), (table3, SMALL), (table4, SMALL), (literal, SMALL)]


def records(rows, patients=12):
    """Records whose PSNR of T1c is `rows[name] + n / 10` for patient n; T2f is 1 dB lower."""

    def scores(value):
        return {"psnr": value, "ssim": 0.9 + value / 1000, "mae": 1 / value}

    return [
        {
            "subject": f"s{n}",
            "patient": f"p{n}",
            "split": "abc",
            "conventions": {"paper": "1", "volume": "2"},
            "rows": {
                name: {
                    convention: {
                        "t1c": scores(value + n / 10),
                        "t2f": scores(value + n / 10 - 1),
                    }
                    for convention in ("paper", "volume")
                }
                for name, value in rows.items()
            },
        }
        for n in range(patients)
    ]


def test_chosen_rows_come_in_the_asked_order_under_their_new_names():
    (first, *_) = study.chosen(records({"a": 20, "b": 21, "c": 22}), {"c": "C", "a": "A", "z": "Z"})
    assert list(first["rows"]) == ["C", "A"]
    assert first["rows"]["C"]["volume"]["t1c"]["psnr"] == 22
    assert first["split"] == "abc"


def test_csv_holds_the_tables_numbers_at_full_precision():
    table = tables.results_table(records({"a": 20, "b": 21}), "volume", reference="a")
    table.print_beside("ms a slice", {"b": "3.1"})
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(lines) == 2 * 3 * 3  # systems, modalities with their average, metrics
    line = next(
        li for li in lines if (li["system"], li["modality"], li["metric"]) == ("b", "Avg", "psnr")
    )
    assert float(line["mean"]) == pytest.approx(21 + 0.55 - 0.5, abs=1e-12)
    assert float(line["difference"]) == pytest.approx(1, abs=1e-12)
    assert float(line["p_value"]) == pytest.approx(2 / 2**12)
    assert line["patients"] == "12"
    assert {li["convention"] for li in lines} == {"volume"}
    assert {(li["system"], li["ms a slice"]) for li in lines} == {("a", ""), ("b", "3.1")}


def test_latex_has_a_cell_for_every_heading_and_escapes_what_it_would_read():
    table = tables.results_table(records({"a_b": 20, "c": 21}), "volume", reference="c")
    table.print_beside("50 % & more", {"c": "x"})
    lines = table.latex().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 3
    plain = [line.replace(r"\&", "") for line in body]
    assert {line.count("&") for line in plain} == {len(table.texts().columns)}
    assert lines[0] == r"\begin{tabular}{l" + "r" * 10 + "}"
    assert r"50 \% \& more" in body[0]
    assert r"a\_b" in body[1]
    assert "±" not in "".join(lines)


def test_printed_columns_stand_in_their_rows_and_nowhere_else():
    table = tables.results_table(records({"a": 20, "b": 21}), "volume")
    table.print_beside("printed", {"b": "31.92"})
    assert table.texts()["printed"].to_dict() == {"a": tables.ABSENT, "b": "31.92"}


def test_findings_follow_the_numbers():
    rows = {
        "Copy of a source": 10,
        "M1": 20,
        "M1 with the 1x1 branch": 22,
        "M2": 21,
        "CDM": 21,
        "CDM, one sample": 20.9,
        "CDM, shuffled": 20.9,
        "CDM, oracle (a leak)": 23,
    }
    (text,) = table3.findings(records(rows))
    help_, capacity, decoupling, shuffling, leak = text.splitlines()
    assert help_.count("+1.00 dB [+1.00, +1.00], more") == 2
    assert capacity.count("-1.00 dB [-1.00, -1.00], less") == 2
    assert decoupling.count("+0.00 dB [+0.00, +0.00], no difference seen") == 2
    assert shuffling.count("no difference seen") == 2
    assert leak.count("+2.00 dB") == 2


def test_the_papers_averages_are_those_of_its_targets():
    for printed in (published.TABLE_1, published.TABLE_2):
        for system, (t1c, t2f, average) in printed.items():
            for place, digits in ((0, 2), (1, 3), (2, 4)):
                mean = (float(t1c[place]) + float(t2f[place])) / 2
                assert math.isclose(mean, float(average[place]), abs_tol=1.01 * 10**-digits), system


def test_a_zoom_holds_the_whole_tumor_and_only_what_is_near():
    tumor = np.zeros((64, 64), bool)
    tumor[20:30, 40:44] = True
    rows, columns = figure4.zoom_box(tumor)
    assert tumor[rows, columns].sum() == tumor.sum()
    assert rows.stop - rows.start == columns.stop - columns.start < 24
    assert figure4.zoom_box(np.zeros((64, 64), bool)) is None


@pytest.mark.parametrize(("label", "place"), [(3, 4), (2, 4), (0, 3)])
def test_figure_4_shows_the_slice_with_the_most_tumor_or_the_middle_one(
    label, place, tmp_path, monkeypatch
):
    labels = np.zeros((6, 8, 8), np.int32)
    labels[4, 2:5, 2:5] = label
    labels[1, 2, 2] = label
    monkeypatch.setattr(figure4, "read_labels", lambda _: labels)
    subject = SimpleNamespace(subject_id="s", size=8, slice_indices=range(6))
    files = {"s": SimpleNamespace(segmentation=tmp_path)}
    ((_, chosen, tumor),) = figure4.patients_to_show(
        SimpleNamespace(test=[subject], subjects=files)
    )
    assert (chosen, tumor.sum()) == (place, 9 if label else 0)


def test_figure_4_shows_each_system_and_the_error_that_it_makes():
    rng = np.random.default_rng(0)
    images = {
        "sources": rng.integers(0, 255, (1, 16, 16, 2)).astype(np.uint8),
        "truth": np.full((1, 16, 16, 1), 100, np.uint8),
        "tumor": np.zeros((1, 16, 16), np.uint8),
        "m1": np.full((1, 16, 16, 1), 151, np.uint8),
        "cunet": np.full((1, 16, 16, 1), 100, np.uint8),
        "subjects": np.array(["s0"]),
        "source_names": np.array(["t1", "t2"]),
        "target_names": np.array(["t1c"]),
    }
    figure = figure4.draw(images)
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert titles == ["t1", "t2", "M1\n(UNet alone)", "CDM", "truth"]
    errors = [axis.images[0].get_array() for axis in figure.axes[5:10] if axis.images]
    assert [float(error.max()) for error in errors] == pytest.approx([0.2, 0])
    assert_fits(figure)


def assert_fits(figure):
    """A figure is at most as wide as a page; its text can be read, lies within it and apart."""
    FigureCanvasAgg(figure).draw()
    assert figure.get_figwidth() <= study.PAGE_WIDTH
    shown = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in shown) >= 6
    for axis in figure.axes:
        assert axis.title.get_window_extent().width < 1.1 * axis.bbox.width
    words = [t for a in figure.axes for t in (a.title, a.xaxis.label, a.yaxis.label)]
    for text in [*words, *(t for legend in figure.legends for t in legend.get_texts())]:
        box = text.get_window_extent()
        assert (box.min >= -1).all() and (box.max <= figure.bbox.max + 1).all(), text


def test_figure_5_shows_every_system_and_fits():
    systems = records({row: 20 + n for n, row in enumerate(table1.HEADLINES.values())})
    counts = {stage: 10 ** (4 + n / 3) for n, stage in enumerate(table1.HEADLINES)}
    sampling = {"device": "1 x NVIDIA H100 80GB HBM3", "systems": {}}
    for n, stage in enumerate(figure5.SWEPT):
        sampling["systems"][stage] = {
            str(steps): {
                "records": records({stage: 10.05 + 9 * n + steps}),
                "seconds_a_slice": steps / (100 + 900 * n),
            }
            for steps in sweep.STEPS
        }
    figure = figure5.draw(sampling, counts, systems)
    speed, psnr, ssim = figure.axes
    assert [list(line.get_ydata()) for line in speed.lines] == [
        pytest.approx([(100 + 900 * n) / steps for steps in sweep.STEPS]) for n in range(2)
    ]
    assert [text.get_text() for text in speed.texts[::5]] == ["11.1", "20.1"]
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == [table1.ROWS[row] for row in table1.HEADLINES.values()]
    for axis, first in ((psnr, 20.05), (ssim, 0.92005)):
        points = [tuple(points.get_offsets()[0]) for points in axis.collections]
        assert len(points) == len(counts)
        assert points[0] == pytest.approx((0.01, first), abs=1e-6)
    assert_fits(figure)


def test_a_study_gives_the_command_line_that_makes_its_config(tmp_path):
    small = study.Study(dataset="phantom", small=True, root="", workdir=tmp_path)
    assert small.arguments("cdm")[1] == "--config=configs/phantom.py:cdm,small,length=study"
    assert small.config("rcg").rcg.train.num_steps == 1000
    assert small.config("cdm").data.size == 64
    full = study.Study(dataset="brats", small=False, root="/data", workdir=tmp_path)
    assert full.config("cdm").data.size == 256
    assert "--config.data.root=/data" in full.arguments("cdm")
    assert full.config("cdm").cunet.train.num_steps == 0  # as many as the epochs take


def test_a_study_scores_of_each_system_the_rows_that_its_table_shows():
    def scored(system):
        *_, flag = SMALL.arguments(system, table3.ROWS)
        return ast.literal_eval(flag.removeprefix("--config.evaluate.rows="))

    assert scored("m2") == ("copy", "brain_mean", "regression", "m2", "m2/mean_of_8")
    assert scored("m1_1x1") == ("copy", "brain_mean", "regression", "m1_1x1")
    assert "cunet/oracle" in scored("cdm") and "m2" not in scored("cdm")
    assert not [a for a in SMALL.arguments("cdm") if "evaluate.rows" in a]


def test_an_evaluation_may_sample_with_other_steps_than_training_did(finished_run):
    steps = ConfigDict({"num_steps": 2, "eta": 0.0, "grid": "ends"})
    system = inference.load_system(finished_run / "cunet", 2, steps)
    assert system.method.mdn.sampler.num_steps == 2
    assert inference.load_system(finished_run / "cunet", 2).method.mdn.sampler.num_steps == 4


def test_a_record_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.records.RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="is not there: run this without --show first"):
        study.main(["--dataset=brats", "--show"], "", table1.measure, table1.show)


@pytest.mark.parametrize(("module", "cohort"), DRAWN)
def test_the_committed_tables_are_what_the_committed_records_give(
    module, cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(study, "DOCS", tmp_path)
    module.show(cohort)
    committed = RESULTS.parents[1] / "docs/results" / cohort.dataset
    drawn = sorted((tmp_path / cohort.dataset).iterdir())
    assert drawn
    for path in drawn:
        assert path.read_text() == (committed / path.name).read_text(), path.name


def test_seeds_join_a_record_that_was_made_alike_and_replace_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.records.RESULTS", tmp_path)

    def runs(seeds, value, **settings):
        record = SeedRecord("study", "run", settings)
        for seed in seeds:
            record.add("any", "t1", seed, [{"value": value}])
        record.save()
        return json.loads((tmp_path / "study.json").read_text())

    runs([0, 10], "first", scale="small")
    found = runs([2, 10], "second", scale="small")
    assert found["command"] == "run --seeds=0,2,10" and found["scale"] == "small"
    values = {seed: kept[0]["value"] for seed, kept in found["runs"]["any"]["t1"].items()}
    assert values == {"0": "first", "2": "second", "10": "second"}
    alone = runs([1], "third", scale="large")
    assert alone["command"] == "run --seeds=1" and set(alone["runs"]["any"]["t1"]) == {"1"}


def test_table_1_and_table_2_never_show_the_same_cohort(monkeypatch):
    records = {RESULTS / cohort.dataset / "systems.json" for cohort in (SMALL, SECOND)}
    subjects = [{r["subject"] for r in json.loads(path.read_text())["records"]} for path in records]
    assert not subjects[0] & subjects[1]
    for module, cohort in ((table1, SECOND), (table2, SMALL)):
        monkeypatch.setattr(sys, "argv", ["table", f"--dataset={cohort.dataset}", "--show"])
        with pytest.raises(SystemExit, match="2"), pytest.warns(RuntimeWarning):
            runpy.run_module(module.__name__, run_name="__main__")


@pytest.mark.parametrize("module", [figure4, figure5])
def test_figures_are_drawn_from_committed_records(module, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "DOCS", tmp_path)
    monkeypatch.setattr(study, "FORMATS", ("png",))
    module.show(SMALL)
    (path,) = (tmp_path / "phantom").iterdir()
    assert path.stat().st_size > 20_000


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Runs a sweep whose evaluations and times are made up; gives what it timed and asked for."""
    timed, checkpoints, asked = [], {"cunet": "a"}, {}

    def evaluate(config, workdir, dataset, folder):
        asked[config.sampler.num_steps] = (config.evaluate.systems, config.evaluate.rows)
        rows = {"copy": 10, "brain_mean": 11, "regression": 12, "m1": 20, "cunet": 21}
        rows |= {"cunet/null": 19}  # of an evaluation that asked for more
        rows["cunet/mean_of_8"] = 21.5 + config.sampler.num_steps / 10
        made = {"checkpoint": dict(checkpoints), "config": str(config.sampler.num_steps)}
        return [record | made for record in records(rows)]

    def seconds(made_study, stage, steps):
        timed.append(steps)
        return steps / 1000

    monkeypatch.setattr("experiments.records.RESULTS", tmp_path)
    monkeypatch.setattr(study.Study, "data", lambda _: None)
    monkeypatch.setattr(sweep, "evaluate_run", evaluate)
    monkeypatch.setattr(sweep, "seconds_a_slice", seconds)
    sweep.sweep(SMALL, ("cunet",), "command")
    return timed, checkpoints, asked


def test_a_sweep_scores_and_keeps_the_systems_own_rows(swept, tmp_path):
    *_, asked = swept
    own = ("cunet", "cunet/mean_of_8")
    usual = asked.pop(30)
    assert usual == (("cunet", "m1"), (*sweep.BESIDE, *own))  # the rows without N, once
    assert asked == {steps: (("cunet",), own) for steps in sweep.STEPS if steps != 30}
    kept = json.loads((tmp_path / "phantom/sampling.json").read_text())
    for row in kept["systems"]["cunet"].values():
        assert tuple(row["records"][0]["rows"]) == own
    assert tuple(kept["beside"][0]["rows"]) == sweep.BESIDE


def test_a_sweep_goes_on_from_its_record_while_the_checkpoints_are_the_same(swept, monkeypatch):
    timed, checkpoints, _ = swept
    assert timed == list(sweep.STEPS)
    sweep.sweep(SMALL, ("cunet",), "command")
    assert timed == list(sweep.STEPS)
    checkpoints["cunet"], seconds = "b", sweep.seconds_a_slice

    def interrupted(made_study, stage, steps):
        if steps == 20:
            raise KeyboardInterrupt
        return seconds(made_study, stage, steps)

    monkeypatch.setattr(sweep, "seconds_a_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(SMALL, ("cunet",), "command")
    assert timed == [*sweep.STEPS, 1, 10]
    monkeypatch.setattr(sweep, "seconds_a_slice", seconds)
    sweep.sweep(SMALL, ("cunet",), "command")
    assert timed == [*sweep.STEPS, *sweep.STEPS]


def test_a_sweep_takes_no_times_of_another_device(swept, monkeypatch):
    monkeypatch.setattr(sweep.jax, "device_count", lambda: 7)
    assert sweep.start(SMALL)["systems"] == {}


@pytest.mark.slow
def test_table_4_shows_the_untrained_rows_and_m1_beside_every_n(swept):
    names = list(table4.joined(SMALL)[0]["rows"])
    assert names[:4] == [table1.ROWS[row] for row in sweep.BESIDE]
    assert names[4:6] == ["N = 1", "N = 1, mean of 8"]
    table = table4.tables(SMALL)["volume"]
    assert table.texts().at["N = 30", "ms a slice"] == "30.0"
    assert table.numbers["mean"][0] == pytest.approx(10.55)  # copy, T1c, PSNR


def test_the_patient_left_out_is_synthesized_and_his_grid_checked(finished_run, tmp_path):
    subject = find_subjects(finished_run / "patients", modalities=("t1", "t2", "t1c", "t2f"))[0]
    (tmp_path / "cunet").symlink_to(finished_run / "cunet")
    real.synthesize([subject], tmp_path)
    path = tmp_path / "synthetic" / subject.subject_id / f"{subject.subject_id}-t2f.nii.gz"
    image = nib.load(path)
    image.header["qoffset_x"] += 1
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), path)
    with pytest.raises(SystemExit, match=r"-t2f\.nii\.gz differs from its source in .*qoffset_x"):
        real.synthesize([subject], tmp_path)


@pytest.mark.parametrize("name", ["printed", "printed_sampled"])
def test_the_printed_variant_departs_from_the_paper_in_nothing_that_it_prints(name):
    config = SMALL.config("cdm")
    for value in literal.VARIANTS[name].values:
        key, text = value.split("=")
        config.update_from_flattened_dict({key: yaml.safe_load(text)})
    config.stage = "cunet"
    cunet = base.create(config)
    mdn = cunet.mdn
    assert mdn.encoder is None and mdn.denoiser.decouple == "merged"
    assert mdn.representation.loss == "l2norm" and cunet.loss == "l2norm"
    network = cunet.network
    assert (network.encoder, network.residual, network.source_skip) == ("printed", False, False)
    assert cunet.condition_dropout == 0
    assert cunet.training_y in ("encoder", "sampled")


def test_seeds_answer_over_all_seeds_and_seed_by_seed():
    def run(control, cdm):
        rows = {"m1": 20, "m1_1x1": 20 + control, "cunet/mean_of_8": 20 + cdm}
        return records(rows | {"cunet": 20.5, "cunet/shuffled": 20.25})

    lines = seeds.findings({"0": run(0.4, 0.1), "1": run(0.6, 0.4)})
    assert len(lines) == len(seeds.QUESTIONS)
    helps, capacity, more, shuffled = (line.split(": ", 1)[1] for line in lines)
    assert helps.startswith("t1c +0.25 [+0.25, +0.25] dB (seeds: +0.10, +0.40); t2f +0.25 ")
    assert capacity.startswith("t1c +0.50 [+0.50, +0.50] dB (seeds: +0.40, +0.60)")
    assert more.startswith("t1c -0.25 [-0.25, -0.25] dB (seeds: -0.30, -0.20)")
    assert shuffled.endswith("t2f +0.25 [+0.25, +0.25] dB (seeds: +0.25, +0.25).")


@pytest.mark.slow
def test_a_seed_trains_and_scores_cdm_and_the_control_on_the_same_patients(tmp_path, monkeypatch):
    whole = seeds.command_line.main
    monkeypatch.setattr(
        seeds.command_line,
        "main",
        lambda line: whole([text.replace(",seed=", ",smoke,seed=") for text in line]),
    )
    runs = [seeds.run_seed(seed, tmp_path) for seed in (0, 1)]
    for rows in (record["rows"] for run in runs for record in run):
        assert {name for question in seeds.QUESTIONS for name in question[1:]} - rows.keys() == {
            "cunet/mean_of_8"  # the smallest evaluation draws two samples
        }
    first, second = (run[0] for run in runs)
    assert first["subject"] == second["subject"]
    assert first["rows"]["copy"] == second["rows"]["copy"]  # of the same images
    assert first["rows"]["m1_1x1"] != second["rows"]["m1_1x1"]  # by other networks
