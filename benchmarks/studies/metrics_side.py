"""Every library's side of the study of metrics: one volume, in [0, 1].

Those on PyTorch have it in single precision: in double, its 3D convolutions unfold the volume,
which takes a hundred gigabytes at this size.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import nibabel
import numpy as np

from benchmarks.studies.patients import found
from benchmarks.studies.worker import Prepared, repeated
from cdm_jax.metrics.conventions import Case, get_convention
from cdm_jax.metrics.mae import mae
from cdm_jax.metrics.psnr import psnr
from cdm_jax.metrics.ssim import TORCHMETRICS, ssim, ssim_with_border

BRAIN = "all three in the brain"
VOLUME = "the convention `volume`"  # which has more numbers than these three

Values = Mapping[str, Any]  # numbers, in the library's own type
Measures = Mapping[str, Callable[[], Values]]
PERCENTILE = 99  # that becomes 1: below the convention's, whose own scale then changes nothing
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
WINDOW = 11  # taps of that Gaussian along each axis


def measure(metric: str, library: str, folder: str, smoke: bool) -> Prepared:
    """A metric by a library; the first patient's T1 is taken for the T1c."""
    call = SIDES[library](_case(folder))[metric]
    values = {name: float(value) for name, value in call().items()}
    turn = repeated(lambda number: [call() for _ in range(number)], smoke, warm=True)
    return {"values": values}, turn


def _case(folder: str) -> Case:
    """Images that are 1 at a percentile of the brain, clipped, and 0 outside the brain."""
    images = found(folder)[0].images
    source, target = (
        np.asarray(nibabel.load(images[name]).dataobj, np.float64).T  # type: ignore[attr-defined]
        for name in ("t1", "t1c")
    )
    brain = source > 0
    prediction, truth = (
        np.ascontiguousarray(np.clip(x / np.percentile(x[brain], PERCENTILE), 0, 1) * brain)
        for x in (source, target)
    )
    return Case(subject="", modality="t1c", prediction=prediction, truth=truth, brain=brain)


def _images(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return case.prediction, case.truth


def _ours(case: Case) -> Measures:
    images, convention, mask = _images(case), get_convention("volume"), case.brain
    return {
        "psnr": lambda: {"psnr": psnr(*images)},
        "mae": lambda: {"mae": mae(*images)},
        "ssim": lambda: {"ssim": ssim(*images)},
        "ssim, torchmetrics'": lambda: {"ssim": ssim_with_border(*images, window=TORCHMETRICS)},
        BRAIN: lambda: {f.__name__: f(*images, mask=mask) for f in (psnr, ssim, mae)},
        VOLUME: lambda: {n: convention.score(case)[n] for n in ("psnr", "ssim", "mae")},
    }


def _skimage(case: Case) -> Measures:
    from skimage import metrics

    prediction, truth, brain = case.prediction, case.truth, case.brain
    ratio: Any = functools.partial(metrics.peak_signal_noise_ratio, data_range=1)
    similarity: Any = functools.partial(metrics.structural_similarity, data_range=1, **GAUSSIAN)

    def inside_brain() -> Values:
        _, similar = similarity(prediction, truth, full=True)
        error = np.abs(prediction[brain] - truth[brain])
        psnr = ratio(truth[brain], prediction[brain])
        return {"psnr": psnr, "ssim": similar[brain].mean(), "mae": error.mean()}

    return {
        "psnr": lambda: {"psnr": ratio(truth, prediction)},
        "ssim": lambda: {"ssim": similarity(prediction, truth)},
        BRAIN: inside_brain,
    }


def _torchmetrics(case: Case) -> Measures:
    import torch
    from torchmetrics import functional
    from torchmetrics.functional import image

    prediction, truth = (torch.from_numpy(x).float()[None, None] for x in _images(case))
    brain = torch.from_numpy(case.brain)[None, None]
    ratio = functools.partial(image.peak_signal_noise_ratio, data_range=1.0)
    similarity = functools.partial(image.structural_similarity_index_measure, data_range=1.0)

    def inside_brain() -> Values:
        _, similar = similarity(prediction, truth, return_full_image=True)
        inside = prediction[brain], truth[brain]
        return {
            "psnr": ratio(*inside),
            "ssim": similar[brain].mean(),
            "mae": functional.mean_absolute_error(*inside),
        }

    return {
        "psnr": lambda: {"psnr": ratio(prediction, truth)},
        "mae": lambda: {"mae": functional.mean_absolute_error(prediction, truth)},
        "ssim, torchmetrics'": lambda: {"ssim": similarity(prediction, truth)},
        BRAIN: inside_brain,
    }


def _monai(case: Case) -> Measures:
    import torch
    from monai import metrics

    images = tuple(torch.from_numpy(x).float()[None, None] for x in _images(case))

    def of(metric: Any) -> float:
        return float(metric(*images))  # of one image, as long as nothing is gathered

    similarity = metrics.SSIMMetric(spatial_dims=3, win_size=WINDOW, kernel_sigma=1.5)
    return {
        "psnr": lambda: {"psnr": of(metrics.PSNRMetric(max_val=1))},
        "mae": lambda: {"mae": of(metrics.MAEMetric())},
        "ssim": lambda: {"ssim": of(similarity)},
    }


SIDES: Mapping[str, Callable[[Case], Measures]] = {
    "cdm_jax": _ours,
    "scikit-image": _skimage,
    "torchmetrics": _torchmetrics,
    "MONAI": _monai,
}
