"""The image files below a folder, through links, and what else lies there where there is none."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cdm_jax.data.formats import is_dicom, is_image
from cdm_jax.errors import UserError

_LOOKED_AT = 1000  # files, of a folder without images


def image_files(root: Path) -> list[Path]:
    """The files below a folder whose names end as those of images, sorted; hidden ones left out.

    Links to folders are followed, each folder once and the folders themselves before links to
    them; a link to a folder that holds the root is not.

    Raises:
        UserError: No folder.
    """
    return sorted(path for path in _files(root) if is_image(path.name))


def named(path: Path) -> Path:
    """The path whose end says what an image is: a folder called `*.nii` names the file in it."""
    return path.parent if is_image(path.parent.name) else path


def seen(root: Path, images: list[Path]) -> str:
    """What lies below a folder in which no subject was found, in words."""
    if unstripped := [path for path in images if "_unstripped" in path.name]:
        return (
            f"saw {len(unstripped)} images that are not skull-stripped, such as "
            f"{unstripped[0].relative_to(root)}: strip them, or download images_structural"
        )
    if images:
        return f"saw {len(images)} NIfTI files such as {images[0].relative_to(root)}"
    others = list(islice(_files(root), _LOOKED_AT))
    if dicom := next((path for path in others if is_dicom(path)), None):
        return f"saw DICOM such as {dicom.relative_to(root)}: convert it, such as by dcm2niix"
    found = f"; saw others such as {others[0].relative_to(root)}" if others else ""
    return f"saw no .nii, .nii.gz, .mgz or .img file at all{found}"


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder that holds the patients")
    visited, starts = set(root.resolve().parents), [root]
    for start in starts:  # the root, then what links lead to, as they are found
        if start.resolve() in visited:
            continue
        for folder, subfolders, names in os.walk(start):
            visited.add(Path(folder).resolve())
            paths = [Path(folder, name) for name in sorted(subfolders) if name[0] != "."]
            starts += [path for path in paths if path.is_symlink()]
            own = [path for path in paths if not path.is_symlink()]
            subfolders[:] = [path.name for path in own if path.resolve() not in visited]
            yield from (Path(folder, name) for name in sorted(names) if name[0] != ".")
