"""What can be found wrong in a data folder: the kinds, and one finding of a kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: "error": no command can use the file, or results would be wrong. "warning": it
            can be used, and is probably not what it should be. "note": worth knowing.
        meaning: What it is, for the reference.
        advice: What to do.
    """

    severity: str
    meaning: str
    advice: str


KINDS: Mapping[str, Kind] = {
    "no-subject": Kind(ERROR, "no file has a known name", "give patterns, by --config"),
    "ambiguous": Kind(
        ERROR, "two files for one modality of one subject", "keep one, or part them by a pattern"
    ),
    "unreadable": Kind(
        ERROR, "missing, empty, truncated, corrupt, or no image", "copy or download it again"
    ),
    "shape": Kind(ERROR, "not one 3D volume, or impossibly large", "give one 3D volume a file"),
    "affine": Kind(ERROR, "an affine that maps no volume", "mend the header"),
    "datatype": Kind(ERROR, "colors or complex numbers", "give a file of real numbers"),
    "grid": Kind(
        ERROR, "images of a subject on different grids", "register and resample them onto one grid"
    ),
    "not-finite": Kind(
        ERROR, "NaN or infinity within the image", "make it again, or set these voxels to 0"
    ),
    "empty": Kind(
        ERROR, "constant, or nothing brighter than the background", "replace it or leave it out"
    ),
    "same-image": Kind(
        ERROR, "two modalities hold the same voxels", "find the right file of one of them"
    ),
    "same-voxels": Kind(
        ERROR,
        "two subjects hold the same voxels",
        "leave one out (data.exclude), or test results leak from training",
    ),
    "overlap": Kind(
        ERROR,
        "voxels that the other folder holds too",
        "leave the subject out of one of them (data.exclude)",
    ),
    "labels": Kind(
        WARNING,
        "a segmentation that is unreadable, on another grid, or of unknown labels",
        "relabel it, or leave it out: no tumor regions are scored",
    ),
    "swapped": Kind(
        WARNING, "two modalities whose contrast is that of each other", "check the names"
    ),
    "skull": Kind(WARNING, "not skull-stripped", "strip the skull, set the rest to 0"),
    "z-score": Kind(
        WARNING,
        "much of the brain is darker than the background and becomes 0",
        "give the image as it was before",
    ),
    "scaled": Kind(
        WARNING,
        "values in [-1, 1] already",
        "give the original, or scale all patients alike: the scale of targets is a median of them",
    ),
    "apart": Kind(WARNING, "two brains that hardly overlap", "register the images"),
    "slab": Kind(
        WARNING,
        "a part of the brain is missing: a truncated slab, or empty slices",
        "find the whole image, or leave the subject out",
    ),
    "spacing": Kind(
        WARNING,
        "voxel sizes that no brain scan has, or that the header states in two ways",
        "mend the header (pixdim, xyzt_units, sform)",
    ),
    "two-affines": Kind(
        WARNING,
        "sform and qform place the image in two ways (the sform is taken)",
        "remove the wrong one",
    ),
    "no-orientation": Kind(
        WARNING,
        "no file of the subject states its orientation",
        "restore the headers: left and right may be swapped",
    ),
    "same-name": Kind(
        WARNING,
        "a patient of this name is in the other folder too",
        "check whether they are one patient, and leave one out (data.exclude)",
    ),
    "unstated-orientation": Kind(
        NOTE,
        "one file states no orientation",
        "nothing: it is taken to be stored as those beside it",
    ),
    "codes": Kind(
        NOTE,
        "a place that is not the scanner's (codes of sform and qform)",
        "nothing, if the images of a subject are registered",
    ),
    "other-shape": Kind(
        NOTE, "another shape than most subjects (cropped, resampled)", "nothing, if it is meant"
    ),
    "other-spacing": Kind(NOTE, "another voxel size than most subjects", "nothing, if it is meant"),
    "other-axes": Kind(
        NOTE,
        "another order of axes than most subjects",
        "nothing: all are turned to one order within",
    ),
    "negative": Kind(
        NOTE, "some voxels are below the background and become 0", "nothing: resampling leaves such"
    ),
    "nan-background": Kind(NOTE, "NaN around the brain", "nothing: it is taken as background"),
    "outlier": Kind(
        NOTE,
        "more than half of the range is used by less than 1 % of the brain",
        "nothing: the brightest 0.5 % are clipped; never scale by the maximum",
    ),
    "incomplete": Kind(
        NOTE, "modalities are missing", "nothing, if they are what is to be synthesized"
    ),
    "time-points": Kind(
        NOTE, "several examinations of one patient", "nothing: they share a part of the split"
    ),
    "unknown-name": Kind(
        NOTE, "an image that no pattern names", "give a pattern, by --config, if it is needed"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found.

    Attributes:
        code: Its kind, one of `KINDS`.
        found: What was found, in words.
        about: Modality or modalities; empty where it is of the subject or the folder.
        subject: Whose it is; empty where it is of the folder.
        file: Path; empty where it is of no single file.
        advice: What to do; that of the kind where nothing closer is known.
    """

    code: str
    found: str
    about: str = ""
    subject: str = ""
    file: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if not self.advice:
            object.__setattr__(self, "advice", KINDS[self.code].advice)

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.code].severity

    @property
    def line(self) -> str:
        """About what, what was found and what to do, in one line."""
        return f"{self.about}: {self.found}: {self.advice}"
