"""Calibrated intervals: what is written, what is refused, and what the study says of them."""

import dataclasses
import json

import numpy as np
import pytest

from cdm_jax import calibration, commands, inference, sampling
from cdm_jax import intervals as calibrated
from cdm_jax import main as command_line
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.intensity import brain_mask
from cdm_jax.data.nifti import read_volume
from cdm_jax.errors import UserError
from cdm_jax.records import per_patient
from cdm_jax.synthesize import synthesize_subjects
from experiments import uncertainty as study
from experiments.records import load_results
from experiments.study import DOCS
from tests.helpers import STAGES, copy_run, drawn_subjects, smoke_config

SAMPLES = 2
LEVEL = 0.9


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A run's workdir, whose stages were trained on its patients."""
    return copy_run(finished_run, tmp_path_factory.mktemp("calibrated") / "run", STAGES)


@pytest.fixture(scope="module")
def dataset(run):
    return load_dataset(smoke_config("cunet"), run)


@pytest.fixture(scope="module")
def intervals(run, dataset):
    return calibration.calibrate_stage(run / "cunet", dataset, samples=SAMPLES, level=LEVEL)


@pytest.fixture(scope="module")
def sampler(run):
    return sampling.SubjectSampler(sampling.load_uncertain(run / "cunet", SAMPLES), SAMPLES)


def test_the_file_says_what_was_calibrated_on_whom(run, dataset, intervals, sampler):
    saved = json.loads((run / "cunet" / "intervals.json").read_text())
    assert saved == dataclasses.asdict(intervals)
    assert saved["checkpoint"] == sampler.system.fingerprint
    assert saved["split"] == dataset.split_hash
    assert (saved["samples"], saved["level"], saved["floor"]) == (SAMPLES, LEVEL, 0.01)
    assert saved["multipliers"].keys() == {"t1c", "t2f"}
    assert not list((run / "cunet").glob("*.partial"))


def test_too_few_patients_are_said_to_be(dataset, intervals):
    n = len({s.patient_id for s in dataset.validation})
    assert intervals.patients == n < intervals.patients_needed == 9
    assert intervals.guaranteed_level == pytest.approx(LEVEL * n / (n + 1))
    assert intervals.guarantee.startswith("NO guarantee of 90.0%")
    assert "takes 9 validation patients" in intervals.guarantee
    assert "too few" in intervals.method
    assert any("NO guarantee" in line for line in calibrated.summary(intervals))


def test_enough_patients_give_the_guarantee(sampler):
    brains = {f"P{n}": [np.linspace(0, 1 + n, 100)] for n in range(20)}
    fitted = calibration.fit_intervals({"t1c": {"brain": brains}}, sampler, 0.9, {})
    assert fitted.guaranteed_level == 0.9
    assert fitted.guarantee.startswith("guaranteed: at least 90.0%")
    assert "conformal risk control over patients" in fitted.method
    said = "".join(calibrated.summary(fitted))
    assert "NO guarantee" not in said
    assert calibrated.PREMISE in said
    assert calibrated.sidecar(fitted, "t1c")["premise"] == calibrated.PREMISE


def test_what_synthesize_writes_covers_the_validation_patients_as_asked(
    run, dataset, intervals, tmp_path
):
    """From the files alone: the truth, on the scale of its own 99.5th percentile."""
    subjects = [dataset.subjects[s.subject_id] for s in dataset.validation]
    synthesize_subjects(subjects, tmp_path, run / "cunet", samples=SAMPLES)
    for target in intervals.multipliers:
        covered = []
        for subject, prepared in zip(subjects, dataset.validation, strict=True):
            stem = f"{tmp_path / subject.subject_id / subject.subject_id}-{target}"
            brain = brain_mask({n: read_volume(subject.images[n]) for n in prepared.sources})
            with open(f"{stem}.json") as file:
                scale = json.load(file)["reference_scale"]
            truth = read_volume(subject.images[target])
            unit = np.clip(truth / np.percentile(truth[truth != 0], 99.5), 0, 1)[brain]
            lower, upper = (
                read_volume(f"{stem}-{end}.nii.gz")[brain] / scale for end in ("lower", "upper")
            )
            covered.append(np.mean((lower - 1e-5 <= unit) & (unit <= upper + 1e-5)))
        assert np.mean(covered) == pytest.approx(LEVEL, abs=2e-3)


def test_test_patients_are_never_looked_at(run, dataset, sampler, monkeypatch):
    seen = drawn_subjects(monkeypatch)
    calibration.calibration_scores(sampler, dataset, {})
    assert sorted(seen) == sorted(s.subject_id for s in dataset.validation)


