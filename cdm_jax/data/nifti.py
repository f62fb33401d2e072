"""Volumes of image files: the only place that knows axis orders, affines and headers.

Inside the package a volume is an array (z, y, x): z runs from inferior to superior, y from
anterior to posterior, x from the patient's right to left (orientation LPS, transposed). Axial
slice k is `volume[k]` in radiological display. Oblique volumes are permuted and flipped to the
nearest such order, never resampled.

The orientation of a file is that of its sform where the sform's code is above 0, else of its
qform where the qform's code is above 0. Where both codes are 0 the file does not state an
orientation, and nibabel's fallback is taken: LAS, centered, with the voxel sizes of pixdim.
Lengths are in the file's unit, which is taken to be the millimeter.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Int16, Real
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy.ndimage import binary_fill_holes

from cdm_jax.data.formats import (
    Image,
    ImageError,
    PathLike,
    explained,
    name_of,
    open_image,
    raw_header,
    read_image,
)
from cdm_jax.errors import UserError

_INSIDE = axcodes2ornt("LPS")
# The header's fields that say where the voxels are.
GRID_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The grid of a volume in the package's axis order.

    Attributes:
        shape: Number of voxels along (z, y, x).
        affine: Takes the index (z, y, x, 1) to the position in mm (right, anterior, superior, 1).
    """

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Distance between neighboring voxels along (z, y, x) in mm."""
        z, y, x = nib.affines.voxel_sizes(self.affine).tolist()
        return z, y, x


def read_volume(path: PathLike | Image) -> Float32[np.ndarray, "z y x"]:
    """The image of a NIfTI file, or one in memory, in the package's axis order, C-contiguous.

    Values are those of the scanner: the header's scale and offset are applied, nothing else.

    Raises:
        UserError: The file is missing, truncated, corrupt (its checksum included) or not one 3D
            volume of finite numbers.
    """
    return volume_of(read_image(path), name_of(path))[0]


def volume_of(image: Image, name: str) -> tuple[Float32[np.ndarray, "z y x"], list[str]]:
    """As `read_volume` of an image that `read_image` gave, and what to say of its values.

    NaN around the brain becomes 0. Messages call the image by its `name`.
    """
    volume = _inside(image, name, np.dtype(np.float32))
    wrong = ~np.isfinite(volume)
    if not wrong.any():
        return volume, []
    around = np.isnan(volume) & ~binary_fill_holes(~wrong)
    if count := np.count_nonzero(wrong & ~around):
        raise ImageError(
            f"{name} has {count} voxels that are NaN or infinite within the image",
            "make it again, or set them to 0",
            "not-finite",
        )
    if around.all():
        raise ImageError(f"{name} is NaN everywhere", "make it again", "not-finite")
    return np.where(around, np.float32(0), volume), ["NaN around the brain is taken as background"]


def read_labels(path: PathLike, image: Image | None = None) -> Int16[np.ndarray, "z y x"]:
    """The labels of a segmentation in the package's axis order, C-contiguous.

    `image` is the same file, open, with an orientation that it does not state itself.

    Raises:
        UserError: As `read_volume`, and where a voxel is not a 16-bit integer.
    """
    values = _inside(image or read_image(path), str(path), np.dtype(np.float64))
    if not np.isfinite(values).all():
        raise UserError(f"{path} has labels that are NaN or infinite: make it again")
    labels = np.clip(values, -(2**15), 2**15 - 1).astype(np.int16)
    if wrong := np.unique(values[labels != values]).tolist():
        raise UserError(
            f"{path} has {wrong[0]:g} among its labels, which must be 16-bit integers: "
            "give a segmentation, resampled with nearest neighbors if at all"
        )
    return labels


def read_geometry(path: PathLike | Image) -> Geometry:
    """The grid of a NIfTI file or image, from its header alone.

    Raises:
        UserError: The file is missing, its header is corrupt or it does not hold one 3D volume.
    """
    image = open_image(path)
    to_inside = ornt_transform(io_orientation(image.affine), _INSIDE)
    x, y, z = (int(image.shape[axis]) for axis in np.argsort(to_inside[:, 0]))
    affine = image.affine @ inv_ornt_aff(to_inside, image.shape[:3])
    return Geometry(shape=(z, y, x), affine=affine[:, [2, 1, 0, 3]])


def orientation(image: Image) -> str:
    """To where the axes of an image as stored point, such as "LPS"."""
    return "".join(nib.aff2axcodes(image.affine))


def read_voxel_size(path: PathLike | Image) -> tuple[float, float, float]:
    """Distance between neighboring voxels along (z, y, x) in mm; raises as `read_geometry`."""
    return read_geometry(path).voxel_size


def read_voxel_ml(path: PathLike | Image) -> float:
    """Volume of a voxel in ml; raises as `read_geometry`."""
    return math.prod(read_voxel_size(path)) / 1000


def as_image(source: object) -> PathLike | Image:
    """What the functions here can read, from what a user may have: an array becomes an image.

    Args:
        source: Path or image, which are returned as they are, or an array and the affine that takes
            its indices (i, j, k, 1) to the position in mm (right, anterior, superior, 1).

    Raises:
        UserError: It is none of them.
    """
    if isinstance(source, (str, os.PathLike)):
        return Path(source).expanduser()
    if isinstance(source, Image):
        return source
    if isinstance(source, (tuple, list)) and len(source) == 2:
        values, affine = map(np.asarray, source)
        if values.dtype.kind in "iuf" and values.ndim >= 3 and affine.shape == (4, 4):
            return Image(values.astype(np.float32), affine.astype(np.float64))
    raise UserError(
        f"got {type(source).__name__}: give the path of a NIfTI file, a nibabel NIfTI image, or "
        "(array, affine) with a real 3D array and a 4 x 4 affine"
    )


def image_like(
    volume: Real[np.ndarray, "z y x"], reference: PathLike | Image, *, description: str = ""
) -> Image:
    """A float32 image on the grid of a reference, as nibabel would load what `write_like` writes.

    Shape, axis order, affine, qform, sform, their codes, pixdim and units equal to the bit those
    that nibabel has of the reference. Arguments as for `write_like`.
    """
    like = open_image(reference)
    return _image_like(volume, like, like.header, like.affine, np.float32, description)


def write_like(
    path: PathLike,
    volume: Real[np.ndarray, "z y x"],
    reference: PathLike | Image,
    *,
    dtype: type[np.number] = np.float32,
    description: str = "",
) -> None:
    """Write a volume onto the grid of a reference.

    Shape, axis order, qform, sform, their codes, pixdim and units equal the reference's to the
    bit. Nothing else is inherited: no scale, display range, header extension or free text. The
    file appears whole or not at all; its folder is made where there is none.

    Args:
        path: File to write, `.nii.gz` or `.nii`.
        volume: Values in the package's axis order.
        reference: File or image whose grid the volume is on.
        dtype: Type of the stored values; an integer type for labels, which it must hold exactly.
        description: Text for the header's `descrip`, cut to its 79 bytes.

    Raises:
        UserError: The reference cannot be read, the volume does not have its shape or does not
            fit the integer type, or the name is not that of a NIfTI file.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"cannot write {path}: the name must end in .nii.gz or .nii")
    if volume.shape != (shape := read_geometry(reference).shape):
        raise UserError(
            f"cannot write {path}: the volume has shape {volume.shape} (z, y, x), its reference "
            f"{name_of(reference)} has {shape}; give a volume on the reference's own grid"
        )
    if np.issubdtype(dtype, np.integer) and (volume.astype(dtype) != volume).any():
        raise UserError(f"cannot write {path}: the labels do not fit into {np.dtype(dtype)}")
    like = open_image(reference)
    image = _image_like(volume, like, raw_header(reference), None, dtype, description)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def changed_fields(path: PathLike, reference: PathLike) -> tuple[str, ...]:
    """Which of `GRID_FIELDS` are not the reference's to the bit; none in what `write_like` wrote.

    Raises:
        UserError: A file is missing, its header is corrupt or it does not hold one 3D volume.
    """
    ours, theirs = (raw_header(file) for file in (path, reference))
    return tuple(name for name in GRID_FIELDS if ours[name].tobytes() != theirs[name].tobytes())


