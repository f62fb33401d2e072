"""Images of one subject on one grid: checked, or resampled onto one of them on request.

Two grids are one where no voxel's place differs by more than a twentieth of a voxel: far less than
registration errs by, and far more than tools disagree by in rounding. A file that states no
orientation is taken to be stored as one beside it that does, if shape and voxel sizes agree.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.ndimage import affine_transform

from cdm_jax.data.formats import (
    Image,
    ImageError,
    PathLike,
    name_of,
    named_as,
    open_image,
    read_image,
    states_orientation,
)
from cdm_jax.data.intensity import background
from cdm_jax.data.nifti import Geometry, read_geometry, volume_of
from cdm_jax.errors import UserError, about, nearest

TOLERANCE = 0.05  # of the smallest side of a voxel

Volume = Float32[np.ndarray, "z y x"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OneGrid:
    """Images on one grid.

    Attributes:
        volumes: Modality to values as in its file.
        reference: The source whose grid it is: the first that states an orientation, or the one
            that the others were resampled onto.
        resampled: Modalities that were resampled.
        notes: What the user should know, one line each.
    """

    volumes: Mapping[str, Volume]
    reference: PathLike | Image
    resampled: tuple[str, ...]
    notes: tuple[str, ...]


def read_on_one_grid(
    sources: Mapping[str, PathLike | Image], *, resample_to: str | None = None
) -> OneGrid:
    """Reads images that lie on one grid, or resamples them onto the grid of one of them.

    Resampling is trilinear in world coordinates; beyond an image's edge is its background.

    Args:
        sources: Modality to file or image.
        resample_to: The modality whose grid all get; None: they have to have one grid.

    Raises:
        UserError: An image cannot be read, or they lie on different grids and none is chosen.
    """
    if resample_to is not None and resample_to not in sources:
        raise UserError(
            f"cannot resample onto {resample_to}{nearest(resample_to, sources)}: choose one of "
            f"{', '.join(sources)}"
        )
    opened = {}
    for name, source in sources.items():
        with about(name):
            opened[name] = read_image(source)
    images, notes = _oriented(opened)
    geometries = {name: read_geometry(image) for name, image in images.items()}
    stating = [name for name, image in opened.items() if states_orientation(image)]
    chosen = resample_to or next(iter(stating or opened))
    others = [name for name in images if _difference(geometries[chosen], geometries[name])]
    if others and resample_to is None:
        name, difference = others[0], _difference(geometries[chosen], geometries[others[0]])
        raise UserError(
            f"{chosen} and {name}: {name_of(sources[chosen])} and {name_of(sources[name])} lie on "
            f"different grids ({difference}): register and resample the modalities of a subject "
            "onto one grid first; `synthesize` resamples registered ones by "
            "--resample_to=<modality>"
        )
    volumes = {}
    for name, image in images.items():
        with about(name):
            volumes[name], said = volume_of(image, name_of(sources[name]))
        notes += [f"{name}: {line}" for line in said]
        if name in others:
            for each in (name, chosen):
                if not states_orientation(images[each]):
                    raise UserError(
                        f"{each}: {name_of(sources[each])} states no orientation (the codes of "
                        "sform and qform are 0), so that it cannot be resampled: give it the "
                        "header of its scan"
                    )
            volumes[name] = resample(volumes[name], geometries[name], geometries[chosen])
            notes.append(f"{name}: resampled onto the grid of {chosen} (trilinear)")
    return OneGrid(
        volumes=volumes, reference=sources[chosen], resampled=tuple(others), notes=tuple(notes)
    )


def check_same_grid(sources: Sequence[PathLike | Image]) -> None:
    """Checks by headers alone that files or images cover the same voxels.

    Files of one grid may be stored in different axis orders, and may state their affine by sform
    or by qform.

    Raises:
        UserError: Two differ in shape, or by more than `TOLERANCE` in the place of a voxel.
    """
    images, _ = _oriented({str(n): open_image(source) for n, source in enumerate(sources)})
    first, *others = map(read_geometry, images.values())
    for source, other in zip(sources[1:], others, strict=True):
        if difference := _difference(first, other):
            raise ImageError(
                f"{name_of(sources[0])} and {name_of(source)} lie on different grids "
                f"({difference})",
                "register and resample them onto one grid first",
                "grid",
            )


def oriented_like(source: PathLike | Image, reference: PathLike | Image) -> Image:
    """An image, read whole, with the orientation of a reference where it states none.

    Raises:
        UserError: One cannot be read, or they lie on different grids.
    """
    check_same_grid([reference, source])
    images, _ = _oriented({"reference": open_image(reference), "image": read_image(source)})
    return images["image"]


def resample(volume: Volume, grid: Geometry, onto: Geometry) -> Float32[np.ndarray, "_ _ _"]:
    """A volume on another grid: trilinear in world coordinates, its background beyond its edge."""
    matrix = np.linalg.inv(grid.affine) @ onto.affine
    return affine_transform(
        volume,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=onto.shape,
        order=1,
        mode="constant",
        cval=background(volume),
    )


def _oriented(images: Mapping[str, Image]) -> tuple[dict[str, Image], list[str]]:
    """The images, those without an orientation under that of the first that has one; and notes."""
    anchor = next((name for name in images if states_orientation(images[name])), None)
    if anchor is None:
        silent = f"{', '.join(images)}: no orientation is stated, left and right may be swapped"
        return dict(images), [silent]
    found, notes = dict(images), []
    for name, image in images.items():
        if not states_orientation(image) and _stored_alike(image, images[anchor]):
            turned = Image(image.dataobj, images[anchor].affine, image.header)
            found[name] = named_as(image, turned)
            notes.append(f"{name}: states no orientation, taken to be stored as {anchor}")
    return found, notes


def _stored_alike(image: Image, other: Image) -> bool:
    """Whether shape and voxel sizes agree, in the order of the files."""
    sizes, others = (np.array(each.header.get_zooms()[:3]) for each in (image, other))
    return image.shape[:3] == other.shape[:3] and np.allclose(sizes, others, rtol=1e-3)


def _difference(first: Geometry, other: Geometry) -> str:
    """What differs between two grids, in words; empty where nothing does."""
    if first.shape != other.shape:
        return f"shape (z, y, x) {first.shape} against {other.shape}"
    distance = farthest(first.affine, other.affine, first.shape)
    if distance > TOLERANCE * min(first.voxel_size):
        return f"voxels lie up to {distance:.4g} mm apart"
    return ""


def farthest(
    one: Float64[np.ndarray, "4 4"], other: Float64[np.ndarray, "4 4"], shape: Sequence[int]
) -> float:
    """How far apart two affines place a voxel of a volume at most, in mm."""
    corners = np.array([*itertools.product(*((0, extent - 1) for extent in shape[:3]))])
    moved = np.c_[corners, np.ones(len(corners))] @ (one - other).T
    return float(np.linalg.norm(moved, axis=1).max())
