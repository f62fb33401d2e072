"""The scale of a predicted volume, of which a network that sees single slices knows little.

By the intensity rule (`intensity.py`) the 99.5th percentile of an acquired volume's brain is 1. In
a patient with bright lesions all other tissue is therefore darker, in every slice, also in one that
shows no lesion. A network that sees a slice at a time cannot know that; the volume that it has
predicted tells part of it, as its own 99.5th percentile, the top, differs from that of others:

  log(factor) = offset + power * log(top).

The line is fitted to the factors that fit the volumes of other patients best. The lines of a
trained stage lie in `<workdir>/<stage>/volume_scale.json`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cdm_jax.data.intensity import PERCENTILE
from cdm_jax.errors import UserError
from cdm_jax.files import write_json

FILE = "volume_scale.json"
RULE = (
    "the predicted volume was multiplied by exp(offset) * top^power, top being its own 99.5th "
    "percentile in the brain, between lowest and highest"
)
LEAST = 8  # patients for a line

Volume = Float[np.ndarray, "slice h w t"]
Pairs = Mapping[str, Sequence[tuple[float, float]]]
"""Target -> the top of each predicted volume, and the factor that fits it best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """By what to multiply a volume, given its top.

    Attributes:
        offset: of the logarithm of the factor.
        power: by which the factor follows the top.
        lowest: top of the patients that it was fitted to; a lower one counts as this one.
        highest: the same at the other end.
        patients: to whose volumes it was fitted.
    """

    offset: float
    power: float
    lowest: float
    highest: float
    patients: int

    def factor(self, top: float) -> float:
        """The factor of a volume with this top; 1 for an empty volume."""
        if top <= 0:
            return 1.0
        within = min(max(top, self.lowest), self.highest)
        return math.exp(self.offset + self.power * math.log(within))


Lines = Mapping[str, Line]
"""Target -> its line; a target without one keeps its scale."""


def lines_to_json(lines: Lines) -> dict[str, Any]:
    """As JSON types."""
    return {target: dataclasses.asdict(line) for target, line in lines.items()}


def lines_from_json(content: Mapping[str, Any]) -> Lines:
    """What `lines_to_json` gave."""
    return {target: Line(**values) for target, values in content.items()}


def save_lines(stage_folder: pathlib.Path, lines: Lines, fingerprint: str) -> None:
    """Writes a stage's lines as a whole, for the model with this fingerprint."""
    content = {"checkpoint": fingerprint, "lines": lines_to_json(lines)}
    write_json(stage_folder / FILE, content)


def read_lines(stage_folder: pathlib.Path, fingerprint: str) -> Lines | None:
    """The lines of a stage; None where none were fitted to the model with this fingerprint.

    Raises:
        UserError: the file is damaged.
    """
    path = stage_folder / FILE
    try:
        content = json.loads(path.read_text())
        return lines_from_json(content["lines"]) if content["checkpoint"] == fingerprint else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): remove it, and `cdm-jax train` fits it again"
        ) from error


def tops(volume: Float[np.ndarray, "*slices t"], brain: Bool[np.ndarray, "*slices"]) -> list[float]:
    """The 99.5th percentile in the brain of each target of a volume."""
    return np.percentile(volume[brain], PERCENTILE, axis=0).tolist()


def best_factors(truth: Volume, volume: Volume) -> list[float]:
    """For each target what to multiply a volume by for the least square error; 1 if it is empty."""
    axes = (0, 1, 2)
    squares = np.sum(np.square(volume, dtype=np.float64), axis=axes)
    products = np.sum(truth * volume, axis=axes, dtype=np.float64)
    return np.where(squares > 0, products / np.maximum(squares, 1e-12), 1.0).tolist()


def fit_line(tops: Sequence[float], factors: Sequence[float]) -> Line | None:
    """Least squares of the factors' logarithms on the tops'.

    Returns:
        None of fewer than `LEAST` volumes, and where the line predicts the factor of a volume that
        it was not fitted to no better than a factor of 1 does.
    """
    told = np.array([(t, f) for t, f in zip(tops, factors, strict=True) if t > 0 and f > 0])
    if len(told) < LEAST:
        return None
    x, y = np.log(told).T
    spread = x - x.mean()
    if not (squares := spread @ spread):
        return None
    power = spread @ y / squares
    offset = y.mean() - power * x.mean()
    leverage = 1 / len(x) + spread**2 / squares
    left_out = (y - offset - power * x) / np.maximum(1 - leverage, 1e-6)
    if left_out @ left_out >= y @ y:
        return None
    return Line(
        offset=float(offset),
        power=float(power),
        lowest=float(told[:, 0].min()),
        highest=float(told[:, 0].max()),
        patients=len(told),
    )


def fit_lines(pairs: Pairs) -> Lines:
    """The line of each target that one helps, see `fit_line`."""
    found = {target: fit_line(*zip(*ones, strict=True)) for target, ones in pairs.items()}
    return {target: line for target, line in found.items() if line is not None}


def rescaled(
    volumes: Mapping[str, Volume],
    brain: Bool[np.ndarray, "slice h w"],
    lines: Lines,
    targets: Sequence[str],
    leading: str = "mean",
) -> dict[str, Volume]:
    """Volumes in [0, 1] on the scale that they should have.

    Args:
        volumes: by name, from one subject's slices.
        brain: of these slices.
        lines: by target.
        targets: of the volumes' channels.
        leading: name of the volume whose factors all others get too, such as the mean of which
            "lower" is the lower end; without such a volume each has its own.
    """
    if not brain.any() or lines.keys().isdisjoint(targets):
        return dict(volumes)

    def factors(volume: Volume) -> Float[np.ndarray, " t"]:
        pairs = zip(targets, tops(volume, brain), strict=True)
        found = [lines[name].factor(top) if name in lines else 1.0 for name, top in pairs]
        return np.array(found, np.float32)

    common = factors(volumes[leading]) if leading in volumes else None
    return {
        name: np.clip(volume * (factors(volume) if common is None else common), 0, 1)
        for name, volume in volumes.items()
    }
