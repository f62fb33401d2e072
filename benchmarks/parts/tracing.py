"""Where the time of C-UNet's training step goes, by XLA's profiler."""

from collections.abc import Iterator

from benchmarks import profile, traces
from benchmarks.parts.rows import Row, SkippedError, told
from benchmarks.parts.session import NO_TIME, Session, products

KEPT = 12  # operations and kernels of each program
STEPS = 5


def tracing(session: Session) -> Iterator[Row]:
    """Kinds of operations, the dearest ones, and kernels by their own names, a step."""
    for precision in ("tf32", "bf16"):
        if session.left() <= 0:
            yield {"precision": precision, "skipped": NO_TIME}
            continue
        try:
            for row in _trace(session, precision):
                yield {"precision": precision} | row
        except SkippedError as reason:
            yield {"precision": precision, "skipped": str(reason)}


def _trace(session: Session, precision: str) -> Iterator[Row]:
    steps = 1 if session.smoke else STEPS
    folder = session.workdir / f"trace_{precision}"
    try:
        with products(precision):
            program = profile.training_step(session.config(precision), "cunet")
            found = profile.measure(program, steps, folder)
        yield {"what": "step", "milliseconds": 1e3 * found["seconds"]}
        for kind, milliseconds in found["kinds"].items():
            yield {"what": f"all {kind}", "milliseconds": milliseconds}
        for operation in found["operations"][:KEPT]:
            names = {"what": operation["kind"], "where": operation["place"]}
            yield names | {name: operation[name] for name in ("calls", "milliseconds")}
    except SkippedError:
        raise
    except Exception as error:  # the trace may hold kernels that name no operation
        yield {"what": "operations", "error": told(error)}
    for row in traces.kernels(folder)[:KEPT]:
        calls, milliseconds = row.calls / steps, row.milliseconds / steps
        yield {"what": "kernel", "where": row.name, "calls": calls, "milliseconds": milliseconds}
