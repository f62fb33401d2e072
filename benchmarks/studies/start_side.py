"""What a start takes, and what is compiled: in a process that has done nothing before."""

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax import monitoring

from benchmarks.parts.rows import Row
from benchmarks.studies.cases import Case, config_of
from benchmarks.studies.worker import Prepared

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of the event
FEW = 0.05  # of a run's time in the compiler: functions below it are told of together


def first_step(case: Case, folder: str, began: float) -> Prepared:
    """Seconds of each phase from the start of this process to the end of a step.

    Args:
      case: of the stage that takes the step.
      folder: of JAX's cache, set as the command line sets it.
      began: when this process was started, by `time.time`.
    """
    from benchmarks import profile  # a part of the imports that are timed

    imported = time.time()
    jax.config.update("jax_compilation_cache_dir", folder)
    program = profile.training_step(config_of(case), case["stage"])
    jax.block_until_ready(program.arguments)
    made = time.time()
    compiled = program.function.lower(*program.arguments).compile()
    ready = time.time()
    jax.block_until_ready(compiled(*program.arguments))
    ends = {"imports": imported, "state": made, "compile": ready, "step": time.time()}
    return _between(began, ends) | {"seconds": ends["step"] - began}, lambda: 0.0


def _between(begin: float, ends: dict[str, float]) -> Row:
    return {
        name: end - before
        for (name, end), before in zip(ends.items(), [begin, *ends.values()], strict=False)
    }


def run(argument: str, folder: str) -> Prepared:
    """Trains and scores a system on simulated patients by the command line, into a new folder."""
    from cdm_jax import main

    config = f"--config=configs/phantom.py:{argument}"
    with compiled_functions() as found:
        status = main.main(["cdm_jax.main", "train", config, f"--workdir={folder}"])
    if status:
        raise RuntimeError(f"the run ended with status {status}")
    return {"functions": listed(found)}, lambda: 0.0


@contextlib.contextmanager
def compiled_functions() -> Iterator[dict[str, list[float]]]:
    """What is compiled within: a function's name -> seconds of each time, as they come."""
    found: dict[str, list[float]] = collections.defaultdict(list)

    def note(event: str, duration_secs: float, **about: Any) -> None:
        if event == COMPILED:
            found[str(about.get("fun_name", ""))].append(duration_secs)

    monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(note)


def listed(found: dict[str, list[float]]) -> list[Row]:
    """A row for each function that takes a share of the time, then one for all others."""
    ranked = sorted(found.items(), key=lambda item: -sum(item[1]))
    whole = sum(sum(times) for _, times in ranked)
    large = [(name, times) for name, times in ranked if sum(times) >= FEW * whole]
    rows = [
        {"function": name, "compilations": len(times), "compile_seconds": sum(times)}
        for name, times in large
    ]
    others = ranked[len(large) :]
    return [
        *rows,
        {
            "function": f"{len(others)} small ones",
            "compilations": sum(len(times) for _, times in others),
            "compile_seconds": sum(sum(times) for _, times in others),
        },
    ]
