"""How large every network of every system is, and how much it computes, at the paper's scale.

  JAX_PLATFORMS=cpu python -m benchmarks.parameters [--size=256] [--stages=pix2pix,cunet] [--peak]
      [--show]

Nothing is trained and no parameter is made: stages are traced for shapes alone. Operations are
counted in the programs before XLA optimizes them, a multiplication and an addition each for one
(twice the "MACs" of publications); the body of a loop counts once, so that sampling costs as many
passes as it has steps. `--peak` also compiles every training step for the device at hand and adds
the memory that it takes there: minutes each, kept in `runs/parameters` should it be interrupted.
Writes `benchmarks/results/parameters.json` and `docs/results/parameters.md`.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.networks import Network, flops_of, key, networks, size_of
from benchmarks.records import load_results, save_results
from cdm_jax import memory, parallel
from cdm_jax.methods import base
from cdm_jax.shapes import create, example, inference_parameters, start
from cdm_jax.writer import console
from configs import brats
from configs.common import SYSTEMS
from experiments.study import DOCS, write

NAME = "parameters"
COMMAND = "JAX_PLATFORMS=cpu python -m benchmarks.parameters --peak"
COMPILED = pathlib.Path("runs/parameters")
# The guided-diffusion UNets that the baseline `diffusion` can be.
VARIANTS: dict[str, dict[str, Any]] = {
    "192, attention 32/16/8": {},
    "128, attention 32/16/8": {"width": 128},
    "128, attention 16/8, plain": {
        "width": 128,
        "attention": (16, 8),
        "resblock_updown": False,
    },
    "64, attention 16": {"width": 64, "attention": (16,)},
}
# What Diffusion's step takes: slices a batch, batches an update, rematerialization.
PLANS = ((12, 1, True), (12, 1, False), (6, 2, True), (6, 2, False))

TOTALS = ("trained", "total", "inference")

Row = dict[str, Any]


def network_row(stage: str, network: Network) -> Row:
    """One network of a stage."""
    return {
        "stage": stage,
        "network": network.name,
        "copies": network.copies,
        "parameters": network.parameters(),
        "flops": network.flops(),
    }


def stage_row(config: ConfigDict, stage: str, *, peak: bool) -> Row:
    """A stage's totals, and one training step on the batch that it takes on one device.

    "trained" are its own parameters, "total" those of the frozen stages that it keeps as well, and
    "inference" those of all these that a translation uses.
    """
    batch = example(config, config[stage].train.batch_size_per_device)
    method, state = create(config, stage), start(config, stage, batch)
    row: Row = {"stage": stage, "trained": size_of(state.params)}
    row["total"] = row["trained"] + sum(size_of(m["params"]) for m in state.frozen.values())
    if isinstance(method, base.Translator):
        row["inference"] = inference_parameters(method, state, example(config, 1))
    config = config.copy_and_resolve_references()
    config.stage = stage
    step = memory.lowered_step(config, parallel.all_devices(config.parallel), key())
    row["step_flops"] = flops_of(step)
    if peak:
        row["peak_bytes"] = memory.peak_bytes(step.compile(compiler_options=parallel.COMPILE_FAST))
    return row


def plan_row(config: ConfigDict, batch: int, accumulate: int, remat: bool) -> Row:
    """Diffusion's step with these settings: operations and memory."""
    config = config.copy_and_resolve_references()
    config.diffusion.remat = remat
    config.diffusion.train.batch_size_per_device = batch
    config.diffusion.optimizer.accumulate = accumulate
    settings = {"batch": batch, "accumulate": accumulate, "remat": remat}
    return settings | stage_row(config, "diffusion", peak=True)


def variants(config: ConfigDict) -> Iterator[Network]:
    """The network of each of `VARIANTS`, by its name."""
    for name, changes in VARIANTS.items():
        changed = config.copy_and_resolve_references()
        changed.diffusion.update(changes)
        (network,) = networks(changed, "diffusion")
        yield dataclasses.replace(network, name=name)


