"""The record of `benchmarks.accelerator` as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.parts.rows import Row

TOLD = {
    "device": "What it ran on.",
    "checks": "The accelerator beside its host's CPU, both in float32: distance of a step's loss "
    "and gradient, or of DDIM's samples, relative to their norm; then some of the tests.",
    "peaks": "Measured: the highest rates, to compare with.",
    "steps": "A training step of the config's batch. planned: the memory that XLA plans; "
    "allocated: what the allocator handed out at most, where that is more than for any row before. "
    "tflop: before XLA optimizes the program, a multiplication and an addition each for one.",
    "samplers": "A call that samples: `mdn` representations alone, the others whole slices.",
    "patient": "One patient through the Python API, NIfTI to NIfTI, by untrained networks; the "
    "first call compiles.",
    "pytorch": "The network, the squared error and Adam in PyTorch, on a batch that is there. Of "
    "the steps above, `m1` does the same; `cunet` also encodes the targets by MRM.",
    "tracing": "Where the time of C-UNet's step goes, by XLA's profiler, in milliseconds a step.",
    "training": "As many steps as there was time for, on simulated patients: a check that training "
    "works, not a result.",
}


def markdown(content: Mapping[str, Any]) -> str:
    """All parts, a table each."""
    lines = [
        f"{content['devices']} x {content['device']}, JAX {content['jax']}, "
        f"{content['minutes']:g} minutes, {content['size']} pixels a side, "
        f"{content['batch']} slices a step: `{content['command']}`.",
    ]
    for name, part in content["parts"].items():
        lines += ["", f"**{name}.** {TOLD.get(name, '')}", *table(part.get("rows", ()))]
        lines += [
            f"\nThe part was {verb}: {_text(part[key])}."
            for key, verb in (("error", "ended by an error"), ("skipped", "skipped"))
            if key in part
        ]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown, with every column that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return []
    numeric = {c for c in columns if all(_is_number(row[c]) for row in rows if c in row)}
    return [
        "",
        f"| {' | '.join(name.replace('_', ' ') for name in columns)} |",
        f"| {' | '.join('---:' if name in numeric else '---' for name in columns)} |",
        *(f"| {' | '.join(_text(row.get(name, '')) for name in columns)} |" for row in rows),
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """A value as a cell shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("<", "\\<")
