"""What each command does: functions of the flags that `usage.COMMANDS` lists for it."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from cdm_jax import checkpoint, enhancement, memory, parallel
from cdm_jax.api import find_system
from cdm_jax.calibration import calibrate_stage
from cdm_jax.cards import evaluated, write_card
from cdm_jax.data import dataset as data
from cdm_jax.data.layouts import SEGMENTATION
from cdm_jax.doctor import diagnose, show, write_findings, write_page
from cdm_jax.errors import UserError
from cdm_jax.evaluate import evaluate_run
from cdm_jax.evaluate_patterns import evaluate_patterns
from cdm_jax.intervals import folder_of, summary
from cdm_jax.metrics.conformal import patients_needed
from cdm_jax.preflight import check_evaluation, check_settings, check_training
from cdm_jax.publish import check_evaluated, publish_run
from cdm_jax.report.card import FILE as CARD
from cdm_jax.rescaling import rescale_stage
from cdm_jax.sampling import check_uncertain, slices_per_call
from cdm_jax.score import score_folders
from cdm_jax.synthesize import synthesize_folder
from cdm_jax.tasks import parse_pattern, task_of
from cdm_jax.train import train_stage
from cdm_jax.writer import console

SHIPPED = (
    "no --workdir: the model that ships with cdm_jax makes the images. It was trained on simulated "
    "patients alone; a model trained on patients like yours does better"
)


def train(*, config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains a stage; or a system's stages in order, but for what is finished, and scores it."""
    stages = config.pipeline or (config.stage,)
    check_training(config, stages, workdir)
    if config.pipeline:
        check_evaluation(config, workdir, planned=stages)
    _cache_compilations(workdir)
    dataset = _dataset(config, workdir)
    memory.check_pipeline(config, stages, workdir, dataset, memory.device_limit())
    for stage in stages:
        stage_config = config.copy_and_resolve_references()
        stage_config.stage = stage
        advice = f"set {memory.remedy(config, stage)}"
        with memory.explained(f"training {stage}", advice, workdir / stage):
            trained = train_stage(stage_config, workdir, dataset)
            if config.volume_scale:
                rescale_stage(workdir / stage, dataset)
        if trained or not (workdir / stage / CARD).exists():  # a run may be killed before it
            write_card(workdir / stage, dataset)
    if config.pipeline:
        _evaluate(config, workdir, dataset)


def _evaluate(config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset) -> None:
    advice = f"set --config.evaluate.batch_size below {config.evaluate.batch_size}"
    with memory.explained("the evaluation", f"{advice}, or {memory.FRACTION}"):
        evaluate = evaluate_patterns if task_of(config.data).is_any else evaluate_run
        evaluate(config, workdir, dataset)


def evaluate(*, config: ConfigDict | None, workdir: pathlib.Path) -> None:
    """Scores a run's systems on its test patients."""
    if config is None:
        config = _saved_config(workdir)
        config.evaluate.rows = ()  # those that a table asked for when it trained the run are few
    check_evaluation(config, workdir)
    _cache_compilations(workdir)
    _evaluate(config, workdir, _dataset(config, workdir))


def _sampling_advice(samples: int) -> str:
    """What to change where the samples of a call do not fit into a device's memory."""
    advice = f"set {memory.FRACTION}, or JAX_PLATFORMS=cpu"
    if slices_per_call(samples) > 1:
        return advice  # with fewer samples, more slices share a call
    return f"{advice}, or --samples below {samples}"


def calibrate(
    *, config: ConfigDict | None, workdir: pathlib.Path, samples: int, level: float
) -> None:
    """Makes intervals for `synthesize`, on the validation patients of a run."""
    stage = "cunet" if config is None or "cunet" in config.pipeline else config.stage
    config = config or _saved_config(workdir)
    patients_needed(level)  # a wrong level is named before patients are prepared
    check_uncertain(workdir / stage, samples)
    _cache_compilations(workdir)
    dataset = _dataset(config, workdir)
    any_to_any, modalities = task_of(config.data).is_any, tuple(config.data.sources)
    patterns = [parse_pattern(name, modalities)[0] for name in config.evaluate.patterns]
    for given in patterns if any_to_any else [()]:
        if given:
            console.rule(f"from {', '.join(given)}")
        with memory.explained("the calibration", _sampling_advice(samples)):
            intervals = calibrate_stage(
                workdir / stage, dataset, samples=samples, level=level, given=given
            )
        lines, folder = summary(intervals), folder_of(workdir / stage, given)
        if (folder / enhancement.FILE).exists():
            lines += enhancement.summary(enhancement.read_enhancement(folder))
        console.print("\n".join(lines))
    if not any_to_any:
        write_card(workdir / stage, dataset, *evaluated(workdir, "test", dataset))


