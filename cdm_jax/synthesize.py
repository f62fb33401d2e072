"""Patients' folders in, missing modalities out: NIfTI on the input's grid, with provenance."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.progress import track

import cdm_jax
from cdm_jax import api, calibration, parallel
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_volume, write_like
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.errors import UserError
from cdm_jax.files import write_json
from cdm_jax.report.overview import Panel, save_overview
from cdm_jax.writer import console

NOTICE = "Synthetic image made by a neural network for research. Not for clinical use."
SCALE_RULE = (
    "The scale of a modality that was never acquired is unknown. Values are the network's [0, 1] "
    "times `reference_scale`, the median over the training subjects of the modality's 99.5th "
    "percentile in the brain."
)

# What may be written of a target: what each file's name ends in.
IMAGES = {"mean": "", "deviation": "-deviation", "lower": "-lower", "upper": "-upper"}


def synthesize_folder(
    source: pathlib.Path,
    output: pathlib.Path,
    folder: pathlib.Path,
    *,
    samples: int,
    checkpoint: str = "best",
) -> list[pathlib.Path]:
    """Synthesizes every subject found under a folder.

    Args:
      source: a patient's folder or a cohort's.
      output: one folder a subject is made in it.
      folder: of the trained system or its run, as `cdm_jax.load` takes it.
      samples: independent samples; with more than one the mean is written, and their standard
        deviation beside it. Where the system's intervals are calibrated for so many samples
        (`cdm_jax/calibration.py`), their lower and upper ends are written too.
      checkpoint: "best" or "last".

    Returns:
      The subjects' folders.

    Raises:
      UserError: no patients, no trained system, or an unreadable file.
    """
    model = api.load(folder, checkpoint)
    if not source.is_dir():
        raise UserError(f"--input={source} is not a folder: give a patient's, or one of many")
    subjects = find_subjects(
        source,
        modalities=model.sources,
        optional=model.targets,
        patterns=model.system.provenance.config.data.patterns.to_dict() or None,
    )
    return _synthesize(subjects, output, model, samples)


def synthesize_subjects(
    subjects: Sequence[Subject], output: pathlib.Path, folder: pathlib.Path, *, samples: int
) -> list[pathlib.Path]:
    """The same for subjects that are known already."""
    return _synthesize(subjects, output, api.load(folder), samples)


def _synthesize(
    subjects: Sequence[Subject], output: pathlib.Path, model: api.TrainedModel, samples: int
) -> list[pathlib.Path]:
    """Synthesizes this process's share of the subjects.

    A subject whose sidecars say that it was made from these files by this system is left as it is,
    so that an interrupted cohort goes on; several processes share the subjects.
    """
    for subject in track(parallel.process_shard(subjects), "synthesizing", console=console):
        folder = output / subject.subject_id
        sidecars = _sidecars(subject, model, samples)
        if _is_done(folder, sidecars):
            continue
        sources = {name: subject.images[name] for name in model.sources}
        result = model.synthesize(sources, samples=samples, subject=subject.subject_id)
        for name in sidecars:  # what they say is true no longer
            (folder / name).unlink(missing_ok=True)
        _write_images(subject, result, model, folder)
        _write_overview(subject, result, model, folder)
        for name, content in sidecars.items():
            write_json(folder / name, content)
    parallel.wait_for_all("synthesis")
    return [output / subject.subject_id for subject in subjects]


def _sidecars(subject: Subject, model: api.TrainedModel, samples: int) -> dict[str, Any]:
    """What stands beside each synthetic image: file name -> content."""
    intervals = model.intervals(samples)
    sidecars = {}
    for target in model.targets:
        content = _provenance(subject, target, model, samples)
        if intervals is not None:
            content["intervals"] = calibration.sidecar(intervals, target)
        sidecars[f"{subject.subject_id}-{target}.json"] = content
    return sidecars


def _is_done(folder: pathlib.Path, sidecars: dict[str, Any]) -> bool:
    """Whether these sidecars, which are written last, are there already."""
    paths = {folder / name: content for name, content in sidecars.items()}
    return all(
        path.exists() and json.loads(path.read_text()) == content for path, content in paths.items()
    )


def _write_images(
    subject: Subject, result: api.Synthesis, model: api.TrainedModel, folder: pathlib.Path
) -> None:
    """Writes the NIfTI files of one subject."""
    reference = subject.images[model.sources[0]]
    for name, ending in IMAGES.items():
        images = getattr(result, name)
        for target in model.targets:
            path = folder / f"{subject.subject_id}-{target}{ending}.nii.gz"
            if target in images:
                description = images[target].header["descrip"].item().decode()
                volume = read_volume(images[target])
                write_like(path, volume, reference, description=description)
            else:
                path.unlink(missing_ok=True)  # left by a run with other samples


def _write_overview(
    subject: Subject, result: api.Synthesis, model: api.TrainedModel, folder: pathlib.Path
) -> None:
    """Writes the picture of one subject: acquired images beside synthetic ones."""
    native = read_native(subject, model.sources)
    acquired = native.images
    panels = [Panel(name, acquired[name]) for name in model.sources]
    for target in model.targets:
        scale = model.system.provenance.scales[target]
        panels.append(Panel(f"{target} synthetic", read_volume(result[target]) / scale))
        if target in acquired:
            panels.append(Panel(f"{target} acquired", acquired[target]))
        if target in result.deviation:
            deviation = read_volume(result.deviation[target]) / scale
            panels.append(Panel(f"{target} deviation x 5", 5 * deviation))
    save_overview(folder / f"{subject.subject_id}.png", panels, native.brain)


def _provenance(
    subject: Subject, target: str, model: api.TrainedModel, samples: int
) -> dict[str, Any]:
    origin = model.system.provenance
    config = origin.config
    return {
        "synthetic": True,
        "notice": NOTICE,
        "subject": subject.subject_id,
        "modality": target,
        "sources": {name: _file(subject.images[name]) for name in model.sources},
        "software": f"cdm_jax {cdm_jax.__version__}",
        "system": config[config.stage].method,
        "checkpoint": model.system.fingerprint,
        "split": origin.split,
        "trained_on": config.data.name,
        "size": config.data.size,
        "samples": samples,
        "seed": config.seed,
        "sampler": config.sampler.to_dict(),
        "reference_scale": origin.scales[target],
        "scale_rule": SCALE_RULE,
    }


def _file(path: pathlib.Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
