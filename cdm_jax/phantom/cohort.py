"""Writes a cohort of simulated patients as NIfTI files, in the layout of a public data set."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.progress import track

from cdm_jax import workers
from cdm_jax.errors import UserError
from cdm_jax.phantom.patient import PhantomPatient, PhantomSettings, simulate_patient

_CACHE = "CDM_PHANTOM_CACHE"
_SETTINGS_FILE = "phantom.json"
_STARTED_FILE = "phantom.json.partial"  # The settings of a cohort that is not finished.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a patient's files lie, relative to the cohort's folder."""

    folder: Path
    images: dict[str, str]
    segmentation: Path


def write_cohort(root: Path, settings: PhantomSettings, num_workers: int = 0) -> None:
    """Simulates a cohort and writes it below `root`, several patients at once.

    An interrupted run leaves whole patients only; the next run skips them. `phantom.json` holds
    the settings and is written last: where it lies, the cohort is complete. Where the environment
    variable CDM_PHANTOM_CACHE names a folder, patients are kept there under the fingerprint of
    their settings, and those that it holds are linked rather than simulated again.

    Args:
        root: Folder of the cohort; made if it does not exist.
        settings: What to simulate.
        num_workers: Processes; 0 for one a CPU core, 1 to stay in this process.

    Raises:
        UserError: If `root` holds a cohort of other settings, or other files.
    """
    root.mkdir(parents=True, exist_ok=True)
    _check_root(root, settings)
    if (root / _SETTINGS_FILE).exists():
        return
    (root / _STARTED_FILE).write_text(json.dumps(_told(settings), indent=2) + "\n")
    missing = [
        index
        for index in range(settings.num_patients)
        if not (root / _place(settings.layout, index).folder).exists()
    ]
    write = functools.partial(write_patient, root, settings)
    with workers.pool(min(num_workers or workers.cores(), len(missing))) as pool:
        for _ in track(pool.map(write, missing), "simulating patients", total=len(missing)):
            pass
    os.replace(root / _STARTED_FILE, root / _SETTINGS_FILE)


def write_patient(root: Path, settings: PhantomSettings, index: int) -> None:
    """Writes the files of one patient; the folder appears under its name when whole."""
    place = _place(settings.layout, index)
    partial = root / f".{place.folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if cache := os.environ.get(_CACHE):
        kept = Path(cache) / settings.fingerprint() / place.folder.name
        if not kept.exists():
            own = kept.with_name(f"{kept.name}.{os.getpid()}")
            _simulate(own, settings, index)
            try:
                os.replace(own, kept)
            except OSError:  # another process was first, with the same files
                shutil.rmtree(own)
        shutil.copytree(kept, partial, copy_function=_link)
    else:
        _simulate(partial, settings, index)
    if place.segmentation.parent != place.folder:
        (root / place.segmentation).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / place.segmentation.name, root / place.segmentation)
    (root / place.folder).parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, root / place.folder)


def _simulate(folder: Path, settings: PhantomSettings, index: int) -> None:
    """Writes a simulated patient to a new folder."""
    place, patient = _place(settings.layout, index), simulate_patient(settings, index)
    folder.mkdir(parents=True)
    for modality, name in place.images.items():
        values = np.rint(patient.images[modality])
        # Scanners saturate too: a bright tumor under a high gain exceeds 16 bits.
        _save(folder / name, np.minimum(values, 2**15 - 1).astype(np.int16), patient)
    labels = patient.segmentation
    if settings.layout == "upenn_gbm":  # which marks enhancing tumor by 4
        labels = np.where(labels == 3, 4, labels).astype(np.uint8)
    _save(folder / place.segmentation.name, labels, patient)


def _link(source: str, target: str) -> None:
    """The same file under another name, or a copy where that is another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_root(root: Path, settings: PhantomSettings) -> None:
    """Refuses a folder that holds anything but a cohort of these settings."""
    found = [root / name for name in (_SETTINGS_FILE, _STARTED_FILE) if (root / name).exists()]
    if not found:
        if any(root.iterdir()):
            raise UserError(f"{root} holds files that are no phantom cohort: give an empty folder")
        return
    # Through JSON, so that tuples compare equal to the lists that were read.
    wanted = json.loads(json.dumps(_told(settings)))
    # A setting that a cohort's file lacks is younger than the cohort, which had the default.
    held = _told(PhantomSettings()) | {"version": 1} | json.loads(found[0].read_text())
    differing = [
        f"{name} {held[name]} instead of {value}"
        for name, value in wanted.items()
        if held[name] != value
    ]
    if differing:
        raise UserError(
            f"{root} holds a phantom cohort with {', '.join(differing)}: "
            "give another folder, or remove this one"
        )


def _told(settings: PhantomSettings) -> dict[str, Any]:
    """What the cohort's file says: the settings, and the version of what they make."""
    return {"version": settings.version} | dataclasses.asdict(settings)


def _place(layout: str, index: int) -> _Place:
    if layout == "brats2023":
        name, ends = f"BraTS-GLI-{index:05d}-000", ("-t1n", "-t1c", "-t2w", "-t2f")
        folder, segmentation = Path(name), Path(name, f"{name}-seg.nii.gz")
    else:
        name, ends = f"UPENN-GBM-{index + 1:05d}_11", ("_T1", "_T1GD", "_T2", "_FLAIR")
        folder = Path("images_structural", name)
        segmentation = Path("automated_segm", f"{name}_automated_approx_segm.nii.gz")
    files = (f"{name}{end}.nii.gz" for end in ends)
    images = dict(zip(("t1", "t1c", "t2", "t2f"), files, strict=True))
    return _Place(folder=folder, images=images, segmentation=segmentation)


def _save(path: Path, volume: np.ndarray, patient: PhantomPatient) -> None:
    image = nib.Nifti1Image(volume, patient.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(patient.affine, code="scanner")
    image.set_qform(patient.affine, code="scanner")
    nib.save(image, path)
