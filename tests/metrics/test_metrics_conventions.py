import dataclasses
import json
import math

import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.metrics import conventions
from cdm_jax.metrics.conventions import Case, fingerprint, get_convention, json_ready
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import ssim
from tests.metrics import cases
from tests.metrics.cases import slices

PAPER, VOLUME = get_convention("paper"), get_convention("volume")
METRICS = ("psnr", "ssim", "mae")


@pytest.fixture(scope="module")
def head():
    return cases.head()


def scaled_by_hand(case):
    peak = np.percentile(case.truth[case.brain], 99.5)
    return [np.where(case.brain, np.clip(i / peak, 0, 1), 0) for i in (case.prediction, case.truth)]


def test_paper_is_the_mean_over_slices_that_show_something(head):
    case = slices(head)
    scores = PAPER.score(case)
    shown = [k for k in range(len(case.truth)) if case.truth[k].max() > 0]
    assert scores["slices"] == len(shown) > 0
    assert scores["skipped"] == len(case.truth) - len(shown) > 0
    assert scores["capped"] == 0
    for name, metric in {"psnr": psnr, "ssim": ssim, "mae": mae}.items():
        each = [metric(np.minimum(case.prediction[k], 1), case.truth[k]) for k in shown]
        assert scores[name] == pytest.approx(np.mean(each), abs=1e-9)


def test_paper_ignores_what_is_predicted_on_empty_slices(head):
    case = slices(head)
    painted = case.prediction.copy()
    painted[case.truth.max(axis=(1, 2)) == 0] = 1
    assert PAPER.score(dataclasses.replace(case, prediction=painted)) == PAPER.score(case)


def test_paper_clips_the_prediction_to_the_data_range(head):
    case = slices(head)
    wild = dataclasses.replace(case, prediction=case.prediction * 5 - 1)
    clipped = dataclasses.replace(case, prediction=np.clip(wild.prediction, 0, 1))
    assert PAPER.score(wild) == PAPER.score(clipped)


def test_paper_counts_identical_slices_at_the_cap(head):
    case = slices(head)
    copied = case.prediction.copy()
    middle = len(copied) // 2
    copied[middle : middle + 2] = case.truth[middle : middle + 2]
    assert PAPER.score(dataclasses.replace(case, prediction=copied))["capped"] == 2
    perfect = PAPER.score(dataclasses.replace(case, prediction=case.truth))
    assert (perfect["psnr"], perfect["mae"], perfect["capped"]) == (100, 0, perfect["slices"])
    assert perfect["ssim"] == pytest.approx(1)


def test_paper_refuses_a_truth_in_scanner_units(head):
    with pytest.raises(UserError, match=r"P-7 t1c.*\[0, 1\]"):
        PAPER.score(head)


def test_volume_in_its_box_equals_the_whole_volume_by_hand(head):
    scores = VOLUME.score(head)
    prediction, truth = scaled_by_hand(head)
    tumor = head.segmentation > 0
    masks = {
        "healthy": head.brain & ~tumor,
        "whole_tumor": tumor,
        "tumor_core": np.isin(head.segmentation, (1, 3)),
        "enhancing_tumor": head.segmentation == 3,
    }
    assert set(scores["regions"]) == set(masks)
    for found, mask in [(scores, head.brain), *((scores["regions"][k], masks[k]) for k in masks)]:
        for name, metric in {"psnr": psnr, "ssim": ssim, "mae": mae}.items():
            assert found[name] == pytest.approx(metric(prediction, truth, mask=mask), abs=1e-12)


def test_volume_box_is_exact_where_the_brain_touches_the_frame(head):
    middle = slice(8, -8)
    cut = dataclasses.replace(
        head,
        **{
            name: getattr(head, name)[middle, middle, :]
            for name in ("prediction", "truth", "brain", "segmentation")
        },
    )
    assert cut.brain[0].any() and cut.brain[:, -1].any()
    expected = ssim(*scaled_by_hand(cut), mask=cut.brain)
    assert VOLUME.score(cut)["ssim"] == pytest.approx(expected, abs=1e-12)


