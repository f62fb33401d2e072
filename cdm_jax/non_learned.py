"""Rows that need no network: a trained system means something only beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.prepare import FULL_SCALE

FITTED_SLICES = 1000  # of all subjects together, where these are few
FITTED_SLICES_EACH = 20  # at least: fewer would not show a brain from its base to its top


@dataclass(frozen=True, kw_only=True)
class NonLearned:
    """Predictions from intensities alone, fitted on training patients.

    Attributes:
        copies: for each target, the channel of the source that is copied.
        means: mean intensity of each target in the brain.
        weights: of the quadratic in the sources' intensities that fits each target best.
    """

    copies: tuple[int, ...]
    means: Float[np.ndarray, "t"]
    weights: Float[np.ndarray, "features t"]

    def rows(
        self, sources: Float[np.ndarray, "slice h w s"]
    ) -> Mapping[str, Float[np.ndarray, "slice h w t"]]:
        """The three predictions in [0, 1] for source slices in [0, 1], background 0.

        `copy`: the nearest source; `brain_mean`: a constant; `regression`: least squares on the
        intensities of the same pixel.
        """
        brain = (sources > 0).any(axis=-1, keepdims=True)
        fitted = _features(sources) @ self.weights
        return {
            "copy": sources[..., list(self.copies)],
            "brain_mean": brain * self.means.astype(np.float32),
            "regression": np.clip(fitted, 0, 1).astype(np.float32) * brain,
        }


def fit_non_learned(train: Sequence[PreparedSubject], copies: Sequence[str]) -> NonLearned:
    """Fits the rows on training slices: as many of each subject, from its lowest to its highest.

    Sums over pixels are all that is kept of a subject, so that a cohort of any size fits in memory.
    `copies` names for each target the source to copy.
    """
    sources = train[0].sources
    count = max(FITTED_SLICES_EACH, FITTED_SLICES // len(train))
    squares, products = np.zeros(()), np.zeros(())
    for subject in train:
        pixels = _brain_pixels(subject, count).astype(np.float64)
        features = _features(pixels[:, : len(sources)])
        squares = squares + features.T @ features
        products = products + features.T @ pixels[:, len(sources) :]
    weights, *_ = np.linalg.lstsq(squares, products, rcond=None)  # the normal equations
    return NonLearned(
        copies=tuple(sources.index(name) for name in copies),
        means=products[0] / squares[0, 0],  # the first feature is 1
        weights=weights,
    )


def _features(sources: Float[np.ndarray, "*n s"]) -> Float[np.ndarray, "*n f"]:
    """One, the sources, and all products of two."""
    s = sources.shape[-1]
    products = [sources[..., i] * sources[..., j] for i in range(s) for j in range(i, s)]
    linear = [sources[..., i] for i in range(s)]
    return np.stack([np.ones_like(linear[0]), *linear, *products], axis=-1)


def _brain_pixels(subject: PreparedSubject, count: int) -> Float[np.ndarray, "n m"]:
    """Brain pixels of up to `count` training slices, evenly spaced with both ends."""
    positions = np.linspace(0, len(subject.training) - 1, count).astype(int)
    chosen = np.unique(np.asarray(subject.training)[positions])
    slices = subject.read_slices(chosen).astype(np.float32) / FULL_SCALE
    brain: Bool[np.ndarray, "k h w"] = np.any(slices[..., : len(subject.sources)] > 0, axis=-1)
    return slices[brain]
