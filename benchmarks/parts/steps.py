"""The training step of every stage at the paper's scale: time, rate, operations, memory."""

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.networks import flops_of, key
from benchmarks.parts.rows import Row, survive
from benchmarks.parts.session import NO_TIME, PRECISIONS, Session, median_seconds, products
from benchmarks.profile import Program, training_step
from cdm_jax import memory, parallel
from configs.common import SYSTEMS

CDM = ("mrm", "mdn", "cunet")
STAGES = tuple(dict.fromkeys((*CDM, "m1", "diffusion", "resvit", "pix2pix", *SYSTEMS["all"])))


class Repeated:
    """A program that is called on what it has returned last.

    Args:
      compiled: for the program's arguments.
      program: its arguments are used up.
    """

    def __init__(self, compiled: Any, program: Program):
        self._compiled, self._advance = compiled, program.advance
        self._arguments = program.arguments

    def __call__(self) -> Any:
        """What one more call returns."""
        returned = self._compiled(*self._arguments)
        self._arguments = self._advance(returned, self._arguments)
        return returned


def steps(session: Session) -> Iterator[Row]:
    """A row for each stage and precision, CDM's stages first."""
    for stage in CDM if session.smoke else STAGES:
        if session.left() <= 0:
            yield {"stage": stage, "skipped": NO_TIME}
            continue
        # Compiling is most of the time that a stage takes, and nothing is timed meanwhile.
        with ThreadPoolExecutor(len(PRECISIONS)) as pool:
            compiling = {p: pool.submit(_compile, session, stage, p) for p in PRECISIONS}
        for precision, compiled in compiling.items():
            row = {"stage": stage, "precision": precision}
            yield row | survive(functools.partial(_measure, session, compiled))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A compiled training step.

    Attributes:
      config: of its stage.
      precision: one of `PRECISIONS`.
      lowered: before XLA optimized it.
      compiled: ready to run.
      compile_seconds: that XLA took.
    """

    config: ConfigDict
    precision: str
    lowered: jax.stages.Lowered
    compiled: jax.stages.Compiled
    compile_seconds: float


def _compile(session: Session, stage: str, precision: str) -> Step:
    config = session.config(precision)
    config.stage = stage
    with products(precision):
        lowered = memory.lowered_step(config, parallel.all_devices(config.parallel), key())
        begin = perf_counter()
        compiled = lowered.compile()
    return Step(
        config=config,
        precision=precision,
        lowered=lowered,
        compiled=compiled,
        compile_seconds=perf_counter() - begin,
    )


def _measure(session: Session, compiling: Future[Step]) -> Row:
    step, before = compiling.result(), _allocated()
    program = training_step(step.config, step.config.stage)
    seconds = median_seconds(Repeated(step.compiled, program), session.smoke)
    row: Row = {
        "milliseconds": 1e3 * seconds,
        "slices_per_second": program.slices / seconds,
        "compile_seconds": step.compile_seconds,
        "planned_gib": memory.peak_bytes(step.compiled) / memory.GIB,
    }
    # The allocator keeps the highest mark of the process, which says nothing of smaller programs.
    if (after := _allocated()) > before:
        row["allocated_gib"] = after / memory.GIB
    return row | survive(functools.partial(_rate, session, step, seconds))


def _allocated() -> int:
    """Bytes that the device's allocator has handed out at most; 0 of CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _rate(session: Session, step: Step, seconds: float) -> Row:
    """Operations, and the share of what a large matrix product reaches in the same precision."""
    tflop = flops_of(step.lowered) / 1e12
    row: Row = {"tflop": tflop, "tflop_per_second": tflop / seconds}
    peak = [
        found["tflop_per_second"]
        for found in session.rows("peaks")
        if found.get("precision") == step.precision
    ]
    return row | ({"share_of_peak": row["tflop_per_second"] / peak[0]} if peak else {})
