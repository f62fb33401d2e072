"""Image files of any kind that nibabel reads, as NIfTI images; and what a file is that is none.

A name decides who looks at a file, its first bytes what it is: gzip is unpacked under any name.
"""

import contextlib
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cdm_jax.errors import UserError

PathLike = str | os.PathLike[str]
Image = nib.Nifti1Image

# NIfTI, FreeSurfer's MGH, and the .img of a pair (Analyze or NIfTI) whose .hdr lies beside it.
ENDING = re.compile(r"\.(nii(\.gz)?|mgz|mgh|img(\.gz)?)$", re.IGNORECASE)
LARGEST = 2**30  # voxels; the finest brains of today have an eighth of that
_GZIP = b"\x1f\x8b"
_BEGINNING = 2**10  # bytes; the longest header has 540
_PART = 2**20  # bytes that are read at a time, and that may stand behind the voxels
_MGH = b"\0\0\0\1"  # the version, the only one
_UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    OverflowError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)
# How a file begins that only stands for an image: what it is, and what to do.
_LFS = ("is a Git LFS pointer, not the image itself", "run `git lfs pull`")
_ANNEX = ("is a git-annex pointer, not the image itself", "run `git annex get`")
_PAGE = ("is a web page", "the download needs a login or another link; get it again")
_STAND_INS = {
    b"version https://git-lfs": _LFS,
    b"/annex/objects/": _ANNEX,
    b"../.git/annex/": _ANNEX,
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
        found: What is wrong, the file named.
        advice: What to do.
        code: The kind of fault, one of `findings.KINDS`.
    """

    def __init__(self, found: str, advice: str = "", code: str = "unreadable"):
        super().__init__(f"{found}: {advice}" if advice else found)
        self.found, self.advice, self.code = found, advice, code


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
        raise ImageError(
            f"{path} is a link to {os.readlink(path)}, which is not there",
            "fetch its content (such as by `git annex get`), or copy the file itself",
        )
    if not path.exists():
        raise ImageError(f"there is no file {path}", "check the path")
    if path.is_dir():
        dicom = any(map(is_dicom, sorted(path.iterdir())[:9]))
        what = "a folder of DICOM: convert it, such as by dcm2niix" if dicom else "a folder"
        raise UserError(f"{path} is {what}; give the path of a NIfTI file")
    with explained(path), open(path, "rb") as file:
        start = file.read(132)
    if not start:
        raise ImageError(f"{path} is empty (0 bytes)", "copy or download it again")
    if start[128:] == b"DICM":
        raise ImageError(f"{path} is DICOM", "convert it to NIfTI, such as by dcm2niix")
    for beginning, (what, advice) in _STAND_INS.items():
        if start.lower().startswith(beginning):
            raise ImageError(f"{path} {what}", advice)


def open_image(source: PathLike | Image) -> Image:
    """An image with its header read and checked, its voxels not yet.

    Raises:
        UserError: The file is none of an image, or does not hold one 3D volume.
    """
    if isinstance(source, Image):
        return _checked(source, name_of(source))
    check_file(source)
    with explained(source):
        misnamed = _is_stream(source) and _misnamed(source)
        image = _from_bytes(source) if misnamed else nib.load(source)
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
        image = _from_bytes(source)
    return _checked(_as_nifti(image, str(source)), str(source))


def check_size(path: PathLike) -> None:
    """Checks that a file has the bytes that its header claims; it is read whole only in doubt.

    Raises:
        UserError: As `read_image`, where its size is not as its header says.
    """
    open_image(path)
    if not _is_stream(path):
        return
    with explained(path):
        with _unpacked(path) as stream:
            claimed = _claimed(_header(stream.read(_BEGINNING)))
        compressed = _is_gzip(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            # gzip ends in how many bytes it holds, of its last part, modulo 2^32.
            held = int.from_bytes(file.read(4), "little") if compressed else size
    if held != (claimed % 2**32 if compressed else claimed):
        read_image(path)


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


def named_as(original: nib.filebasedimages.FileBasedImage, image: Image) -> Image:
    """The image under the file name of the original, if that has one."""
    if filename := original.get_filename():
        image.file_map["image"].filename = filename
    return image


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
        raise ImageError(
            f"{path} cannot be read as an image ({error})",
            "it is truncated, corrupt or something else; copy or download it again",
        ) from error


def _is_stream(path: PathLike) -> bool:
    """Whether all of the image is in this one file."""
    return not re.search(r"\.(img|hdr)(\.gz)?$", str(path), re.IGNORECASE)


def _misnamed(path: PathLike) -> bool:
    """Whether nibabel should not open it by its name, which does not say what is compressed.

    Nor where it is .mgh: nibabel leaves such a file open.
    """
    name = str(path).lower()
    return name.endswith(".mgh") or _is_gzip(path) != name.endswith(("gz", "mgz"))


def _is_gzip(path: PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def _unpacked(path: PathLike) -> io.BufferedIOBase:
    return gzip.open(path) if _is_gzip(path) else open(path, "rb")


def _from_bytes(path: PathLike) -> nib.filebasedimages.FileBasedImage:
    with _unpacked(path) as stream:
        start = stream.read(_BEGINNING)
        header = _header(start)
        _check_number(header.get_data_shape(), str(path))
        claimed = _claimed(header)
        parts, room = [start], claimed + _PART - len(start)
        while part := stream.read(_PART):  # to the end, where gzip has its checksum
            if room > 0:
                parts.append(part)
                room -= len(part)
        content = b"".join(parts)
    if len(content) < claimed:  # said before nibabel makes room for all that is claimed
        raise ValueError(f"it holds {len(content)} bytes and its header claims {claimed}")
    kinds = {kind.header_class: kind for kind in (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage)}
    return kinds[type(header)].from_bytes(content)


def _header(start: bytes) -> Any:
    """The header of an image that begins so, without its extensions."""
    if start.startswith(_MGH):
        return nib.MGHImage.header_class.from_fileobj(io.BytesIO(start))
    for kind in (nib.Nifti1Image.header_class, nib.Nifti2Image.header_class):
        if kind.may_contain_header(start[: kind.sizeof_hdr]):
            return kind(start[: kind.sizeof_hdr])
    raise ValueError("neither the header of NIfTI nor of MGH")


def _claimed(header: Any) -> int:
    """How many bytes a file of this header has, at least."""
    values = math.prod(map(int, header.get_data_shape())) * header.get_data_dtype().itemsize
    return int(header.get_data_offset()) + values


def _as_nifti(image: nib.filebasedimages.FileBasedImage, name: str) -> Image:
    """The image under a NIfTI header, which states the orientation if the file does."""
    if isinstance(image, Image):
        return image
    if not isinstance(image, (nib.Nifti1Pair, nib.AnalyzeImage, nib.MGHImage)):
        raise ImageError(f"{name} is not a NIfTI volume", "convert it to .nii.gz")
    header = nib.Nifti1Header.from_header(image.header, check=False)
    converted = Image(image.dataobj, image.affine, header)
    if not isinstance(image, nib.Nifti1Pair):
        # Analyze has no place for an orientation.
        affine, code = (image.affine, 1) if isinstance(image, nib.MGHImage) else (None, 0)
        converted.set_sform(affine, code)
        converted.set_qform(affine, code)
    return named_as(image, converted)


def _checked(image: Image, name: str) -> Image:
    if len(image.shape) < 3 or any(extent != 1 for extent in image.shape[3:]):
        raise ImageError(f"{name} has shape {image.shape}", "give one 3D volume a file", "shape")
    _check_number(image.shape, name)
    finite = np.isfinite(image.affine).all()
    if not finite or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise ImageError(
            f"{name} has an affine that maps no volume",
            "mend its header (sform, qform, pixdim)",
            "affine",
        )
    return image


def _check_number(shape: Sequence[Any], name: str) -> None:
    """Refuses more voxels than any scan has: room is made for what a header claims."""
    voxels = math.prod(map(int, shape))
    if not 0 < voxels <= LARGEST:
        raise ImageError(
            f"{name} claims {voxels:.3g} voxels, of shape {tuple(map(int, shape))}",
            f"from 1 to {LARGEST:.3g} are read; if its header is corrupt, copy it again",
            "shape",
        )
