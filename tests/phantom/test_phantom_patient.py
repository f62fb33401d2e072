"""Whole simulated patients."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from cdm_jax.errors import UserError
from cdm_jax.phantom import PhantomSettings, physics, protocols, simulate_patient
from cdm_jax.phantom import scan as scanning
from cdm_jax.phantom.fields import Grid
from cdm_jax.phantom.patient import draw_body
from cdm_jax.phantom.scan import Body, scan

SETTINGS = PhantomSettings(num_patients=6)
MIXED = protocols.fixed(np.random.default_rng(0), "mixed")
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


@pytest.fixture(scope="module")
def edematous(bodies):
    """Index of the patient with the most edema."""
    return max(range(6), key=lambda index: np.sum(bodies[index].tissues.get("edema", 0)))


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


def test_edema_is_bright_on_flair(bodies, scans, edematous):
    body, values = bodies[edematous], scans[edematous]
    edema, white = mean_signals(body, values["t2f"], ("edema", "white"))
    assert edema > 1.3 * white


def clean_scan(body):
    """Without noise and without bias."""
    quiet = dataclasses.replace(changed(MIXED, noise=0.0, bias=0.0), receive_bias=0.0)
    return scan(np.random.SeedSequence(0), body, GRID, quiet)


def test_the_inside_of_a_tumor_varies_by_more_than_noise(bodies, glioblastoma):
    body = bodies[glioblastoma]
    values = clean_scan(body)
    for tissue in ("enhancing", "edema"):
        inside = body.tissues[tissue] > 0.9
        for name in ("t1", "t2", "t1c"):
            spread = values[name][inside].std() / values[name][inside].mean()
            assert spread > 1.5 * protocols.NOISE[name], (tissue, name)


def test_white_matter_has_a_texture_of_which_t1_tells_a_part_of_t2(bodies):
    body = bodies[0]
    t1, t2 = (clean_scan(body)[name][body.tissues["white"] > 0.98] for name in ("t1", "t2"))
    assert 0.005 < t1.std() / t1.mean() < 0.05
    assert 0.02 < t2.std() / t2.mean() < 0.1
    assert -0.95 < np.corrcoef(t1, t2)[0, 1] < -0.2


def test_the_rim_of_csf_is_broken(bodies):
    for body in bodies:
        outline = (body.brain & ~ndimage.binary_erosion(body.brain))[body.brain]
        assert 0.05 < np.mean(body.tissues["csf"][outline] > 0.5) < 0.5


def test_necrosis_lies_in_the_enhancing_rim_and_that_in_the_edema(glioblastoma):
    labels = simulate_patient(SETTINGS, glioblastoma).segmentation
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    depth = ndimage.distance_transform_edt(labels > 0)
    necrosis, edema, enhancing = (depth[labels == label].mean() for label in (1, 2, 3))
    assert min(necrosis, enhancing) > edema  # several foci: not one shell in another
    around_necrosis = ndimage.binary_dilation(labels == 1) & (labels != 1)
    assert np.mean(labels[around_necrosis] == 3) > 0.7


def test_t1_and_t2_do_not_tell_how_bright_the_tumor_is_on_t1c(bodies, glioblastoma):
    body, seed = bodies[glioblastoma], [0, 1]
    more = dataclasses.replace(body, dose=2 * body.dose)
    one, other = (scan(np.random.SeedSequence(seed), b, GRID, MIXED) for b in (body, more))
    for modality in ("t1", "t2", "t2f"):
        np.testing.assert_array_equal(one[modality], other[modality])
    rim = body.tissues["enhancing"] > 0.8
    assert other["t1c"][rim].mean() > 1.1 * one["t1c"][rim].mean()


def test_t1_and_t2_do_not_tell_how_bright_edema_is_on_flair(bodies, edematous):
    body, seed = bodies[edematous], [0, 1]
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


def changed(protocol, **changes):
    acquisitions = {
        name: dataclasses.replace(acquisition, **changes)
        for name, acquisition in protocol.acquisitions.items()
    }
    return dataclasses.replace(protocol, acquisitions=acquisitions)


def test_a_patient_does_not_depend_on_how_python_orders_sets():
    """Sums of floats depend on their order, and the order of a set of names on a hash's seed."""
    told = "from cdm_jax.phantom import *; import hashlib; "
    told += "made = simulate_patient(PhantomSettings(shape=(32, 36, 28), voxel_mm=6.0), 2).images; "
    told += "print(hashlib.sha256(b''.join(map(bytes, made.values()))).hexdigest(), hash('t1'))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found, order = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | {"PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert int(order) != hash("t1")
    images = simulate_patient(PhantomSettings(shape=(32, 36, 28), voxel_mm=6.0), 2).images
    assert found == hashlib.sha256(b"".join(map(bytes, images.values()))).hexdigest()


