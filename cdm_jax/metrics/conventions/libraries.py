"""Conventions of others that a library's defaults make: `torchmetrics`, `monai`, `skimage`.

The code is this package's own; the tests hold it to the libraries' numbers within 1e-5. A library
scores whatever it is given: which images, on which scale, is chosen here and said below.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.metrics.conventions.base import METRICS, Case, Convention
from cdm_jax.metrics.conventions.paper import PaperConvention
from cdm_jax.metrics.conventions.slices import SliceConvention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import SCIKIT_IMAGE, TORCHMETRICS, ssim, ssim_with_border


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchmetricsConvention(Convention):
    """``torchmetrics.functional`` with default arguments on a whole volume.

    - Unit: one volume on the subject's own grid as one image of one channel; squared errors are
      pooled over all its voxels.
    - Normalization: the prediction is clipped to the truth's own range, because the intensity rule
      has clipped the truth (a perfect image would otherwise lose for its brightest voxels). All
      background counts.
    - Data range: the truth's own. For PSNR that was the default up to 1.7; since 1.8 the caller
      must name one. SSIM's default is the larger of the two images' ranges, which after the
      clipping is the truth's; without it, one bright voxel of the prediction would raise the score.
    - SSIM: 3D, Gaussian (sigma 1.5, 11 taps), population covariance, images mirrored at the frame,
      averaged over the whole frame with its border, as since pull request 2721 of September 2024
      (releases before it left the outermost 5 voxels out).
    - MAE: over all voxels, in the case's unit.
    - Edges: identical volumes get the capped PSNR (the library: infinity) and are counted; a truth
      of one value is skipped and counted (the library: -infinity or NaN).

    Source: torchmetrics 1.9, ``peak_signal_noise_ratio``, ``structural_similarity_index_measure``
    and ``mean_absolute_error``.

    Attributes:
        psnr_cap: The PSNR, in dB, of a volume that is identical to the truth, and the most that any
            can have.
    """

    space: Literal["slices", "native"] = "native"
    psnr_cap: float = 100.0

    def score(self, case: Case) -> dict[str, float]:
        """Scores one modality of one subject.

        Args:
            case: Volumes; brain mask and segmentation are not used.

        Returns:
            ``psnr`` (dB), ``ssim`` and ``mae``, NaN for a truth of one value; ``capped`` and
            ``skipped``: 1 where the PSNR is capped or the truth was skipped, else 0.
        """
        truth = case.truth.astype(np.float64)
        low, high = float(truth.min()), float(truth.max())
        if low == high:
            return {**dict.fromkeys(METRICS, math.nan), "capped": 0.0, "skipped": 1.0}
        prediction = np.clip(case.prediction, low, high).astype(np.float64)
        ratio = psnr(prediction, truth, high - low, cap=self.psnr_cap)
        return {
            "psnr": ratio,
            "ssim": ssim_with_border(prediction, truth, high - low, TORCHMETRICS),
            "mae": mae(prediction, truth),
            "capped": float(ratio >= self.psnr_cap),
            "skipped": 0.0,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonaiConvention(PaperConvention):
    """MONAI's ``PSNRMetric``, ``SSIMMetric`` and ``MAEMetric`` on 2D slices.

    - Unit: one axial slice as one image of the batch; the mean over them is MONAI's default
      reduction.
    - Normalization: values in [0, 1] by this package's intensity rule, both images clipped. All
      background within a slice counts.
    - Data range: 1 (SSIM's default; PSNR has none and is given ``max_val=1``).
    - SSIM: Gaussian (sigma 1.5, 11 taps), population covariance, only windows that lie wholly in
      the frame. This is Wang et al. 2004 as `paper` has it, so the two give the same numbers.
    - Edges: slices whose truth is all background are skipped and counted, which MONAI leaves to
      its user; identical slices get the capped PSNR and are counted, where MONAI's mean would
      become infinite.

    Source: MONAI 1.6, ``monai.metrics.regression``.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkimageConvention(SliceConvention):
    """``skimage.metrics`` with default arguments on 2D slices, told each true slice's own range.

    - Unit: one axial slice, as the scripts of ResViT, Reg-GAN and SelfRDB call it; mean over the
      slices.
    - Normalization: values in [0, 1] by this package's intensity rule, both images clipped. All
      background within a slice counts.
    - Data range: the truth's own in this slice. (Since 0.20 SSIM of floating-point images demands
      one; before, it was silently 2.) A slice at the top of the head thus counts as much as a
      bright one.
    - SSIM: uniform window of 7x7 and the sample's covariance, not the Gaussian of Wang et al. 2004;
      the outermost 3 pixels do not count.
    - MAE: NaN; ``skimage.metrics`` has none.
    - Edges: a true slice of one value has no range and is skipped and counted; identical slices
      get the capped PSNR (the library: infinity) and are counted.

    Source: scikit-image 0.26, ``peak_signal_noise_ratio`` and ``structural_similarity``.
    """

    def scored(
        self, prediction: Float[np.ndarray, "slice h w"], truth: Float[np.ndarray, "slice h w"]
    ) -> Bool[np.ndarray, " slice"]:
        """Marks the slices whose truth has a range."""
        return np.ptp(truth, axis=(1, 2)) > 0

    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns PSNR and SSIM over the whole frame, with the truth's own range."""
        data_range = float(np.ptp(truth))
        return {
            "psnr": psnr(prediction, truth, data_range, cap=self.psnr_cap),
            "ssim": ssim(prediction, truth, data_range, window=SCIKIT_IMAGE),
            "mae": math.nan,
        }
