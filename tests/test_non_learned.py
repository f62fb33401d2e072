import numpy as np
import pytest

from cdm_jax.data.cache import write_prepared
from cdm_jax.data.prepare import Prepared
from cdm_jax.non_learned import fit_non_learned


def make(tmp_path, name, slices):
    count = len(slices)
    prepared = Prepared(
        subject_id=name,
        patient_id=name,
        sources=("t1", "t2"),
        targets=("t1c", "t2f"),
        native_shape=(count, 8, 8),
        slice_indices=tuple(range(count)),
        training=tuple(range(count)),
        intensities={},
        slices=np.rint(slices * 65535).astype(np.uint16),
    )
    return write_prepared(prepared, tmp_path / f"{name}.npy")


@pytest.fixture
def train(tmp_path):
    """Subjects whose targets are known functions of the sources, with a background of zeros."""
    rng = np.random.default_rng(0)
    subjects = []
    for number in range(3):
        sources = rng.uniform(0.1, 0.9, (5, 8, 8, 2))
        t1c = 0.1 + 0.5 * sources[..., :1] * sources[..., 1:]
        t2f = 0.8 - 0.6 * sources[..., :1] ** 2
        slices = np.concatenate([sources, t1c, t2f], axis=-1)
        slices[:, :, :3] = 0
        subjects.append(make(tmp_path, f"p{number}", slices))
    return subjects


def test_regression_finds_a_quadratic_relation_and_keeps_the_background(train):
    fitted = fit_non_learned(train, ("t1", "t2"))
    unit = train[0].slices.astype(np.float32) / 65535
    rows = fitted.rows(unit[..., :2])
    np.testing.assert_allclose(rows["regression"], unit[..., 2:], atol=1e-3)
    assert not rows["brain_mean"][:, :, :3].any()


def test_brain_mean_is_the_mean_over_brain_pixels(train):
    fitted = fit_non_learned(train, ("t1", "t2"))
    brain = np.concatenate([s.slices[:, :, 3:, 2:].reshape(-1, 2) for s in train]) / 65535
    np.testing.assert_allclose(fitted.means, brain.mean(axis=0), rtol=1e-5)


def test_copies_follow_the_named_sources(train):
    rows = fit_non_learned(train, ("t2", "t1")).rows(np.full((1, 2, 2, 2), [0.2, 0.7], np.float32))
    np.testing.assert_allclose(rows["copy"][0, 0, 0], [0.7, 0.2])


def test_a_large_cohort_is_fitted_on_whole_brains(tmp_path):
    """In the lowest and the highest slices of a brain the relation is another one."""
    rng, everything, subjects = np.random.default_rng(0), [], []
    for number in range(1000):
        sources = rng.uniform(0.1, 0.9, (24, 2, 2, 2))
        height = np.linspace(-1, 1, 24)[:, None, None, None] ** 2
        targets = (1 - height) * 0.8 * sources + height * 0.9
        subjects.append(make(tmp_path, f"p{number}", np.concatenate([sources, targets], axis=-1)))
        everything.append(subjects[-1].slices.reshape(-1, 4) / 65535)
    first, second, *targets = np.concatenate(everything).T
    one = np.ones_like(first)
    columns = np.stack([one, first, second, first**2, first * second, second**2], axis=-1)
    expected, *_ = np.linalg.lstsq(columns, np.stack(targets, axis=-1), rcond=None)
    fitted = fit_non_learned(subjects, ("t1", "t2"))
    grid = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 9)] * 2), axis=-1)[None].astype(np.float32)
    first, second = np.moveaxis(grid, -1, 0)
    columns = np.stack([first**0, first, second, first**2, first * second, second**2], axis=-1)
    np.testing.assert_allclose(fitted.rows(grid)["regression"], columns @ expected, atol=0.02)
    np.testing.assert_allclose(fitted.means, np.mean(targets, axis=1), atol=0.02)
