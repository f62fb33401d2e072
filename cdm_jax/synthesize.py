"""Patients' folders in, missing modalities out: NIfTI on the input's grid, with provenance."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.progress import track

import cdm_jax
from cdm_jax import api, enhancement, parallel
from cdm_jax.data import volume_scale
from cdm_jax.data.checks import same_image
from cdm_jax.data.formats import check_file
from cdm_jax.data.grids import oriented_like
from cdm_jax.data.intensity import measure
from cdm_jax.data.nifti import read_volume, volume_of, write_like
from cdm_jax.data.subjects import LackingError, NoSubjectError, Subject, find_with_faults
from cdm_jax.errors import UserError, about, collected, report_failures
from cdm_jax.files import read_json, write_json
from cdm_jax.intervals import sidecar
from cdm_jax.metrics.enhancement import POSTCONTRAST
from cdm_jax.outputs import (
    ENDINGS,
    NOTICE,
    Outputs,
    bids_fields,
    check_free,
    outputs_of,
    start_bids,
)
from cdm_jax.report.overview import save_overview
from cdm_jax.sampling import different_samples
from cdm_jax.writer import console, say

# What a sidecar says that only making the images shows.
FOUND = ("resampled", "notes", "enhancing_tumor_at_most_ml")
SCALE_RULE = (
    "The scale of a modality that was never acquired is unknown. Values are the network's [0, 1], "
    "corrected as `volume_scale` says where that is given, times `reference_scale`, the median "
    "over the training subjects of the modality's 99.5th percentile in the brain."
)

_TAKES_ANY = (
    "the model that ships takes any of T1, T1c, T2 and T2-FLAIR (leave out --workdir), and so does "
    "one of configs/<data set>.py:any"
)


def synthesize_folder(
    source: pathlib.Path,
    output: pathlib.Path,
    folder: pathlib.Path | None,
    *,
    samples: int,
    checkpoint: str = "best",
    make: Sequence[str] = (),
    replace: bool = False,
    resample_to: str | None = None,
    bids: bool = False,
) -> list[pathlib.Path]:
    """Synthesizes every subject found under a folder; one that cannot be made stops no other.

    Args:
      source: a patient's folder or a cohort's.
      output: one folder a subject is made in it.
      folder: of the trained system or its run, as `cdm_jax.load` takes it; None: the model that
        ships with the package.
      samples: independent samples, one of a deterministic system; of several the mean is written,
        and their standard deviation beside it. Where intervals are calibrated for so many samples
        (`intervals.py`), their ends are written too, and likewise the map of the probability that
        a voxel enhances (`enhancement.py`).
      checkpoint: "best" or "last".
      make: the modalities to make, if not all; a system for whatever is missing makes those of
        them that a subject lacks.
      replace: of such a system, whether to make them also where they are there, from the others.
      resample_to: the source onto whose grid the others are resampled.
      bids: whether the output is a BIDS dataset of derivatives.

    Returns:
      The subjects' folders.

    Raises:
      UserError: no patients, no trained system, or some subjects cannot be made; all others are.
    """
    model = api.load(folder, checkpoint)
    _check_asked(model, make, replace)
    if not source.is_dir():
        raise UserError(f"--input={source} is not a folder: give a patient's, or one of many")
    subjects, faults = _find(model, source)
    asked, drawn = tuple(make) or model.targets, different_samples(model.system, samples)
    if drawn < samples:
        say(f"{model.folder} is deterministic: one sample, without deviation, not {samples}")
    job = _Job(model, output, drawn, asked, replace, resample_to, bids)
    return job.run(subjects, faults)


def _find(
    model: api.TrainedModel, source: pathlib.Path
) -> tuple[list[Subject], dict[str, UserError]]:
    """The subjects below a folder, and those that cannot be used, with what is wrong."""
    find = functools.partial(
        find_with_faults,
        source,
        modalities=model.sources,
        optional=model.targets,
        patterns=model.system.provenance.config.data.patterns.to_dict() or None,
    )
    try:
        subjects, faults = find(require_all=not model.any_to_any)
    except NoSubjectError as error:
        find(require_all=False)  # goes on where somebody is there who lacks a source
        raise UserError(f"{error}; {_TAKES_ANY}") from error
    if any(isinstance(fault, LackingError) for fault in faults.values()):
        say(_TAKES_ANY)
    return subjects, faults


def _check_asked(model: api.TrainedModel, make: Sequence[str], replace: bool) -> None:
    """Refuses what a system cannot be asked for."""
    if unknown := [name for name in make if name not in model.targets]:
        raise UserError(
            f"--make={','.join(make)}: {unknown[0]} is not made by {model.folder}: it makes "
            f"{', '.join(model.targets)}"
        )
    if replace and not (model.any_to_any and make):
        raise UserError(
            "--replace makes what is there from what else is there: it needs a system for whatever "
            "is missing (configs/<data set>.py:any), and --make=<modalities>"
        )


def synthesize_subjects(
    subjects: Sequence[Subject],
    output: pathlib.Path,
    folder: pathlib.Path,
    *,
    samples: int,
    make: Sequence[str] = (),
) -> list[pathlib.Path]:
    """The same for subjects that are known already; `make` is made also where it is there."""
    model = api.load(folder)
    samples, asked = different_samples(model.system, samples), tuple(make) or model.targets
    return _Job(model, output, samples, asked, model.any_to_any).run(subjects, {})


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is the same for all subjects; attributes as the arguments of `synthesize_folder`.

    `asked` are the modalities to make, where a subject lacks them.
    """

    model: api.TrainedModel
    output: pathlib.Path
    samples: int
    asked: tuple[str, ...]
    replace: bool = False
    resample_to: str | None = None
    bids: bool = False

    def run(
        self, subjects: Sequence[Subject], faults: Mapping[str, UserError]
    ) -> list[pathlib.Path]:
        """Synthesizes this process's share of the subjects.

        A subject whose sidecars say that it was made from these files by this system is left as it
        is, so that an interrupted cohort goes on; several processes share the subjects.
        """
        if self.bids and parallel.is_first():
            start_bids(self.output, self.model.targets)
        files = {
            s.subject_id: outputs_of(s.subject_id, self.output, bids=self.bids) for s in subjects
        }
        _check_distinct(files)
        failures = dict(faults)
        for subject in track(parallel.process_shard(subjects), "synthesizing", console=console):
            with collected(failures, subject.subject_id):
                model, targets = self._pattern(subject)
                if targets:
                    self._make(subject, files[subject.subject_id], model, targets)
                else:
                    say(f"{subject.subject_id} lacks nothing: it has {', '.join(subject.images)}")
        parallel.wait_for_all("synthesis")
        report_failures(failures, len(subjects) + len(faults), say)
        return [outputs.folder for outputs in files.values()]

    def _pattern(self, subject: Subject) -> tuple[api.TrainedModel, tuple[str, ...]]:
        """The system for what a subject has, and the modalities to make; none where none lacks."""
        if not self.model.any_to_any:
            return self.model, self.asked
        has = [name for name in self.model.sources if name in subject.images]
        targets = tuple(name for name in self.asked if self.replace or name not in has)
        if not targets:
            return self.model, ()
        return self.model.for_pattern([n for n in has if n not in targets], targets), targets

    def _make(
        self, subject: Subject, outputs: Outputs, model: api.TrainedModel, targets: tuple[str, ...]
    ) -> None:
        for name in model.sources:  # before anything else looks at them
            with about(name):
                check_file(subject.images[name])
        sidecars = {target: self._sidecar(subject, target, model) for target in targets}
        if _is_done(outputs, sidecars):
            return
        check_free(outputs.image(target, kind) for target in sidecars for kind in ENDINGS)
        result = model.synthesize(
            {name: subject.images[name] for name in model.sources},
            samples=self.samples,
            subject=subject.subject_id,
            make=targets,
            resample_to=self.resample_to,
        )
        for note in result.notes:
            say(f"{subject.subject_id}: {note}")
        for target, most in result.enhancing_ml.items():
            say(f"{subject.subject_id}: {target}: at most {most:.1f} ml of enhancing tumor")
        for target in sidecars:  # what they say is true no longer
            outputs.sidecar(target).unlink(missing_ok=True)
        _write_images(result, targets, outputs)
        _write_overview(subject, result, outputs, model)
        found = {"resampled": list(result.resampled), "notes": list(result.notes)}
        for target, content in sidecars.items():
            if target in result.enhancing_ml:
                content["enhancing_tumor_at_most_ml"] = round(result.enhancing_ml[target], 3)
            kinds = [kind for kind in ENDINGS if outputs.bids and target in getattr(result, kind)]
            for kind in [*kinds[1:], "mean"]:  # BIDS wants one beside each image
                write_json(outputs.sidecar(target, kind), content | found)

    def _sidecar(self, subject: Subject, target: str, model: api.TrainedModel) -> dict[str, Any]:
        """What is known of an image before it is made."""
        origin = model.system.provenance
        config, draws = origin.config, model.system.method.stochastic
        content: dict[str, Any] = {
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
            "samples": self.samples,
            **({"seed": config.seed, "sampler": config.sampler.to_dict()} if draws else {}),
            "reference_scale": origin.scales[target],
            "scale_rule": SCALE_RULE,
        }
        if curve := origin.correction.curves.get(target):
            content["volume_scale"] = {"rule": volume_scale.RULE, **dataclasses.asdict(curve)}
        if self.resample_to is not None:
            content["resample_to"] = self.resample_to
        if self.bids:
            content |= bids_fields(target)
        if (intervals := model.intervals(self.samples)) is not None:
            content["intervals"] = sidecar(intervals, target)
        shown = model.enhancement(self.samples) if target == POSTCONTRAST else None
        if shown is not None:
            content["enhancement"] = enhancement.sidecar(shown)
        return content


