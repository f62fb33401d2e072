"""The table of named conventions: a number without one of these names means nothing.

========================  ======  ============================  ==================================
name                      unit    range of values               background
========================  ======  ============================  ==================================
`paper`                   slice   1                             counts
`volume` (decides)        volume  truth's p99.5 in the brain    does not count
`reggan`                  slice   1 (SSIM: 2)                   counts for SSIM only
`resvit`                  slice   each image's own maximum      counts; empty slices count as 0 dB
`syndiff`                 slice   each image's own maximum      counts
`brasyn` (SSIM only)      volume  each image's own p99.5        counts
`torchmetrics`            volume  truth's own                   counts
`monai`                   slice   1                             counts
`skimage`                 slice   truth's own                   counts
========================  ======  ============================  ==================================

The classes say exactly what each does, where it departs from its source, and what is NaN in it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cdm_jax.errors import UserError
from cdm_jax.metrics.conventions.base import Case, Convention
from cdm_jax.metrics.conventions.libraries import (
    MonaiConvention,
    SkimageConvention,
    TorchmetricsConvention,
)
from cdm_jax.metrics.conventions.paper import PaperConvention
from cdm_jax.metrics.conventions.scripts import (
    BraSynConvention,
    RegGANConvention,
    ResViTConvention,
    SynDiffConvention,
)
from cdm_jax.metrics.conventions.volume import VolumeConvention

__all__ = ["CONVENTIONS", "Case", "Convention", "fingerprint", "get_convention", "json_ready"]

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "paper": PaperConvention(),
        "volume": VolumeConvention(),
        "reggan": RegGANConvention(),
        "resvit": ResViTConvention(),
        "syndiff": SynDiffConvention(),
        "brasyn": BraSynConvention(),
        "torchmetrics": TorchmetricsConvention(),
        "monai": MonaiConvention(),
        "skimage": SkimageConvention(),
    }
)


def get_convention(name: str) -> Convention:
    """Looks a convention up.

    Raises:
        UserError: There is none of that name.
    """
    if name not in CONVENTIONS:
        raise UserError(f"no convention is called {name!r}: choose from {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def fingerprint(name: str) -> str:
    """Hashes a convention's name, version and parameters to 12 hexadecimal digits.

    Scores with the same fingerprint mean the same and may be compared.

    Raises:
        UserError: There is no convention of that name.
    """
    content = {"name": name, **dataclasses.asdict(get_convention(name))}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def json_ready(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Copies nested scores with None in place of NaN, which JSON lacks."""
    return {key: _json_ready_value(value) for key, value in scores.items()}


def _json_ready_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json_ready(value)
    return None if isinstance(value, float) and math.isnan(value) else value
