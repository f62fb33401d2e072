"""The folds of the cortex: shares inside a closed surface, against solids of known volume."""

import numpy as np
import pytest
from scipy import spatial

from cdm_jax.phantom import cortex

SHAPE = (40, 44, 48)
CENTER = np.array([19.3, 21.7, 24.1])


def ball(radius):
    """Corners and triangles of a ball of many faces, all facing outwards."""
    points = np.random.default_rng(0).standard_normal((4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    hull = spatial.ConvexHull(points)
    triangles = hull.simplices.copy()
    normals = np.cross(
        points[triangles[:, 1]] - points[triangles[:, 0]],
        points[triangles[:, 2]] - points[triangles[:, 0]],
    )
    turned = np.sum(normals * points[triangles[:, 0]], axis=1) < 0
    triangles[turned] = triangles[turned][:, ::-1]
    return CENTER + radius * points, triangles, radius**3 * hull.volume


def test_the_share_inside_a_ball_is_that_of_the_ball():
    corners, triangles, volume = ball(13.0)
    share = cortex.inside(corners, triangles, SHAPE)
    assert share.sum() == pytest.approx(volume, rel=0.01)
    places = np.stack(np.indices(SHAPE), axis=-1) - CENTER
    distance = np.linalg.norm(places, axis=-1)
    np.testing.assert_allclose(share[distance < 11], 1, atol=1e-5)
    np.testing.assert_allclose(share[distance > 15], 0, atol=1e-5)


def test_cortex_is_a_few_millimeters_between_the_surfaces():
    found = cortex.load_cortex((156, 191, 158), np.array([-78.0, -113.0, -72.0]))
    white, pial = found["white"], found["pial"]
    assert np.mean(pial - white > -0.3) > 0.99  # one lies inside the other
    assert 0.5e6 < white.sum() < pial.sum() < 1.4e6  # mm3, ventricles among them
    assert white[50, 100, 100] == 1 and white[78, 110, 110] < 0.5  # a hemisphere and the fissure
