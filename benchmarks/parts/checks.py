"""Whether the accelerator computes what the CPU does: some tests, DDIM, and one training step."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.batches import random_batch
from benchmarks.networks import key
from benchmarks.parts.rows import Row, SkippedError, survive
from benchmarks.parts.session import Session, in_time, products
from benchmarks.profile import fresh_state
from cdm_jax import parallel
from cdm_jax.methods import base
from cdm_jax.shapes import create
from cdm_jax.tasks import task_of
from configs import phantom

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ("tests/diffusion", "tests/nn/test_dropout.py", "tests/nn/test_nn_blocks.py")
SMOKE_TESTS = ("tests/diffusion/test_diffusion_schedule.py",)
STAGES = ("mrm", "mdn", "cunet")
SLICES = 4
# Of the distance to the CPU's values in float32, relative to their norm. Sums in another order stay
# far below it, products in tf32 (1e-3 and more after some layers) do not.
BOUND = 5e-4


def checks(session: Session) -> Iterator[Row]:
    """The training step of each stage and DDIM on both, and beside them some of the tests."""
    jobs: list[tuple[Row, Callable[[], Row]]] = [
        ({"check": f"{stage}, a training step"}, functools.partial(_step, session, stage))
        for stage in STAGES
    ]
    jobs.append(({"check": "mdn, DDIM"}, functools.partial(_ddim, session)))
    with ThreadPoolExecutor(1) as thread:
        tested = thread.submit(survive, functools.partial(_tests, session))
        yield from in_time(session, jobs)
        yield {"check": "pytest"} | tested.result()


def _stage(session: Session, stage: str) -> tuple[Any, base.State, dict[str, np.ndarray]]:
    """A stage of the small networks, its first state on the host, and a batch.

    The parameters are moved a little, since what starts at zero would hide the rest.
    """
    config = phantom.get_config("cdm,smoke" if session.smoke else "cdm")
    state = fresh_state(config, stage, parallel.all_devices("jit"))
    stored = jax.tree.map(jnp.asarray, random_batch(config, SLICES))
    batch = task_of(config.data).batch(stored, jax.random.key(0))
    draws, state = np.random.default_rng(0), jax.device_get(state)
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * draws.standard_normal(leaf.shape, np.float32), state.params
    )
    state = state.replace(params=params, average=params if state.average else {})
    return create(config, stage), state, jax.device_get(batch)


def _step(session: Session, stage: str) -> Row:
    """The loss, and the optimizer's moments, which after the first step are the gradient's."""
    method, state, batch = _stage(session, stage)

    def update(state: base.State, batch: base.Batch) -> dict[str, Any]:
        after, metrics = method.update(state, batch, key())
        return {"loss": metrics["loss"], "moments": after.optimizer}

    return _compare(update, state, batch)


def _ddim(session: Session) -> Row:
    method, state, batch = _stage(session, "mdn")
    model = base.model_of(state)
    return _compare(
        lambda model, sources: {"codes": method.sample(model, sources, key())},
        model,
        batch["source"],
    )


def _compare(function: Callable[..., dict[str, Any]], *arguments: Any) -> Row:
    """The largest distance between a result on the accelerator and on the CPU."""
    found = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device), products("float32"):
            results = jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))
        found.append({name: _floats(tree) for name, tree in results.items()})
    ours, theirs = found
    distance = max(
        float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]))
        for name in theirs
    )
    return {"distance": distance, "bound": BOUND, "passed": distance <= BOUND}


def _floats(tree: Any) -> np.ndarray:
    """All floats of a tree, and none of its counts, as one vector."""
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [leaf for leaf in leaves if np.issubdtype(leaf.dtype, np.floating)]
    return np.concatenate(floats).astype(np.float64)


def _tests(session: Session) -> Row:
    """Some of the tests, as users run the package, in a process that shares the device."""
    for name in ("pytest", "beartype"):
        if importlib.util.find_spec(name) is None:
            raise SkippedError(f"{name} is not installed")
    files = SMOKE_TESTS if session.smoke else TESTS
    changed = {
        "CDM_OPTIMIZED": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "float32",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:xdist", *files],
        cwd=ROOT,
        env=os.environ | changed,
        capture_output=True,
        text=True,
        timeout=max(10, session.left()),
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (done.stdout.splitlines() or done.stderr.splitlines() or ["no output"])[-1]
    return {"passed": done.returncode == 0, "text": "; ".join([last.strip("= "), *failed[:5]])}
