"""The ``paper`` convention: slice by slice, the reading that stands beside published tables."""

import dataclasses

import numpy as np
from jaxtyping import Float

from cdm_jax.metrics.conventions.slices import SliceConvention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import ssim


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConvention(SliceConvention):
    """Scores each axial slice over its whole frame and averages over the slices.

    Both images are clipped to [0, 1] and the data range is 1. Slices whose truth is all background
    (zero) are skipped. The frame's outermost 5 pixels do not count for SSIM (see
    `cdm_jax.metrics.ssim.ssim`).
    """

    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns the three metrics over the whole frame, with a data range of 1."""
        return {
            "psnr": psnr(prediction, truth, cap=self.psnr_cap),
            "ssim": ssim(prediction, truth),
            "mae": mae(prediction, truth),
        }