def test_volume_does_not_see_anything_outside_the_brain(head):
    painted = np.where(head.brain, head.prediction, 1e6)
    assert VOLUME.score(dataclasses.replace(head, prediction=painted)) == VOLUME.score(head)


def test_volume_ignores_a_common_gain_but_punishes_one_of_the_prediction_alone(head):
    scores = VOLUME.score(head)
    both = dataclasses.replace(head, prediction=head.prediction * 7, truth=head.truth * 7)
    assert VOLUME.score(both)["psnr"] == pytest.approx(scores["psnr"])
    assert VOLUME.score(both)["ssim"] == pytest.approx(scores["ssim"])

    flat = head.brain * 500.0
    darker = VOLUME.score(dataclasses.replace(head, prediction=0.85 * flat, truth=flat))
    assert darker["psnr"] == pytest.approx(20 * math.log10(1 / 0.15))
    assert darker["mae"] == pytest.approx(0.15)


@pytest.mark.parametrize("name", ["paper", "volume", "reggan", "monai"])
def test_no_score_depends_on_the_predictions_own_extremes(head, name):
    case = head if get_convention(name).space == "native" else slices(head)
    peak = np.percentile(case.truth[case.brain], 99.5) if case is head else 1
    spiked = case.prediction.copy()
    spiked[13, 16, 15] = 2 * peak
    capped = spiked.copy()
    capped[13, 16, 15] = peak
    first, second = (
        get_convention(name).score(dataclasses.replace(case, prediction=p))
        for p in (spiked, capped)
    )
    assert [first[m] for m in METRICS] == pytest.approx([second[m] for m in METRICS], abs=1e-12)


def test_volume_reports_the_clipped_part_of_the_prediction(head):
    peak = np.percentile(head.truth[head.brain], 99.5)
    prediction = np.where(head.segmentation > 0, 2 * peak, 0.5 * peak)
    prediction[head.segmentation == 2] = -1
    found = VOLUME.score(dataclasses.replace(head, prediction=prediction))["clipped_fraction"]
    assert found == pytest.approx((head.segmentation > 0).sum() / head.brain.sum())


def test_volume_gives_nan_in_regions_that_the_tumor_lacks(head):
    edema = np.where(head.segmentation > 0, 2, 0)
    regions = VOLUME.score(dataclasses.replace(head, segmentation=edema))["regions"]
    assert all(math.isnan(regions["tumor_core"][m]) for m in METRICS)
    assert all(math.isfinite(regions["whole_tumor"][m]) for m in METRICS)
    assert VOLUME.score(dataclasses.replace(head, segmentation=None))["regions"] == {}


