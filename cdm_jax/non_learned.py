"""Rows that need no network: a trained system means something only beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.polynomials import products
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import Curves, Scan, Volume, fit_curves, rescaled, scans_of

DEGREE = 2  # of the regression's polynomial
FITTED_SLICES = 1000  # of all subjects together, where these are few
FITTED_VOLUMES = 96  # whose scales are compared, at most
FITTED_SLICES_EACH = 20  # at least: fewer would not show a brain from its base to its top


@dataclass(frozen=True, kw_only=True)
class NonLearned:
    """Predictions from intensities alone, fitted on training patients.

    Attributes:
        copies: for each target, the channel of the source that is copied.
        means: mean intensity of each target in the brain.
        weights: of the quadratic in the sources' intensities that fits each target best.
        targets: their names.
        curves: by which the scale of the regression's volumes is corrected, as a system's is.
    """

    copies: tuple[int, ...]
    means: Float[np.ndarray, "t"]
    weights: Float[np.ndarray, "features t"]
    targets: tuple[str, ...]
    curves: Curves

    def rows(
        self, sources: Float[np.ndarray, "slice h w s"]
    ) -> Mapping[str, Float[np.ndarray, "slice h w t"]]:
        """The three predictions in [0, 1] for a subject's source slices in [0, 1], background 0.

        `copy`: the nearest source; `brain_mean`: a constant; `regression`: least squares on the
        intensities of the same pixel, and the scale of the whole volume.
        """
        brain = np.any(sources > 0, axis=-1, keepdims=True)
        fitted = {"regression": _regression(sources, self.weights)}
        fitted = rescaled(fitted, brain[..., 0], self.curves, self.targets)
        return {
            "copy": sources[..., list(self.copies)],
            "brain_mean": brain * self.means.astype(np.float32),
            **fitted,
        }


def fit_non_learned(
    train: Sequence[PreparedSubject], copies: Sequence[str], volume_scale: bool = True
) -> NonLearned:
    """Fits the rows on training slices: as many of each subject, from its lowest to its highest.

    Sums over pixels are all that is kept of a subject, so that a cohort of any size fits in memory.
    `copies` names for each target the source to copy; `volume_scale` is as in the config.
    """
    sources = train[0].sources
    count = max(FITTED_SLICES_EACH, FITTED_SLICES // len(train))
    squares, sums = np.zeros(()), np.zeros(())
    for subject in train:
        pixels = _brain_pixels(subject, count).astype(np.float64)
        features = products(pixels[:, : len(sources)], DEGREE)
        squares = squares + features.T @ features
        sums = sums + features.T @ pixels[:, len(sources) :]
    weights, *_ = np.linalg.lstsq(squares, sums, rcond=None)  # the normal equations
    return NonLearned(
        copies=tuple(sources.index(name) for name in copies),
        means=sums[0] / squares[0, 0],  # the first feature is 1
        weights=weights,
        targets=train[0].targets,
        curves=_fit_curves(train, weights) if volume_scale else {},
    )


def _fit_curves(train: Sequence[PreparedSubject], weights: np.ndarray) -> Curves:
    """Of training patients: so few weights are not fitted to the scale of any one of them."""
    scans: dict[str, list[Scan]] = {}
    numbers = np.linspace(0, len(train) - 1, min(FITTED_VOLUMES, len(train)))
    for subject in (train[number] for number in np.unique(numbers.astype(int))):
        slices = subject.slices.astype(np.float32) / FULL_SCALE
        sources, truth = np.split(slices, [len(subject.sources)], axis=-1)
        volume, brain = _regression(sources, weights), np.any(sources > 0, axis=-1)
        found = scans_of(truth, volume, brain)
        for target, scan in zip(subject.targets, found, strict=True):
            scans.setdefault(target, []).append(scan)
    return fit_curves(scans)


def _regression(sources: Float[np.ndarray, "slice h w s"], weights: np.ndarray) -> Volume:
    brain = np.any(sources > 0, axis=-1, keepdims=True)
    fitted = products(sources, DEGREE) @ weights
    return np.clip(fitted, 0, 1).astype(np.float32) * brain


def _brain_pixels(subject: PreparedSubject, count: int) -> Float[np.ndarray, "n m"]:
    """Brain pixels of up to `count` training slices, evenly spaced with both ends."""
    positions = np.linspace(0, len(subject.training) - 1, count).astype(int)
    chosen = np.unique(np.asarray(subject.training)[positions])
    slices = subject.read_slices(chosen).astype(np.float32) / FULL_SCALE
    brain: Bool[np.ndarray, "k h w"] = np.any(slices[..., : len(subject.sources)] > 0, axis=-1)
    return slices[brain]
