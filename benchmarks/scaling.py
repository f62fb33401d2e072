"""What a training step costs on many devices: operations, memory, and what the devices exchange.

  JAX_NUM_CPU_DEVICES=8 python -m benchmarks.scaling [--stages=cunet,diffusion] [--modes=jit,fsdp]
      [--size=256] [--show]

Every step is compiled for all devices that JAX shows (here as many parts of a CPU), with the batch
of the paper on each, and never run. The collectives are counted in the compiled program: what it
exchanges does not depend on the kind of device, what it keeps in memory does to some degree. Writes
`benchmarks/results/scaling.json` and, from it, `docs/results/scaling.md`, with times of A100s.
"""

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.networks import flops_of, key, size_of
from benchmarks.records import load_results, save_results
from cdm_jax import memory, parallel, shapes
from cdm_jax.writer import console
from configs import brats
from experiments.costs import NVLINK, PEAK, SHARE
from experiments.study import DOCS, write

NAME = "scaling"
COMMAND = "JAX_NUM_CPU_DEVICES=8 python -m benchmarks.scaling"
STAGES = ("mrm", "mdn", "cunet", "pix2pix", "diffusion")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"(?P<type>[a-z]+)(?P<bits>\d*)(e\d\w*)?\[(?P<lengths>[\d,]*)\]")
INFINIBAND = 25e9  # bytes a second of HDR, one port for each GPU

Row = dict[str, Any]


def collectives(program: jax.stages.Compiled) -> dict[str, dict[str, int]]:
    """What devices exchange: for each kind of collective how many there are, and their bytes.

    Args:
      program: compiled for several devices.

    Returns:
      kind -> "number", "bytes" of all results on one device, and "largest", those of the largest
      array.
    """
    found: dict[str, dict[str, int]] = {}
    for match in COLLECTIVE.finditer(program.as_text() or ""):
        sizes = [_bytes(array) for array in ARRAY.finditer(match["shapes"])]
        entry = found.setdefault(match["kind"], {"number": 0, "bytes": 0, "largest": 0})
        entry["number"] += 1
        entry["bytes"] += sum(sizes)
        entry["largest"] = max(entry["largest"], *sizes)
    return found


def gathered(program: jax.stages.Compiled) -> list[tuple[int, ...]]:
    """The shape of each array that an all-gather makes."""
    return [
        _lengths(array)
        for match in COLLECTIVE.finditer(program.as_text() or "")
        if match["kind"] == "all-gather"
        for array in ARRAY.finditer(match["shapes"])
    ]


def _lengths(array: re.Match) -> tuple[int, ...]:
    return tuple(int(length) for length in array["lengths"].split(",") if length)


def _bytes(array: re.Match) -> int:
    bits = int(array["bits"] or 8)  # "pred" is a byte
    return math.prod(_lengths(array)) * bits // 8


def measure(config: ConfigDict, stage: str, mode: str) -> Row:
    """One step: operations and memory of a device, collectives."""
    config = config.copy_and_resolve_references()
    config.stage = stage
    lowered = memory.lowered_step(config, parallel.all_devices(mode), key())
    compiled = lowered.compile(compiler_options=parallel.COMPILE_FAST)
    plan: Any = compiled.memory_analysis()
    state = shapes.start(config, stage, shapes.example(config, 1))
    return {
        "stage": stage,
        "mode": mode,
        "parameters": size_of(state.params),
        "flops": flops_of(lowered) / jax.device_count(),
        "state_bytes": plan.argument_size_in_bytes,
        "peak_bytes": memory.peak_bytes(compiled),
        "collectives": collectives(compiled),
    }


def exchange_seconds(row: Row, devices: int, bandwidth: float) -> float:
    """Time of a ring that moves the step's collectives, if nothing hides it.

    An all-reduce sends 2 (n - 1) / n of its bytes, the others about (n - 1) / n.
    """
    share = (devices - 1) / devices
    passes = {"all-reduce": 2 * share}
    moved = sum(
        entry["bytes"] * passes.get(kind, share) for kind, entry in row["collectives"].items()
    )
    return moved / bandwidth


def table(content: dict[str, Any]) -> list[str]:
    """Markdown lines."""
    n = content["devices"]
    lines = [
        f"A step of {content['each']} slices of {content['size']} pixels on each of {n} devices.",
        "",
        "| stage | mode | TFLOP a device | at rest GiB | peak GiB | all-reduce | all-gather "
        "| compute ms | exchange ms: 8 by NVLink | 32 by InfiniBand |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["rows"]:
        kinds = [row["collectives"].get(kind) for kind in ("all-reduce", "all-gather")]
        moved = [f"{k['number']}, {k['bytes'] / 1e6:.1f} MB" if k else "" for k in kinds]
        cells = [
            row["stage"],
            row["mode"],
            f"{row['flops'] / 1e12:.3f}",
            f"{row['state_bytes'] / 2**30:.2f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            *moved,
            f"{1e3 * row['flops'] / (PEAK * SHARE):.1f}",
            f"{1e3 * exchange_seconds(row, 8, NVLINK):.2f}",
            f"{1e3 * exchange_seconds(row, 32, INFINIBAND):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def show() -> None:
    """Prints and writes what the committed record says."""
    text = "\n".join(table(load_results(NAME)))
    console.print(text, soft_wrap=True)
    write(DOCS / "scaling.md", text + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, writes the record, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    parser.add_argument("--modes", default="jit,fsdp", help="comma-separated")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args(arguments)
    if not options.show:
        config = brats.get_config(f"all,size={options.size}")
        rows = []
        for stage in options.stages.split(","):
            for mode in options.modes.split(","):
                console.print(f"compiling {stage}, {mode}")
                rows.append(measure(config, stage, mode))
        shape = {"size": options.size, "each": config.cunet.train.batch_size_per_device}
        content = {"command": COMMAND, "devices": jax.device_count(), **shape, "rows": rows}
        save_results(NAME, content)
    show()


if __name__ == "__main__":
    main()
