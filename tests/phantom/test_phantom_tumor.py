"""The tumor, its mass effect and its labels."""

import collections
import itertools

import numpy as np
import pytest

from cdm_jax.phantom import tumor
from cdm_jax.phantom.fields import Grid, smooth_field
from cdm_jax.phantom.templates import load_templates

AXIS = np.linspace(-60, 60, 61)
POSITIONS = np.stack(np.meshgrid(AXIS, AXIS, AXIS[20:41], indexing="ij"), -1).reshape(-1, 3)
POSITIONS = POSITIONS.astype(np.float32)


def make_tumor(**changes):
    values = {"kind": "ring", "center_mm": np.zeros(3), "radius_mm": 20.0, "inner_part": 0.6}
    values |= {"reach_mm": 15.0, "push": 0.4, "stretch": np.eye(3), "infiltration_mm": 0.0}
    return tumor.Tumor(**(values | changes))


def flat_field(length_mm):
    return np.zeros(len(POSITIONS), np.float32)


ROUGH = tumor.Roughness(core=flat_field(0), rim=flat_field(0), reach=flat_field(0))


def grown(tissues, **changes):
    return tumor.grow(ROUGH, make_tumor(**changes), POSITIONS, tissues, 2.0)


def lesions_in(white, **changes):
    tissues = {"white": flat_field(0) + np.float32(white), "gray": flat_field(0)}
    tissues["gray"] += 1 - tissues["white"]
    lesions = grown(tissues, **changes)
    np.testing.assert_allclose(sum(lesions.values()), 1, atol=1e-6)
    return {name: share for name, share in lesions.items() if name not in tissues}


def test_patients_have_tumors_of_every_kind_in_their_shares():
    templates = load_templates(3.0)
    rng = np.random.default_rng(0)
    drawn = [tumor.draw_tumor(rng, templates) for _ in range(1000)]
    kinds = collections.Counter(
        "none" if not foci else foci[0].kind if len(foci) == 1 else "multifocal" for foci in drawn
    )
    assert set(kinds) == set(tumor.KINDS)
    for kind, share in tumor.KINDS.items():
        assert kinds[kind] == pytest.approx(1000 * share, abs=45), kind
    for foci in drawn:
        for one, other in itertools.combinations(foci, 2):
            assert np.linalg.norm(one.center_mm - other.center_mm) > 0


def test_kinds_hold_what_their_names_say():
    solid, cavity, low = (lesions_in(1.0, kind=k) for k in ("solid", "cavity", "non_enhancing"))
    assert set(solid) == {"enhancing", "edema"}
    assert set(low) == {"low_grade", "edema"}
    assert set(cavity) == {"enhancing", "cavity", "edema"}
    labels = tumor.segment({"white": 1 - cavity["cavity"]} | cavity)
    assert (labels[cavity["cavity"] > 0.9] == 0).all()  # a cavity is no tumor


def test_mass_effect_pushes_outwards_without_folding_and_fades():
    growth = make_tumor()
    radii = np.linspace(0, 120, 500)
    line = np.stack([radii, 0 * radii, 0 * radii], axis=-1).astype(np.float32)
    before = tumor.displace(line, growth)
    assert (before[:, 0] <= radii + 1e-4).all()  # The tissue came from nearer the center ...
    assert (np.diff(before[:, 0]) > 0).all()  # ... in the same order.
    np.testing.assert_allclose(before[0], 0, atol=1e-6)
    np.testing.assert_allclose(before[-1], line[-1], atol=0.01)


def test_without_noise_the_core_is_a_ball_with_a_ball_of_necrosis():
    lesions = lesions_in(1.0)
    radius = np.linalg.norm(POSITIONS, axis=-1)
    core = lesions["necrosis"] + lesions["enhancing"]
    np.testing.assert_array_equal(core > 0.5, radius < 20)
    np.testing.assert_array_equal(lesions["necrosis"] > 0.5, radius < 12)
    assert all((share >= 0).all() and (share <= 1).all() for share in lesions.values())


