"""Whole simulated patients."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from cdm_jax.errors import UserError
from cdm_jax.phantom import PhantomSettings, patient, physics, simulate_patient
from cdm_jax.phantom.fields import Grid
from cdm_jax.phantom.patient import draw_body, scan

SETTINGS = PhantomSettings(num_patients=6)
MIXED = physics.SCANNERS["mixed"]
GRID = Grid(shape=SETTINGS.shape, voxel_mm=SETTINGS.voxel_mm)


def seeds(index):
    return np.random.SeedSequence([0, index]).spawn(2)


@pytest.fixture(scope="module")
def bodies():
    return [draw_body(seeds(index)[0], GRID) for index in range(6)]


@pytest.fixture(scope="module")
def scans(bodies):
    return [scan(seeds(index)[1], body, GRID, MIXED) for index, body in enumerate(bodies)]


@pytest.fixture(scope="module")
def glioblastoma(bodies):
    """Index of the patient with the most enhancing tumor."""
    return max(range(6), key=lambda index: np.sum(bodies[index].tissues.get("enhancing", 0)))


def mean_signals(body, values, names=("white", "gray", "csf")):
    return [values[body.tissues[name] > 0.8].mean() for name in names]


def test_shares_of_tissues_sum_to_one(bodies):
    for body in bodies:
        np.testing.assert_allclose(sum(body.tissues.values()), 1, atol=1e-6)
        assert min(share.min() for share in body.tissues.values()) >= -1e-6


def test_every_patient_has_the_contrasts_of_each_modality(bodies, scans):
    for body, values in zip(bodies, scans, strict=True):
        white, gray, csf = mean_signals(body, values["t1"])
        assert white > gray > 1.3 * csf
        white, gray, csf = mean_signals(body, values["t2"])
        assert csf > 1.3 * gray > 1.3 * white
        white, gray, csf = mean_signals(body, values["t2f"])
        assert gray > white > 3 * csf


def test_the_rim_and_vessels_are_bright_after_contrast_and_the_core_stays_dark(
    bodies, scans, glioblastoma
):
    body, values = bodies[glioblastoma], scans[glioblastoma]
    names = ("enhancing", "blood", "necrosis", "white")
    before = mean_signals(body, values["t1"], names)
    after = mean_signals(body, values["t1c"], names)
    rim, blood, _, white = np.divide(after, before)
    assert rim > 1.2 * white
    assert blood > 1.5 * white
    assert after[2] < after[3] < after[0]


def test_edema_is_bright_on_flair(bodies, scans, glioblastoma):
    body, values = bodies[glioblastoma], scans[glioblastoma]
    edema, white = mean_signals(body, values["t2f"], ("edema", "white"))
    assert edema > 1.3 * white


def test_necrosis_lies_in_the_enhancing_rim_and_that_in_the_edema(glioblastoma):
    labels = simulate_patient(SETTINGS, glioblastoma).segmentation
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    depth = ndimage.distance_transform_edt(labels > 0)
    necrosis, edema, enhancing = (depth[labels == label].mean() for label in (1, 2, 3))
    assert necrosis > enhancing > edema
    around_necrosis = ndimage.binary_dilation(labels == 1) & (labels != 1)
    assert np.mean(labels[around_necrosis] == 3) > 0.8


def test_t1_and_t2_do_not_tell_how_bright_the_tumor_is_on_t1c(bodies, glioblastoma):
    body, seed = bodies[glioblastoma], [0, 1]
    more = dataclasses.replace(body, dose=2 * body.dose)
    one, other = (scan(np.random.SeedSequence(seed), b, GRID, MIXED) for b in (body, more))
    for modality in ("t1", "t2", "t2f"):
        np.testing.assert_array_equal(one[modality], other[modality])
    rim = body.tissues["enhancing"] > 0.8
    assert other["t1c"][rim].mean() > 1.1 * one["t1c"][rim].mean()


def test_t1_and_t2_do_not_tell_how_bright_edema_is_on_flair(bodies, glioblastoma):
    body, seed = bodies[glioblastoma], [0, 1]
    brighter = dataclasses.replace(body, flair=1.5 * body.flair)
    one, other = (scan(np.random.SeedSequence(seed), b, GRID, MIXED) for b in (body, brighter))
    for modality in ("t1", "t1c", "t2"):
        np.testing.assert_array_equal(one[modality], other[modality])
    edema = body.tissues["edema"] > 0.8
    assert other["t2f"][edema].mean() > 1.3 * one["t2f"][edema].mean()


def test_background_is_zero_and_the_brain_is_not():
    patient = simulate_patient(SETTINGS, 0)
    brain = patient.images["t1"] > 0
    assert set(patient.images) == {"t1", "t1c", "t2", "t2f"}
    for image in patient.images.values():
        assert image.shape == patient.segmentation.shape == SETTINGS.shape
        np.testing.assert_array_equal(image >= 1, brain)
        assert (image[~brain] == 0).all() and 100 < image.max() < 32767
    assert (patient.segmentation[~brain] == 0).all()
    assert not brain[[0, -1]].any() and not brain[:, [0, -1]].any()


def test_a_patient_depends_on_seed_and_index_alone():
    first = simulate_patient(SETTINGS, 3)
    again = simulate_patient(dataclasses.replace(SETTINGS, num_patients=500), 3)
    for modality, image in first.images.items():
        np.testing.assert_array_equal(image, again.images[modality])
    for other in (
        simulate_patient(SETTINGS, 4),
        simulate_patient(dataclasses.replace(SETTINGS, seed=1), 3),
    ):
        assert np.any(other.images["t1"] != first.images["t1"])


@pytest.mark.parametrize("scanner", physics.SCANNERS)
def test_each_scanner_has_the_noise_that_it_states(bodies, scanner):
    sequences, seed = physics.SCANNERS[scanner], [0, 1]
    silent = {name: dataclasses.replace(s, noise=0.0) for name, s in sequences.items()}
    noisy, clean = (
        scan(np.random.SeedSequence(seed), bodies[0], GRID, s) for s in (sequences, silent)
    )
    for name, sequence in sequences.items():
        noise = np.std(noisy[name] - clean[name]) / clean[name].mean()
        assert 0.75 * sequence.noise < noise < 1.25 * sequence.noise, name


def test_another_scanner_sees_the_same_patient_otherwise():
    one, other = (
        simulate_patient(dataclasses.replace(SETTINGS, scanner=name), 0)
        for name in ("mixed", "mprage")
    )
    np.testing.assert_array_equal(one.segmentation, other.segmentation)
    inside = one.images["t1"] > 0
    alike = [
        np.corrcoef(p.images["t1"][inside], p.images["t1c"][inside])[0, 1] for p in (one, other)
    ]
    assert alike[1] > alike[0]  # the second prepares both by the same inversion


def test_a_patient_is_the_same_at_another_resolution(glioblastoma):
    coarse = PhantomSettings(shape=(32, 32, 24), voxel_mm=6.0)
    patients = [(simulate_patient(s, glioblastoma), s.voxel_mm) for s in (SETTINGS, coarse)]
    volumes = [
        [np.sum(patient.segmentation > 0) * voxel**3, np.sum(patient.images["t1"] > 0) * voxel**3]
        for patient, voxel in patients
    ]
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "bids"},
        {"scanner": "pet"},
        {"num_patients": 0},
        {"voxel_mm": 0.0},
        {"shape": (64, 64, 4)},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError):
        PhantomSettings(**changes)


def test_brain_without_signal_is_still_told_from_background(bodies):
    voxels = np.ones(int(bodies[0].brain.sum()))
    silent = dataclasses.replace(bodies[0], tissues={"edema": voxels}, flair=0 * voxels)
    values = scan(np.random.SeedSequence(0), silent, GRID, MIXED)["t2f"]
    np.testing.assert_array_equal(values, 1)


@pytest.fixture
def uniform(monkeypatch):
    """A block of white matter of 19 cm, and a scanner without noise."""
    monkeypatch.setattr(physics, "rician", lambda rng, magnitude, sigma: magnitude)
    grid = Grid(shape=(32, 32, 32), voxel_mm=6.0)
    ones = np.ones(32**3)
    body = patient.Body(
        brain=np.ones(grid.shape, bool),
        tissues={"white": ones},
        texture=0 * ones,
        dose=1.0,
        uptake=ones,
        flair=ones,
    )
    return body, grid


def structure(fields, step):
    """Mean squared difference of voxels `step` apart along the first axis."""
    return np.mean([(field[step:] - field[:-step]) ** 2 for field in fields])


def test_the_bias_field_is_smooth_of_the_stated_strength_and_mostly_shared(uniform):
    body, grid = uniform
    scans = [scan(np.random.SeedSequence([3, n]), body, grid, MIXED) for n in range(12)]
    logs = [{k: np.log(v).reshape(grid.shape) for k, v in images.items()} for images in scans]

    def expected(variance, step):
        return 2 * variance * (1 - np.exp(-((6.0 * step) ** 2) / (4 * 60.0**2)))

    own = [images["t1"] - images["t2"] for images in logs]
    for step in (1, 10):
        whole = structure([images["t1"] for images in logs], step)
        assert whole == pytest.approx(expected(0.06**2 + 0.02**2, step), rel=0.4)
        assert structure(own, step) == pytest.approx(expected(2 * 0.02**2, step), rel=0.4)
    for images in logs:
        assert max(np.ptp(field) for field in images.values()) < 0.5
        assert max(np.abs(np.diff(field, axis=0)).max() for field in images.values()) < 0.03


def test_without_a_bias_field_a_uniform_tissue_is_uniform(uniform, monkeypatch):
    body, grid = uniform
    monkeypatch.setattr(patient, "smooth_field", lambda rng, grid, length: np.zeros(grid.shape))
    for values in scan(np.random.SeedSequence(3), body, grid, MIXED).values():
        np.testing.assert_allclose(values, values[0], rtol=1e-12)
