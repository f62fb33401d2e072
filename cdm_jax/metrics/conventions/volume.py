"""The ``volume`` convention: whole volumes on the native grid, the one that decides."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions.base import Case, Convention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.regions import bounding_box, region_masks
from cdm_jax.metrics.ssim import RADIUS, mean_inside, ssim_map


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeConvention(Convention):
    """Scores a volume inside the brain and inside each region of it.

    Both images are divided by one percentile of the truth's brain voxels, clipped to [0, 1] and set
    to zero outside the brain. SSIM is the 3D map averaged inside the region; nothing is taken from
    the prediction's own distribution.

    Attributes:
        percentile: The percentile of the truth's brain voxels that becomes 1.
        psnr_cap: The PSNR, in dB, of a region that is identical to the truth.
    """

    space: Literal["slices", "native"] = "native"
    version: int = 1
    percentile: float = 99.5
    psnr_cap: float = 100.0

    def score(self, case: Case) -> dict[str, Any]:
        """Scores one modality of one subject.

        Args:
            case: Volumes in the truth's own unit, with a brain mask.

        Returns:
            ``psnr`` (dB), ``ssim`` and ``mae`` in the brain; ``capped`` and ``skipped``: 1 where
            the brain's PSNR is capped or the truth is empty, else 0; ``clipped_fraction``: the
            part of the prediction's brain voxels that lay outside the range; and ``regions``: the
            three metrics in each region of the segmentation. What is undefined is NaN: a region
            that the tumor lacks, and all metrics of an empty truth.

        Raises:
            UserError: There is no brain mask, or it is empty, or the segmentation's labels are
                unknown.
        """
        if case.brain is None or not case.brain.any():
            raise UserError(
                f"{case.subject} {case.modality}: the brain mask is empty, and scores are taken "
                "inside it: check that the input modalities have non-zero voxels"
            )
        try:
            masks = region_masks(case.segmentation, case.brain)
        except UserError as error:
            raise UserError(f"{case.subject}: {error}") from error
        peak = float(np.percentile(case.truth[case.brain], self.percentile))
        return _skipped(masks) if peak <= 0 else self._score_regions(case, masks, peak)

    def _score_regions(
        self, case: Case, masks: dict[str, Bool[np.ndarray, "z y x"]], peak: float
    ) -> dict[str, Any]:
        # No window around a brain voxel reaches beyond this margin, so the result is the full one.
        box = bounding_box(masks["brain"], margin=RADIUS)
        masks = {name: mask[box] for name, mask in masks.items()}
        brain = masks["brain"]
        prediction = case.prediction[box].astype(np.float64) / peak
        clipped = (prediction < 0) | (prediction > 1)
        prediction = np.clip(prediction, 0, 1) * brain
        truth = np.clip(case.truth[box].astype(np.float64) / peak, 0, 1) * brain
        regions = self._measure(prediction, truth, masks)
        in_brain = regions.pop("brain")
        return {
            **in_brain,
            "capped": float(in_brain["psnr"] >= self.psnr_cap),
            "skipped": 0.0,
            "clipped_fraction": float(clipped[brain].mean()),
            "regions": regions,
        }

    def _measure(
        self,
        prediction: Float[np.ndarray, "z y x"],
        truth: Float[np.ndarray, "z y x"],
        masks: dict[str, Bool[np.ndarray, "z y x"]],
    ) -> dict[str, dict[str, float]]:
        similarity = ssim_map(prediction, truth)
        return {
            name: {
                "psnr": psnr(prediction, truth, mask=mask, cap=self.psnr_cap),
                "ssim": mean_inside(similarity, mask),
                "mae": mae(prediction, truth, mask=mask),
            }
            for name, mask in masks.items()
        }


def _skipped(masks: dict[str, Bool[np.ndarray, "z y x"]]) -> dict[str, Any]:
    undefined = {"psnr": math.nan, "ssim": math.nan, "mae": math.nan}
    return {
        **undefined,
        "capped": 0.0,
        "skipped": 1.0,
        "clipped_fraction": math.nan,
        "regions": {name: dict(undefined) for name in masks if name != "brain"},
    }
