"""Times training steps of PyTorch's C-UNet and M1, in a process of its own.

  python -m benchmarks.parts.torch_steps '{"networks": {"m1": {...}}, "size": 256, ...}'

The argument is what `benchmarks.parts.pytorch` makes of the config; a row is a line of JSON.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.parts.rows import GROUPS, survive
from benchmarks.parts.torch_cunet import CUNet

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# Mode -> precision of what autocast leaves in float32, channels last, autocast to bf16, compiled.
MODES = {
    "eager, tf32": (True, False, False, False),
    "eager, bf16, channels last": (True, True, True, False),
    "compiled, bf16, channels last": (True, True, True, True),
    "compiled, tf32": (True, False, False, True),
    "eager, float32": (False, False, False, False),
}


def measure(given: dict[str, Any], network: str, mode: str) -> dict[str, Any]:
    """Milliseconds of a step of Adam on the squared error, and the memory that it took."""
    tf32, channels_last, autocast, compiled = MODES[mode]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    step = _step(given, network, channels_last, autocast, compiled)
    seconds = _median_seconds(step, given["smoke"])
    row = {
        "milliseconds": 1e3 * seconds,
        "slices_per_second": given["batch"] / seconds,
    }
    if CUDA:
        row["allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def _step(
    given: dict[str, Any], network: str, channels_last: bool, autocast: bool, compiled: bool
) -> Callable[[], None]:
    """A training step on one batch of noise."""
    options, batch, size = dict(given["networks"][network]), given["batch"], given["size"]
    expected = options.pop("parameters")
    model = CUNet(**options)
    check_parameters(network, model, expected)
    sources, targets = (
        torch.randn(batch, options[name], size, size, device=DEVICE)
        for name in ("sources", "targets")
    )
    representation = options["representation"]
    y = torch.randn(batch, representation, device=DEVICE) if representation else None
    context = torch.autocast(DEVICE, torch.bfloat16) if autocast else contextlib.nullcontext()
    return stepping(model, (sources, y), targets, channels_last, compiled, context)


def check_parameters(network: str, model: nn.Module, expected: int) -> None:
    """Refuses a network that is not of our size.

    Raises:
      ValueError: the numbers of parameters differ.
    """
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != expected:
        raise ValueError(f"{network} has {found} parameters in PyTorch, and {expected} in JAX")


def stepping(
    model: nn.Module,
    inputs: tuple[torch.Tensor | None, ...],
    targets: torch.Tensor,
    channels_last: bool,
    compiled: bool,
    context: contextlib.AbstractContextManager | None = None,
) -> Callable[[], None]:
    """A step of Adam on the squared error.

    Args:
      model: from `inputs` to what should be `targets`.
      inputs: the same for every step.
      targets: the same for every step.
      channels_last: whether images lie in memory channel by channel of a pixel.
      compiled: whether by `torch.compile`.
      context: in which the loss is computed, again and again.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    held: Any = model
    held = held.to(DEVICE, memory_format=layout)
    placed = [_placed(x, layout) for x in (*inputs, targets)]
    # Adam as the configs have it: the decay is added to the gradient.
    optimizer = torch.optim.Adam(held.parameters(), lr=1e-4, weight_decay=1e-5, fused=CUDA)
    forward: Any = torch.compile(held) if compiled else held

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context or contextlib.nullcontext():
            loss = nn.functional.mse_loss(forward(*placed[:-1]), placed[-1])
        loss.backward()
        optimizer.step()

    return step


def _placed(x: torch.Tensor | None, layout: torch.memory_format) -> Any:
    return x.to(memory_format=layout) if x is not None and x.dim() == 4 else x


def _median_seconds(step: Callable[[], None], smoke: bool) -> float:
    """As `session.median_seconds`; the first three calls compile, and try convolutions out."""
    for _ in range(1 if smoke else 3):
        step()
    once = _seconds(step, 1)
    number = 1 if smoke else max(1, min(20, int(0.4 / once)))
    return float(np.median([_seconds(step, number) for _ in range(GROUPS)]))


def _seconds(step: Callable[[], None], number: int) -> float:
    if CUDA:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(number):
        step()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / number


def rows(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each network and mode."""
    if given["smoke"]:
        torch.set_num_threads(1)  # tiny layers, on a machine that may be busy
    for network in given["networks"]:
        for mode in MODES:
            row = {"network": network, "mode": mode}
            if mode.startswith("compiled") and not CUDA:
                yield row | {"skipped": "compiled on GPUs alone"}
                continue
            yield row | survive(functools.partial(measure, given, network, mode))


if __name__ == "__main__":
    for row in rows(json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)
