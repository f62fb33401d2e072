"""Fits the curves that correct the scale of a trained system's volumes, on validation patients.

See `data/volume_scale.py`. `train` calls it when a stage that makes images is done.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from rich.progress import track

from cdm_jax import checkpoint, inference, parallel
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import LEAST, Scan, fit_curves, read_curves, save_curves, scans_of
from cdm_jax.inference import System, subject_key
from cdm_jax.methods import base
from cdm_jax.sampling import SubjectSampler
from cdm_jax.tasks import parse_pattern
from cdm_jax.writer import console

SCANS = 96  # to predict at most
FEW = 24  # the same where training patients are among them: a diffusion model's scans are dear
SLICES = 16  # a call and device


def rescale_stage(stage_folder: pathlib.Path, dataset: Dataset) -> None:
    """Fits the curves of a finished stage, unless they are there or it makes no images.

    Where there are too few validation patients for a curve, training patients are taken as well: a
    network that knows these by heart gets a weaker correction than it needs. Of an any-to-any
    system, scans are predicted under each pattern of its config. Test patients are never looked at.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None or not isinstance(base.create(saved.config), base.Translator):
        return
    system = inference.load_system(stage_folder, SLICES)  # which processes do together
    fingerprint = inference.fingerprint(system.model)
    with parallel.first_process_first("fitting the scale of volumes"):
        if parallel.is_first() and read_curves(stage_folder, fingerprint) is None:
            subjects = tuple(dataset.validation)
            if len(subjects) < LEAST:
                subjects += tuple(dataset.train[: FEW - len(subjects)])
            curves = fit_curves(measure(system, subjects))
            save_curves(stage_folder, curves, fingerprint)
            told = ", ".join(f"{name} by {curve.scans} scans" for name, curve in curves.items())
            console.print(f"scale of whole volumes: {told or 'left as it is'}")


def measure(system: System, subjects: Sequence[PreparedSubject]) -> dict[str, list[Scan]]:
    """Predicts scans as they are without curves, beside what was acquired."""
    data = system.provenance.config.data
    tasks = [(tuple(data.sources), tuple(data.targets))]
    if is_any := inference.is_any_to_any(system):
        names = system.provenance.config.evaluate.patterns
        tasks = [parse_pattern(name, tuple(data.sources)) for name in names]
    scans: dict[str, list[Scan]] = {}
    for number, (sources, targets) in enumerate(tasks):
        own = inference.restricted(system, sources, targets) if is_any else system
        known = [s for s in subjects if {*sources, *targets} <= s.intensities.keys()]
        chosen = _share(known, number, SCANS // len(tasks))
        if not chosen:
            continue
        sampler = SubjectSampler(own, 1)
        for subject in track(chosen, "fitting the scale of volumes", console=console):
            for target, scan in _scans(sampler, subject.view(sources, targets)).items():
                scans.setdefault(target, []).append(scan)
    return scans


def _share(
    subjects: Sequence[PreparedSubject], number: int, size: int
) -> Sequence[PreparedSubject]:
    """So many of the subjects, others for each number where there are enough."""
    count = min(size, len(subjects))
    return [subjects[(number * size + i) % len(subjects)] for i in range(count)]


def _scans(sampler: SubjectSampler, subject: PreparedSubject) -> dict[str, Scan]:
    """What is predicted of each target, beside what was acquired."""
    slices, split = subject.slices, len(subject.sources)
    key = subject_key(sampler.system.provenance.config.seed, subject.subject_id)
    sources = sampler.system.sources_of(slices, subject.slice_indices)
    volume = sampler.volumes({"source": sources}, key)["mean"]
    brain = np.any(slices[..., :split] > 0, axis=-1)
    truth = slices[..., split:].astype(np.float32) / FULL_SCALE
    return dict(zip(subject.targets, scans_of(truth, volume, brain), strict=True))
