"""What corrects the predicted volumes of a trained stage: its values, its file, its use.

`<workdir>/<stage>/volume_scale.json` lies beside the checkpoints, where `train` writes it when a
stage that makes images is done (`rescaling.py`).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt16

from cdm_jax.data.ends import AllEnds, Ends, with_ends
from cdm_jax.data.volume_scale import Curve, Curves, Volume, rescaled
from cdm_jax.errors import UserError
from cdm_jax.files import digest, write_json

FILE = "volume_scale.json"


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What is fitted to whole volumes that a system predicts; an empty one changes nothing.

    Attributes:
        curves: by which the scale of a target is corrected, see `volume_scale.py`.
        ends: of predicted intervals, see `ends.py`.
    """

    curves: Curves = field(default_factory=dict)
    ends: AllEnds = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is corrected."""
        return bool(self.curves or self.ends)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; without ends where there are none."""
        content = {"curves": {target: asdict(curve) for target, curve in self.curves.items()}}
        ends = {target: asdict(one) for target, one in self.ends.items()}
        return content | ({"ends": ends} if ends else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Correction":
        """What `to_json` gave, and whatever else lies beside it."""
        curves, ends = content.get("curves", {}), content.get("ends", {})
        return cls(
            curves={target: Curve(**values) for target, values in curves.items()},
            ends={target: Ends(**values) for target, values in ends.items()},
        )

    def apply(
        self,
        volumes: Mapping[str, Volume],
        stored: UInt16[np.ndarray, "slice h w s"],
        targets: Sequence[str],
    ) -> dict[str, Volume]:
        """One subject's volumes in [0, 1] as they should be.

        Args:
            volumes: by name, see `volume_scale.rescaled` and `ends.with_ends`.
            stored: the sources' slices.
            targets: of the volumes' channels.
        """
        brain: Bool[np.ndarray, "slice h w"] = np.any(stored > 0, axis=-1)
        found = rescaled(volumes, brain, self.curves, targets)
        return with_ends(found, stored, brain, self.ends, targets)


def save_correction(stage_folder: pathlib.Path, found: Correction, fingerprint: str) -> None:
    """Writes a stage's correction as a whole, for the model with this fingerprint."""
    content = {"checkpoint": fingerprint, **found.to_json()}
    write_json(stage_folder / FILE, content | {"sha256": digest(content)})


def read_correction(stage_folder: pathlib.Path, fingerprint: str) -> Correction | None:
    """The correction of a stage; None where none was fitted to the model with this fingerprint.

    Raises:
        UserError: the file is damaged, or any of its values was changed.
    """
    path = stage_folder / FILE
    try:
        content = json.loads(path.read_text())
        if content.pop("sha256") != digest(content):
            raise ValueError("other values than were written")
        known = content["checkpoint"] == fingerprint
        return Correction.from_json(content) if known else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged, or of another version ({error!r}): remove it, and "
            "`cdm-jax train` fits it again"
        ) from error