def test_edema_spreads_farther_in_white_matter_and_spares_csf():
    reaches = {}
    for white in (0.0, 1.0):
        edema = lesions_in(white)["edema"] > 0.5
        reaches[white] = np.linalg.norm(POSITIONS[edema], axis=-1).max() - 20
    assert reaches[1.0] == pytest.approx(13, abs=2)
    assert 0 < reaches[0.0] < 5
    fluid = {"white": flat_field(0), "csf": flat_field(0) + np.float32(1)}
    assert grown(fluid)["edema"].max() == 0


def test_edema_is_densest_near_the_core_and_fades():
    edema, radius = lesions_in(1.0)["edema"], np.linalg.norm(POSITIONS, axis=-1)
    shells = [edema[(radius > low) & (radius < low + 3)].mean() for low in (22, 25, 28, 31, 34, 38)]
    assert (np.diff(shells) < 0).all()
    assert shells[0] > 0.9 and 0.2 < shells[4] < 0.6 and shells[5] < 0.1


def test_a_focus_in_the_edema_of_another_adds_to_it():
    tissues = {"white": flat_field(0) + np.float32(1)}
    once = grown(tissues)
    twice = grown(once, center_mm=np.array([30.0, 0, 0]), radius_mm=8.0)
    np.testing.assert_allclose(sum(twice.values()), 1, atol=1e-6)
    for name in ("edema", "enhancing", "necrosis"):
        assert twice[name].min() >= -1e-6 and twice[name].sum() > once[name].sum()


def test_a_stretched_core_keeps_its_volume_and_stays_on_its_side():
    squeezed = np.diag([1.25, 0.8, 1.0])
    cores = [
        lesions_in(1.0, radius_mm=10.0, center_mm=np.array(center), stretch=stretch)["enhancing"]
        for stretch in (np.eye(3), squeezed)
        for center in ([20.0, 0, 0], [4.0, 0, 0])
    ]
    ball, ball_at_midline, ellipsoid, _ = (core.sum() for core in cores)
    assert ellipsoid == pytest.approx(ball, rel=0.05)
    assert ball_at_midline < 0.9 * ball


def test_drawn_stretches_keep_volume_and_differ():
    drawn = [tumor._draw_stretch(np.random.default_rng(seed)) for seed in range(50)]
    np.testing.assert_allclose(np.linalg.det(drawn), 1, rtol=1e-6)
    ratios = [np.linalg.cond(one) for one in drawn]
    assert 1.2 < np.median(ratios) < 2


def test_old_lesions_lie_along_the_ventricles_and_the_young_have_none():
    grid = Grid(shape=(64, 64, 48), voxel_mm=3.0)
    near = np.linspace(0, 30, 64)[:, None, None] + np.zeros(grid.shape)
    near, white = near.ravel().astype(np.float32), np.ones(near.size, np.float32)
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        field = lambda mm, rng=rng: smooth_field(rng, grid, mm).ravel()  # noqa: E731
        shares.append(tumor.chronic_lesions(rng, field, near, white))
    free = np.mean([share.max() == 0 for share in shares])
    assert free == pytest.approx(0.4, abs=0.2)
    mean = np.mean(shares, axis=0)
    assert mean[near < 3].mean() > 10 * mean[near > 12].mean() > 0
    assert max(share.mean() for share in shares) < 0.25


def test_labels_follow_the_tissue_that_fills_a_voxel():
    shares = {
        "white": np.float32([1.0, 0.4, 0.3, 0.1, 0.6]),
        "edema": np.float32([0.0, 0.6, 0.1, 0.0, 0.2]),
        "enhancing": np.float32([0.0, 0.0, 0.6, 0.3, 0.2]),
        "necrosis": np.float32([0.0, 0.0, 0.0, 0.6, 0.0]),
    }
    assert tumor.segment(shares).tolist() == [0, 2, 3, 1, 0]
    low_grade = {"white": shares["white"], "low_grade": 1 - shares["white"]}
    assert tumor.segment(low_grade).tolist() == [0, 1, 1, 1, 0]
    assert tumor.segment({"white": shares["white"]}).tolist() == [0] * 5