def measure(size: int, stages: Sequence[str], *, peak: bool) -> Iterator[dict[str, Any]]:
    """The record, for slices of this size, as it grows."""
    config = brats.get_config(f"all,size={size}")
    rows: dict[str, list[Row]] = {"networks": [], "stages": [], "variants": [], "plans": []}
    content = {"command": COMMAND, "size": size, "jax": jax.__version__, **rows}
    content["backend"] = jax.default_backend() if peak else ""
    for stage in stages:
        console.print(f"tracing {stage}")
        rows["networks"] += [network_row(stage, n) for n in networks(config, stage)]
        rows["stages"].append(stage_row(config, stage, peak=peak))
        yield content
    if "diffusion" in stages:
        rows["variants"] += [network_row("diffusion", n) for n in variants(config)]
        yield content
    for plan in PLANS if "diffusion" in stages and peak else ():
        rows["plans"].append(plan_row(config, *plan))
        yield content


def tables(content: dict[str, Any]) -> list[str]:
    """Markdown lines of all rows."""
    lines = [
        f"Slices of {content['size']} pixels a side.",
        "",
        "| stage | network | parameters | GFLOP a slice |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in [*content["networks"], *content["variants"]]:
        copies = f" (x {row['copies']})" if row["copies"] > 1 else ""
        cells = [row["stage"], row["network"] + copies, f"{row['parameters']:,}"]
        lines.append(f"| {' | '.join(cells)} | {row['flops'] / 1e9:.2f} |")
    lines += [
        "",
        "| stage | trained | with frozen stages | at inference | TFLOP a step | peak GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["stages"]:
        counts = [f"{row[name]:,}" if name in row else "" for name in TOTALS]
        lines.append(f"| {' | '.join([row['stage'], *counts, *_step_cells(row)])} |")
    return lines + (_plan_lines(content) if content["plans"] else [])


def _step_cells(row: Row) -> list[str]:
    """Operations and memory of a training step."""
    peak = f"{row['peak_bytes'] / memory.GIB:.1f}" if "peak_bytes" in row else ""
    return [f"{row['step_flops'] / 1e12:.2f}", peak]


def _plan_lines(content: dict[str, Any]) -> list[str]:
    """Where the peaks come from, and Diffusion's with other settings."""
    lines = [
        "",
        "Peak: what a training step of the config's batch (12 slices a device) takes of a device's "
        f"memory, as XLA's {content['backend']} backend plans it (JAX {content['jax']}): state, "
        "batch, results and everything in between. Another backend plans otherwise: a GPU's "
        "convolutions need workspaces, and it fuses other operations. On a GPU, `train` asks for "
        "that GPU's own plan before a pipeline begins. A stage without a peak was not compiled.",
        "",
        "Diffusion without rematerialization (`diffusion.remat`), and on half batches whose "
        "gradients are accumulated:",
        "",
        "| batch | batches an update | remat | TFLOP a step | peak GiB |",
        "| ---: | ---: | --- | ---: | ---: |",
    ]
    for row in content["plans"]:
        cells = [str(row["batch"]), str(row["accumulate"]), "on" if row["remat"] else "off"]
        lines.append(f"| {' | '.join([*cells, *_step_cells(row)])} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the record, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--stages", default=",".join(SYSTEMS["all"]), help="comma-separated")
    parser.add_argument("--peak", action="store_true", help="compile every training step as well")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args(arguments)
    if not options.show:
        jax.config.update("jax_compilation_cache_dir", str(COMPILED.absolute()))
        stages = options.stages.split(",")
        for content in measure(options.size, stages, peak=options.peak):
            save_results(NAME, content)
    text = "\n".join(tables(load_results(NAME)))
    console.print(text, soft_wrap=True)
    DOCS.mkdir(parents=True, exist_ok=True)
    write(DOCS / "parameters.md", text + "\n")


if __name__ == "__main__":
    main()
