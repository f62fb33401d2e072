"""What each command does, in terms of the rooms."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from cdm_jax import checkpoint, memory, parallel
from cdm_jax.data import dataset as data
from cdm_jax.errors import UserError
from cdm_jax.evaluate import evaluate_run
from cdm_jax.publish import publish_run
from cdm_jax.score import score_folders
from cdm_jax.synthesize import synthesize_folder
from cdm_jax.train import MissingStageError, train_stage
from cdm_jax.uncertainty import calibrate_stage, slices_per_call, summary
from cdm_jax.writer import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A parsed command line.

    Attributes:
      arguments: as they were given, without the program's name.
      config: the config with its overrides, or None where the run's own serves.
      workdir: folder of the run.
      input: `synthesize`: patients; `score`: synthetic images.
      output: `synthesize`, `score`: folder of results.
      samples: `synthesize`, `calibrate`: samples to draw.
      level: `calibrate`: nominal coverage of the intervals.
      truth: `score`: the real patients.
      patients: `report`: how many unseen patients are shown in pictures.
    """

    arguments: Sequence[str]
    config: ConfigDict | None
    workdir: pathlib.Path
    input: pathlib.Path | None
    output: pathlib.Path | None
    samples: int
    level: float
    truth: pathlib.Path | None
    patients: int


def _config(request: Request) -> ConfigDict:
    """The config asked for, or that of the run in the workdir."""
    if request.config is not None:
        return request.config
    for folder in sorted(request.workdir.glob(f"*/{checkpoint.FOLDER}")):
        saved = checkpoint.provenance(folder.parent)
        if saved is not None:
            return saved.config
    raise UserError(f"no trained run in {request.workdir}: train one, or give --config")


def _cache_compilations(request: Request) -> None:
    """Keeps compiled programs beside the run, so that a repeated command starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(request.workdir.absolute() / "compiled"))


def _dataset(config: ConfigDict, request: Request) -> data.Dataset:
    """The config's patients: one process simulates, splits and prepares, the others read."""
    with parallel.first_process_first("patients"):
        return data.load_dataset(config, request.workdir)


def _same_command(arguments: Sequence[str], stage: str) -> str:
    """The command line that was given, for another stage of its config and no pipeline."""
    changed = [
        re.sub(r"(?<=\.py)(:[^,]*)?(?=,|$)", f":{stage}", argument)
        if before == "--config" or argument.startswith("--config=")
        else argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("--config.pipeline=")
    ]
    return shlex.join(["python", "-m", "cdm_jax.main", *changed])


def train(request: Request) -> None:
    """Trains a stage; or a system's stages in order, but for what is finished, and scores it."""
    config = _config(request)
    _cache_compilations(request)
    dataset = _dataset(config, request)
    stages = config.pipeline or (config.stage,)
    memory.check_pipeline(config, stages, request.workdir, dataset, memory.device_limit())
    for stage in stages:
        stage_config = config.copy_and_resolve_references()
        stage_config.stage = stage
        try:
            advice = f"set {memory.remedy(config, stage)}"
            with memory.explained(f"training {stage}", advice, request.workdir / stage):
                train_stage(stage_config, request.workdir, dataset)
        except MissingStageError as error:
            command = _same_command(request.arguments, error.stage)
            raise UserError(f"{error}, by {command}") from error
    if config.pipeline:
        _evaluate(config, request, dataset)


def _evaluate(config: ConfigDict, request: Request, dataset: data.Dataset) -> None:
    advice = f"set --config.evaluate.batch_size below {config.evaluate.batch_size}"
    with memory.explained("the evaluation", f"{advice}, or {memory.FRACTION}"):
        evaluate_run(config, request.workdir, dataset)


def evaluate(request: Request) -> None:
    """Scores a run's systems on its test patients."""
    config = _config(request)
    _cache_compilations(request)
    _evaluate(config, request, _dataset(config, request))


def _stage_folder(request: Request) -> pathlib.Path:
    """The folder of the system that the config names; of CDM where there is none."""
    stage = request.config.stage if request.config is not None else "cunet"
    return request.workdir / ("cunet" if stage == "cdm" else stage)


def _synthesis_advice(request: Request) -> str:
    """What to change where the samples of a call do not fit into a device's memory."""
    advice = f"set {memory.FRACTION}, or JAX_PLATFORMS=cpu"
    if slices_per_call(request.samples) > 1:
        return advice  # with fewer samples, more slices share a call
    return f"{advice}, or --samples below {request.samples}"


def calibrate(request: Request) -> None:
    """Makes intervals for `synthesize`, on the validation patients of a run."""
    config = _config(request)
    _cache_compilations(request)
    folder, dataset = _stage_folder(request), _dataset(config, request)
    with memory.explained("the calibration", _synthesis_advice(request)):
        intervals = calibrate_stage(folder, dataset, samples=request.samples, level=request.level)
    console.print("\n".join(summary(intervals)))


def synthesize(request: Request) -> None:
    """Writes the missing modalities of a patient or a cohort."""
    if request.input is None or request.output is None:
        raise UserError("synthesize needs --input=<folder of patients> and --output=<folder>")
    _cache_compilations(request)
    folder = _stage_folder(request)
    with memory.explained("the synthesis", _synthesis_advice(request)):
        written = synthesize_folder(request.input, request.output, folder, samples=request.samples)
    console.print(f"wrote {len(written)} subjects to {request.output}")


def score(request: Request) -> None:
    """Scores a folder of anybody's synthetic images against the real ones."""
    if request.input is None or request.truth is None:
        raise UserError("score needs --input=<synthetic images> and --truth=<real patients>")
    output = request.output or request.input / "scores"
    records = score_folders(request.input, request.truth, output)
    console.print(f"scored {len(records)} subjects: {output}")


def report(request: Request) -> None:
    """Writes a run's pages: summary, tables, pictures of unseen patients, a viewer."""
    config = _config(request)
    _cache_compilations(request)
    dataset = _dataset(config, request)
    page = publish_run(config, request.workdir, dataset, request.patients)
    console.print(f"open {page} in a browser")


def prepare(request: Request) -> None:
    """Builds the cache and the split, and trains nothing."""
    dataset = _dataset(_config(request), request)
    counts = {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")}
    console.print(f"prepared subjects {counts}, split {dataset.split_hash}")


def phantom(request: Request) -> None:
    """Simulates patients and writes them as NIfTI."""
    with parallel.first_process_first("phantom"):
        root = data.make_phantom(_config(request), request.workdir)
    console.print(f"patients in {root}")
