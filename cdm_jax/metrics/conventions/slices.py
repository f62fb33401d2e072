"""What all conventions that score slice by slice have in common."""

import abc
import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions.base import METRICS, Case, Convention

TOLERANCE = 1e-3  # Resampling and rounding may overshoot [0, 1] by a little.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceConvention(Convention):
    """Scores each axial slice and averages over the slices of the subject.

    Both images are in [0, 1] by the intensity rule, which clips; the prediction is clipped here as
    well, lest a perfect image lose for its brightest voxels. Slices whose truth is all background
    (zero) are skipped, unless a convention says otherwise.

    Attributes:
        psnr_cap: The PSNR, in dB, of a slice that is identical to the truth, and the most that any
            slice can have.
    """

    space: Literal["slices", "native"] = "slices"
    psnr_cap: float = 100.0

    @abc.abstractmethod
    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns ``psnr``, ``ssim`` and ``mae`` of one slice, in double precision."""

    def scored(
        self, prediction: Float[np.ndarray, "slice h w"], truth: Float[np.ndarray, "slice h w"]
    ) -> Bool[np.ndarray, " slice"]:
        """Marks the slices that count."""
        return np.any(truth != 0, axis=(1, 2))

    def score(self, case: Case) -> dict[str, float]:
        """Scores one modality of one subject.

        Args:
            case: Slices as ``z``; values in [0, 1].

        Returns:
            The means ``psnr`` (dB), ``ssim`` and ``mae`` over the scored slices (NaN where there is
            none), and the numbers of slices that were scored (``slices``), skipped (``skipped``)
            and given the capped PSNR (``capped``).

        Raises:
            UserError: The truth has values outside [0, 1], or its slices are smaller than SSIM's
                window.
        """
        truth = _checked(case)
        prediction = np.clip(case.prediction, 0, 1)
        scored = self.scored(prediction, truth)
        scores = [
            self.score_slice(p.astype(np.float64), t.astype(np.float64))
            for p, t in zip(prediction[scored], truth[scored], strict=True)
        ]
        return {
            **{
                name: float(np.mean([s[name] for s in scores])) if scores else math.nan
                for name in METRICS
            },
            "slices": float(len(scores)),
            "skipped": float(len(scored) - len(scores)),
            "capped": float(sum(s["psnr"] >= self.psnr_cap for s in scores)),
        }


def _checked(case: Case) -> Float[np.ndarray, "slice h w"]:
    """The truth clipped to [0, 1]."""
    low, high = float(case.truth.min()), float(case.truth.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise UserError(
            f"{case.subject} {case.modality}: the ground truth has values in "
            f"[{low:g}, {high:g}], and this convention takes [0, 1]: scale the images first"
        )
    return np.clip(case.truth, 0, 1)