def check_real(image: Image, name: str) -> None:
    """Checks by its header that an image holds real numbers.

    Raises:
        UserError: It holds colors or complex numbers.
    """
    if (kind := image.get_data_dtype()).kind not in "iuf":
        held = {"c": "complex numbers", "V": "colors"}.get(kind.kind, f"values of type {kind}")
        raise ImageError(f"{name} holds {held}", "give a file of real numbers", "datatype")


def _inside(image: Image, name: str, dtype: np.dtype) -> Real[np.ndarray, "z y x"]:
    """The voxels in the package's axis order."""
    check_real(image, name)
    with explained(name):
        values = image.get_fdata(caching="unchanged", dtype=dtype).reshape(image.shape[:3])
    to_inside = ornt_transform(io_orientation(image.affine), _INSIDE)
    return np.ascontiguousarray(apply_orientation(values, to_inside).T)


def _image_like(
    volume: np.ndarray,
    like: Image,
    grid: nib.Nifti1Header,
    affine: np.ndarray | None,
    dtype: type[np.number],
    description: str,
) -> Image:
    """The volume in the axis order of `like`, under a fresh header with the fields of `grid`.

    Without an affine nibabel saves these fields as they are, also where it would mend them.
    """
    from_inside = ornt_transform(_INSIDE, io_orientation(like.affine))
    values = apply_orientation(volume.T, from_inside).reshape(like.shape)
    header = type(grid)(endianness=grid.endianness)
    header.set_data_dtype(dtype)
    image = type(like)(values.astype(dtype), affine, header)
    for field in GRID_FIELDS:
        image.header[field] = grid[field]
    image.header["descrip"] = description.encode()[:79]  # and a closing zero byte
    return image