def _check_distinct(files: Mapping[str, Outputs]) -> None:
    """Refuses subjects whose names differ in what BIDS names cannot hold."""
    owners: dict[pathlib.Path, str] = {}
    for subject_id, outputs in files.items():
        other = owners.setdefault(outputs.folder, subject_id)
        if other != subject_id:
            raise UserError(
                f"subjects {other} and {subject_id} would both be written to {outputs.folder}: "
                "rename one, or leave out --bids"
            )


def _is_done(outputs: Outputs, sidecars: Mapping[str, Any]) -> bool:
    """Whether these sidecars, which are written last, are there already."""
    for target, content in sidecars.items():
        try:
            found = read_json(outputs.sidecar(target))
        except (FileNotFoundError, UserError):
            return False
        known = found.items() if isinstance(found, dict) else ()
        if {name: value for name, value in known if name not in FOUND} != content:
            return False
    return True


def _write_images(result: api.Synthesis, targets: Sequence[str], outputs: Outputs) -> None:
    """Writes the NIfTI files of one subject."""
    for kind in ENDINGS:
        images = getattr(result, kind)
        for target in targets:
            path = outputs.image(target, kind)
            if target in images:
                description = images[target].header["descrip"].item().decode()
                volume = read_volume(images[target])
                write_like(path, volume, result.reference, description=description)
            else:  # left by a run with other samples
                path.unlink(missing_ok=True)
                if outputs.bids:
                    outputs.sidecar(target, kind).unlink(missing_ok=True)