def test_what_cannot_be_calibrated_is_refused(run, dataset, sampler, tmp_path):
    def calibrate(stage="cunet", samples=SAMPLES, level=LEVEL, data=dataset):
        calibration.calibrate_stage(run / stage, data, samples=samples, level=level)

    for stage in ("m1", "mrm"):
        with pytest.raises(UserError, match=f"{stage} is deterministic"):
            calibrate(stage)
    with pytest.raises(UserError, match="--samples=1 has no deviation"):
        calibrate(samples=1)
    with pytest.raises(UserError, match="between 0 and 1"):
        calibrate(level=1.0)
    with pytest.raises(UserError, match="no checkpoint"):
        calibrate("nothing")
    other = dataclasses.replace(dataset, split_hash="0000")
    with pytest.raises(UserError, match=r"trained on split .* not on this data's 0000"):
        calibration.calibration_scores(sampler, other, {})
    with pytest.raises(UserError, match="no validation patients"):
        calibration.calibration_scores(sampler, dataclasses.replace(dataset, validation=()), {})


def test_intervals_of_another_system_or_number_of_samples_do_not_count(
    run, sampler, intervals, tmp_path, capsys
):
    def found(samples=SAMPLES, **changes):
        calibrated.save_intervals(tmp_path, dataclasses.replace(intervals, **changes))
        return calibrated.find_intervals(tmp_path, sampler.system, samples)

    assert found() == intervals
    assert not capsys.readouterr().out
    assert found(checkpoint="another") is None
    assert "of checkpoint another and 2 samples" in capsys.readouterr().out
    assert found(samples=3) is None
    assert "--samples=3 would give intervals" in capsys.readouterr().out
    for text in ("{}", "nonsense"):
        (tmp_path / "intervals.json").write_text(text)
        assert calibrated.find_intervals(tmp_path, sampler.system, SAMPLES) is None
        assert "cannot be read" in capsys.readouterr().out
    (tmp_path / "intervals.json").unlink()
    assert calibrated.find_intervals(tmp_path, sampler.system, SAMPLES) is None
    assert not capsys.readouterr().out  # an advice that nobody asked for


def test_one_sample_and_deterministic_systems_have_no_intervals(run, sampler, intervals, capsys):
    assert (run / "cunet" / "intervals.json").exists()
    assert calibrated.find_intervals(run / "cunet", sampler.system, 1) is None
    system = inference.load_system(run / "m1", 4)
    calibrated.save_intervals(run / "m1", intervals)
    assert calibrated.find_intervals(run / "m1", system, SAMPLES) is None
    (run / "m1" / "intervals.json").unlink()
    assert not capsys.readouterr().out


def test_the_command_calibrates_and_says_so(run, intervals, capsys):
    path = run / "cunet" / "intervals.json"
    path.unlink()
    arguments = ["cdm_jax.main", "calibrate", f"--workdir={run}", f"--samples={SAMPLES}"]
    assert command_line.main([*arguments, "--level=0.7"]) == 0
    assert json.loads(path.read_text())["level"] == 0.7
    assert "nominal level 70.0%" in capsys.readouterr().out
    assert command_line.main([*arguments, "--level=2"]) == 1
    assert "between 0 and 1" in capsys.readouterr().err
    calibrated.save_intervals(run / "cunet", intervals)


def test_calibrating_draws_eight_samples_unless_told_otherwise(monkeypatch):
    asked = {}
    monkeypatch.setattr(commands, "calibrate", lambda **options: asked.update(options))
    assert command_line.main(["cdm_jax.main", "calibrate", "--workdir=nowhere"]) == 0
    assert (asked["samples"], asked["level"]) == (8, 0.9)


# The study


def records(width, mae, coverage=0.9, areas=(0.03, 0.01, 0.04), patients=12):
    """Records with these values in enhancing tumor, and 0.1 of both in healthy brain."""
    everywhere = {"coverage": 0.9, "width": 0.1, "mae": 0.1, "deviation": 0.01}
    made = []
    for n in range(patients):
        noise = 1 + 0.01 * np.sin(n)
        tumor = {"coverage": coverage, "width": width * noise, "mae": mae / noise}
        regions = {name: everywhere for name in study.REGIONS}
        regions = regions | {"enhancing_tumor": tumor | {"deviation": 0.01}}
        rows = {row: {"t1c": {"regions": regions}} for row in study.ROWS}
        for order, area in zip(study.ORDERS, areas, strict=True):
            kept = {f"{share:.2f}": area * noise for share in study.SHARES}
            rows[order] = {"t1c": kept | {"area": area * noise}}
        identity = {"subject": f"s{n}", "patient": f"p{n}", "split": "a", "conventions": {}}
        rows = {row: {study.CONVENTION: targets} for row, targets in rows.items()}
        made.append(identity | {"rows": rows})
    return made


def patients(*arguments, **changes):
    """What is gathered from such records."""
    return per_patient(records(*arguments, **changes), study.CONVENTION)


