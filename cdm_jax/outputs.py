"""What the files of a subject's synthetic images are called: in a folder of its name, or by BIDS.

BIDS derivatives: https://bids-specification.readthedocs.io/en/stable/derivatives/
"""

import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cdm_jax
from cdm_jax.data.formats import is_image, open_image, stem
from cdm_jax.errors import UserError
from cdm_jax.files import read_json, write_json

NOTICE = "Synthetic images made by a neural network for research. Not for clinical use."
MARK = "SYNTHETIC"  # with which the header's description of every synthetic image begins

# What may be written of a target, and what each file's name ends in.
ENDINGS = {
    "mean": "",
    **{kind: f"-{kind}" for kind in ("deviation", "lower", "upper", "enhancement")},
}
# Modality to the entity and the suffix of its BIDS name.
BIDS_NAMES = {
    "t1": ("", "T1w"),
    "t1c": ("_ce-gadolinium", "T1w"),
    "t2": ("", "T2w"),
    "t2f": ("", "FLAIR"),
}
_BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9+]+)(?:_(ses-[A-Za-z0-9+]+))?")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of one subject.

    Attributes:
        folder: Where they are.
        prefix: What their names begin with.
        bids: Whether they are named by BIDS.
    """

    folder: pathlib.Path
    prefix: str
    bids: bool

    def image(self, target: str, kind: str) -> pathlib.Path:
        """The image of a target: its mean, deviation, lower or upper end, enhancement."""
        return self.folder / f"{self._stem(target, kind)}.nii.gz"

    def sidecar(self, target: str, kind: str = "mean") -> pathlib.Path:
        """The JSON file beside an image."""
        return self.folder / f"{self._stem(target, kind)}.json"

    @property
    def overview(self) -> pathlib.Path:
        """The picture."""
        return self.folder / f"{self.prefix}.png"

    def _stem(self, target: str, kind: str) -> str:
        if not self.bids:
            return f"{self.prefix}-{target}{ENDINGS[kind]}"
        entity, suffix = BIDS_NAMES[target]
        return f"{self.prefix}{entity}_desc-{'synthetic' if kind == 'mean' else kind}_{suffix}"


def outputs_of(subject_id: str, output: pathlib.Path, *, bids: bool) -> Outputs:
    """The files of a subject below the output folder."""
    if not bids:
        return Outputs(folder=output / subject_id, prefix=subject_id, bids=False)
    label = re.sub("[^A-Za-z0-9]", "", subject_id)
    known = _BIDS_SUBJECT.fullmatch(subject_id) or _BIDS_SUBJECT.fullmatch(f"sub-{label}")
    if known is None:
        raise UserError(f"subject {subject_id} has no letter or digit for a BIDS name: rename it")
    parts = [part for part in known.groups() if part]
    folder = output.joinpath(*parts, "anat")
    return Outputs(folder=folder, prefix="_".join(parts), bids=True)


def check_free(paths: Iterable[pathlib.Path]) -> None:
    """Checks that nothing is overwritten but synthetic images and their sidecars.

    Raises:
        UserError: An image of one of these names, whatever its ending, or the JSON file beside it
            exists and does not say that it is synthetic.
    """
    wanted = {(path.parent, stem(path)) for path in paths}
    for folder in {folder for folder, _ in wanted if folder.is_dir()}:
        for path in sorted(folder.iterdir()):
            sidecar = path.suffix == ".json"
            name = path.stem if sidecar else stem(path)
            known = (sidecar or is_image(path.name)) and (folder, name) in wanted
            if known and not (_is_ours(path) if sidecar else _is_synthetic(path)):
                raise UserError(
                    f"{path} is there already and is of no synthetic image: give another --output"
                )


def start_bids(output: pathlib.Path, targets: Iterable[str]) -> None:
    """Makes the output folder a BIDS dataset of derivatives.

    Raises:
        UserError: It is another dataset's folder, or a target has no BIDS name.
    """
    if unknown := [target for target in targets if target not in BIDS_NAMES]:
        raise UserError(
            f"{unknown[0]} has no BIDS name: known are {', '.join(BIDS_NAMES)}; leave out --bids"
        )
    path = output / "dataset_description.json"
    if path.exists():
        found = read_json(path)
        if not isinstance(found, dict) or found.get("DatasetType") != "derivative":
            raise UserError(
                f"{output} is a raw BIDS dataset: give a folder of its own, such as "
                f"--output={output / 'derivatives' / 'cdm_jax'}"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "Synthetic MRI modalities",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "cdm_jax", "Version": cdm_jax.__version__}],
    }
    write_json(path, description)
    (output / "README.md").write_text(f"{NOTICE}\n")
    (output / ".bidsignore").write_text("*.png\n")


def bids_fields(target: str) -> dict[str, Any]:
    """What a BIDS sidecar says beside our own: derivatives have to state SkullStripped."""
    return {
        "Description": f"Synthetic {BIDS_NAMES[target][1]} made by a neural network",
        "SkullStripped": True,
    }


def _is_ours(sidecar: pathlib.Path) -> bool:
    """Whether a sidecar says that its image is synthetic, or is damaged beside one that does."""
    try:
        content = read_json(sidecar)
    except UserError:
        return _is_synthetic(sidecar.with_suffix(".nii.gz"))
    return isinstance(content, dict) and content.get("synthetic") is True


def _is_synthetic(path: pathlib.Path) -> bool:
    try:
        return open_image(path).header["descrip"].item().startswith(MARK.encode())
    except UserError:
        return False