@pytest.mark.parametrize("scanner", protocols.SCANNERS)
def test_each_scanner_has_the_noise_that_it_states(bodies, scanner):
    protocol = protocols.fixed(np.random.default_rng(0), scanner)
    noisy, clean = (
        scan(np.random.SeedSequence([0, 1]), bodies[0], GRID, p)
        for p in (protocol, changed(protocol, noise=0.0))
    )
    for name, acquisition in protocol.acquisitions.items():
        noise = np.std(noisy[name] - clean[name]) / clean[name].mean()
        assert noise == pytest.approx(acquisition.noise, rel=0.1), name
        assert acquisition.noise == pytest.approx(protocols.NOISE[name], rel=0.2), name


def test_blur_spreads_within_the_brain_and_keeps_what_is_uniform(uniform):
    body, grid = uniform
    brain = body.brain.copy()
    brain[:16] = False
    values = np.ones(int(brain.sum()), np.float32)
    np.testing.assert_allclose(scanning._blur(values, brain, np.full(3, 1.5)), 1, rtol=1e-5)
    point = np.zeros(grid.shape, np.float32)
    point[16, 16, 16] = 1
    spread = scanning._blur(point.ravel(), body.brain, np.array([0.0, 0.0, 2.0]))
    row = spread.reshape(grid.shape)[16, 16]
    assert np.sqrt(np.sum(row * (np.arange(32) - 16) ** 2)) == pytest.approx(2, rel=0.03)


def test_a_ghost_lies_half_a_field_of_view_away(uniform):
    body, grid = uniform
    point = np.zeros(grid.shape, np.float32)
    point[5, 3, 7] = 1
    ghost = scanning._ghost(point.ravel(), body.brain, 0.02).reshape(grid.shape) - point
    assert ghost[5, 19, 7] == pytest.approx(0.02)
    assert np.count_nonzero(ghost) == 1


def test_gamma_bends_around_the_mean(uniform):
    rng = np.random.default_rng(0)
    acquisition = dataclasses.replace(MIXED.acquisitions["t1"], noise=0.0, gamma=2.0, gain=1000.0)
    values = scanning._finish(rng, np.float32([1, 2, 3]), acquisition)
    np.testing.assert_allclose(values, [500, 2000, 4500], rtol=1e-6)


def test_a_random_protocol_scans_the_same_patient_otherwise_and_repeatably():
    random = dataclasses.replace(SETTINGS, protocol="random")
    one, again, fixed = (simulate_patient(s, 1) for s in (random, random, SETTINGS))
    np.testing.assert_array_equal(one.segmentation, fixed.segmentation)
    for name, image in one.images.items():
        np.testing.assert_array_equal(image, again.images[name])
        assert (image != fixed.images[name]).any()


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_as_much_of_the_enhancement_as_is_stated_shows_on_t1_and_t2(part):
    """Correlations over the whole brain, where both fields live; a lesion is a cut of it."""
    bodies = [draw_body(seeds(index)[0], GRID, part) for index in range(2)]
    explained = [np.corrcoef(np.log(b.uptake), b.lesion)[0, 1] ** 2 for b in bodies]
    assert np.mean(explained) == pytest.approx(part, abs=0.1)


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
        {"protocol": "any"},
        {"predictable": 1.5},
        {"num_patients": 0},
        {"voxel_mm": 0.0},
        {"shape": (64, 64, 4)},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError):
        PhantomSettings(**changes)