def test_identical_and_empty_volumes_are_counted(head):
    perfect = VOLUME.score(dataclasses.replace(head, prediction=head.truth))
    assert (perfect["psnr"], perfect["capped"], perfect["skipped"]) == (100, 1, 0)
    blank = dataclasses.replace(head, truth=np.zeros_like(head.truth))
    for name in ("paper", "volume"):
        scores = get_convention(name).score(blank)
        assert all(math.isnan(scores[m]) for m in METRICS)
        assert scores["skipped"] == (len(head.truth) if name == "paper" else 1)
    assert set(VOLUME.score(blank)) == set(perfect)
    assert math.isnan(VOLUME.score(blank)["regions"]["healthy"]["psnr"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("field", "name"), [("prediction", "prediction"), ("truth", "ground truth")]
)
def test_a_voxel_that_is_not_finite_is_an_error_with_the_subjects_name(head, value, field, name):
    broken = getattr(head, field).copy()
    broken[3, 4, 5] = value
    with pytest.raises(UserError, match=f"P-7 t1c: the {name} has 1 voxels"):
        dataclasses.replace(head, **{field: broken})


def test_what_cannot_be_scored_is_an_error_with_the_subjects_name(head):
    for brain in (None, np.zeros_like(head.brain)):
        with pytest.raises(UserError, match="P-7 t1c: the brain mask is empty"):
            VOLUME.score(dataclasses.replace(head, brain=brain))
    with pytest.raises(UserError, match="P-7: segmentation has labels"):
        VOLUME.score(dataclasses.replace(head, segmentation=head.segmentation + 2))


def test_scores_survive_json(head):
    edema = dataclasses.replace(head, segmentation=np.where(head.segmentation > 0, 2, 0))
    scores = VOLUME.score(edema)
    read = json.loads(json.dumps(json_ready(scores), allow_nan=False))
    assert set(read["regions"]["tumor_core"]) >= {*METRICS, "psnr_best_gain", "z_gradient"}
    assert set(read["regions"]["tumor_core"].values()) == {None}
    assert read["psnr"] == scores["psnr"]


def test_a_fingerprint_names_the_parameters_and_the_version(monkeypatch):
    assert fingerprint("volume") == fingerprint("volume") != fingerprint("paper")
    changes = [{"version": 2}, {"percentile": 99.0}, {"psnr_cap": 80.0}]
    tags = {fingerprint("volume")}
    for change in changes:
        changed = {"volume": dataclasses.replace(VOLUME, **change)}
        monkeypatch.setattr(conventions, "CONVENTIONS", changed)
        tags.add(fingerprint("volume"))
    assert len(tags) == 1 + len(changes)
    monkeypatch.setattr(conventions, "CONVENTIONS", {"one": VOLUME, "other": VOLUME})
    assert fingerprint("one") != fingerprint("other")


def test_an_unknown_convention_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match="choose from paper, volume"):
        fingerprint("vol")


GOLDEN = {
    "paper": ("252521159e89", 26.747371, 0.859621, 0.0195826),
    "volume": ("244f4ac1ca58", 21.167606, 0.951211, 0.0587962),
    "reggan": ("39b83ac8b456", 21.694578, 0.886182, 0.0600726),
    "resvit": ("5e2305347832", 16.445389, math.nan, 0.0135572),
    "syndiff": ("11fe6e2c8159", 23.754451, math.nan, math.nan),
    "brasyn": ("ec063eab9bf9", math.nan, 0.934927, math.nan),
    "torchmetrics": ("70d4eaece5b0", 28.039833, 0.944451, 32.0204212),
    "monai": ("a6caf297420e", 26.747371, 0.859621, 0.0195826),
    "skimage": ("c44531d6b4c5", 24.587164, 0.859001, math.nan),
}


@pytest.mark.parametrize("name", conventions.CONVENTIONS)
def test_scores_change_only_together_with_the_fingerprint(head, name):
    """On failure: either the change was a mistake, or the convention needs a new version."""
    case = head if get_convention(name).space == "native" else slices(head)
    scores = get_convention(name).score(case)
    tag, *expected = GOLDEN[name]
    assert fingerprint(name) == tag
    assert [scores[m] for m in METRICS] == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_real_patient_scores_alike_in_every_precision(real_data):
    nibabel = pytest.importorskip("nibabel")
    stem = str(real_data / "brats2023" / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-")
    t1, t1c, labels = (
        np.asarray(nibabel.load(f"{stem}{name}.nii.gz").dataobj, dtype=np.float64).T[70:90]
        for name in ("t1n", "t1c", "seg")
    )
    case = Case(
        subject="BraTS-GLI-00001-000",
        modality="t1c",
        prediction=t1,
        truth=t1c,
        brain=t1 != 0,
        segmentation=labels,
    )
    single = dataclasses.replace(
        case, prediction=t1.astype(np.float32), truth=t1c.astype(np.float32)
    )
    scores = VOLUME.score(single)
    assert [scores[m] for m in METRICS] == pytest.approx(
        [VOLUME.score(case)[m] for m in METRICS], rel=1e-6
    )
    # Contrast agent is what T1 lacks, so a copy of it is worst where the agent enhances.
    assert scores["regions"]["enhancing_tumor"]["ssim"] < scores["regions"]["healthy"]["ssim"]
