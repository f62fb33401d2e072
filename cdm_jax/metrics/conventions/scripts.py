"""Conventions of others that a published script makes: `reggan`, `resvit`, `syndiff`, `brasyn`.

They are here so that a number can be set beside the one that such a script prints. Three of them
scale the prediction by its own values, which hides errors of its brightness: decisions rest on
`volume`. What a script does not compute is NaN. The scripts average over all images of a data set;
here, as everywhere in this package, a subject's images are averaged first, then the patients.

The code is this package's own; the tests hold it to independent restatements of the scripts.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.metrics.conventions.base import Case, Convention
from cdm_jax.metrics.conventions.slices import SliceConvention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import SCIKIT_IMAGE, TORCHMETRICS, ssim, ssim_with_border


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegGANConvention(SliceConvention):
    """The test of Reg-GAN (Kong et al. 2021).

    - Unit: one axial slice; mean over slices.
    - Normalization: files in [-1, 1], which are [0, 1] here; the prediction is clipped, as the
      generator's tanh does.
    - PSNR, MAE: mapped to [0, 1], data range 1, only where the truth is not background.
    - SSIM: on [-1, 1] over the whole frame, background included; scikit-image's window (uniform,
      7x7, sample covariance) with the data range of 2 that ``compare_ssim`` assumed for
      floating-point images.
    - Edges: PSNR is 100 dB where the squared error is below 1e-10, as there. A slice of background
      only is skipped and counted; there it makes all means NaN.
    - Departure: stored versions of the script index PSNR's pixels as ``fake[x][y]``, which picks
      whole rows of the slice by the wrong numbers. Here PSNR counts the pixels that MAE counts,
      ``fake[x, y]``, which the comment beside that line means.

    Source: github.com/Kid-Liet/Reg-GAN, ``trainer/CycTrainer.py``.
    """

    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns PSNR and MAE of the foreground and SSIM of the frame."""
        foreground = truth > 0
        fake, real = 2 * prediction - 1, 2 * truth - 1
        return {
            "psnr": psnr(prediction, truth, mask=foreground, cap=self.psnr_cap),
            "ssim": ssim(fake, real, data_range=2.0, window=SCIKIT_IMAGE),
            "mae": mae(prediction, truth, mask=foreground),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResViTConvention(SliceConvention):
    """The validation within ResViT's training (Dalmaz et al. 2022); its test computes nothing.

    - Unit: one slice; mean over slices.
    - Normalization: images in [0, 1], the prediction clipped, as the generator's tanh does. For
      PSNR each slice is divided by its own maximum, also the predicted one, so a prediction that
      is everywhere too dark by one factor loses nothing.
    - Data range: 1. Background counts.
    - MAE (there "L1"): of the images before that division.
    - SSIM: NaN; the published script has none.
    - Edges: slices of background only are passed over but stay in the arrays that are averaged, so
      each counts as 0 dB and as an error of 0, here too. (The mean over the others is ``psnr *
      (slices + skipped) / slices``; how many slices are empty is up to the files.) Identical
      slices get the capped PSNR (there: infinity) and are counted.
    - Departures: a predicted slice of zeros stays as it is, where the script divides 0 by 0 and all
      its means become NaN; images are not rounded to 8 bits.

    Source: github.com/icon-lab/ResViT, ``train.py``.
    """

    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns PSNR of the slices over their own maxima, and MAE."""
        return {
            "psnr": psnr(_over_maximum(prediction), _over_maximum(truth), cap=self.psnr_cap),
            "ssim": math.nan,
            "mae": mae(prediction, truth),
        }

    def score(self, case: Case) -> dict[str, float]:
        """Scores as `SliceConvention.score` does, skipped slices counting as zeros."""
        scores = super().score(case)
        share = scores["slices"] / (scores["slices"] + scores["skipped"])
        return {**scores, "psnr": scores["psnr"] * share, "mae": scores["mae"] * share}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynDiffConvention(SliceConvention):
    """The test of SynDiff (Özbey et al. 2023).

    - Unit: one slice; mean over slices.
    - Normalization: images in [0, 1], the prediction clipped, as the generator's tanh does. Each
      slice is divided by its own maximum, also the predicted one.
    - Data range: the maximum of the prediction, which is 1 after that division. Background counts.
    - SSIM, MAE: NaN; the published script has none.
    - Edges: a slice of zeros is 0 / 0, and ``nanmean`` leaves it out; so a *predicted* slice of
      zeros is left out as well, whatever the truth shows. Both are counted as skipped. Identical
      slices get the capped PSNR (there: infinity) and are counted.
    - Departure: the script cuts the middle 256x152 out of frames that it padded to 256x256, to suit
      its data sets; here the whole frame counts.

    Source: github.com/icon-lab/SynDiff, ``test.py``.
    """

    def scored(
        self, prediction: Float[np.ndarray, "slice h w"], truth: Float[np.ndarray, "slice h w"]
    ) -> Bool[np.ndarray, " slice"]:
        """Marks the slices where neither image is all zero."""
        return np.logical_and(truth.any(axis=(1, 2)), prediction.any(axis=(1, 2)))

    def score_slice(
        self, prediction: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"]
    ) -> dict[str, float]:
        """Returns PSNR of the slices over their own maxima."""
        ratio = psnr(_over_maximum(prediction), _over_maximum(truth), cap=self.psnr_cap)
        return {"psnr": ratio, "ssim": math.nan, "mae": math.nan}


def _over_maximum(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return image / (image.max() or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BraSynConvention(Convention):
    """The SSIM of the BraSyn challenge's organizers (Li et al. 2023).

    - Unit: one volume on the subject's own grid.
    - Normalization: each image is clipped to its *own* 0.5th and 99.5th percentile, taken over all
      voxels with the background and the lower one at least 0, and scaled to [0, 1]; so a gain of
      the prediction alone is not seen.
    - SSIM: torchmetrics' 3D SSIM with its default arguments (see `TorchmetricsConvention`) of both
      images times a mask: once the tumor's, once its complement's. Its mean over the *whole*
      cuboid is the score, although the script's comments speak of the masked region; where a
      tumor fills 1 % of the cuboid, 99 % of that mean is black on black (1).
    - Data range: the larger of the two masked images' own.
    - PSNR, MAE: NaN; the script has none.
    - Edges: without any tumor voxel the tumor's score is NaN (there 0 / 0); so is everything if
      an image's percentiles coincide. Identical images have no peculiarity.
    - Departure: the last public version asks torchmetrics for the map as well and then indexes
      the pair that it gets, which is a TypeError; what is copied is the form that participants
      ran, which takes the mean.

    - Version: the script as corrected in July 2024. Until then it scaled the prediction in another
      way, which is no longer to be had: scores that were published before are not of this
      convention.

    Source: github.com/hongweilibran/BraSyn, ``ssim.py``; github.com/AImageLab-zip/BraSyn25,
    ``final_eval/get_ssim.py`` for the form that runs.

    Attributes:
        percentiles: The lower and the upper percentile of an image that become 0 and 1.
    """

    space: Literal["slices", "native"] = "native"
    percentiles: tuple[float, float] = (0.5, 99.5)

    def score(self, case: Case) -> dict[str, Any]:
        """Scores one modality of one subject.

        Args:
            case: Volumes; the segmentation's non-zero voxels are the tumor, the brain mask is not
                used.

        Returns:
            ``ssim`` without the tumor, of everything where there is no segmentation; ``psnr`` and
            ``mae``, which are NaN; ``skipped``: 1 where the truth has no range, else 0; and
            ``regions``, where there is a segmentation: the SSIM in ``healthy`` (again) and
            ``whole_tumor``.
        """
        prediction, truth = map(self._unit_range, (case.prediction, case.truth))
        tumor = np.zeros(truth.shape, bool) if case.segmentation is None else case.segmentation > 0
        healthy = _masked_ssim(prediction, truth, ~tumor)
        regions = {}
        if case.segmentation is not None:
            regions = {"healthy": healthy, "whole_tumor": _masked_ssim(prediction, truth, tumor)}
        return {**healthy, "skipped": float(np.isnan(truth).any()), "regions": regions}

    def _unit_range(self, image: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
        """Scales an image by its own percentiles; all NaN where they coincide."""
        image = image.astype(np.float64)
        low, high = np.percentile(image, self.percentiles)
        low = max(low, 0.0)
        if high <= low:
            return np.full_like(image, np.nan)
        return (np.clip(image, low, high) - low) / (high - low)


def _masked_ssim(
    prediction: Float[np.ndarray, "z y x"],
    truth: Float[np.ndarray, "z y x"],
    mask: Bool[np.ndarray, "z y x"],
) -> dict[str, float]:
    masked = prediction * mask, truth * mask
    data_range = max(float(np.ptp(image)) for image in masked)
    similarity = ssim_with_border(*masked, data_range, TORCHMETRICS)
    return {"psnr": math.nan, "ssim": similarity, "mae": math.nan}