def synthesize(
    *,
    workdir: pathlib.Path | None,
    input: pathlib.Path,
    output: pathlib.Path,
    samples: int,
    checkpoint: str,
    make: str,
    replace: bool,
    resample_to: str | None,
    bids: bool,
) -> None:
    """Writes the missing modalities of a patient or a cohort."""
    folder = None if workdir is None else find_system(workdir)
    if folder is None:
        console.print(SHIPPED)
    else:
        _cache_compilations(folder.parent)
    with memory.explained("the synthesis", _sampling_advice(samples)):
        written = synthesize_folder(
            input,
            output,
            folder,
            samples=samples,
            checkpoint=checkpoint,
            make=[name.strip() for name in make.split(",") if name.strip()],
            replace=replace,
            resample_to=resample_to,
            bids=bids,
        )
    console.print(f"wrote {len(written)} subjects to {output}")


def score(*, input: pathlib.Path, truth: pathlib.Path, output: pathlib.Path | None) -> None:
    """Scores a folder of anybody's synthetic images against the real ones."""
    output = output or input / "scores"
    records = score_folders(input, truth, output)
    console.print(f"scored {len(records)} subjects: {output}")


def report(*, config: ConfigDict | None, workdir: pathlib.Path, patients: int) -> None:
    """Writes a run's pages: summary, tables, pictures of unseen patients, a viewer."""
    config = config or _saved_config(workdir)
    check_evaluated(workdir / "evaluation" / config.evaluate.part)
    _cache_compilations(workdir)
    page = publish_run(config, workdir, _dataset(config, workdir), patients)
    console.print(f"open {page} in a browser")


def prepare(*, config: ConfigDict, workdir: pathlib.Path) -> None:
    """Builds the cache and the split, and trains nothing."""
    for stage in config.pipeline or (config.stage,):
        check_settings(config, stage)
    dataset = _dataset(config, workdir)
    counts = {part: len(getattr(dataset, part)) for part in data.PARTS}
    console.print(f"prepared subjects {counts}, split {dataset.split_hash}")


def doctor(
    *,
    input: pathlib.Path,
    config: ConfigDict | None,
    against: pathlib.Path | None,
    json: pathlib.Path | None,
    page: pathlib.Path | None,
) -> None:
    """Examines a folder of patients."""
    settings: dict[str, Any] = {}
    if config is not None:
        names = dict.fromkeys((*config.data.sources, *config.data.targets))
        settings["modalities"] = tuple(name for name in names if name != SEGMENTATION)
        settings["patterns"] = config.data.patterns.to_dict() or None
        settings["num_workers"] = config.data.num_workers
    found = diagnose(input, against=against, **settings)
    show(found)
    if json is not None:
        write_findings(found, json)
    if page is not None:
        write_page(found, page)
    if errors := found.counts["error"]:
        raise UserError(f"errors in {input}: {errors}; mend what the table says, or leave it out")


def phantom(*, config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates patients and writes them as NIfTI."""
    with parallel.first_process_first("phantom"):
        root = data.make_phantom(config, workdir)
    console.print(f"patients in {root}")


def _saved_config(workdir: pathlib.Path) -> ConfigDict:
    """The config of the run in the workdir."""
    for folder in sorted(workdir.glob(f"*/{checkpoint.FOLDER}")):
        saved = checkpoint.provenance(folder.parent)
        if saved is not None:
            return saved.config
    raise UserError(f"no trained run in {workdir}: train one, or give --config")


def _cache_compilations(workdir: pathlib.Path) -> None:
    """Keeps compiled programs beside the run, so that a repeated command starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))


def _dataset(config: ConfigDict, workdir: pathlib.Path) -> data.Dataset:
    """The config's patients: one process simulates, splits and prepares, the others read."""
    with parallel.first_process_first("patients"):
        return data.load_dataset(config, workdir)
