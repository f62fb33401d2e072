"""What a convention scores, and what every convention offers."""

import abc
import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Num

from cdm_jax.errors import UserError

METRICS = ("psnr", "ssim", "mae")  # What every convention returns.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A synthetic modality of one subject beside the real one, on the same scale.

    Attributes:
        subject: The subject's name, for messages.
        modality: The target modality's name, for messages.
        prediction: The synthetic image.
        truth: The real image.
        brain: The brain mask: the union of the non-zero voxels of the input modalities.
        segmentation: BraTS labels, where there are any.
        precontrast: The real T1 of a case whose modality is T1c, where T1 is an input: with it,
            enhancement is scored.
        voxel_ml: Volume of a voxel in ml; needed with ``precontrast``.

    Raises:
        UserError: An image has a voxel that is NaN or infinite.
    """

    subject: str
    modality: str
    prediction: Float[np.ndarray, "z y x"]
    truth: Float[np.ndarray, "z y x"]
    brain: Bool[np.ndarray, "z y x"] | None = None
    segmentation: Num[np.ndarray, "z y x"] | None = None
    precontrast: Float[np.ndarray, "z y x"] | None = None
    voxel_ml: float = math.nan

    def __post_init__(self) -> None:
        for name, image in (("prediction", self.prediction), ("ground truth", self.truth)):
            if bad := image.size - int(np.isfinite(image).sum()):
                raise UserError(
                    f"{self.subject} {self.modality}: the {name} has {bad} voxels that are NaN or "
                    "infinite, and only finite ones can be scored: mend or leave out this subject"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention(abc.ABC):
    """A fixed way of turning a case into numbers.

    Attributes:
        space: The images it wants: ``slices``, axial slices at the model's size in [0, 1], or
            ``native``, whole volumes on the subject's own grid in the truth's unit.
        version: Raised with every change of what the numbers mean.
    """

    space: Literal["slices", "native"]
    version: int = 1

    @abc.abstractmethod
    def score(self, case: Case) -> dict[str, Any]:
        """Returns at least ``psnr`` (dB), ``ssim`` and ``mae`` as floats.

        NaN is what is undefined, and what a copied source does not compute.
        """
