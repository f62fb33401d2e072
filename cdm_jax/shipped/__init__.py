"""The model that ships with the package: whatever is missing, trained on simulated patients alone.

`weights.npz` holds the parameters of its three stages (MRM, MDN, C-UNet) in half precision,
`model.json` their config, scales, ranges and hash, and `CARD.md` what it scores and what it is not
for.
`python -m experiments.shipped` makes them again.
"""

import dataclasses
import pathlib
import zipfile

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdm_jax import checkpoint, inference
from cdm_jax.data.correction import Correction, read_correction
from cdm_jax.data.ranges import Ranges
from cdm_jax.errors import UserError
from cdm_jax.files import digest, read_json, write_json
from cdm_jax.methods.base import Model
from cdm_jax.workers import whole_file

FOLDER = pathlib.Path(__file__).parent
NAME = "shipped"  # what config values call it
STAGE = "cunet"
WEIGHTS, DESCRIPTION, CARD = "weights.npz", "model.json", "CARD.md"


def load_model(folder: pathlib.Path = FOLDER) -> tuple[Model, checkpoint.Provenance]:
    """The shipped model, as `checkpoint.load_model` gives a trained one.

    Raises:
      UserError: the files are missing, damaged or of another version.
    """
    path = folder / WEIGHTS
    try:
        described, content = read_json(folder / DESCRIPTION), path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing: install cdm_jax again, or give the folder of a trained "
            "run, --workdir=<folder>"
        ) from error
    stated = described.pop("sha256", None) if isinstance(described, dict) else None
    if stated is None or digest(described, content) != stated:
        raise UserError(
            f"{path} and {DESCRIPTION} are not those of one model: install cdm_jax again"
        )
    if described["format"] != checkpoint.FORMAT:
        raise UserError(
            f"{path} has format {described['format']}, this version reads {checkpoint.FORMAT}: "
            "install cdm_jax again"
        )
    with np.load(path, allow_pickle=False) as arrays:
        leaves = {name: arrays[name].astype(np.float32) for name in arrays.files}
    model = {"statistics": {}, "frozen": {}, **unflatten_dict(leaves, sep="/")}
    for stage in model["frozen"].values():
        stage.setdefault("statistics", {})
    return model, checkpoint.Provenance.from_json(described)


def load_stage(stage: str) -> Model:
    """Parameters and statistics of one of its stages.

    Raises:
      UserError: it has no such stage.
    """
    model, _ = load_model()
    stages = {STAGE: model, **model["frozen"]}
    if stage not in stages:
        raise UserError(
            f"the shipped model has no stage {stage}, only {', '.join(sorted(stages))}: start "
            "that one from a run of your own, --config.init_from=<folder>, or from nothing"
        )
    return {name: stages[stage][name] for name in ("params", "statistics")}


def export(
    stage_folder: pathlib.Path, folder: pathlib.Path = FOLDER, ranges: Ranges | None = None
) -> int:
    """Writes a trained stage as the shipped model.

    Parameters are rounded to eight significant bits, statistics and what corrects whole
    volumes are not.

    Args:
      stage_folder: of a C-UNet; its best checkpoint is taken.
      folder: of the shipped model.
      ranges: of the training patients, see `data.ranges`; those that the checkpoint says where
        None.

    Returns:
      Bytes of the weights.
    """
    model, provenance = checkpoint.load_model(stage_folder)
    correction = read_correction(stage_folder, inference.fingerprint(model)) or Correction()
    provenance = dataclasses.replace(provenance, correction=correction)
    if ranges is not None:
        provenance = dataclasses.replace(provenance, ranges=ranges)
    leaves = {
        name: leaf if "statistics" in name.split("/") else _shortened(leaf)
        for name, leaf in flatten_dict(model, sep="/").items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / WEIGHTS) as partial:
        _write_arrays(partial, leaves)
    content = (folder / WEIGHTS).read_bytes()
    described = provenance.to_json()
    write_json(folder / DESCRIPTION, described | {"sha256": digest(described, content)})
    return len(content)


def _shortened(values: np.ndarray) -> np.ndarray:
    """Half precision of eight significant bits: zeros in the last three compress."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(fraction * 256) / 256, exponent).astype(np.float16)


def _write_arrays(path: pathlib.Path, leaves: dict[str, np.ndarray]) -> None:
    """An archive as `numpy.savez_compressed` writes it, the same bytes each time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, leaf in sorted(leaves.items()):
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, leaf, allow_pickle=False)
