"""What BraTS2023 takes at the paper's size: disk, steps, hours and memory on 1 and 8 A100s.

  python -m benchmarks.day_one [--show]

No GPU is needed: operations, parameters and peaks come from the record of `benchmarks.parameters`,
lengths from `configs/brats.py`. What is measured here is how long one core takes to prepare and to
score a patient of BraTS' grid, and how large every state is. Writes
`benchmarks/results/day_one.json` and, from it, `docs/results/day_one.md`.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import scoring
from benchmarks.records import load_results, save_results
from cdm_jax.data.cohort import STORED as SHOWN
from cdm_jax.data.intensity import brain_mask
from cdm_jax.data.nifti import read_volume
from cdm_jax.data.prepare import PrepareSettings, prepare_subject
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.metrics.conventions import Case, get_convention
from cdm_jax.phantom import PhantomSettings, write_cohort
from cdm_jax.rows import REFERENCE_ROWS
from cdm_jax.shapes import example, start
from cdm_jax.writer import console
from configs import brats
from configs.common import SYSTEMS
from experiments.costs import (
    ASSUMED,
    PEAK,
    SHARE,
    STORED,
    TRAINED,
    cohort,
    exchange_seconds,
    row_seconds,
    slice_flops,
    state_bytes,
    training_steps,
)
from experiments.study import DOCS, write

NAME = "day_one"
COMMAND = "python -m benchmarks.day_one"
SUBJECTS = 1251  # of BraTS2023's training set
DEVICES = (1, 8)
CORES = 16  # of the machine that prepares and scores
GRID = PhantomSettings(num_patients=1, shape=(240, 240, 155), voxel_mm=1.0)  # BraTS' own

Rows = Sequence[Mapping[str, Any]]


def measure() -> dict[str, Any]:
    """Core seconds a patient, and the bytes of every stage's state."""
    config = brats.get_config("all")
    settings = PrepareSettings(
        sources=tuple(config.data.sources),
        targets=tuple(config.data.targets),
        size=config.data.size,
        minimum_brain=config.data.minimum_brain,
    )
    with tempfile.TemporaryDirectory() as folder:
        console.print("simulating a patient of BraTS' grid")
        write_cohort(pathlib.Path(folder), GRID, 1)
        names = settings.sources + settings.targets
        (subject,) = find_subjects(folder, modalities=names)
        prepare = core_seconds(lambda: prepare_subject(subject, settings))
        score = score_seconds(subject, settings, config.evaluate.conventions)
    batch = example(config, config.cunet.train.batch_size_per_device)
    state_bytes = {}
    for stage in SYSTEMS["all"]:
        console.print(f"tracing {stage}")
        state_bytes[stage] = bytes_of(start(config, stage, batch))
    return {
        "command": COMMAND,
        "prepare_core_seconds": prepare,
        "score_core_seconds": score,
        "state_bytes": state_bytes,
    }


def core_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The median time that the processor spends on `work`, whatever else the machine does."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return float(np.median(times))


def score_seconds(
    subject: Subject, settings: PrepareSettings, conventions: Sequence[str]
) -> dict[str, float]:
    """Core seconds to score one image of a patient under each convention."""
    target = settings.targets[0]
    slices = np.asarray(prepare_subject(subject, settings).slices[..., -1], np.float32) / 65535
    truth = read_volume(subject.images[target])
    brain = brain_mask({name: read_volume(subject.images[name]) for name in settings.sources})
    spaces = {
        "native": (truth / truth.max(), brain, read_volume(subject.segmentation or "").astype(int)),
        "slices": (slices, None, None),
    }
    found = {}
    for name in conventions:
        convention = get_convention(name)
        images, mask, labels = spaces[convention.space]
        case = Case(
            subject=subject.subject_id,
            modality=target,
            prediction=0.9 * images,
            truth=images,
            brain=mask,
            segmentation=labels,
        )
        found[name] = core_seconds(functools.partial(convention.score, case))
    return found


