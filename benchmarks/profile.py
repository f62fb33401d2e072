"""Where the time of a training step and of the sampler goes, operation by operation.

  python -m benchmarks.profile [--dataset=phantom] [--small] [--stages=mdn,cunet] [--steps=3]
      [--workdir=runs/profile/<dataset>] [--show]

Needs no data: random slices of the config's shapes and fresh parameters cost what trained ones do.
The step is compiled as the loop compiles it, the sampler (of CDM: every DDIM step of MDN, then
C-UNet) as the evaluation does. Each is compiled, run until it is warm, timed, and run once more
under XLA's profiler. Prints the most expensive operations, says how to open the traces, and writes
`benchmarks/results/<dataset>/profile.json`. Time is this machine's: nothing else should run.
"""

import argparse
import dataclasses
import importlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from benchmarks.batches import random_batch, random_sources
from benchmarks.networks import bytes_of, flops_of, key
from benchmarks.records import load_results, save_results
from benchmarks.traces import by_kind, operations
from cdm_jax import checkpoint, inference, parallel
from cdm_jax.methods import base
from cdm_jax.shapes import create, example, frozen
from cdm_jax.tasks import task_of
from cdm_jax.train import make_step
from cdm_jax.writer import console

DATASETS = ("phantom", "brats", "upenn_gbm")
STAGES = ("mdn", "cunet")
WARM_UP = 2  # calls before any is timed
KEPT, SHOWN = 20, 10  # operations in the record, and in the table

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Something to profile.

    Attributes:
      stage: of the config.
      part: "step" or "sampler".
      slices: that a call takes, on all devices.
      function: compiled by `jax.jit`, but not yet for these arguments.
      arguments: of the first call.
      advance: what a call returned, to the arguments of the next.
    """

    stage: str
    part: str
    slices: int
    function: Any
    arguments: tuple
    advance: Callable[[Any, tuple], tuple]


def fresh_state(config: ConfigDict, stage: str, devices: parallel.Devices) -> base.State:
    """A stage's first state, on the devices, over models of chance values that it builds on.

    Their statistics are near 1, since a deviation that networks divide by is among them.
    """
    method, number = create(config, stage), config[stage].train.batch_size_per_device
    shapes = example(config, number * devices.mesh.size)
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    rng = np.random.default_rng(0)
    models = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            np.float32("statistics" in str(path))
            + 0.02 * rng.standard_normal(leaf.shape, np.float32)
        ),
        frozen(config, method, shapes),
    )
    return devices.init_sharded(method.init, key(), batch, models)


def training_step(config: ConfigDict, stage: str) -> Program:
    """The training step of a stage, as the loop compiles it."""
    devices = parallel.all_devices(config.parallel)
    number = config[stage].train.batch_size_per_device * jax.local_device_count()
    method, state = create(config, stage), fresh_state(config, stage, devices)
    batch = example(config, number)
    step, totals = make_step(method, key(), devices, state, batch, task_of(config.data))
    return Program(
        stage=stage,
        part="step",
        slices=number,
        function=step,
        arguments=(state, totals, devices.put(random_batch(config, number))),
        advance=lambda returned, arguments: (*returned, arguments[2]),
    )


def sampler(config: ConfigDict, stage: str) -> Program:
    """One translation of a batch by a stage, as the evaluation compiles it."""
    method: Any = create(config, stage)
    devices = parallel.all_devices("jit")
    number = config.evaluate.batch_size * jax.local_device_count()
    system = inference.System(
        method=method,
        model=base.model_of(fresh_state(config, stage, devices)),
        provenance=checkpoint.Provenance(config=config, batch_size=number, split="", scales={}),
        fingerprint="",
        batch_size=number,
    )

    def translate(model: base.Model, batch: base.Batch, draw: Any) -> inference.Outputs:
        images = method.translate(model, batch["source"], draw, 1)[0]
        return {stage: base.to_unit_range(images)}

    slices = devices.put({"source": random_sources(config, number)})
    return Program(
        stage=stage,
        part="sampler",
        slices=number,
        function=system.compile(translate),
        arguments=(system.model, slices, key()),
        advance=lambda _, arguments: arguments,
    )


def programs(config: ConfigDict, stages: Sequence[str]) -> Iterator[Program]:
    """The step of every stage, and the sampler of those that translate, one at a time."""
    for stage in stages:
        yield training_step(config, stage)
        if isinstance(create(config, stage), base.Translator):
            yield sampler(config, stage)


def executed_flops(program: Program) -> float:
    """Operations of a call: XLA's analysis, which counts the body of a loop once, and the rest."""
    return _executed(program, flops_of)


