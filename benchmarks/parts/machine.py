"""The device, and how fast it multiplies matrices and reads its memory."""

import functools
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.networks import key
from benchmarks.parts.rows import Row
from benchmarks.parts.session import PRECISIONS, Session, in_time, median_seconds, products

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
DRIVER = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")


def device(session: Session) -> Iterator[Row]:
    """What it is, its driver, its memory, and the versions of what runs on it."""
    first = jax.devices()[0]
    stats = first.memory_stats() or {}
    yield {"what": "device", "value": first.device_kind}
    yield {"what": "devices", "value": jax.device_count()}
    if "bytes_limit" in stats:
        yield {"what": "memory that JAX may take, GiB", "value": stats["bytes_limit"] / 2**30}
    yield {"what": "Python", "value": platform.python_version()}
    for name in PACKAGES:
        yield {"what": name, "value": version(name)}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={','.join(DRIVER)}", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        for name, value in zip(DRIVER, found.stdout.splitlines()[0].split(", "), strict=False):
            yield {"what": f"nvidia-smi {name}", "value": value}


def version(package: str) -> str:
    """The installed version of a package, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def peaks(session: Session) -> Iterator[Row]:
    """The highest rate of a large matrix product in each precision, and of reading memory."""
    side, numbers = (256, 2**20) if session.smoke else (8192, 2**27)
    yield from in_time(
        session,
        [
            (
                {"what": f"{name} product of {side}"},
                functools.partial(_product, session, name, side),
            )
            for name in PRECISIONS
        ],
    )
    gib = 4 * numbers / 2**30
    x = jax.random.normal(key(), (numbers,))
    for what, function, passes in (("read", jnp.sum, 1), ("read and write", jnp.negative, 2)):
        call = jax.jit(function)
        seconds = median_seconds(functools.partial(call, x), session.smoke)
        row = {"milliseconds": 1e3 * seconds, "gb_per_second": passes * x.nbytes / seconds / 1e9}
        yield {"what": f"{what} {gib:.3g} GiB"} | row


def _product(session: Session, precision: str, side: int) -> Row:
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    # Not zeros, on which the units run faster than on anything that is worth multiplying.
    left, right = (jax.random.normal(k, (side, side), dtype) for k in jax.random.split(key()))
    with products(precision):
        multiply = jax.jit(jnp.matmul).lower(left, right).compile()
    seconds = median_seconds(lambda: multiply(left, right), session.smoke)
    row = {"precision": precision, "milliseconds": 1e3 * seconds}
    return row | {"tflop_per_second": 2 * side**3 / seconds / 1e12}