@pytest.mark.parametrize(
    ("width", "mae", "said"),
    [
        (0.3, 0.3, "It widens where the truth is missed, as the error grows."),
        (0.2, 0.5, "It widens where the truth is missed, and by less than the error grows."),
        (0.5, 0.2, "It widens where the truth is missed, and by more than the error grows."),
        (0.1, 0.4, "It does NOT widen noticeably where the truth is missed."),
        (0.05, 0.4, "It does NOT widen where the truth is missed, it narrows."),
        (0.3, 0.05, "The truth is not missed more there."),
    ],
)
def test_the_answer_follows_the_numbers_either_way(width, mae, said):
    sentence = study.widening_sentence(patients(width, mae, coverage=0.25), "t1c")
    assert said in sentence
    assert "covers 25.0% of enhancing tumor, 90.0% of healthy brain" in sentence
    assert f"the error is {mae / 0.1:.2f} [" in sentence
    assert f"the interval {width / 0.1:.2f} [" in sentence
    assert "(12 patients)" in sentence


def test_without_enhancing_tumor_there_is_no_answer():
    made = records(0.2, 0.2)
    for record in made:
        for row in study.ROWS:
            regions = record["rows"][row][study.CONVENTION]["t1c"]["regions"]
            regions.pop("enhancing_tumor", None)  # rows share it
    made = per_patient(made, study.CONVENTION)
    assert "no patient has an enhancing tumor" in study.widening_sentence(made, "t1c")
    cells = study.coverage_table(made, study.MAIN, "t1c").loc["enhancing tumor"]
    assert list(cells) == ["–", "–", "–", "–", "0"]


@pytest.mark.parametrize(
    ("deviation", "said", "gain"),
    [(0.02, "better than chance", "67%"), (0.05, "WORSE than chance", "-33%")],
)
def test_the_order_sentence_follows_the_numbers_either_way(deviation, said, gain):
    sentence = study.order_sentence(patients(0.1, 0.1, areas=(deviation, 0.01, 0.04)), "t1c")
    assert said in sentence
    assert f"it gains {gain}" in sentence


def test_a_coverage_table_has_the_means_of_what_was_built_in():
    table = study.coverage_table(patients(0.2, 0.3, coverage=0.5), study.MAIN, "t1c")
    assert table.loc["whole brain"].to_dict() == {
        "coverage": "0.900 [0.900, 0.900]",
        "width": "0.100 [0.100, 0.100]",
        "error (MAE)": "0.1000 [0.1000, 0.1000]",
        "deviation": "0.0100 [0.0100, 0.0100]",
        "patients": "12",
    }
    assert table.loc["enhancing tumor", "coverage"].startswith("0.500 [0.500")
    assert table.loc["enhancing tumor", "width"].startswith("0.200 [")


def test_a_constructed_patient_is_scored_by_the_intervals(intervals):
    brain = np.ones((1, 2, 2), bool)
    tumor = np.array([[[True, False], [False, False]]])
    deviation = np.array([[[0.0, 0.0], [0.1, 0.1]]], np.float32)
    mean = np.full((1, 2, 2), 0.5, np.float32)
    images = sampling.Drawn(
        truth=np.array([[[0.9, 0.5], [0.5, 0.55]]], np.float32),
        predicted=sampling.predicted({"mean": mean, "deviation": deviation}),
        deviation=deviation,
    )
    fitted = {
        row: dataclasses.replace(intervals, multipliers={"t1c": 1.0}, floor=0.1)
        for row in study.ROWS
    }
    rows = study.scored({"t1c": images}, {"brain": brain, "enhancing_tumor": tumor}, fitted)
    found = {row: targets[study.CONVENTION]["t1c"] for row, targets in rows.items()}
    assert found[study.MAIN]["regions"]["brain"]["coverage"] == 3 / 4
    assert found[study.MAIN]["regions"]["enhancing_tumor"]["coverage"] == 0
    assert found[study.MAIN]["regions"]["enhancing_tumor"]["mae"] == pytest.approx(0.4)
    assert found["random"]["0.50"] == pytest.approx(0.45 / 4)
    assert found["best possible"]["0.50"] == pytest.approx(0, abs=1e-6)
    assert found["deviation"]["0.50"] == pytest.approx(0.2)  # the certain half holds the tumor


def test_the_committed_record_is_told_and_drawn():
    """The committed text is what --show writes."""
    content = load_results("phantom/uncertainty")
    text = study.report(content)
    assert text == (DOCS / "phantom/uncertainty.md").read_text()
    assert text.count("in enhancing tumor the error is") == 2
    assert "CDM takes the covariance of its training noise from these validation patients" in text
    assert content["command"] in text
    assert len(content["records"]) == 24
    figure = study.draw(content)
    assert len(figure.axes) == 4
