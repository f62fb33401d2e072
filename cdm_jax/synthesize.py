"""Patients' folders in, missing modalities out: NIfTI on the input's grid, with provenance."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.progress import track

import cdm_jax
from cdm_jax import inference, parallel, uncertainty
from cdm_jax.data.intensity import brain_mask, measure
from cdm_jax.data.nifti import read_volume, write_like
from cdm_jax.data.prepare import Prepared, PrepareSettings, prepare_subject
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.errors import UserError
from cdm_jax.report.overview import Panel, save_overview
from cdm_jax.uncertainty import Intervals
from cdm_jax.writer import console, write_json

NOTICE = "Synthetic image made by a neural network for research. Not for clinical use."
SCALE_RULE = (
    "The scale of a modality that was never acquired is unknown. Values are the network's [0, 1] "
    "times `reference_scale`, the median over the training subjects of the modality's 99.5th "
    "percentile in the brain."
)

# What may be written of a target: what each file's name ends in.
IMAGES = {"mean": "", "deviation": "-deviation", "lower": "-lower", "upper": "-upper"}


def synthesize_folder(
    source: pathlib.Path, output: pathlib.Path, stage_folder: pathlib.Path, *, samples: int
) -> list[pathlib.Path]:
    """Synthesises every subject found under a folder.

    Args:
      source: a patient's folder or a cohort's.
      output: one folder a subject is made in it.
      stage_folder: of the trained system, such as `runs/brats/cunet`.
      samples: independent samples; with more than one the mean is written, and their standard
        deviation beside it. Where the stage's intervals are calibrated for so many samples
        (`cdm_jax/uncertainty.py`), their lower and upper ends are written too.

    Returns:
      The subjects' folders.

    Raises:
      UserError: no patients, no trained system, or an unreadable file.
    """
    system = inference.load_system(stage_folder, uncertainty.slices_per_call(samples))
    data = system.provenance.config.data
    if not source.is_dir():
        raise UserError(f"--input={source} is not a folder: give a patient's, or one of many")
    subjects = find_subjects(
        source,
        modalities=tuple(data.sources) + tuple(data.targets),
        patterns=data.patterns.to_dict() or None,
        require_all=False,
    )
    return _synthesize(subjects, output, stage_folder, system, samples)


def synthesize_subjects(
    subjects: Sequence[Subject], output: pathlib.Path, stage_folder: pathlib.Path, *, samples: int
) -> list[pathlib.Path]:
    """The same for subjects that are known already."""
    system = inference.load_system(stage_folder, uncertainty.slices_per_call(samples))
    return _synthesize(subjects, output, stage_folder, system, samples)


def _synthesize(
    subjects: Sequence[Subject],
    output: pathlib.Path,
    stage_folder: pathlib.Path,
    system: inference.System,
    samples: int,
) -> list[pathlib.Path]:
    """Synthesises this process's share of the subjects.

    A subject whose sidecars say that it was made from these files by this system is left as it is,
    so that an interrupted cohort goes on; several processes share the subjects.
    """
    data = system.provenance.config.data
    settings = PrepareSettings(
        sources=tuple(data.sources),
        targets=tuple(data.targets),
        size=data.size,
        minimum_brain=data.minimum_brain,
    )
    intervals = uncertainty.find_intervals(stage_folder, system, samples)
    compiled = system.compile(uncertainty.mean_and_deviation(system.method, samples))
    for subject in track(parallel.own_share(subjects), "synthesising", console=console):
        folder = output / subject.subject_id
        sidecars = _sidecars(subject, system, samples, intervals)
        if _is_done(folder, sidecars):
            continue
        prepared = prepare_subject(subject, settings)
        stored = {"source": prepared.slices[..., : len(settings.sources)]}
        key = inference.subject_key(system.provenance.config.seed, subject.subject_id)
        outputs = system.volumes(compiled, stored, key)
        for name in sidecars:  # what they say is true no longer
            (folder / name).unlink(missing_ok=True)
        _write(subject, prepared, outputs, system, intervals, folder)
        for name, content in sidecars.items():
            write_json(folder / name, content)
    parallel.wait_for_all("synthesis")
    return [output / subject.subject_id for subject in subjects]


def _sidecars(
    subject: Subject, system: inference.System, samples: int, intervals: Intervals | None
) -> dict[str, Any]:
    """What stands beside each synthetic image: file name -> content."""
    sidecars = {}
    for target in system.provenance.config.data.targets:
        content = _provenance(subject, target, system, samples)
        if intervals is not None:
            content["intervals"] = uncertainty.sidecar(intervals, target)
        sidecars[f"{subject.subject_id}-{target}.json"] = content
    return sidecars


def _is_done(folder: pathlib.Path, sidecars: dict[str, Any]) -> bool:
    """Whether these sidecars, which are written last, are there already."""
    paths = {folder / name: content for name, content in sidecars.items()}
    return all(
        path.exists() and json.loads(path.read_text()) == content for path, content in paths.items()
    )


def _write(
    subject: Subject,
    prepared: Prepared,
    outputs: dict[str, Float[np.ndarray, "slice h w t"]],
    system: inference.System,
    intervals: Intervals | None,
    folder: pathlib.Path,
) -> None:
    """Writes images and the overview of one subject."""
    data, scales = system.provenance.config.data, system.provenance.scales
    reference = subject.images[data.sources[0]]
    acquired = {name: read_volume(subject.images[name]) for name in data.sources}
    brain = brain_mask(acquired)
    panels = [
        Panel(name, prepared.intensities[name].apply(volume)) for name, volume in acquired.items()
    ]
    for t, target in enumerate(data.targets):
        images = {
            name: inference.to_native(prepared, slices[..., t], brain)
            for name, slices in outputs.items()
        }
        if intervals is not None:
            images |= uncertainty.within(images, brain, intervals, target)
        stem = f"{subject.subject_id}-{target}"
        for name, ending in IMAGES.items():
            path = folder / f"{stem}{ending}.nii.gz"
            if name in images:
                scaled = images[name] * scales[target]
                write_like(path, scaled, reference, description=f"SYNTHETIC {target} cdm_jax")
            else:
                path.unlink(missing_ok=True)  # left by a run with other samples
        panels.append(Panel(f"{target} synthetic", images["mean"]))
        if target in subject.images:
            volume = read_volume(subject.images[target])  # not prepared where another is missing
            truth = measure(volume, f"{subject.subject_id} {target}").apply(volume)
            panels.append(Panel(f"{target} acquired", truth))
        if "deviation" in images:
            panels.append(Panel(f"{target} deviation x 5", 5 * images["deviation"]))
    save_overview(folder / f"{subject.subject_id}.png", panels, brain)


def _provenance(
    subject: Subject, target: str, system: inference.System, samples: int
) -> dict[str, Any]:
    config = system.provenance.config
    return {
        "synthetic": True,
        "notice": NOTICE,
        "subject": subject.subject_id,
        "modality": target,
        "sources": {  # one that is missing is refused when the subject is prepared
            name: _file(subject.images[name])
            for name in config.data.sources
            if name in subject.images
        },
        "software": f"cdm_jax {cdm_jax.__version__}",
        "system": config[config.stage].method,
        "checkpoint": system.fingerprint,
        "split": system.provenance.split,
        "trained_on": config.data.name,
        "size": config.data.size,
        "samples": samples,
        "seed": config.seed,
        "sampler": config.sampler.to_dict(),
        "reference_scale": system.provenance.scales[target],
        "scale_rule": SCALE_RULE,
    }


def _file(path: pathlib.Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
