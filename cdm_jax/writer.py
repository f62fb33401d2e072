"""What a run leaves to look at: a progress bar, JSON lines, TensorBoard, pictures, a profile."""

import functools
import json
import pathlib
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from cdm_jax import parallel
from cdm_jax.files import read_lines, replacing

# A table of two targets needs 118 columns, which a log file has.
console = Console(width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """Prints one line as it is: paths may have brackets, and are not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@functools.cache
def say_once(text: str) -> None:
    """Prints a line that this process has not printed yet."""
    say(text)


class Writer:
    """Scalars to `metrics.jsonl` and TensorBoard, pictures to `pictures/` and TensorBoard.

    Of several processes, the first one writes. Lines of steps after the one from which the run
    continues, left by a killed run, are dropped.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._silent = not parallel.is_first()
        if self._silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lines = folder / "metrics.jsonl"
        self._keep_until(step)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._silent:
            self._tensorboard.close()

    def _keep_until(self, step: int) -> None:
        if not self._lines.exists():
            return
        # A run that begins anew measures its step 0 again.
        kept = [line for line in read_lines(self._lines) if step and line["step"] <= step]
        with replacing(self._lines) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes values of one step; names such as "validation/loss" group them."""
        if self._silent:
            return
        plain = {name: float(value) for name, value in values.items()}
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step} | plain) + "\n")
        for name, value in plain.items():
            self._tensorboard.add_scalar(name, value, step)

    def pictures(self, step: int, rows: Mapping[str, Float[np.ndarray, "b h w"]]) -> None:
        """Writes one PNG: a row for each name, a column for each slice; values in [0, 1]."""
        if self._silent or not rows:
            return
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows.values()], axis=0)
        gray = np.rint(np.clip(sheet, 0, 1) * 255).astype(np.uint8)
        (self._folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(gray).save(self._folder / "pictures" / f"{step:07d}.png")
        self._tensorboard.add_image(" / ".join(rows), gray, step, dataformats="HW")


class TrainingProgress:
    """A bar from the first step to the last, and a line at each validation.

    It shows the loss, slices a second and the time left.
    """

    def __init__(self, stage: str, first: int, last: int):
        self._stage, self._last = stage, last
        self._since = (first, time.perf_counter())
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(stage, total=last, completed=first, status="compiling")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: int, loss: Any, batch_size: int) -> None:
        """Moves the bar to a step whose loss is known."""
        before, when = self._since
        self._since = (step, time.perf_counter())
        rate = (step - before) * batch_size / (self._since[1] - when)
        status = f"loss {float(loss):.4f}  {rate:.0f} slices/s"
        self._bar.update(self._task, completed=step, status=status)

    def note(self, step: int, metrics: Mapping[str, Any], best: bool) -> None:
        """Prints validation metrics as a line that stays, and whether they are the best so far."""
        text = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
        end = " (best)" if best else ""
        self._bar.console.print(f"{self._stage} {step}/{self._last}: validation {text}{end}")

    def stop(self, step: int) -> None:
        """Says that training ends before its last step."""
        self._bar.console.print(
            f"{self._stage} stops early at step {step} of {self._last}: validation got no better"
        )


SAVED = 75  # the exit code of who was asked to stop and has saved; in sysexits.h "try again later"


class StopRequest:
    """While it is entered, SIGTERM and Ctrl-C ask to save and leave instead of killing.

    Several processes have to agree on a step: there JAX listens for SIGTERM, and Ctrl-C kills.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True


class ProfilerWindow:
    """Traces so many steps, from the first one on, by XLA's profiler into `<folder>/profile`."""

    def __init__(self, folder: pathlib.Path, first_step: int, num_steps: int):
        self._folder = str(folder / "profile")
        self._steps = range(first_step, first_step + num_steps)
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Call before each step; starts and ends the trace when its time has come.

        Devices run behind Python: the trace begins and ends when they have computed `state`, so
        that it holds its own steps and no other.
        """
        if step in self._steps and not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and step not in self._steps:
            self.close(state)

    def close(self, state: Any) -> None:
        """Ends a trace that runs; open it with `xprof --port 8791 <folder>/profile`."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            console.print(f"profile written to {self._folder}")
        self._running = False
