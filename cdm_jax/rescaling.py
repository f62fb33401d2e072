"""Fits what corrects the volumes of a trained system: curves of their scale, ends of intervals.

See `data/volume_scale.py` and `data/ends.py`. `train` calls it for a finished stage.
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
from cdm_jax.inference import System, subject_key
from cdm_jax.methods import base
from cdm_jax.sampling import SubjectSampler
from cdm_jax.tasks import parse_pattern
from cdm_jax.writer import console

SCANS = 96  # to predict at most
FEW = 24  # the same where training patients are among them: a diffusion model's scans are dear
SLICES = 16  # a call and device


def rescale_stage(stage_folder: pathlib.Path, dataset: Dataset) -> None:
    """Fits what corrects a finished stage's volumes, unless it is there or no images are made.

    Where there are too few validation patients for a curve, training patients are taken as well: a
    network that knows these by heart gets a weaker correction than it needs. Of an any-to-any
    system, scans are predicted under each pattern of its config. Where a system of a fixed task
    predicts ends, these are fitted to training patients alone. Test patients are never looked at.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None or not isinstance(base.create(saved.config), base.Translator):
        return
    system = inference.load_system(stage_folder, SLICES)  # which processes do together
    fingerprint = inference.fingerprint(system.model)
    with parallel.first_process_first("fitting the scale of volumes"):
        if parallel.is_first() and read_correction(stage_folder, fingerprint) is None:
            curves = _curves(system, dataset)
            found = Correction(curves=curves, ends=_ends(system, dataset, curves))
            save_correction(stage_folder, found, fingerprint)


def _curves(system: System, dataset: Dataset) -> Curves:
    subjects = tuple(dataset.validation)
    if len(subjects) < LEAST:
        subjects += tuple(dataset.train[: FEW - len(subjects)])
    curves = fit_curves(measure(system, subjects))
    told = ", ".join(f"{name} by {curve.scans} scans" for name, curve in curves.items())
    console.print(f"scale of whole volumes: {told or 'left as it is'}")
    return curves


def _ends(system: System, dataset: Dataset, curves: Curves) -> ends.AllEnds:
    levels = system.method.quantiles
    if not levels or inference.is_any_to_any(system):
        return {}
    known = Correction(curves=curves)
    numbers = np.linspace(0, len(dataset.train) - 1, min(SCANS, len(dataset.train)))
    sampler, scans = SubjectSampler(system, 1), dict[str, list[ends.Scan]]()
    chosen = [dataset.train[number] for number in np.unique(numbers.astype(int))]
    for subject in track(chosen, "fitting the ends of intervals", console=console):
        truth, volumes, sources = _predicted(sampler, subject)
        volumes = known.apply(volumes, sources, subject.targets)
        for target, scan in zip(
            subject.targets, ends.scans_of(truth, volumes, sources), strict=True
        ):
            scans.setdefault(target, []).append(scan)
    fitted = {target: ends.fit_ends(ones, levels) for target, ones in scans.items()}
    return {target: one for target, one in fitted.items() if one is not None}


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
    truth, volumes, sources = _predicted(sampler, subject)
    found = scans_of(truth, volumes["mean"], np.any(sources > 0, axis=-1))
    return dict(zip(subject.targets, found, strict=True))


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
