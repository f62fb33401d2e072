"""What one accelerator does with this package, measured by one command of minutes, without network.

  python -m benchmarks.accelerator [--minutes=8] [--parts=steps,samplers] [--record=<file>]
      [--workdir=<folder>] [--smoke] [--show]

The parts, in order of worth, are listed in `PARTS`. Each may go on until its share of the time is
gone; what one leaves, the next one has. A part or a row that fails is recorded with its error, and
the rest goes on. The record is written after every row, to `benchmarks/results/accelerator.json`;
with `--parts`, the other parts of the record stay as they are. Without a GPU, or with `--smoke`
(the smallest networks, to test the command), it is `accelerator_<platform>.json`. `--show` prints
the tables of the GPU's record, and writes them to `docs/results/accelerator.md`.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from benchmarks import records
from benchmarks.parts.checks import checks
from benchmarks.parts.machine import device, peaks
from benchmarks.parts.patients import patient, simulate, training
from benchmarks.parts.pytorch import pytorch
from benchmarks.parts.rows import Row, SkippedError
from benchmarks.parts.samplers import samplers
from benchmarks.parts.session import NO_TIME, Session, collect
from benchmarks.parts.steps import steps
from benchmarks.parts.tables import markdown
from benchmarks.parts.tracing import tracing
from cdm_jax.files import read_json
from cdm_jax.writer import console
from experiments.records import write_rounded
from experiments.study import DOCS, write

NAME = "accelerator"
Part = Callable[[Session], Iterator[Row]]
# Each with its share of the time: about minutes, of eight.
PARTS: dict[str, tuple[Part, float]] = {
    "device": (device, 0.1),
    "checks": (checks, 1.0),
    "peaks": (peaks, 0.2),
    "steps": (steps, 2.2),
    "samplers": (samplers, 0.8),
    "patient": (patient, 0.6),
    "pytorch": (pytorch, 1.0),
    "tracing": (tracing, 0.4),
    "training": (training, 1.7),
}


def run(
    parts: Mapping[str, tuple[Part, float]],
    session: Session,
    seconds: float,
    save: Callable[[], None],
) -> None:
    """Runs the parts one after the other.

    Args:
      parts: each with its share of the time.
      session: its record, `session.parts`, is filled.
      seconds: that there are for all.
      save: called whenever the record has grown.
    """
    start, spent, whole = time.monotonic(), 0.0, sum(share for _, share in parts.values())
    for name, (part, share) in parts.items():
        spent += share
        console.rule(name)
        found = session.parts[name] = {"rows": []}
        own = dataclasses.replace(session, deadline=start + seconds * spent / whole)
        collect(functools.partial(_in_time, part, own), found, save)
        save()


def _in_time(part: Part, session: Session) -> Iterator[Row]:
    """The rows of a part, if there is any time for it."""
    if session.left() <= 0:
        raise SkippedError(NO_TIME)
    yield from part(session)


def _header(options: argparse.Namespace) -> dict[str, Any]:
    """What the record says of itself, with no part yet."""
    words = [f"--minutes={options.minutes:g}", *["--smoke"] * options.smoke]
    words += [f"--parts={options.parts}"] * (options.parts != ",".join(PARTS))
    return {
        "command": " ".join(["python -m benchmarks.accelerator", *words]),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "minutes": options.minutes,
        "parts": {},
    }


def _path(options: argparse.Namespace) -> pathlib.Path:
    """Where the record goes: that of a GPU is replaced by no other."""
    platform = jax.default_backend()
    name = NAME if platform == "gpu" and not options.smoke else f"{NAME}_{platform}"
    return options.record or records.RESULTS / f"{name}.json"


def measure(options: argparse.Namespace, chosen: Sequence[str], workdir: pathlib.Path) -> Row:
    """Runs the chosen parts; returns the record."""
    path, content = _path(options), _header(options)
    if len(chosen) < len(PARTS) and path.exists():
        before = read_json(path)
        if before["device"] != content["device"]:
            raise SystemExit(f"error: {path} is of {before['device']}: give another --record")
        content["parts"] = before["parts"]
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is None:  # what one part compiles, others find
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if options.smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles in a third of the time
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        patients: concurrent.futures.Future[pathlib.Path] = concurrent.futures.Future()
        if {"patient", "training"} & set(chosen):  # simulated while the first parts run
            patients = thread.submit(simulate, options.smoke, workdir / "patients")
        session = Session(
            smoke=options.smoke,
            workdir=workdir,
            patients=patients,
            deadline=0,
            parts=content["parts"],
        )
        config = session.config("float32")
        content["size"], content["batch"] = (
            config.data.size,
            config.cunet.train.batch_size_per_device,
        )
        wanted = {name: PARTS[name] for name in PARTS if name in chosen}
        run(wanted, session, 60 * options.minutes, lambda: write_rounded(path, content))
    console.print(f"written to {path}", soft_wrap=True)
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the record, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--record", type=pathlib.Path, help="file to write, or to show")
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="of traces; by default a temporary one"
    )
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, for tests")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args(arguments)
    chosen = options.parts.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"unknown part '{unknown[0]}': allowed are {', '.join(PARTS)}")
    if options.show:
        path = options.record or records.RESULTS / f"{NAME}.json"
        if not path.exists():
            parser.error(f"there is no record {path}: make it by a run on a GPU")
        text = markdown(read_json(path))
        if not options.record:
            write(DOCS / f"{NAME}.md", text)
    else:
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
        with tempfile.TemporaryDirectory() as folder:
            text = markdown(measure(options, chosen, options.workdir or pathlib.Path(folder)))
    console.print(text, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