def bytes_of(state: Any) -> int:
    """What a checkpoint of this state takes before compression."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def disk_table(record: Mapping[str, Any]) -> list[str]:
    """The cohort and its cache."""
    config = brats.get_config("all")
    parts, size = cohort(config, SUBJECTS), config.data.size
    modalities = len(config.data.sources) + len(config.data.targets)
    height = GRID.shape[2]
    cache = SUBJECTS * height * SHOWN * size**2 * modalities * 2
    states = sum(state_bytes(config, stage, record) for stage in record["state_bytes"])
    hours = SUBJECTS * record["prepare_core_seconds"] / CORES / 3600
    lines = ["| what | figure | how |", "| --- | ---: | --- |"]
    for name, figure, how in (
        (
            "subjects to train / validate / test on",
            " / ".join(map(str, parts.values())),
            f"{SUBJECTS} x `data.test_fraction`, `data.validation_fraction`",
        ),
        (
            "slices to train on",
            f"{parts['train'] * TRAINED:,}",
            f"{TRAINED} a subject with brain on 1 % of the square, as BraTS-GLI-00001-000 has",
        ),
        (
            "cache",
            f"{cache / 1e9:.0f} GB ({cache / 2**30:.0f} GiB)",
            f"{SUBJECTS} x {height} slices x {SHOWN} (the rows that show anything) x {size} x "
            f"{size} x {modalities} modalities x 2 bytes",
        ),
        (
            "checkpoints of all stages",
            f"{states / 2**30:.0f} GiB",
            f"sum of the states below x (`checkpoint.keep` = {config.checkpoint.keep}, and the "
            "best one)",
        ),
        (
            "preparation",
            f"{60 * hours:.0f} min",
            f"{SUBJECTS} x {record['prepare_core_seconds']:.1f} s of one core (measured), "
            f"{CORES} cores",
        ),
    ):
        lines.append(f"| {name} | {figure} | {how} |")
    return lines


def training_table(record: Mapping[str, Any]) -> list[str]:
    """Steps, hours, memory and checkpoints of each stage."""
    config = brats.get_config("all")
    slices = cohort(config, SUBJECTS)["train"] * TRAINED
    sizes = {row["stage"]: row for row in load_results("parameters")["stages"]}
    hours: dict[tuple[str, int], float] = {}
    lines = [
        "| stage | TFLOP a step | steps, 1 GPU | hours, 1 GPU | steps, 8 GPUs | hours, 8 GPUs "
        "| slices/s a GPU | peak GiB | checkpoint GiB |",
        "| --- |" + " ---: |" * 8,
    ]
    for stage in SYSTEMS["all"]:
        train, flops = config[stage].train, sizes[stage]["step_flops"]
        cells = [f"{flops / 1e12:.2f}"]
        for devices in DEVICES:
            steps = training_steps(config, stage, slices, devices)
            seconds = flops / ASSUMED + exchange_seconds(sizes[stage]["trained"], devices)
            hours[stage, devices] = steps * seconds / 3600
            cells += [f"{steps:,}", f"{hours[stage, devices]:.1f}"]
        cells.append(f"{train.batch_size_per_device * ASSUMED / flops:,.0f}")
        cells.append(f"{sizes[stage]['peak_bytes'] / 2**30:.1f}")
        cells.append(f"{record['state_bytes'][stage] / 2**30:.2f}")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    for system in ("cdm", "all"):
        one, eight = (sum(hours[s, n] for s in SYSTEMS[system]) for n in DEVICES)
        space = sum(record["state_bytes"][s] for s in SYSTEMS[system]) / 2**30
        stages = ", ".join(SYSTEMS[system]) if system == "cdm" else "every stage"
        lines.append(
            f"| **{system}** ({stages}) |  |  | {one:.1f} |  | {eight:.1f} |  |  | {space:.2f} |"
        )
    return lines


def evaluation_table(record: Mapping[str, Any]) -> list[str]:
    """Hours to translate and to score the test patients."""
    config = brats.get_config("all")
    patients = cohort(config, SUBJECTS)["test"]
    networks = {
        (row["stage"], row["network"]): row["flops"]
        for row in load_results("parameters")["networks"]
    }
    lines = [
        "| system | TFLOP a patient | compute h, 1 GPU | compute h, 8 GPUs | rows | scoring h |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for system in config.evaluate.systems:
        flops = STORED * slice_flops(config, system, networks)
        rows = row_count(config, system)
        hours = patients * flops / ASSUMED / 3600
        scoring = patients * rows * row_seconds(config, record) / CORES / 3600
        cells = [f"{flops / 1e12:,.1f}", f"{hours:.2f}", f"{hours / 8:.2f}", f"{rows}"]
        lines.append(f"| {system} | {' | '.join([*cells, f'{scoring:.2f}'])} |")
    return lines


def whole_evaluation() -> str:
    """How long the scores of `configs/brats.py:cdm` take, with all that is done beside them."""
    config = brats.get_config("cdm")
    patients = cohort(config, SUBJECTS)["test"]
    rows = len(REFERENCE_ROWS) + sum(row_count(config, name) for name in config.evaluate.systems)
    seconds = scoring.median("now", "processor_seconds") / scoring.ROWS
    return (
        f"All {rows} rows of `configs/brats.py:cdm` (M1 and {len(REFERENCE_ROWS)} without a system "
        f"among them) for {patients} patients: {patients * rows * seconds / CORES / 60:.0f} min on "
        f"{CORES} cores. That is {seconds:.1f} s of one core a row with all that workers do, by "
        "`benchmarks.scoring` on two cores on which other work ran; no machine with more cores has "
        "been measured."
    )


def row_count(config: Any, system: str) -> int:
    """Rows of a record: one sample, the mean of several, and CDM's five audits."""
    if system in ("cunet", "m2"):
        return 7
    return 2 if system in ("diffusion", "rcg") else 1


def show() -> None:
    """Prints and writes the sheet of the committed record."""
    record = load_results(NAME)
    score = ", ".join(f"{k} {v:.1f} s" for k, v in record["score_core_seconds"].items())
    parts = [
        "## Disk and preparation",
        *disk_table(record),
        "",
        "## Training",
        *training_table(record),
        "",
        "Steps: epochs x (slices // (batch x devices)). Hours: steps x (operations / "
        f"({PEAK / 1e12:.0f} TFLOP/s x {SHARE:.0%}) + exchange of the gradient by NVLink). "
        "Slices/s a GPU: what the input has to deliver if that speed is reached. Peak: of one "
        "compiled step (`benchmarks.parameters --peak`). A checkpoint is the whole state, frozen "
        "stages included.",
        "",
        "## Evaluation",
        *evaluation_table(record),
        "",
        f"One patient has {STORED} slices. A row is scored under each convention for both targets; "
        f"one image takes one core: {score} (measured). Scoring: {CORES} cores.",
        "",
        whole_evaluation(),
    ]
    text = "\n".join("\n" + part + "\n" if part.startswith("#") else part for part in parts)
    console.print(text, soft_wrap=True)
    write(DOCS / "day_one.md", text.strip() + "\n")


def main() -> None:
    """Measures, writes the record and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--show", action="store_true", help="only from the committed record")
    if not parser.parse_args().show:
        save_results(NAME, measure())
    show()


if __name__ == "__main__":
    main()
