"""Our conventions named after torchmetrics and MONAI against these libraries themselves."""

import numpy as np
import pytest

from cdm_jax.metrics.conventions import get_convention
from tests.metrics import cases

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[dev,parity]'")
torchmetrics = pytest.importorskip(
    "torchmetrics", reason="torchmetrics is missing: pip install -e '.[dev,parity]'"
)
monai = pytest.importorskip(
    "monai.metrics", reason="MONAI is missing: pip install -e '.[dev,parity]'"
)

from torchmetrics.functional.image import (  # noqa: E402
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

TOLERANCE = 1e-5
METRICS = ("psnr", "ssim", "mae")


@pytest.fixture(scope="module", params=cases.NAMES)
def case(request):
    return cases.named(request.param, request)


def _image(volume):
    """A volume as a batch of one image of one channel."""
    return torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float64))[None, None]


def _images(volume, shown):
    """Slices as a batch of images of one channel."""
    return torch.from_numpy(np.ascontiguousarray(volume[shown], dtype=np.float64))[:, None]


def _close(found, **expected):
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=TOLERANCE), name


def test_torchmetrics_functional_defaults_on_a_volume(case):
    low, high = case.truth.min(), case.truth.max()
    prediction, truth = _image(np.clip(case.prediction, low, high)), _image(case.truth)
    _close(
        get_convention("torchmetrics").score(case),
        psnr=peak_signal_noise_ratio(prediction, truth, data_range=float(high - low)),
        ssim=structural_similarity_index_measure(prediction, truth),
        mae=torchmetrics.functional.mean_absolute_error(prediction, truth),
    )


def test_monai_metrics_defaults_on_a_batch_of_slices(case):
    shown = case.truth.any(axis=(1, 2))
    prediction, truth = _images(np.clip(case.prediction, 0, 1), shown), _images(case.truth, shown)
    metrics = {
        "psnr": monai.PSNRMetric(max_val=1),
        "ssim": monai.SSIMMetric(spatial_dims=2),
        "mae": monai.MAEMetric(),
    }
    for metric in metrics.values():
        metric(y_pred=prediction, y=truth)
    found = get_convention("monai").score(case)
    _close(found, **{name: metric.aggregate() for name, metric in metrics.items()})
    assert found["slices"] == shown.sum() < len(case.truth)


def test_brasyn_is_torchmetrics_ssim_of_images_that_a_mask_cuts(case):
    def normalized(image):
        low, high = np.percentile(image, [0.5, 99.5])
        return _image((np.clip(image, max(low, 0), high) - max(low, 0)) / (high - max(low, 0)))

    prediction, truth = normalized(case.prediction), normalized(case.truth)
    found = get_convention("brasyn").score(case)
    if case.segmentation is None:
        _close(found, ssim=structural_similarity_index_measure(prediction, truth))
        return
    tumor = _image(case.segmentation > 0)
    for region, mask in (("whole_tumor", tumor), ("healthy", 1 - tumor)):
        expected = structural_similarity_index_measure(prediction * mask, truth * mask)
        _close(found["regions"][region], ssim=expected)
    _close(found, ssim=found["regions"]["healthy"]["ssim"])
