"""The public weights of ViT-B/16 on ResNet-50, for the transformer of ResViT's second stage.

Dosovitskiy et al. 2021, trained on ImageNet-21k: `R50+ViT-B_16.npz`. Used are the transformer, the
embedding of 1024 features and the positions; its ResNet is not.
"""

import math
import os
import zipfile
from collections.abc import Collection

import flax.traverse_util
import numpy as np
from jaxtyping import Float, PyTree
from scipy import ndimage

from cdm_jax.errors import UserError

ADVICE = "give the path of ImageNet-21k's R50+ViT-B_16.npz, or leave resvit.pretrained empty"
# Names of a block's parts: ours, and those of the file.
PARTS = {
    "LayerNorm_0": "LayerNorm_0",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "Dense_0": "MlpBlock_3/Dense_0",
    "Dense_1": "MlpBlock_3/Dense_1",
}
POSITIONS = "Transformer/posembed_input/pos_embedding"


def public_name(path: tuple[str, ...]) -> str | None:
    """The file's name of a parameter of the generator, None for those that it does not have."""
    match path:
        case ("transformer", "LayerNorm_0", leaf):
            return f"Transformer/encoder_norm/{leaf}"
        case ("transformer", block, part, *rest):
            number = block.removeprefix("TransformerBlock_")
            return "/".join([f"Transformer/encoderblock_{number}", PARTS[part], *rest])
        case (aggregation, "embedding", _, leaf) if aggregation.startswith("aggregation"):
            return f"embedding/{leaf}"
        case (aggregation, "positions") if aggregation.startswith("aggregation"):
            return POSITIONS
    return None


def resize_positions(
    positions: Float[np.ndarray, "1 n d"], number: int
) -> Float[np.ndarray, "m d"]:
    """A square grid of positions, without the class token before it, for `number` tokens.

    Linear between the given ones, corner on corner, as the official code has it.
    """
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(number)
    grid = positions[0, 1:].reshape(old, old, -1)
    return ndimage.zoom(grid, (new / old, new / old, 1), order=1).reshape(number, -1)


def _read(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """These arrays of a file."""
    if not os.path.isfile(path):
        raise UserError(f"resvit.pretrained: no file {path}: {ADVICE}")
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix(".npy") for name in archive.namelist()}
        missing = sorted(set(names) - found)
        if missing:
            raise UserError(
                f"resvit.pretrained: {path} has no {', '.join(missing[:3])} "
                f"({len(missing)} of {len(names)} are missing): {ADVICE}"
            )
        with np.load(path) as file:
            return {name: file[name] for name in names}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(f"resvit.pretrained: {path} is no .npz ({error}): {ADVICE}") from error


def _fit(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The file's values in our shape; only positions may differ in number."""
    given = values.shape
    if name == POSITIONS and len(given) == 3 and math.isqrt(given[1] - 1) ** 2 == given[1] - 1 > 0:
        values = resize_positions(values, shape[0])
    if values.shape != shape:
        raise UserError(
            f"resvit.pretrained: {name} has shape {given}, which does not fit {shape} here: the "
            "file needs resvit.width 64, hidden 768 and heads 12; or leave resvit.pretrained empty"
        )
    return values.astype(np.float32)


def with_pretrained(generator: PyTree, path: str) -> PyTree:
    """The generator's parameters, those that a public file has taken from it.

    A file with more layers than the generator gives its first ones.

    Args:
      generator: parameters of a `ResViTGenerator` with transformer, or their shapes.
      path: of the .npz.

    Raises:
      UserError: no such file, another kind of file, parameters missing in it or of other shapes.
    """
    ours = flax.traverse_util.flatten_dict(generator)
    names = {place: name for place in ours if (name := public_name(place))}
    file = _read(path, set(names.values()))
    taken = {place: _fit(name, file[name], ours[place].shape) for place, name in names.items()}
    return flax.traverse_util.unflatten_dict({**ours, **taken})
