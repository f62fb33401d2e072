"""How many slices a second are sampled: MDN's codes, CDM's slices, Diffusion's slices."""

import functools
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.batches import random_sources
from benchmarks.networks import key
from benchmarks.parts.rows import Row
from benchmarks.parts.session import Session, in_time, median_seconds, products
from benchmarks.parts.steps import Repeated
from benchmarks.profile import Program, fresh_state
from benchmarks.profile import sampler as slice_sampler
from cdm_jax import parallel
from cdm_jax.methods import base
from cdm_jax.shapes import create

# Stage, precision, slices a call; the most useful first. MDN's is of codes alone, by DDIM.
CASES = (
    ("cunet", "tf32", 12),
    ("mdn", "tf32", 12),
    ("diffusion", "tf32", 12),
    ("cunet", "bf16", 12),
    ("diffusion", "bf16", 12),
    ("mdn", "tf32", 1),
    ("mdn", "tf32", 128),
    ("mdn", "tf32", 1024),
    ("cunet", "tf32", 96),
    ("cunet", "bf16", 96),
)
SMOKE = (("cunet", "tf32", 2), ("mdn", "tf32", 2), ("diffusion", "tf32", 2))


def samplers(session: Session) -> Iterator[Row]:
    """A row for each case."""
    yield from in_time(
        session,
        [
            (
                {"sampler": stage, "precision": precision, "slices": slices},
                functools.partial(_measure, session, stage, precision, slices),
            )
            for stage, precision, slices in (SMOKE if session.smoke else CASES)
        ],
    )


def _measure(session: Session, stage: str, precision: str, slices: int) -> Row:
    config = session.config(precision)
    config.evaluate.batch_size = slices
    with products(precision):
        program = codes(config, slices) if stage == "mdn" else slice_sampler(config, stage)
        begin = perf_counter()
        compiled = program.function.lower(*program.arguments).compile()
        compile_seconds = perf_counter() - begin
    seconds = median_seconds(Repeated(compiled, program), session.smoke)
    return {
        "steps": config.sampler.num_steps,
        "milliseconds": 1e3 * seconds,
        "slices_per_second": program.slices / seconds,
        "compile_seconds": compile_seconds,
    }


def codes(config: ConfigDict, slices: int) -> Program:
    """MDN's sampling of representations, one a slice."""
    method: Any = create(config, "mdn")
    model = base.model_of(fresh_state(config, "mdn", parallel.all_devices("jit")))
    images = random_sources(config, slices)
    return Program(
        stage="mdn",
        part="sampler",
        slices=slices,
        function=jax.jit(method.sample),
        arguments=(model, base.to_model_range(jnp.asarray(images)), key()),
        advance=lambda _, arguments: arguments,
    )
