"""A head from scratch and its files, for tests of odd inputs."""

import pathlib

import nibabel as nib
import numpy as np

AFFINE = np.array([[-4.0, 0, 0, 50], [0, -4, 0, 60], [0, 0, 5, -40], [0, 0, 0, 1]])
SHAPE = (26, 30, 20)
NAMES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "t2f": "t2f", "segmentation": "seg"}
IDS = ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000")


def head(modality: str, seed: int = 0) -> np.ndarray:
    """An ellipsoid of white and gray matter around fluid, with noise, 0 around it."""
    axes = np.meshgrid(*(np.linspace(-1.25, 1.25, n) for n in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    white, gray, fluid = {
        "t1": (900, 650, 220),
        "t1c": (950, 700, 250),
        "t2": (450, 600, 1700),
        "t2f": (550, 700, 150),
    }[modality]
    values = np.select([radius < 0.35, radius < 0.75, radius < 1], [fluid, white, gray], 0.0)
    noise = np.random.default_rng(seed).normal(0, 25, SHAPE)
    return np.where(values > 0, np.maximum(values + noise, 1), 0).astype(np.float32)


def save(path: pathlib.Path, values, affine=AFFINE, *, code=1, kind=nib.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(np.asarray(values), affine)
    if kind in (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair):
        image.set_sform(affine, code)
        image.set_qform(affine, code)
    nib.save(image, path)
    return path


def patient(root: pathlib.Path, subject=IDS[0], modalities=("t1", "t2"), **changed):
    """A patient in BraTS 2023's layout; `changed`: modality to the values, or values and affine."""
    for modality in modalities:
        given = changed[modality] if modality in changed else head(modality)
        values = given if isinstance(given, tuple) else (given,)
        save(root / subject / f"{subject}-{NAMES[modality]}.nii.gz", *values)
    return root / subject
