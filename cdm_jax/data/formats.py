"""Image files of any kind that nibabel reads, as NIfTI images; and what a file is that is none.

A name decides who looks at a file, its first bytes what it is: gzip is unpacked under any name.
"""

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from cdm_jax.errors import UserError

PathLike = str | os.PathLike[str]
Image = nib.Nifti1Image

# NIfTI, FreeSurfer's MGH, and the .img of a pair (Analyze or NIfTI) whose .hdr lies beside it.
ENDING = re.compile(r"\.(nii(\.gz)?|mgz|mgh|img(\.gz)?)$", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_MGH = b"\0\0\0\1"  # the version, the only one
_UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)
# How a file begins that only stands for an image: what it is, and what to do.
_STAND_INS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the image itself: run `git lfs pull`",
    b"/annex/objects/": "is a git-annex pointer, not the image itself: run `git annex get`",
    b"../.git/annex/": "is a git-annex pointer, not the image itself: run `git annex get`",
    b"<!doctype": "is a web page: the download needs a login or another link; get it again",
    b"<html": "is a web page: the download needs a login or another link; get it again",
}


def is_image(name: str) -> bool:
    """Whether a file of this name is looked at: it has a known ending and is not hidden."""
    return bool(ENDING.search(name)) and not name.startswith(".")


def stem(path: PathLike) -> str:
    """The name of an image without its ending, whether `.nii.gz` or another."""
    return ENDING.sub("", Path(path).name)


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM, by its mark after 128 bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def check_file(path: PathLike) -> None:
    """Checks that a file may hold an image.

    Raises:
        UserError: It is missing, a link to nothing, a folder, empty, or something that is known not
            to be an image: DICOM, a pointer of Git LFS or git-annex, a web page.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there: fetch its content (such "
            "as by `git annex get`), or copy the file itself"
        )
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path")
    if path.is_dir():
        dicom = any(map(is_dicom, sorted(path.iterdir())[:9]))
        what = "a folder of DICOM: convert it, such as by dcm2niix" if dicom else "a folder"
        raise UserError(f"{path} is {what}; give the path of a NIfTI file")
    with explained(path), open(path, "rb") as file:
        start = file.read(132)
    if not start:
        raise UserError(f"{path} is empty (0 bytes): copy or download it again")
    if start[128:] == b"DICM":
        raise UserError(f"{path} is DICOM: convert it to NIfTI, such as by dcm2niix")
    for beginning, what in _STAND_INS.items():
        if start.lower().startswith(beginning):
            raise UserError(f"{path} {what}")


def open_image(source: PathLike | Image) -> Image:
    """An image with its header read and checked, its voxels not yet.

    Raises:
        UserError: The file is none of an image, or does not hold one 3D volume.
    """
    if isinstance(source, Image):
        return _checked(source, name_of(source))
    check_file(source)
    with explained(source):
        if _is_stream(source) and _misnamed(source):
            return _checked(_from_bytes(source), str(source))
        image = nib.load(source)
    return _checked(_as_nifti(image, str(source)), str(source))


def read_image(source: PathLike | Image) -> Image:
    """An image whose file was read to its end, so that a checksum at the end counts.

    Raises:
        UserError: As `open_image`, and where the file is truncated or corrupt.
    """
    if isinstance(source, Image) or not _is_stream(source):
        return open_image(source)
    check_file(source)
    with explained(source):
        return _checked(_from_bytes(source), str(source))


def raw_header(source: PathLike | Image) -> nib.Nifti1Header:
    """The header as it is in the file: nibabel mends what it loads. Of other kinds, as converted.

    Raises:
        UserError: As `open_image`.
    """
    image = open_image(source)
    if isinstance(source, Image) or not re.search(r"\.nii(\.gz)?$", str(source), re.IGNORECASE):
        return image.header
    with explained(source), _unpacked(source) as stream:
        return type(image.header).from_fileobj(stream, check=False)


def states_orientation(image: Image) -> bool:
    """Whether the header says where the voxels are: a code of sform or qform is above 0."""
    return bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)


def name_of(source: PathLike | Image) -> str:
    """What to call a file or image in messages."""
    if isinstance(source, Image):
        return source.get_filename() or "the image in memory"
    return str(source)


@contextlib.contextmanager
def explained(path: PathLike) -> Iterator[None]:
    """Turns the many errors of a bad file into one line that names it."""
    try:
        yield
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}): it is truncated, corrupt or something "
            "else; copy or download it again"
        ) from error


def _is_stream(path: PathLike) -> bool:
    """Whether all of the image is in this one file."""
    return not re.search(r"\.(img|hdr)(\.gz)?$", str(path), re.IGNORECASE)


def _misnamed(path: PathLike) -> bool:
    """Whether the file is compressed and its name does not say so, or the reverse."""
    with open(path, "rb") as file:
        compressed = file.read(2) == _GZIP
    return compressed != str(path).lower().endswith(("gz", "mgz"))


def _unpacked(path: PathLike) -> io.BufferedIOBase:
    with open(path, "rb") as file:
        compressed = file.read(2) == _GZIP
    return gzip.open(path) if compressed else open(path, "rb")


def _from_bytes(path: PathLike) -> Image:
    with _unpacked(path) as stream:
        content = stream.read()  # nibabel stops at the last voxel, before gzip's checksum
    if content.startswith(_MGH):
        return _as_nifti(nib.MGHImage.from_bytes(content), str(path))
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(content[: kind.header_class.sizeof_hdr]):
            return kind.from_bytes(content)
    raise ValueError("neither the header of NIfTI nor of MGH")


def _as_nifti(image: nib.filebasedimages.FileBasedImage, name: str) -> Image:
    """The image under a NIfTI header, which states the orientation if the file does."""
    if isinstance(image, Image):
        return image
    if not isinstance(image, (nib.Nifti1Pair, nib.AnalyzeImage, nib.MGHImage)):
        raise UserError(f"{name} is not a NIfTI volume: convert it to .nii.gz")
    header = nib.Nifti1Header.from_header(image.header, check=False)
    converted = Image(image.dataobj, image.affine, header)
    if isinstance(image, nib.MGHImage):
        converted.set_sform(image.affine, 1)
        converted.set_qform(image.affine, 1)
    elif not isinstance(image, nib.Nifti1Pair):  # Analyze has no place for an orientation
        converted.set_sform(None, 0)
        converted.set_qform(None, 0)
    if filename := image.get_filename():
        converted.file_map["image"].filename = filename
    return converted


def _checked(image: Image, name: str) -> Image:
    if len(image.shape) < 3 or any(extent != 1 for extent in image.shape[3:]):
        raise UserError(f"{name} has shape {image.shape}: give one 3D volume a file")
    finite = np.isfinite(image.affine).all()
    if not finite or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise UserError(
            f"{name} has an affine that maps no volume: mend its header (sform, qform, pixdim)"
        )
    return image
