"""The ``volume`` convention: whole volumes on the native grid, the one that decides."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from cdm_jax.errors import UserError, about
from cdm_jax.metrics import enhancement
from cdm_jax.metrics.conventions.base import METRICS, Case, Convention
from cdm_jax.metrics.gmsd import gmsd
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import best_gain, psnr
from cdm_jax.metrics.regions import bounding_box, region_masks
from cdm_jax.metrics.ssim import RADIUS, mean_inside, ssim_map
from cdm_jax.metrics.steadiness import step_error, z_gradient_error

IN_REGIONS = (*METRICS, "psnr_best_gain", "z_gradient")
IN_BRAIN = ("gain", "gmsd", "clipped_fraction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeConvention(Convention):
    """Scores a volume inside the brain and inside each region of it.

    Both images are divided by one percentile of the truth's brain voxels, clipped to [0, 1] and set
    to zero outside the brain. SSIM is the 3D map averaged inside the region. Nothing is taken from
    the prediction's own distribution, except its median for the subtraction that shows enhancement.

    Attributes:
        percentile: The percentile of the truth's brain voxels that becomes 1.
        psnr_cap: The PSNR, in dB, of a region that is identical to the truth.
    """

    space: Literal["slices", "native"] = "native"
    percentile: float = 99.5
    psnr_cap: float = 100.0

    def score(self, case: Case) -> dict[str, Any]:
        """Scores one modality of one subject.

        Args:
            case: Volumes in the truth's own unit, with a brain mask.

        Returns:
            In the brain, and under ``regions`` in each region of the segmentation: ``psnr`` (dB),
            ``ssim``, ``mae``; ``psnr_best_gain`` (dB), the PSNR of the prediction times ``gain``,
            clipped as before; ``z_gradient``, the error of the step to the next slice, in units of
            the range; and, where the case has a ``precontrast``, the metrics of
            `cdm_jax.metrics.enhancement`.
            In the brain alone: ``gain``, the factor that makes its PSNR highest, since no input
            tells a target's scale; ``gmsd``, over axial slices; ``clipped_fraction``, the part of
            the prediction's voxels that lay outside the range; ``capped`` and ``skipped``, 1 where
            the PSNR is capped or the truth is empty, else 0.
            What is undefined is NaN: a region that the tumor lacks, and all of an empty truth.

        Raises:
            UserError: There is no brain mask, or it is empty, or the segmentation's labels are
                unknown.
        """
        if case.brain is None or not case.brain.any():
            raise UserError(
                f"{case.subject} {case.modality}: the brain mask is empty, and scores are taken "
                "inside it: check that the input modalities have non-zero voxels"
            )
        with about(case.subject):
            masks = region_masks(case.segmentation, case.brain)
        peak = float(np.percentile(case.truth[case.brain], self.percentile))
        found = _undefined(masks) if peak <= 0 else self._score_regions(case, masks, peak)
        if case.precontrast is not None:
            images = case.prediction, case.truth, case.precontrast
            for name, numbers in enhancement.measure(*images, masks, case.voxel_ml).items():
                found[name] |= numbers
        in_brain = found.pop("brain")
        return {
            **in_brain,
            "capped": float(in_brain["psnr"] >= self.psnr_cap),
            "skipped": float(peak <= 0),
            "regions": found,
        }

    def _score_regions(
        self, case: Case, masks: Mapping[str, Bool[np.ndarray, "z y x"]], peak: float
    ) -> dict[str, dict[str, float]]:
        # No window around a brain voxel reaches beyond this margin, so the result is the full one.
        box = bounding_box(masks["brain"], margin=RADIUS)
        masks = {name: mask[box] for name, mask in masks.items()}
        brain = masks["brain"]
        scaled = case.prediction[box].astype(np.float64) / peak * brain
        prediction = np.clip(scaled, 0, 1)
        truth = np.clip(case.truth[box].astype(np.float64) / peak, 0, 1) * brain
        gain = best_gain(scaled[brain], truth[brain])
        matched = np.clip(gain * scaled, 0, 1)
        similarity, steps = ssim_map(prediction, truth), step_error(prediction, truth)
        found = {
            name: {
                "psnr": psnr(prediction, truth, mask=mask, cap=self.psnr_cap),
                "ssim": mean_inside(similarity, mask),
                "mae": mae(prediction, truth, mask=mask),
                "psnr_best_gain": psnr(matched, truth, mask=mask, cap=self.psnr_cap),
                "z_gradient": z_gradient_error(steps, mask),
            }
            for name, mask in masks.items()
        }
        found["brain"] |= {
            "gain": gain,
            "gmsd": gmsd(prediction, truth, brain),
            "clipped_fraction": float((scaled != prediction)[brain].mean()),
        }
        return found


def _undefined(masks: Iterable[str]) -> dict[str, dict[str, float]]:
    found = {name: dict.fromkeys(IN_REGIONS, math.nan) for name in masks}
    found["brain"] |= dict.fromkeys(IN_BRAIN, math.nan)
    return found
