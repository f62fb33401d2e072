"""JAX's side: whole programs of the package, its networks alone, and the limits of the machine."""

import concurrent.futures
import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from benchmarks.networks import key, size_of
from benchmarks.parts.samplers import codes
from benchmarks.parts.steps import Repeated
from benchmarks.profile import (
    Program,
    executed_bytes,
    executed_flops,
    fresh_state,
    sampler,
    training_step,
)
from benchmarks.studies.cases import Case, config_of
from benchmarks.studies.worker import Prepared, repeated
from cdm_jax import memory, parallel, workers
from cdm_jax.methods import base
from cdm_jax.optim import make_optimizer
from cdm_jax.shapes import create, source_channels

Forward = Callable[[Any], Array]  # from parameters to what should be the target


def program(part: str, case: Case, smoke: bool, counted: bool = False) -> Prepared:
    """A program of the package as it compiles it.

    Args:
      part: "step", "sampler" or, of MDN, "codes".
      case: what it is of.
      smoke: see `repeated`.
      counted: whether operations, bytes and memory are told of it.
    """
    config = config_of(case)
    made = _program(config, part, case)
    facts = {"flops": executed_flops(made), "bytes": executed_bytes(made)} if counted else {}
    begin = perf_counter()
    compiled = made.function.lower(*made.arguments).compile()
    facts["compile_seconds"] = perf_counter() - begin
    if counted:
        facts["peak_bytes"] = memory.peak_bytes(compiled)
    return facts, repeated(_queued(Repeated(compiled, made)), smoke)


def _program(config: ConfigDict, part: str, case: Case) -> Program:
    if part == "codes":
        return codes(config, case["batch"])
    return (training_step if part == "step" else sampler)(config, case["stage"])


def _queued(call: Callable[[], Any]) -> Callable[[int], None]:
    def calls(number: int) -> None:
        for _ in range(number):
            result = call()
        jax.block_until_ready(result)

    return calls


def network(case: Case, smoke: bool) -> Prepared:
    """A step of the network alone: its squared error on a batch that is there, and Adam.

    The loop's own step also makes floats of stored slices, encodes the targets by MRM, disturbs the
    sources and looks after what is not finite, which PyTorch's networks are not asked to do.
    """
    config = config_of(case)
    params, forward, target = _work(config, case)
    optimizer = make_optimizer(config[case["stage"]].optimizer, 1000)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: jnp.mean((forward(p) - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    facts = {"parameters": size_of(params)}
    held = [(params, optimizer.init(params))]

    def call() -> Any:
        held[0] = step(*held[0])
        return held[0]

    return facts, repeated(_queued(call), smoke)


def _work(config: ConfigDict, case: Case) -> tuple[Any, Forward, Array]:
    """Parameters, what they make of a batch of noise, and what they should."""
    stage, number = case["stage"], case["batch"]
    method: Any = create(config, stage)
    params: Any = fresh_state(config, stage, parallel.all_devices("jit")).params
    data, keys = config.data, jax.random.split(key(), 4)
    images = (number, data.size, data.size)
    sources = jax.random.normal(keys[0], (*images, source_channels(data)))
    if stage == "mdn":
        y, noised = jax.random.normal(
            keys[1], (2, number, method.representation.representation_width)
        )
        t = jax.random.randint(keys[2], (number,), 0, 1000)

        def denoised(params: Any) -> Array:
            context = base.apply(method.encoder, params["encoder"], sources)
            return base.apply(method.denoiser, params["denoiser"], noised, t, context)

        return params, denoised, y
    width = method.mdn.representation.representation_width if method.mdn else 0
    y = jax.random.normal(keys[1], (number, width)) if width else None
    target = jax.random.normal(keys[3], (*images, len(data.targets)))
    return (
        params["network"],
        lambda params: base.apply(method.network, params, sources, y),
        target,
    )


def product(side: int, smoke: bool) -> Prepared:
    """A product of large matrices."""
    left, right = (jax.random.normal(k, (side, side)) for k in jax.random.split(key()))
    multiply = jax.jit(jnp.matmul)
    return {"flops": 2 * side**3}, repeated(_queued(lambda: multiply(left, right)), smoke)


def reading(numbers: int, smoke: bool) -> Prepared:
    """The sum of many numbers, by XLA."""
    x, add = jax.random.normal(key(), (numbers,)), jax.jit(jnp.sum)
    return {"bytes": x.nbytes}, repeated(_queued(lambda: add(x)), smoke)


def reading_by_threads(numbers: int, smoke: bool) -> Prepared:
    """The sum of many numbers by NumPy, a thread a core: XLA may use one core for it."""
    x, cores = np.random.default_rng(0).random(numbers, np.float32), workers.cores()
    parts, pool = np.array_split(x, cores), concurrent.futures.ThreadPoolExecutor(cores)

    def calls(number: int) -> None:
        for _ in range(number):
            list(pool.map(np.sum, parts))

    return {"bytes": x.nbytes}, repeated(calls, smoke)
