"""Fits what corrects the volumes of a trained system: curves of their scale, ends of intervals.

See `data/volume_scale.py` and `end_fitting.py`. `train` calls it for a finished stage.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from rich.progress import track

from cdm_jax import checkpoint, inference, parallel
from cdm_jax.data import ends
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.correction import Correction, read_correction, save_correction
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import LEAST, Curves, Scan, Volume, fit_curves, scans_of
from cdm_jax.end_fitting import fit_ends
from cdm_jax.inference import subject_key
from cdm_jax.methods import base
from cdm_jax.sampling import SubjectSampler
from cdm_jax.tasks import task_of
from cdm_jax.writer import console

SCANS = 96  # to predict at most for curves
FOR_ENDS = 200  # the same for the ends of intervals
FEW = 24  # the same where training patients are among them: a diffusion model's scans take long
SLICES = 16  # a call and device


def rescale_stage(stage_folder: pathlib.Path, dataset: Dataset) -> None:
    """Fits what corrects a finished stage's volumes, unless it is there or no images are made.

    Where there are too few validation patients for a curve, training patients are taken as well: a
    network that knows these by heart gets a weaker correction than it needs. Where a system
    predicts ends, these are fitted to training patients alone. Test patients are never looked at.

    An any-to-any system is left as it is: what a volume tells of its scale differs from pattern to
    pattern, and a system for whatever is missing is meant for scanners other than its own, too.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None or not isinstance(base.create(saved.config), base.Translator):
        return
    if task_of(saved.config.data).is_any:
        return
    system = inference.load_system(stage_folder, SLICES)  # which processes do together
    fingerprint = inference.fingerprint(system.model)
    with parallel.first_process_first("fitting the scale of volumes"):
        if parallel.is_first() and read_correction(stage_folder, fingerprint) is None:
            sampler = SubjectSampler(system, 1)
            curves = _curves(sampler, dataset)
            found = Correction(curves=curves, ends=_ends(sampler, dataset, curves))
            save_correction(stage_folder, found, fingerprint)


def _curves(sampler: SubjectSampler, dataset: Dataset) -> Curves:
    subjects = tuple(dataset.validation)
    if len(subjects) < LEAST:
        subjects += tuple(dataset.train[: FEW - len(subjects)])
    curves = fit_curves(measure(sampler, subjects))
    told = ", ".join(f"{name} by {curve.scans} scans" for name, curve in curves.items())
    console.print(f"scale of whole volumes: {told or 'left as it is'}")
    return curves


def _ends(sampler: SubjectSampler, dataset: Dataset, curves: Curves) -> ends.AllEnds:
    levels = sampler.system.method.quantiles
    if not levels:
        return {}
    known = Correction(curves=curves)
    numbers = np.linspace(0, len(dataset.train) - 1, min(FOR_ENDS, len(dataset.train)))
    chosen = [dataset.train[number] for number in np.unique(numbers.astype(int))]
    scans: dict[str, list[ends.Scan]] = {}
    for subject in track(chosen, "fitting the ends of intervals", console=console):
        truth, volumes, sources = _predicted(sampler, subject)
        corrected = known.apply(volumes, sources, subject.targets)
        found = ends.scans_of(truth, corrected, sources)
        for target, scan in zip(subject.targets, found, strict=True):
            scans.setdefault(target, []).append(scan)
    fitted = {target: fit_ends(ones, levels) for target, ones in scans.items()}
    return {target: one for target, one in fitted.items() if one is not None}


def measure(sampler: SubjectSampler, subjects: Sequence[PreparedSubject]) -> dict[str, list[Scan]]:
    """What an uncorrected system predicts of each target in a scan, beside what was acquired."""
    scans: dict[str, list[Scan]] = {}
    for subject in track(subjects[:SCANS], "fitting the scale of volumes", console=console):
        truth, volumes, sources = _predicted(sampler, subject)
        found = scans_of(truth, volumes["mean"], np.any(sources > 0, axis=-1))
        for target, scan in zip(subject.targets, found, strict=True):
            scans.setdefault(target, []).append(scan)
    return scans


def _predicted(
    sampler: SubjectSampler, subject: PreparedSubject
) -> tuple[Volume, Mapping[str, Volume], inference.Slices]:
    """The truth of a subject, what is predicted, both in [0, 1], and the sources' stored slices."""
    slices, split = subject.slices, len(subject.sources)
    key = subject_key(sampler.system.provenance.config.seed, subject.subject_id)
    stored = sampler.system.sources_of(slices, subject.slice_indices)
    volumes = sampler.volumes({"source": stored}, key)
    truth = slices[..., split:].astype(np.float32) / FULL_SCALE
    return truth, volumes, slices[..., :split]
