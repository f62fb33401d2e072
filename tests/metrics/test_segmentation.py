"""Dice and HD95 beside known distances, a search through all pairs, and BraTS' own program."""

import itertools

import numpy as np
import pytest
from skimage.measure import marching_cubes, mesh_surface_area

from cdm_jax.errors import UserError
from cdm_jax.metrics.segmentation import _AREA_OF_CODE, MISSED_MM, dice, hd95

# Of scikit-image, under NumPy 2.5.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array")

CUBIC = (1.0, 1.0, 1.0)


def cube(corner, side=6, shape=(20, 22, 24)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def ball(center, radius, shape=(24, 26, 28)):
    grid = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def noise(seed, least, shape=(2, 9, 10, 11)):
    return np.random.default_rng(seed).random(shape) > least


def by_all_pairs(prediction, truth, voxel_size):
    """HD95 without a table or a distance transform: every corner against every other one."""
    corners, areas = [], []
    for mask in (prediction, truth):
        padded = np.pad(mask, 1)
        found, own = [], []
        for place in itertools.product(*(range(n - 1) for n in padded.shape)):
            cell = padded[tuple(slice(start, start + 2) for start in place)]
            if cell.any() and not cell.all():
                found.append(place)
                own.append(surface_of(cell))
        corners.append(np.array(found) * voxel_size)
        areas.append(np.array(own))
    distances = np.linalg.norm(corners[0][:, None] - corners[1][None], axis=-1)
    ends = []
    for nearest, own in zip((distances.min(axis=1), distances.min(axis=0)), areas, strict=True):
        within = {d: own[nearest <= d].sum() / own.sum() for d in np.unique(nearest)}
        ends.append(min(d for d, share in within.items() if share >= 0.95 - 1e-9))
    return max(ends)


def surface_of(cell):
    """Area of the surface that another marching cubes lays through a cell."""
    vertices, faces, *_ = marching_cubes(cell.astype(float), 0.5, method="lorensen")
    return mesh_surface_area(vertices, faces)


def test_dice_of_known_overlaps():
    one, other = cube((2, 3, 4)), cube((2, 3, 7))
    assert dice(one, one) == 1
    assert dice(one, other) == 0.5  # half of each is common
    assert dice(one, cube((10, 12, 14))) == 0
    assert dice(one, cube((2, 3, 4), side=3)) == 2 * 27 / (216 + 27)


def test_empty_masks_are_as_in_brats():
    """Both empty: nothing was missed. One empty: no overlap, and the distance of a penalty."""
    one, none = cube((2, 3, 4)), np.zeros((20, 22, 24), bool)
    assert (dice(none, none), hd95(none, none, CUBIC)) == (1, 0)
    for pair in ((one, none), (none, one)):
        assert (dice(*pair), hd95(*pair, CUBIC)) == (0, MISSED_MM)


@pytest.mark.parametrize("voxel_size", [CUBIC, (3.0, 1.0, 0.5)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_cube_is_as_far_as_it_was_moved(axis, voxel_size):
    """Its foremost face, a sixth of the surface, is that far from the other cube."""
    corner = [4, 4, 4]
    moved = [c + 3 * (a == axis) for a, c in enumerate(corner)]
    expected = 3 * voxel_size[axis]
    assert hd95(cube(moved), cube(corner), voxel_size) == pytest.approx(expected)


def test_balls_around_one_center_are_apart_by_their_radii():
    assert hd95(ball((12, 12, 12), 9), ball((12, 12, 12), 5), CUBIC) == pytest.approx(4, abs=0.5)


def test_the_order_of_the_masks_does_not_matter():
    one, other = ball((10, 10, 10), 6), ball((14, 12, 16), 8)
    assert hd95(one, other, CUBIC) == hd95(other, one, CUBIC)


def test_a_mask_at_the_edge_of_the_frame_has_a_surface_there():
    one = cube((0, 0, 0))
    assert hd95(one, one, CUBIC) == 0
    assert hd95(np.roll(one, 5, axis=1), one, CUBIC) == 5


@pytest.mark.parametrize("voxel_size", [CUBIC, (2.0, 1.0, 0.7)])
@pytest.mark.parametrize(
    "masks",
    [
        (ball((4, 4, 5), 3, (9, 10, 11)), ball((5, 4, 4), 2, (9, 10, 11))),
        (cube((1, 1, 1), 4, (8, 9, 9)), ball((4, 4, 5), 3, (8, 9, 9))),
        tuple(noise(1, 0.97)),
    ],
    ids=["balls", "cube and ball", "single voxels"],
)
def test_a_search_through_all_pairs_finds_the_same(masks, voxel_size):
    assert hd95(*masks, voxel_size) == pytest.approx(by_all_pairs(*masks, voxel_size))


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (noise(0, 0.5), 1),
        (noise(1, 0.9), 1.4142135623730951),
        (noise(2, 0.97), 3),
        (noise(3, 0.7), 1),
        ((ball((12, 12, 12), 8), ball((12, 14, 15), 7)), 4),
        ((ball((10, 10, 10), 6), ball((14, 12, 16), 8)), 8.48528137423857),
        ((ball((12, 13, 14), 9), ball((12, 13, 14), 5)), 4.123105625617661),
    ],
)
def test_brats_own_program_gives_the_same(masks, expected):
    """What `surface_distance` 0.1 by DeepMind gave, which the program of BraTS 2023 calls.

    Run beside it on 120 pairs of random masks, this module gave the same to the last digit.
    """
    assert hd95(*masks, CUBIC) == pytest.approx(expected, abs=1e-9)


def test_areas_are_those_of_marching_cubes():
    """As scikit-image lays them through up to four voxels, and alike inside out.

    Of more voxels it runs surfaces otherwise where a diagonal of a face leaves that open.
    """
    for code, area in enumerate(_AREA_OF_CODE):
        cell = (code >> np.arange(8) & 1).astype(bool).reshape(2, 2, 2)
        if 0 < cell.sum() <= 4:
            assert area == pytest.approx(surface_of(cell), abs=1e-6)
        assert area == _AREA_OF_CODE[255 - code]


def test_a_voxel_without_extent_is_refused():
    with pytest.raises(UserError, match="voxel size"):
        hd95(cube((2, 3, 4)), cube((2, 3, 4)), (1.0, 0.0, 1.0))
