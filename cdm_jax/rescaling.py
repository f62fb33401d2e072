"""Fits the lines that correct the scale of a trained system's volumes, on validation patients.

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
from cdm_jax.data.volume_scale import Pairs, best_factors, fit_lines, read_lines, save_lines, tops
from cdm_jax.inference import System, subject_key
from cdm_jax.methods import base
from cdm_jax.sampling import SubjectSampler
from cdm_jax.tasks import parse_pattern
from cdm_jax.writer import console

SCANS = 96  # to predict at most
SLICES = 16  # a call and device


def rescale_stage(stage_folder: pathlib.Path, dataset: Dataset) -> None:
    """Fits the lines of a finished stage, unless they are there or it makes no images.

    Of an any-to-any system, scans are predicted under each pattern of its config. Test patients are
    never looked at.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None or not isinstance(base.create(saved.config), base.Translator):
        return
    with parallel.first_process_first("fitting the scale of volumes"):
        if not parallel.is_first():
            return
        system = inference.load_system(stage_folder, SLICES)
        fingerprint = inference.fingerprint(system.model)
        if read_lines(stage_folder, fingerprint) is None:
            lines = fit_lines(measure(system, dataset.validation))
            save_lines(stage_folder, lines, fingerprint)
            told = ", ".join(f"{name} by {line.patients} scans" for name, line in lines.items())
            console.print(f"scale of whole volumes: {told or 'left as it is'}")


def measure(system: System, subjects: Sequence[PreparedSubject]) -> Pairs:
    """Predicts scans as they are without lines, beside what was acquired."""
    data = system.provenance.config.data
    tasks = [(tuple(data.sources), tuple(data.targets))]
    if is_any := inference.is_any_to_any(system):
        names = system.provenance.config.evaluate.patterns
        tasks = [parse_pattern(name, tuple(data.sources)) for name in names]
    pairs: dict[str, list[tuple[float, float]]] = {}
    for number, (sources, targets) in enumerate(tasks):
        own = inference.restricted(system, sources, targets) if is_any else system
        known = [s for s in subjects if {*sources, *targets} <= s.intensities.keys()]
        chosen = _share(known, number, SCANS // len(tasks))
        if not chosen:
            continue
        sampler = SubjectSampler(own, 1)
        for subject in track(chosen, "fitting the scale of volumes", console=console):
            for target, pair in _pairs(sampler, subject.view(sources, targets)).items():
                pairs.setdefault(target, []).append(pair)
    return pairs


def _share(
    subjects: Sequence[PreparedSubject], number: int, size: int
) -> Sequence[PreparedSubject]:
    """So many of the subjects, others for each number where there are enough."""
    count = min(size, len(subjects))
    return [subjects[(number * size + i) % len(subjects)] for i in range(count)]


def _pairs(sampler: SubjectSampler, subject: PreparedSubject) -> dict[str, tuple[float, float]]:
    """For each target the top of the predicted volume, and the factor that fits it best."""
    slices, split = subject.slices, len(subject.sources)
    key = subject_key(sampler.system.provenance.config.seed, subject.subject_id)
    sources = sampler.system.sources_of(slices, subject.slice_indices)
    volume = sampler.volumes({"source": sources}, key)["mean"]
    brain = np.any(slices[..., :split] > 0, axis=-1)
    truth = slices[..., split:].astype(np.float32) / FULL_SCALE
    found = zip(tops(volume, brain), best_factors(truth, volume), strict=True)
    return dict(zip(subject.targets, found, strict=True))
