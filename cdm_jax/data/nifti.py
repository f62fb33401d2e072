"""NIfTI files: the only place that knows axis orders, affines and headers.

Inside the package a volume is an array (z, y, x): z runs from inferior to superior, y from
anterior to posterior, x from the patient's right to left (orientation LPS, transposed). Axial
slice k is `volume[k]` in radiological display. Oblique volumes are permuted and flipped to the
nearest such order, never resampled.

The orientation of a file is that of its sform where the sform's code is above 0, else of its
qform where the qform's code is above 0. Where both codes are 0 the file does not state an
orientation, and nibabel's fallback is taken: LAS, centered, with the voxel sizes of pixdim.
Lengths are in the file's unit, which is taken to be the millimeter.
"""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
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

from cdm_jax.errors import UserError

PathLike = str | os.PathLike[str]
Image = nib.Nifti1Image

_INSIDE = axcodes2ornt("LPS")
_GRID_TOLERANCE = 1e-3  # mm, on each entry of the affine
# The header's fields that say where the voxels are.
GRID_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
_DESCRIPTION_BYTES = 79  # the header's field, less its closing zero byte
_UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
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
    """The image of a NIfTI file in the package's axis order, C-contiguous.

    Values are those of the scanner: the header's scale and offset are applied, nothing else.

    Args:
        path: Of the file; or its image as nibabel loads it or as it was made in memory.

    Raises:
        UserError: The file is missing, truncated, corrupt (its checksum included) or not one 3D
            volume of finite numbers.
    """
    return _read(path, np.dtype(np.float32))


def read_labels(path: PathLike) -> Int16[np.ndarray, "z y x"]:
    """The labels of a segmentation in the package's axis order, C-contiguous.

    Raises:
        UserError: As `read_volume`, and where a voxel is not a 16-bit integer.
    """
    values = _read(path, np.dtype(np.float64))
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
    image = _open(path)
    to_inside = ornt_transform(io_orientation(image.affine), _INSIDE)
    x, y, z = (image.shape[axis] for axis in np.argsort(to_inside[:, 0]))
    affine = image.affine @ inv_ornt_aff(to_inside, image.shape[:3])
    return Geometry(shape=(z, y, x), affine=affine[:, [2, 1, 0, 3]])


def read_voxel_size(path: PathLike) -> tuple[float, float, float]:
    """Distance between neighboring voxels along (z, y, x) in mm; raises as `read_geometry`."""
    return read_geometry(path).voxel_size


def check_same_grid(paths: Sequence[PathLike | Image]) -> None:
    """Check that files or images cover the same voxels once they are in the package's axis order.

    Files of one grid may be stored in different axis orders, and may state their affine by sform
    or by qform.

    Raises:
        UserError: Two files differ in shape, or by more than 0.001 mm in an entry of the affine.
    """
    first, *others = ((path, read_geometry(path)) for path in paths)
    for other in others:
        if difference := _difference(first[1], other[1]):
            raise UserError(
                f"{_name(first[0])} and {_name(other[0])} lie on different grids ({difference}): "
                "register and resample the modalities of a subject onto one grid first"
            )


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
    that nibabel has of the reference.

    Args:
        volume: Values in the package's axis order.
        reference: NIfTI file or image whose grid the volume is on.
        description: Text for the header's `descrip`, cut to its 79 bytes.
    """
    like = _open(reference)
    return _image_like(volume, like, like.header, like.affine, np.float32, description)


def write_like(
    path: PathLike,
    volume: Real[np.ndarray, "z y x"],
    reference: PathLike,
    *,
    dtype: type[np.number] = np.float32,
    description: str = "",
) -> None:
    """Write a volume onto the grid of a reference file.

    Shape, axis order, qform, sform, their codes, pixdim and units equal the reference's to the
    bit. Nothing else is inherited: no scale, display range, header extension or free text. The
    file appears whole or not at all; its folder is made where there is none.

    Args:
        path: File to write, `.nii.gz` or `.nii`.
        volume: Values in the package's axis order.
        reference: NIfTI file whose grid the volume is on.
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
            f"{reference} has {shape}; give a volume on the reference's own grid"
        )
    if np.issubdtype(dtype, np.integer) and (volume.astype(dtype) != volume).any():
        raise UserError(f"cannot write {path}: the labels do not fit into {np.dtype(dtype)}")
    like = _open(reference)
    image = _image_like(volume, like, _raw_header(like, reference), None, dtype, description)
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
    ours, theirs = (_raw_header(_open(file), file) for file in (path, reference))
    return tuple(name for name in GRID_FIELDS if ours[name].tobytes() != theirs[name].tobytes())


def _name(source: PathLike | Image) -> str:
    """What to call a file or image in messages."""
    if isinstance(source, Image):
        return source.get_filename() or "the image in memory"
    return str(source)


def _open(source: PathLike | Image) -> Image:
    """The image with its header read and checked, its voxels not yet."""
    name = _name(source)
    with _explained(name):
        image = source if isinstance(source, Image) else nib.load(source)
    if not isinstance(image, Image):
        raise UserError(f"{name} is not a NIfTI volume: convert it to .nii.gz")
    if len(image.shape) < 3 or any(extent != 1 for extent in image.shape[3:]):
        raise UserError(f"{name} has shape {image.shape}: give one 3D volume a file")
    finite = np.isfinite(image.affine).all()
    if not finite or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise UserError(
            f"{name} has an affine that maps no volume: mend its header (sform, qform, pixdim)"
        )
    return image


def _read(source: PathLike | Image, dtype: np.dtype) -> Real[np.ndarray, "z y x"]:
    image, name = _open(source), _name(source)
    if image.get_data_dtype().kind not in "iuf":
        raise UserError(f"{name} holds {image.get_data_dtype()}: give a file of real numbers")
    with _explained(name):
        if not isinstance(source, Image):
            content = Path(source).read_bytes()
            # The whole stream is read: nibabel stops at the last voxel, before gzip's checksum.
            content = gzip.decompress(content) if Path(source).suffix == ".gz" else content
            image = type(image).from_bytes(content)
        values = image.get_fdata(caching="unchanged", dtype=dtype).reshape(image.shape[:3])
    if wrong := np.count_nonzero(~np.isfinite(values)):
        raise UserError(
            f"{name} has {wrong} voxels that are NaN or infinite: make it again, or set them to 0"
        )
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
    image.header["descrip"] = description.encode()[:_DESCRIPTION_BYTES]
    return image


def _raw_header(image: Image, path: PathLike) -> nib.Nifti1Header:
    """The header of the image's file as it is there: nibabel mends what it loads."""
    with nib.openers.ImageOpener(os.fspath(path)) as stream:
        return type(image.header).from_fileobj(stream, check=False)


def _difference(first: Geometry, other: Geometry) -> str:
    """What differs between two grids, in words; empty where nothing does."""
    if first.shape != other.shape:
        return f"shape (z, y, x) {first.shape} against {other.shape}"
    distance = np.abs(first.affine - other.affine).max()
    if distance > _GRID_TOLERANCE:
        return f"affines differ by up to {distance:.4g} mm"
    return ""


@contextlib.contextmanager
def _explained(path: PathLike) -> Iterator[None]:
    """Turn the many errors of a bad file into one line that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: check the path") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as NIfTI ({error}): it is truncated, corrupt or something "
            "else; copy or download it again"
        ) from error