def executed_bytes(program: Program) -> float:
    """Bytes that the operations of a call read and write, as XLA counts them once it has fused."""
    return _executed(program, lambda lowered: bytes_of(lowered.compile()))


def _executed(program: Program, count: Callable[[jax.stages.Lowered], float]) -> float:
    shapes = jax.tree.map(_shape, program.arguments)
    total = count(program.function.lower(*shapes))
    for body, times in _repeated(jax.make_jaxpr(program.function)(*shapes).jaxpr, 1):
        arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
        total += times * count(jax.jit(core.jaxpr_as_fun(body)).lower(*arguments))
    return total


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _repeated(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Bodies of scans, and how often more than once each runs when the whole runs `times`."""
    for equation in jaxpr.eqns:
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params):
            if not hasattr(value, "eqns"):
                continue
            if length > 1:
                yield value, times * (length - 1)
            yield from _repeated(getattr(value, "jaxpr", value), times * length)


def measure(program: Program, steps: int, folder: pathlib.Path) -> Row:
    """Compiles, warms up, times and traces a program.

    Args:
      program: its arguments are used up.
      steps: calls to time, and as many to trace.
      folder: of the trace.

    Returns:
      Seconds, operations a second and the most expensive operations, in a call.
    """
    flops = executed_flops(program)
    began = time.perf_counter()
    compiled = program.function.lower(*program.arguments).compile()
    compilation = time.perf_counter() - began
    arguments, _ = _calls(compiled, program, program.arguments, WARM_UP)
    arguments, seconds = _calls(compiled, program, arguments, steps)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call would bury the operations
    with jax.profiler.trace(str(folder), profiler_options=options):
        _calls(compiled, program, arguments, steps)
    rows = operations(folder, compiled.as_text())
    return {
        "stage": program.stage,
        "part": program.part,
        "slices": program.slices,
        "compile_seconds": compilation,
        "seconds": seconds,
        "flops": flops,
        "operation_milliseconds": sum(row.milliseconds for row in rows) / steps,
        "kinds": {kind: total / steps for kind, total in by_kind(rows).items()},
        "operations": [
            dataclasses.asdict(row)
            | {"calls": row.calls / steps, "milliseconds": row.milliseconds / steps}
            for row in rows[:KEPT]
        ],
    }


def _calls(
    compiled: Callable, program: Program, arguments: tuple, number: int
) -> tuple[tuple, float]:
    """So many calls, each on what the last one returned, and the seconds that one took."""
    began = time.perf_counter()
    for call in range(number):
        with jax.profiler.StepTraceAnnotation(program.part, step_num=call):
            returned = compiled(*arguments)
        arguments = program.advance(returned, arguments)
    jax.block_until_ready(returned)
    return arguments, (time.perf_counter() - began) / number


def verdict(row: Row) -> str:
    """What dominates, in a sentence."""
    total, (kind, most) = row["operation_milliseconds"], next(iter(row["kinds"].items()))
    first = row["operations"][0]
    return (
        f"{row['stage']}, {row['part']}: {kind} takes {most / total:.0%} of the operations' time; "
        f"the most expensive single operation ({first['kind']}, {first['place']}) takes "
        f"{first['milliseconds'] / total:.0%}."
    )


def summary_table(content: Row) -> Table:
    """One line a program: time, rate and operations."""
    caption = f"{content['devices']} x {content['device']}, {content['size']} pixels a side"
    table = Table(caption=caption, caption_justify="left")
    names = ("compile s", "ms", "slices", "slices/s", "GFLOP", "GFLOP/s", "operations ms")
    table.add_column("program")
    for name in names:
        table.add_column(name, justify="right")
    for row in content["rows"]:
        seconds, gigas = row["seconds"], row["flops"] / 1e9
        table.add_row(
            f"{row['stage']} {row['part']}",
            f"{row['compile_seconds']:.1f}",
            f"{1e3 * seconds:.1f}",
            str(row["slices"]),
            f"{row['slices'] / seconds:.1f}",
            f"{gigas:.2f}",
            f"{gigas / seconds:.1f}",
            f"{row['operation_milliseconds']:.1f}",
        )
    return table


def operations_table(row: Row) -> Table:
    """The kinds of operations of a program, then its most expensive operations."""
    total = row["operation_milliseconds"]
    table = Table(title=f"{row['stage']} {row['part']}, a call", title_justify="left")
    for name, justify in (("operation", "left"), ("share", "right"), ("calls", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("ms", justify="right")
    table.add_column("where", overflow="fold")
    for kind, milliseconds in row["kinds"].items():
        table.add_row(f"all {kind}", f"{milliseconds / total:.1%}", "", f"{milliseconds:.2f}", "")
    table.add_section()
    for operation in row["operations"][:SHOWN]:
        milliseconds = operation["milliseconds"]
        table.add_row(
            operation["kind"],
            f"{milliseconds / total:.1%}",
            f"{operation['calls']:g}",
            f"{milliseconds:.2f}",
            Text(operation["place"]),  # square brackets are no markup
        )
    return table


def show(content: Row) -> None:
    """Prints the tables and what dominates."""
    for row in content["rows"]:
        console.print(operations_table(row))
    console.print(summary_table(content))
    for row in content["rows"]:
        console.print(verdict(row), soft_wrap=True, markup=False)


def _command(options: argparse.Namespace, values: Sequence[str]) -> str:
    """What makes the record again."""
    words = ["python -m benchmarks.profile", f"--dataset={options.dataset}"]
    words += [f"--{value}" for value in values]
    return " ".join([*words, f"--stages={options.stages}", f"--steps={options.steps}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Profiles, writes the record, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="phantom", choices=DATASETS, help="whose config")
    parser.add_argument("--small", action="store_true", help="the config's networks for a CPU")
    parser.add_argument("--smoke", action="store_true", help="the smallest networks, for tests")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    parser.add_argument("--steps", type=int, default=3, help="calls to time and to trace")
    parser.add_argument("--workdir", type=pathlib.Path, help="of the traces")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args(arguments)
    name = f"{options.dataset}/profile"
    if options.show:
        show(load_results(name))
        return
    values = [value for value in ("small", "smoke") if getattr(options, value)]
    config = importlib.import_module(f"configs.{options.dataset}").get_config(
        ",".join(["cdm", *values])
    )
    stages = options.stages.split(",")
    if unknown := [
        stage for stage in stages if stage not in config or "train" not in config[stage]
    ]:
        parser.error(f"unknown stage '{unknown[0]}'")
    workdir = options.workdir or pathlib.Path("runs/profile") / options.dataset
    rows = []
    for program in programs(config, stages):
        console.print(f"profiling {program.stage}, {program.part}")
        rows.append(measure(program, options.steps, workdir / f"{program.stage}_{program.part}"))
    device = jax.devices()[0]
    content = {
        "command": _command(options, values),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "size": config.data.size,
        "steps": options.steps,
        "rows": rows,
    }
    save_results(name, content)
    show(content)
    console.print(
        f"Traces are in {workdir}. To look at them: pip install xprof; xprof --port 8791 {workdir} "
        "(or open a *.trace.json.gz from there at ui.perfetto.dev).",
        soft_wrap=True,
        markup=False,
    )


if __name__ == "__main__":
    main()
