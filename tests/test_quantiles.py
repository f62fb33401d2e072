"""A stage with predicted ends: trained, calibrated by strata and regions, and used."""

import dataclasses
import json
import math

import nibabel as nib
import numpy as np
import pytest

import cdm_jax
from cdm_jax import (
    calibration,
    checkpoint,
    end_fitting,
    enhancement,
    inference,
    rescaling,
    sampling,
)
from cdm_jax import intervals as calibrated
from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.ends import known_of
from cdm_jax.data.nifti import GRID_FIELDS, read_labels, read_volume
from cdm_jax.data.volume_scale import Curve
from cdm_jax.errors import UserError
from cdm_jax.metrics import conformal
from cdm_jax.metrics.regions import region_masks
from cdm_jax.scoring import usable_segmentation
from cdm_jax.synthesize import synthesize_folder
from cdm_jax.train import train_stage
from experiments import quantiles, study
from tests.helpers import copy_run, drawn_subjects, oblique_patient, smoke_config

QUANTILES = (0.05, 0.95)
LEVEL = 0.9


@pytest.fixture(scope="module")
def config():
    config = smoke_config("m1")
    config.m1.quantiles = QUANTILES
    return config


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory, config):
    """A run whose M1 predicts ends; its training was interrupted once."""
    folder = copy_run(finished_run, tmp_path_factory.mktemp("quantiles") / "run")
    dataset = load_dataset(config, folder)
    half = config.copy_and_resolve_references()
    half.m1.train.num_steps = 2
    for part in (half, config):
        assert train_stage(part, folder, dataset)
    return folder


@pytest.fixture(scope="module")
def dataset(run, config):
    return load_dataset(config, run)


@pytest.fixture(scope="module")
def enhancing(dataset, tmp_path_factory):
    """The same patients, but in the tumors of those who validate a half enhances."""
    folder, subjects = tmp_path_factory.mktemp("segmentations"), dict(dataset.subjects)
    for subject in (dataset.subjects[s.subject_id] for s in dataset.validation):
        image = nib.load(subject.segmentation)
        labels = np.asarray(image.dataobj).copy()
        labels[::2][labels[::2] > 0] = 3
        path = folder / f"{subject.subject_id}-seg.nii.gz"
        nib.save(nib.Nifti1Image(labels, image.affine, image.header), path)
        subjects[subject.subject_id] = dataclasses.replace(subject, segmentation=path)
    return dataclasses.replace(dataset, subjects=subjects)


@pytest.fixture(scope="module")
def sampler(run):
    return sampling.SubjectSampler(sampling.load_uncertain(run / "m1", 1), 1)