def _write_overview(
    subject: Subject, result: api.Synthesis, outputs: Outputs, model: api.TrainedModel
) -> None:
    """Writes the picture of one subject: acquired images beside synthetic ones."""
    panels = list(result.native.images.items())
    for target in result:
        scale = model.system.provenance.scales[target]
        panels.append((f"{target} synthetic", read_volume(result[target]) / scale))
        if (acquired := _acquired(subject, target, result)) is not None:
            panels.append((f"{target} acquired", acquired))
            for name, image in result.native.images.items():
                if line := same_image(image, acquired):
                    say(f"{subject.subject_id}: {name}, {target} as acquired: {line}")
        if target in result.enhancement:
            panels.append((f"{target} chance to enhance", read_volume(result.enhancement[target])))
        if target in result.deviation:
            deviation = read_volume(result.deviation[target]) / scale
            panels.append((f"{target} deviation x 5", 5 * deviation))
    save_overview(outputs.overview, panels, result.native.brain)


def _acquired(
    subject: Subject, target: str, result: api.Synthesis
) -> Float[np.ndarray, "z y x"] | None:
    """A target that was acquired, in [0, 1]; None where it is not there or not on this grid."""
    if target not in subject.images:
        return None
    path = subject.images[target]
    try:
        check_file(path)
        volume, _ = volume_of(oriented_like(path, result.reference), str(path))
        return measure(volume, str(path)).apply(volume)
    except UserError as error:
        say(f"{subject.subject_id}: the picture lacks {target} as acquired: {error}")
        return None


def _file(path: pathlib.Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
