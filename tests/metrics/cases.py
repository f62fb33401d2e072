"""Cases that several tests of conventions score."""

import dataclasses

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from cdm_jax.data.intensity import brain_mask, measure
from cdm_jax.metrics.conventions import Case
from cdm_jax.phantom import PhantomSettings, simulate_patient

PATIENTS = {
    "BraTS-GLI-00001-000": ("brats2023", "t1n", "t1c"),
    "patient19": ("openms", "T1", "T1POST"),
}
NAMES = ("ball", "phantom", *PATIENTS)


def head():
    """A textured ball of a brain in scanner units with a nested tumor, and a blurred copy."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in (26, 32, 30)], indexing="ij")
    brain = z**2 + y**2 + x**2 < 1
    truth = brain * (800 + 300 * gaussian_filter(rng.normal(size=brain.shape), 1.5) / 0.05)
    truth = np.maximum(truth, 0)
    distance = np.sqrt((z - 0.2) ** 2 + y**2 + (x + 0.3) ** 2)
    segmentation = np.select([distance < 0.2, distance < 0.3, distance < 0.5], [1, 3, 2], 0)
    return Case(
        subject="P-7",
        modality="t1c",
        prediction=gaussian_filter(truth, 0.7),
        truth=truth,
        brain=brain,
        segmentation=segmentation,
    )


def slices(case):
    """The case as conventions of slices get it: in [0, 1], without brain and segmentation."""
    peak = case.truth.max()
    return Case(
        subject=case.subject,
        modality=case.modality,
        prediction=case.prediction / peak,
        truth=case.truth / peak,
    )


def named(name, request):
    """A case whose truth is in [0, 1] and whose prediction is in part outside, by its name."""
    if name == "ball":
        return _ball()
    if name == "phantom":
        return _phantom()
    return _patient(request.getfixturevalue("real_data"), name)


def _ball():
    case = head()
    rng = np.random.default_rng(1)
    peak = case.truth.max()
    prediction = 1.15 * case.prediction / peak + rng.normal(0, 0.03, case.truth.shape)
    prediction[:2] = 0
    prediction[10] = 0  # where the truth shows something
    return dataclasses.replace(case, prediction=prediction, truth=case.truth / peak)


def _phantom():
    """A simulated patient's T1 taken for the T1c."""
    patient = simulate_patient(PhantomSettings(shape=(48, 56, 40), voxel_mm=4.0), 2)
    source, target = (patient.images[name].T.astype(np.float64) for name in ("t1", "t1c"))
    return _copied("phantom", source, target, patient.segmentation.T)


def _patient(real_data, name):
    """A real T1 taken for a T1c: some slices, empty ones among them, cut within the brain."""
    folder, *modalities = PATIENTS[name]
    source, target = (_read(real_data / folder / name, modality) for modality in modalities)
    try:
        segmentation = _read(real_data / folder / name, "seg")
    except FileNotFoundError:
        segmentation = None
    case = _copied(name, source, target, segmentation)
    images = {
        field: None if image is None else _thin(image)
        for field in ("prediction", "truth", "brain", "segmentation")
        for image in [getattr(case, field)]
    }
    return dataclasses.replace(case, **images)


def _copied(name, source, target, segmentation):
    scale = measure(source)
    return Case(
        subject=name,
        modality="t1c",
        prediction=(source - scale.offset) / scale.scale,
        truth=measure(target).apply(target).astype(np.float64),
        brain=brain_mask({"source": source}),
        segmentation=segmentation,
    )


def _read(folder, modality):
    stem = f"{folder.name}-" if folder.parent.name == "brats2023" else ""
    image = nibabel.load(folder / f"{stem}{modality}.nii.gz")
    return np.asarray(image.dataobj, dtype=np.float64).T


def _thin(volume):
    depth, *frame = volume.shape
    rows, columns = (slice(n // 2 - 32, n // 2 + 32) for n in frame)
    return volume[:: depth // 20, rows, columns]
