"""The healthy brain: templates, deformation and tissue shares."""

import sys

import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.phantom import anatomy
from cdm_jax.phantom.fields import Grid, smooth_field
from cdm_jax.phantom.templates import _average_brain, load_templates

GRID = Grid(shape=(64, 64, 48), voxel_mm=3.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_deformation_never_folds_the_brain(seed):
    positions, _ = anatomy.deform(np.random.default_rng(seed), GRID, load_templates(3.0))
    gradients = np.gradient(positions, GRID.voxel_mm, axis=(0, 1, 2))
    determinant = np.linalg.det(np.stack(gradients, axis=-1))
    assert determinant.min() > 0.1  # Patient to template: above 1 for a smaller brain.
    assert 0.85 < determinant.mean() < 1.9


def test_positions_run_from_right_to_left_and_from_front_to_back():
    positions, _ = anatomy.deform(np.random.default_rng(0), GRID, load_templates(3.0))
    right, front, head = np.moveaxis(positions, -1, 0)
    assert right[0].mean() > 50 > -50 > right[-1].mean()
    assert front[:, 0].mean() > 40 > -80 > front[:, -1].mean()
    assert head[..., -1].mean() > 50 > -30 > head[..., 0].mean()


def test_tissue_shares_fill_every_voxel_and_lie_where_they_belong():
    templates = load_templates(3.0)
    rng = np.random.default_rng(0)
    places = {
        "white": [26, -20, 32],
        "gray": [5, -17, 39],
        "deep_gray": [11, -18, 8],
        "csf": [6, 16, 9],
        "blood": [0, -23, 73],
    }
    positions = np.array(list(places.values()), dtype=np.float32)
    tissues = anatomy.tissue_fractions(
        rng, lambda length: np.full(len(positions), length > 3.9, np.float32), templates, positions
    )
    np.testing.assert_allclose(sum(tissues.values()), 1, atol=1e-6)
    for row, name in enumerate(places):
        assert max(tissues, key=lambda key: tissues[key][row]) == name


def test_a_skull_is_stripped_unevenly_but_never_deep():
    rng, templates = np.random.default_rng(1), load_templates(3.0)
    _, depth = anatomy.deform(rng, GRID, templates)
    brain, meninges = anatomy.strip(rng, GRID, depth)
    assert brain[depth > 3].all() and not brain[depth < -0.8].any()
    within = (depth > 0) & (depth < 2)
    assert 0.2 < brain[within].mean() < 0.9
    assert (meninges[depth[brain] > 0.3] == 0).all()


def test_positions_know_how_far_they_are_from_border_and_ventricles():
    templates = load_templates(3.0)
    places = np.float32([[20, -20, 20], [0, -17, 120], [35, -45, 30], [60, -20, 20]])
    depth, ventricle = templates.depth_mm(places), templates.ventricle_mm(places)
    assert depth[0] == pytest.approx(12) and depth[1] == -3
    assert ventricle[0] < 6 < ventricle[2] < 20 < ventricle[3]
    mirrored = templates.ventricle_mm(places * np.float32([-1, 1, 1]))
    np.testing.assert_allclose(mirrored, ventricle, atol=0.01)


def test_a_brain_has_the_volumes_of_an_adult_brain():
    templates = load_templates(3.0)
    rng = np.random.default_rng(5)
    positions, depth = anatomy.deform(rng, GRID, templates)
    brain, _ = anatomy.strip(rng, GRID, depth)
    field = lambda length_mm: smooth_field(rng, GRID, length_mm)[brain]  # noqa: E731
    tissues = anatomy.tissue_fractions(rng, field, templates, positions[brain])
    litres = {name: share.sum() * 27e-6 for name, share in tissues.items()}
    assert 1.1 < sum(litres.values()) < 1.9
    assert 0.35 < litres["white"] < 0.8
    assert 0.45 < litres["gray"] + litres["deep_gray"] < 1.0
    assert 0.03 < litres["csf"] < 0.3
    assert litres["blood"] < 0.06


def test_insert_takes_room_from_all_tissues_alike():
    tissues = {"white": np.float32([0.6, 1.0]), "gray": np.float32([0.4, 0.0])}
    mixed = anatomy.insert(tissues, {"blood": np.float32([0.5, 0.0])})
    np.testing.assert_allclose(mixed["white"], [0.3, 1.0], atol=1e-6)
    np.testing.assert_allclose(mixed["gray"], [0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(mixed["blood"], [0.5, 0.0], atol=1e-6)


def test_without_nilearn_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    _average_brain.cache_clear()
    with pytest.raises(UserError, match=r"pip install cdm_jax\[demo\]"):
        load_templates(99.0)  # A size that no other test has loaded.
