"""The ``paper`` convention: slice by slice, the reading that stands beside published tables."""

import dataclasses
from typing import Literal

import numpy as np

from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions.base import Case, Convention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import ssim

TOLERANCE = 1e-3  # Resampling and rounding may overshoot [0, 1] by a little.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConvention(Convention):
    """Scores each axial slice over its whole frame and averages over the slices.

    Both images are clipped to [0, 1] and the data range is 1. Slices whose truth is all background
    (zero) are skipped. The frame's outermost 5 pixels do not count for SSIM (see
    `cdm_jax.metrics.ssim.ssim`).

    Attributes:
        psnr_cap: The PSNR, in dB, of a slice that is identical to the truth.
    """

    space: Literal["slices", "native"] = "slices"
    version: int = 1
    psnr_cap: float = 100.0

    def score(self, case: Case) -> dict[str, float]:
        """Scores one modality of one subject.

        Args:
            case: Slices as ``z``; values in [0, 1].

        Returns:
            The means ``psnr`` (dB), ``ssim`` and ``mae`` over the scored slices (NaN where there is
            none), and the numbers of slices that were scored (``slices``), skipped (``skipped``)
            and given the capped PSNR (``capped``).

        Raises:
            UserError: The truth has values outside [0, 1].
        """
        low, high = float(case.truth.min()), float(case.truth.max())
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise UserError(
                f"{case.subject} {case.modality}: the ground truth has values in "
                f"[{low:g}, {high:g}], and this convention takes [0, 1]: scale the images first"
            )
        truth = np.clip(case.truth, 0, 1)
        scored = truth.any(axis=(1, 2))
        prediction = np.clip(case.prediction[scored], 0, 1)
        pairs = list(zip(prediction, truth[scored], strict=True))
        psnrs = [psnr(p, t, cap=self.psnr_cap) for p, t in pairs]
        return {
            "psnr": _mean(psnrs),
            "ssim": _mean([ssim(p, t) for p, t in pairs]),
            "mae": _mean([mae(p, t) for p, t in pairs]),
            "slices": float(len(pairs)),
            "skipped": float(len(scored) - len(pairs)),
            "capped": float(sum(value >= self.psnr_cap for value in psnrs)),
        }


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