@pytest.fixture(scope="module")
def patient(finished_run, tmp_path_factory):
    return oblique_patient(finished_run, tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def uncalibrated(run, patient):
    """What the API gives before anything was calibrated."""
    paths = {"t1": next(patient.glob("*-t1n*")), "t2": next(patient.glob("*-t2w*"))}
    return paths, cdm_jax.load(run / "m1").synthesize(paths)


@pytest.fixture(scope="module")
def intervals(run, dataset, uncalibrated):
    return calibration.calibrate_stage(run / "m1", dataset, samples=8, level=LEVEL)


@pytest.fixture(scope="module")
def drawn(sampler, dataset, intervals):
    """Of each validation patient the regions of the brain, and what is made of each target."""
    found = []
    for subject in dataset.validation:
        files = dataset.subjects[subject.subject_id]
        native, images = sampling.draw_beside_truth(sampler, subject, files)
        brain = native.brain
        found.append((region_masks(usable_segmentation(files, brain)[0], brain), images))
    return found


def test_the_file_says_what_is_widened_and_by_how_much(run, dataset, intervals, sampler):
    saved = json.loads((run / "m1" / "intervals.json").read_text())
    assert saved == json.loads(json.dumps(dataclasses.asdict(intervals)))
    assert saved["samples"] == 1  # M1 is deterministic, whatever was asked for
    assert saved["quantiles"] == list(QUANTILES)
    assert checkpoint.provenance(run / "m1").config.m1.quantiles == QUANTILES
    for target in ("t1c", "t2f"):
        edges = saved["edges"][target]
        assert edges == sorted(set(edges)) and edges
        assert len(saved["strata"][target]) == len(edges) + 1
        assert set(calibrated.REGIONS[:2]) <= set(saved["regions"][target])
    n = len({s.patient_id for s in dataset.validation})
    assert intervals.guarantee.startswith("NO guarantee of 90.0%")
    assert "in each stratum: there are" in intervals.guarantee
    assert max(one.patients for ones in intervals.strata.values() for one in ones) == n
    lines = calibrated.summary(intervals)
    assert any(line.startswith("t1c by predicted width: from 0 q = ") for line in lines)
    assert any("t2f by region, where a segmentation is known: healthy" in line for line in lines)


def part_of(regions, name):
    """The voxels of a region that has a multiplier; none of the rest where nothing enhances."""
    enhancing = regions["enhancing_tumor"]
    if name == "rest_of_tumor":
        return regions["whole_tumor"] & ~enhancing & enhancing.any()
    return regions[name]


def test_in_every_stratum_and_region_the_validation_patients_are_covered_as_asked(intervals, drawn):
    """By hand: voxels are sorted into strata, widened and counted without the package's help."""
    for target, edges in intervals.edges.items():
        ends = [0.0, *edges, np.inf]
        groups = [
            (one.value, lambda r, w, low=low, high=high: r["brain"] & (low <= w) & (w < high))
            for one, low, high in zip(intervals.strata[target], ends[:-1], ends[1:], strict=True)
            if one.patients
        ]
        groups += [
            (one.value, lambda r, _, name=name: part_of(r, name))
            for name, one in intervals.regions[target].items()
        ]
        for q, mask_of in groups:
            covered, sizes = [], []
            for regions, images in drawn:
                made, truth = images[target].predicted, images[target].truth
                mask = mask_of(regions, made.below + made.above)
                lower = made.mean - q * (made.below + 0.01)
                upper = made.mean + q * (made.above + 0.01)
                inside = (lower - 1e-6 <= truth) & (truth <= upper + 1e-6)
                if mask.any():
                    covered.append(inside[mask].mean())
                    sizes.append(mask.sum())
            assert LEVEL - 1e-3 <= np.mean(covered) <= LEVEL + 1e-3 + 1 / min(sizes)


def test_what_is_written_is_the_widened_prediction(run, patient, intervals, uncalibrated, tmp_path):
    paths, before = uncalibrated
    assert not before.lower and not before.upper  # as trained, ends promise nothing
    result = cdm_jax.load(run / "m1").synthesize(paths)
    (folder,) = synthesize_folder(patient, tmp_path, run / "m1", samples=1)
    assert result.deviation == {}
    for target in ("t1c", "t2f"):
        stem = f"{folder / folder.name}-{target}"
        sidecar = json.loads((folder / f"{folder.name}-{target}.json").read_text())
        scale = sidecar["reference_scale"]
        found = {"mean": read_volume(f"{stem}.nii.gz")}
        for end in ("lower", "upper"):
            found[end] = read_volume(f"{stem}-{end}.nii.gz")
            np.testing.assert_array_equal(found[end], read_volume(getattr(result, end)[target]))
        np.testing.assert_array_equal(found["mean"], read_volume(before[target]))
        assert (found["lower"] <= found["mean"]).all() and (found["mean"] <= found["upper"]).all()
        assert found["upper"].max() <= scale * (1 + 1e-6)
        assert (found["upper"] > found["lower"]).any()
        assert sidecar["intervals"]["quantiles"] == list(QUANTILES)
        assert len(sidecar["intervals"]["strata"]) == len(sidecar["intervals"]["edges"]) + 1
        assert "upper being the ends that the network predicts" in sidecar["intervals"]["rule"]
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    synthesize_folder(patient, tmp_path, run / "m1", samples=1)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == first


def test_with_a_segmentation_the_regions_decide(run, dataset, intervals, tmp_path):
    subject = dataset.subjects[dataset.validation[0].subject_id]
    paths = {name: subject.images[name] for name in ("t1", "t2")}
    model = cdm_jax.load(run / "m1")
    found = model.synthesize(paths, segmentation=subject.segmentation)
    labels = read_labels(subject.segmentation)
    assert not (labels == 3).any()  # or the parts of the tumor would have factors of their own
    brain = found.native.brain
    for target in ("t1c", "t2f"):
        scale = model.system.provenance.scales[target]
        raw = model._sampler(1).draw(dataset.validation[0], dataset.validation[0].slices, brain)
        mean, end = raw[target]["mean"], raw[target]["upper"]
        factors = {name: one.value for name, one in intervals.regions[target].items()}
        factor = np.where(labels > 0, factors["whole_tumor"], factors["healthy"])
        upper = np.clip(mean + factor * (np.maximum(end - mean, 0) + 0.01), 0, 1) * brain
        np.testing.assert_allclose(read_volume(found.upper[target]) / scale, upper, atol=1e-4)
    with pytest.raises(UserError, match="segmentation: "):
        model.synthesize(paths, segmentation=tmp_path / "nothing.nii.gz")


def test_the_map_of_enhancement_is_calibrated_on_the_validation_patients(
    run, dataset, intervals, sampler
):
    """By hand: over these patients, each counting alike, as much is predicted as is observed."""
    found = enhancement.read_enhancement(run / "m1")
    assert found == enhancement.find_enhancement(run / "m1", sampler.system, 1)
    assert (found.checkpoint, found.split) == (intervals.checkpoint, dataset.split_hash)
    assert (found.threshold, found.quantiles) == (0.2, list(QUANTILES))
    assert found.patients == len({s.patient_id for s in dataset.validation})
    predicted, observed = [], []
    for subject in dataset.validation:
        files = dataset.subjects[subject.subject_id]
        native, images = sampling.draw_beside_truth(sampler, subject, files)
        volume, most = found.of(images["t1c"].predicted, native, 1.0)
        assert most is None
        assert not volume[~native.brain].any()
        t1, t1c = (native.images[name][native.brain] for name in ("t1", "t1c"))
        predicted.append(volume[native.brain].mean())
        observed.append((t1c / np.median(t1c) - t1 / np.median(t1) > 0.2).mean())
    assert 0.01 < np.mean(observed) < 0.5
    assert np.mean(predicted) == pytest.approx(np.mean(observed), abs=0.01)
    told = " ".join(enhancement.summary(found))
    assert "nothing is promised for a single patient" in told
    assert (found.factor, found.level, found.segmented) == (None, LEVEL, found.patients)
    assert "no bound on the volume of enhancing tumor at 90%: too few" in told


def test_the_volume_of_enhancing_tumor_is_bounded_where_enough_patients_were_segmented(
    run, enhancing, sampler, patient, tmp_path, capsys
):
    """By hand, at a level that one validation patient is enough for."""
    folder = copy_run(run, tmp_path / "run", ("m1",))
    made = calibration.calibrate_stage(folder / "m1", enhancing, samples=1, level=0.5)
    assert tuple(made.regions["t1c"]) == calibrated.REGIONS
    found = enhancement.read_enhancement(folder / "m1")
    subjects = [enhancing.subjects[s.subject_id] for s in enhancing.validation]
    needed = []
    for subject, prepared in zip(subjects, enhancing.validation, strict=True):
        native, drawn = sampling.draw_beside_truth(sampler, prepared, subject)
        raw = enhancement._raw(drawn["t1c"].predicted, native, found.quantiles)
        voxel_ml = np.prod(nib.load(subject.images["t1"]).header.get_zooms()) / 1000
        true = voxel_ml * np.count_nonzero(read_labels(subject.segmentation) == 3)
        needed.append(true / (voxel_ml * raw.sum() + 1))
    rank = math.ceil((len(needed) + 1) / 2)
    assert found.factor == pytest.approx(sorted(needed)[rank - 1], rel=1e-5)
    paths = {"t1": next(patient.glob("*-t1n*")), "t2": next(patient.glob("*-t2w*"))}
    result = cdm_jax.load(folder / "m1").synthesize(paths)
    (made,) = synthesize_folder(patient, tmp_path / "made", folder / "m1", samples=1)
    told = json.loads((made / f"{made.name}-t1c.json").read_text())
    assert told["enhancing_tumor_at_most_ml"] == round(result.enhancing_ml["t1c"], 3) > 0
    assert "holds for at least 50% of new patients" in told["enhancement"]["volume_bound"]
    assert "ml of enhancing tumor" in " ".join(capsys.readouterr().out.split())
    assert "enhancing_tumor_at_most_ml" not in json.loads(
        (made / f"{made.name}-t2f.json").read_text()
    )


def test_the_map_is_written_of_t1c_alone_as_the_api_gives_it(
    run, patient, intervals, uncalibrated, tmp_path
):
    paths, before = uncalibrated
    assert not before.enhancement
    result = cdm_jax.load(run / "m1").synthesize(paths)
    assert result.enhancement.keys() == {"t1c"}
    assert not cdm_jax.load(run / "m1").synthesize(paths, make=["t2f"]).enhancement
    (folder,) = synthesize_folder(patient, tmp_path / "own", run / "m1", samples=1)
    stem = folder / f"{folder.name}-t1c"
    written, given = nib.load(f"{stem}-enhancement.nii.gz"), nib.load(paths["t1"])
    found = read_volume(written)
    np.testing.assert_array_equal(found, read_volume(result.enhancement["t1c"]))
    for field in GRID_FIELDS:
        assert written.header[field].tobytes() == given.header[field].tobytes(), field
    assert b"SYNTHETIC t1c enhancement" in written.header["descrip"].tobytes()
    assert not found[~result.native.brain].any()
    assert found.min() >= 0 and 0 < found.max() <= 1
    assert not list(folder.glob("*t2f-enhancement*"))
    told = json.loads(stem.with_name(f"{stem.name}.json").read_text())["enhancement"]
    assert told["rule"].startswith("the probability, 0 to 1, that the real T1c less T1")
    assert told["promise"].startswith(f"calibrated on {told['patients']} validation patients")
    assert "enhancement" not in json.loads((folder / f"{folder.name}-t2f.json").read_text())
    (folder,) = synthesize_folder(patient, tmp_path / "bids", run / "m1", samples=1, bids=True)
    (image,) = folder.glob("*desc-enhancement*.nii.gz")
    assert image.name.endswith("_ce-gadolinium_desc-enhancement_T1w.nii.gz")
    np.testing.assert_array_equal(read_volume(image), found)
    assert image.with_name(image.name.replace(".nii.gz", ".json")).exists()


def test_a_map_of_another_checkpoint_or_a_damaged_file_does_not_count(
    run, finished_run, intervals, sampler, tmp_path, capsys
):
    def found(**changes):
        enhancement.save_enhancement(tmp_path, dataclasses.replace(whole, **changes))
        return enhancement.find_enhancement(tmp_path, sampler.system, 8)

    whole = enhancement.read_enhancement(run / "m1")
    assert found() == whole  # M1 has one sample, whatever was asked for
    assert not capsys.readouterr().out
    assert found(checkpoint="another") is None
    assert "`calibrate` with --samples=1 would give enhancement" in " ".join(
        capsys.readouterr().out.split()
    )
    table = {"raw": [0.2, 0.1], "probability": [0, 1]}
    wrong = dataclasses.asdict(whole) | {"table": table}
    for text in ("{}", "nonsense", json.dumps(wrong), json.dumps(wrong | {"table": {}})):
        (tmp_path / enhancement.FILE).write_text(text)
        assert enhancement.find_enhancement(tmp_path, sampler.system, 1) is None
        assert "enhancement.json cannot be read" in capsys.readouterr().out
    assert found(threshold=0.3) is None
    plain = inference.load_system(finished_run / "m1", 4)
    assert not enhancement.applies(plain)  # it predicts no ends
    assert enhancement.find_enhancement(tmp_path, plain, 1) is None
    enhancement.save_enhancement(tmp_path, None)
    assert not (tmp_path / enhancement.FILE).exists()


def test_ends_are_fitted_to_corrected_volumes_of_training_patients_alone(
    run, dataset, sampler, tmp_path, monkeypatch
):
    """By hand from the file, and from volumes as the network predicts them."""
    seen, predict = [], rescaling._predicted
    monkeypatch.setattr(end_fitting, "LEAST_SCANS", 1)
    monkeypatch.setattr(rescaling, "_predicted", lambda *a: (seen.append(a[1]), predict(*a))[1])
    curve = Curve(offsets=[-0.7], powers=[0.0], lowest=0.1, highest=1.0, scans=8)
    monkeypatch.setattr(rescaling, "measure", lambda *_: {})
    monkeypatch.setattr(rescaling, "fit_curves", lambda _: {"t2f": curve})
    stage = copy_run(run, tmp_path / "run", ("m1",)) / "m1"
    rescaling.rescale_stage(stage, dataset)
    assert seen == list(dataset.train)
    saved = json.loads((stage / "volume_scale.json").read_text())["ends"]
    assert {one["scans"] for one in saved.values()} == {len(dataset.train)}
    subject = dataset.test[0]
    stored = {"source": subject.slices[..., :2]}
    key = inference.subject_key(0, subject.subject_id)
    plain = sampling.SubjectSampler(inference.uncorrected(sampler.system), 1).volumes(stored, key)
    found = sampling.SubjectSampler(inference.load_system(stage, 8), 1).volumes(stored, key)
    brain = (stored["source"] > 0).any(-1)
    factors = np.array([1, np.exp(-0.7)], np.float32)
    corrected = {name: factors[None, None, None] * volume for name, volume in plain.items()}
    for channel, known in enumerate(known_of(corrected, stored["source"], brain)):
        mean, target = known[:, 0], subject.targets[channel]
        np.testing.assert_allclose(found["mean"][brain][:, channel], mean, rtol=1e-5)
        one = saved[target]
        made = np.clip(known, one["lowest"], one["highest"])
        for layer in one["layers"][:-1]:
            made = np.maximum(made @ layer["kernel"] + layer["bias"], 0)
        made = made @ one["layers"][-1]["kernel"] + one["layers"][-1]["bias"]
        for name, side, sign in (("lower", 0, -1), ("upper", 1, 1)):
            distance = 0.1 * np.log1p(np.exp(made[:, side]))
            expected = np.clip(mean + sign * distance, 0, 1)
            np.testing.assert_allclose(found[name][brain][:, channel], expected, atol=2e-4)


def test_edges_come_from_training_patients_alone(sampler, dataset, monkeypatch):
    seen = drawn_subjects(monkeypatch)
    edges = calibration.find_edges(sampler, dataset)
    assert edges.keys() == {"t1c", "t2f"}
    assert seen and set(seen) <= {s.subject_id for s in dataset.train}


def groups(strata, patients=20):
    """Scores of a brain and of so many strata, each with patients of its own number."""
    brain = {f"P{n}": [np.linspace(0, 1 + n, 50)] for n in range(patients)}
    found = {"brain": brain}
    for number, count in enumerate(strata):
        if count:
            found[number] = {name: brain[name] for name in list(brain)[:count]}
    return {"t1c": found}


def test_a_stratum_that_nobody_has_takes_the_brains_multiplier_and_no_promise(sampler):
    scores = groups((20, 20, 0))
    fitted = calibration.fit_intervals(scores, sampler, LEVEL, {"t1c": [0.1, 0.2]})
    last = fitted.strata["t1c"][-1]
    assert (last.value, last.patients) == (fitted.multipliers["t1c"], 0)
    assert fitted.guaranteed_level == 0
    assert fitted.guarantee.startswith("NO guarantee of 90.0%, which takes 9 validation patients")
    assert "in each stratum: there are 0" in fitted.guarantee


def test_with_enough_patients_in_each_stratum_there_is_a_guarantee_that_states_them(sampler):
    fitted = calibration.fit_intervals(groups((20, 12)), sampler, LEVEL, {"t1c": [0.1]})
    assert fitted.guarantee.startswith(
        "guaranteed: in each stratum of predicted width at least 90.0% of a patient's voxels"
    )
    assert "who have (at least 12)" in fitted.guarantee
    assert "nothing is promised for a single patient, for the brain as a whole" in fitted.guarantee
    assert fitted.guaranteed_level == LEVEL
    assert [one.patients for one in fitted.strata["t1c"]] == [20, 12]


def test_the_multiplier_of_a_voxel_is_that_of_its_stratum_or_of_its_region(sampler):
    fitted = calibration.fit_intervals(groups((20, 12)), sampler, LEVEL, {"t1c": [0.25]})
    narrow, wide = (one.value for one in fitted.strata["t1c"])
    assert narrow != wide
    halves = np.array([[[0.0, 0.1, 0.125, 0.2]]], np.float32)
    images = conformal.Predicted(mean=0 * halves, below=halves, above=halves)
    found = fitted.multiplier("t1c", images)
    np.testing.assert_allclose(found[0, 0], [narrow, narrow, wide, wide], rtol=1e-6)
    one = fitted.strata["t1c"][0]
    known = dataclasses.replace(
        fitted,
        regions={
            "t1c": {
                "healthy": dataclasses.replace(one, value=2.0),
                "whole_tumor": dataclasses.replace(one, value=5.0),
                "enhancing_tumor": dataclasses.replace(one, value=7.0),
                "rest_of_tumor": dataclasses.replace(one, value=4.0),
            }
        },
    )
    tumor = np.array([[[True, False, True, False]]])
    regions = {"healthy": ~tumor, "whole_tumor": tumor, "enhancing_tumor": tumor & False}
    assert known.multiplier("t1c", images, regions)[0, 0].tolist() == [5, 2, 5, 2]
    regions["enhancing_tumor"] = np.array([[[False, False, True, False]]])
    assert known.multiplier("t1c", images, regions)[0, 0].tolist() == [4, 2, 7, 2]
    np.testing.assert_array_equal(known.multiplier("t1c", images, {"brain": tumor}), found)


def test_samples_deviation_has_one_multiplier_and_no_strata(sampler):
    deviation = np.full((1, 1, 2), 0.1, np.float32)
    made = sampling.predicted({"mean": 3 * deviation, "deviation": deviation})
    np.testing.assert_array_equal(made.below, deviation)
    np.testing.assert_array_equal(made.above, deviation)
    fitted = calibration.fit_intervals(groups(()), sampler, LEVEL, {})
    assert fitted.multiplier("t1c", made) == fitted.multipliers["t1c"]
    assert fitted.strata == fitted.regions == fitted.edges == {}


def test_a_distance_is_never_negative_where_resampling_moved_an_end():
    image = np.full((1, 1, 1), 0.5, np.float32)
    made = sampling.predicted({"mean": image, "lower": image + 0.1, "upper": image + 0.3})
    assert made.below.item() == 0
    assert made.above.item() == pytest.approx(0.3)


def test_the_cost_of_the_head_is_that_of_the_same_network_without_it(run):
    here = study.Study(dataset="phantom", small=True, root="", workdir=run)
    found = quantiles.cost(here, "m1")
    assert 1 < found["operations"] < 1.2
    assert found["time"] > 0 and found["best_time"] > 0
