"""Simulated patients: one translated from NIfTI to NIfTI, and a few to train and score on."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from time import perf_counter
from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict

import cdm_jax
from benchmarks.parts.rows import Row, SkippedError, survive
from benchmarks.parts.session import NO_TIME, Session, in_time, products, with_precision
from benchmarks.profile import fresh_state
from cdm_jax import checkpoint, parallel
from cdm_jax.data.dataset import Dataset, load_dataset
from cdm_jax.data.subjects import find_subjects
from cdm_jax.evaluate import evaluate_run
from cdm_jax.phantom import PhantomSettings, write_cohort
from cdm_jax.shapes import create
from cdm_jax.train import train_stage
from configs import phantom

PATIENTS = 8
# The share that each takes of the time left; what the last one leaves is for the scores.
TRAINED = {"m1": 0.35, "mrm": 0.25, "mdn": 0.3, "cunet": 0.6}
SCORED = ("regression", "m1", "cunet")
CONVENTION = "volume"
MOST_STEPS, FEWEST_STEPS = 5000, 20
SAMPLES = (1, 8)


def config_of(smoke: bool) -> ConfigDict:
    """The paper's networks on a few simulated patients of BraTS' grid; the smallest in a smoke."""
    config = phantom.get_config("cdm,smoke" if smoke else "cdm,small=false")
    if smoke:
        config.data.num_workers = 1
    else:
        config.phantom.update({"num_patients": PATIENTS, "shape": (240, 240, 155), "voxel_mm": 1.0})
    return config


def simulate(smoke: bool, folder: pathlib.Path) -> pathlib.Path:
    """Writes the patients, in processes of their own."""
    config = config_of(smoke)
    write_cohort(folder, PhantomSettings(**config.phantom.to_dict()), config.data.num_workers)
    return folder


def _cohort(session: Session) -> pathlib.Path:
    """The patients' folder, once they are all there."""
    try:
        return session.patients.result(timeout=max(1, session.left()))
    except TimeoutError as error:
        raise SkippedError("the simulated patients were not ready in time") from error


def patient(session: Session) -> Iterator[Row]:
    """One patient through the Python API, by networks as they are before training."""
    root = _cohort(session)
    jobs: list[tuple[Row, Callable[[], Row]]] = [
        (
            {"precision": precision, "samples": samples},
            functools.partial(_translate, session, root, precision, samples),
        )
        for precision in ("tf32", "bf16")
        for samples in SAMPLES[: 1 if session.smoke else None]
    ]
    yield from in_time(session, jobs)


def _translate(session: Session, root: pathlib.Path, precision: str, samples: int) -> Row:
    config = with_precision(config_of(session.smoke), precision)
    folder = session.workdir / f"untrained_{precision}"
    if not folder.exists():
        _save_untrained(config, folder)
    subject = find_subjects(root, modalities=tuple(config.data.sources))[0]
    with products(precision):
        begin = perf_counter()
        model = cdm_jax.load(folder)
        load_seconds, times = perf_counter() - begin, []
        for _ in range(2):  # the first compiles
            begin = perf_counter()
            result = model.synthesize(subject.images, samples=samples)
            for name, image in result.items():
                image.to_filename(session.workdir / f"{name}.nii.gz")
            times.append(perf_counter() - begin)
    slices = min(image.shape[-1] for image in result.values())
    return {
        "slices": slices,
        "load_seconds": load_seconds,
        "first_seconds": times[0],
        "seconds": times[1],
        "slices_per_second": slices / times[1],
    }


def _save_untrained(config: ConfigDict, folder: pathlib.Path) -> None:
    """A checkpoint of C-UNet's fresh state, MRM and MDN within it."""
    config.stage = "cunet"
    config.cunet.train.num_steps = 1
    data = config.data
    provenance = checkpoint.Provenance(
        config=config.copy_and_resolve_references(),
        batch_size=config.cunet.train.batch_size_per_device,
        split="",
        scales={name: 1.0 for name in (*data.sources, *data.targets)},
    )
    state = fresh_state(config, "cunet", parallel.all_devices("jit"))
    nothing_read = SimpleNamespace(get_state=dict)
    with checkpoint.Checkpoints(folder / "cunet", keep=1) as checkpoints:
        checkpoints.save(1, state, nothing_read, provenance)


def training(session: Session) -> Iterator[Row]:
    """Trains M1, then CDM, for as many steps as the time allows, and scores them."""
    root = _cohort(session)
    config, workdir = config_of(session.smoke), session.workdir / "run"
    config.data.root = str(root)
    begin = perf_counter()
    dataset = load_dataset(config, workdir)
    yield {"what": "prepare", "seconds": perf_counter() - begin, "patients": len(dataset.subjects)}
    finished: list[str] = []
    for stage, share in TRAINED.items():
        if missing := [name for name in create(config, stage).depends_on if name not in finished]:
            yield {"what": stage, "skipped": f"{missing[0]} is not trained"}
            continue
        row = survive(
            functools.partial(
                _train, session, config, stage, dataset, workdir, share * session.left()
            )
        )
        yield {"what": stage} | row
        if "steps" in row:
            finished.append(stage)
    if not session.smoke and session.left() <= 0:
        raise SkippedError(f"the scores: {NO_TIME}")
    yield from _scores(config, workdir, dataset, finished)


def _train(
    session: Session,
    config: ConfigDict,
    stage: str,
    dataset: Dataset,
    workdir: pathlib.Path,
    seconds: float,
) -> Row:
    """Trains a stage for about so many seconds, its compilation included."""
    length, found = config[stage].train, _known(session, stage)
    if not session.smoke:
        left = seconds - found.get("compile_seconds", 10)
        length.num_steps = int(min(MOST_STEPS, left / (found.get("milliseconds", 500) / 1e3)))
        if length.num_steps < FEWEST_STEPS:
            raise SkippedError(NO_TIME)
        length.update({"validate_every": length.num_steps, "checkpoint_every": length.num_steps})
        config[stage].optimizer.update(
            {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20, "clip": 1.0}
        )
    config.stage = stage
    begin = perf_counter()
    train_stage(config, workdir, dataset)
    return {"steps": length.num_steps, "seconds": perf_counter() - begin}


def _known(session: Session, stage: str) -> Row:
    """What the part `steps` has measured of a stage at the precision that JAX takes by default."""
    rows = [r for r in session.rows("steps") if r["stage"] == stage and "milliseconds" in r]
    return next((row for row in rows if row["precision"] == "tf32"), {})


def _scores(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset, finished: list[str]
) -> Iterator[Row]:
    """The mean over the test patients of each row's scores."""
    config.evaluate.systems = tuple(s for s in ("m1", "cunet") if s in finished)
    config.evaluate.rows = tuple(r for r in SCORED if r == "regression" or r in finished)
    config.evaluate.conventions = (CONVENTION,)
    begin = perf_counter()
    records = evaluate_run(config, workdir, dataset)
    yield {"what": "score", "seconds": perf_counter() - begin, "patients": len(records)}
    for name in config.evaluate.rows:
        scores = [record["rows"][name][CONVENTION] for record in records]
        yield {"what": f"PSNR of {name}, dB"} | {
            target: float(np.mean([score[target]["psnr"] for score in scores]))
            for target in config.data.targets
        }