def test_brain_without_signal_is_still_told_from_background(bodies):
    voxels = np.ones(int(bodies[0].brain.sum()), np.float32)
    silent = dataclasses.replace(bodies[0], tissues={"edema": voxels}, flair=0 * voxels)
    values = scan(np.random.SeedSequence(0), silent, GRID, MIXED)["t2f"]
    np.testing.assert_array_equal(values, 1)


@pytest.fixture
def uniform(monkeypatch):
    """A block of white matter of 19 cm, and a scanner without noise."""
    monkeypatch.setattr(physics, "rician", lambda rng, magnitude, sigma: magnitude)
    grid = Grid(shape=(32, 32, 32), voxel_mm=6.0)
    ones = np.ones(32**3, np.float32)
    body = Body(
        brain=np.ones(grid.shape, bool),
        tissues={"white": ones},
        texture=0 * ones,
        texture_t2=0 * ones,
        lesion=0 * ones,
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

    shared, alone = MIXED.receive_bias, MIXED.acquisitions["t1"].bias
    own = [images["t1"] - images["t2"] for images in logs]
    for step in (1, 10):
        whole = structure([images["t1"] for images in logs], step)
        assert whole == pytest.approx(expected(shared**2 + alone**2, step), rel=0.4)
        assert structure(own, step) == pytest.approx(expected(2 * alone**2, step), rel=0.4)
    for images in logs:
        assert max(np.ptp(field) for field in images.values()) < 0.9
        assert max(np.abs(np.diff(field, axis=0)).max() for field in images.values()) < 0.06


def test_without_a_bias_field_a_uniform_tissue_is_uniform(uniform, monkeypatch):
    body, grid = uniform
    zeros = lambda rng, grid, length: np.zeros(grid.shape, np.float32)  # noqa: E731
    monkeypatch.setattr(scanning, "smooth_field", zeros)
    for values in scan(np.random.SeedSequence(3), body, grid, MIXED).values():
        np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_fresh_blood_is_brighter_by_its_inflow_and_nothing_else_is(bodies):
    def imaged(inflow):
        sequence = dataclasses.replace(MIXED.acquisitions["t1c"].sequence, inflow=inflow)
        quiet = protocols.Acquisition(sequence=sequence, noise=0.0, bias=0.0)
        protocol = protocols.Protocol(acquisitions={"t1c": quiet}, receive_bias=0.0)
        return scan(seeds(0)[1], bodies[0], GRID, protocol)["t1c"]

    ratio, blood = imaged(1.5) / imaged(1.0), bodies[0].tissues["blood"]
    assert ratio[blood > 0.9].min() > 1.44
    np.testing.assert_allclose(ratio[blood < 1e-3], 1, rtol=1e-5)


def test_a_corrected_scan_is_the_same_scan_over_a_smooth_field(bodies):
    body = bodies[0]
    biased = dataclasses.replace(MIXED, receive_bias=0.3)
    plain, corrected = (
        scan(np.random.SeedSequence([0, 1]), body, GRID, protocol)
        for protocol in (biased, dataclasses.replace(biased, correction_mm=50.0))
    )
    white = body.tissues["white"] > 0.9
    for name, values in corrected.items():
        assert values.min() >= 1
        field = np.zeros(GRID.shape)
        field[body.brain] = np.log(plain[name] / values)
        inside = body.brain[1:] & body.brain[:-1]
        assert np.abs(np.diff(field, axis=0)[inside]).max() < 0.1
        spreads = [np.std(np.log(one[name][white])) for one in (plain, corrected)]
        assert spreads[1] < 0.8 * spreads[0], name


@pytest.mark.parametrize("index", [0, 1, 13])  # the last one's would have a hole of 103 voxels
def test_no_brain_has_a_hole(index):
    settings = PhantomSettings(shape=(64, 72, 58), voxel_mm=3.0, seed=2)
    brain = simulate_patient(settings, index).images["t1"] > 0
    assert (ndimage.binary_fill_holes(brain) == brain).all()
