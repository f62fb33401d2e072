"""What a trace of XLA's profiler says: the time of every operation of one program.

The trace names operations as the compiled program does; what each of them is (a convolution, a
matrix product, ...) and which layer it belongs to is read from the program's text.
"""

import dataclasses
import pathlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax

from cdm_jax.errors import UserError

COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\("
)
FUSED = re.compile(r"calls=%?([\w.\-]+)")  # and not to_apply, what a reduction adds by
TARGET = re.compile(r'(?:custom_call_target|"kind")[=:]"([^"]+)"')
PLACE = re.compile(r'op_name="([^"]*)"')
MODULE = re.compile(r"^HloModule (?P<name>[\w.\-]+)", re.MULTILINE)
# An operation is the first of these that it contains. GPUs call libraries by these names.
KINDS = {
    "convolution": ("convolution", r"cudnn\$conv"),
    "matrix product": ("dot", "gemm", "matmul"),
    "collective": ("all-", "reduce-scatter", "collective-"),
    "pooling": ("reduce-window", "select-and-scatter"),
    "gather, scatter, sort": ("gather", "scatter", "sort"),
    "random bits": ("rng",),
    "reduction": ("reduce",),
}
MOVES = {
    *("parameter", "constant", "copy", "copy-start", "copy-done", "transpose", "bitcast"),
    *("reshape", "broadcast", "pad", "slice", "concatenate", "reverse", "iota", "tuple"),
    *("get-tuple-element", "dynamic-slice", "dynamic-update-slice", "fusion"),
}
WRAPPERS = {"while", "body", "cond", "closed_call", "eval_jaxpr"}  # in the names that JAX notes
CONTAINERS = {"while", "conditional", "call"}  # the operations inside have events of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """An operation of a compiled program.

    Attributes:
      kind: such as "convolution", also where it is fused with others; "" for loops and calls.
      place: where in the networks it comes from, as JAX notes it; its own name and result where
        XLA made it.
    """

    kind: str
    place: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """The time of one operation over a whole trace.

    Attributes:
      name: in the compiled program.
      kind: see `Instruction`; "other" for what the program's text does not name.
      place: see `Instruction`.
      calls: how often it ran, on all devices.
      milliseconds: of all calls together, without what ran within them.
    """

    name: str
    kind: str
    place: str
    calls: int
    milliseconds: float


def instructions(program: str) -> dict[str, Instruction]:
    """The operations of a compiled program, by name.

    Args:
      program: its text, `jax.stages.Compiled.as_text()`.
    """
    lines: dict[str, re.Match] = {}  # by the instruction's name
    inside: dict[str, list[str]] = {}  # computation -> names of its instructions
    names: list[str] = []
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            names = inside.setdefault(head["name"], [])
        elif found := INSTRUCTION.match(line):
            lines[found["name"]] = found
            names.append(found["name"])

    def opcodes(name: str) -> Iterator[str]:
        """What an instruction is made of: itself, a library that it calls, what it fuses."""
        yield lines[name]["opcode"]
        yield from TARGET.findall(lines[name].string)
        for computation in FUSED.findall(lines[name].string):
            for within in inside.get(computation, []):
                yield from opcodes(within)

    return {
        name: Instruction(
            kind="" if line["opcode"] in CONTAINERS else _kind(set(opcodes(name))),
            place=_place(line),
        )
        for name, line in lines.items()
    }


def _kind(opcodes: set[str]) -> str:
    text = " ".join(sorted(opcodes)).lower()
    for kind, words in KINDS.items():
        if re.search(rf"(?<![a-z])({'|'.join(words)})", text):
            return kind
    return "moving data" if opcodes <= MOVES else "elementwise"


def _place(line: re.Match) -> str:
    """Where an instruction comes from, without the functions that were compiled around it."""
    noted = PLACE.search(line.string)
    if noted is None:
        return f"{line['name']} {line['type']}"
    parts = noted[1].split("/")
    kept = [p for p in parts if p not in WRAPPERS and not p.startswith(("jit(", "pjit("))]
    return "/".join(kept) or noted[1]


def operations(folder: pathlib.Path, program: str) -> list[Operation]:
    """The operations of one program in the newest trace of a folder, the most expensive first.

    Args:
      folder: as given to `jax.profiler.trace`.
      program: text of the compiled program, the only one of its name in the trace.

    Raises:
      UserError: no trace, or none of the program's operations is in it.
    """
    known, module = instructions(program), MODULE.search(program)
    assert module is not None, "a compiled program begins with its name"
    calls: dict[str, int] = defaultdict(int)
    nanoseconds: dict[str, float] = defaultdict(float)
    for line in events(newest(folder), module["name"]):
        for name, own in self_times(line):
            calls[name] += 1
            nanoseconds[name] += own
    for name in [n for n in calls if n in known and not known[n].kind]:
        del calls[name]
    if not calls:
        raise UserError(f"the trace in {folder} holds no operation of {module['name']}: trace anew")
    unknown = {name: Instruction(kind="other", place=name) for name in calls.keys() - known.keys()}
    rows = [
        Operation(
            name=name,
            kind=instruction.kind,
            place=instruction.place,
            calls=calls[name],
            milliseconds=nanoseconds[name] / 1e6,
        )
        for name, instruction in (known | unknown).items()
        if name in calls
    ]
    return sorted(rows, key=lambda row: -row.milliseconds)


def newest(folder: pathlib.Path) -> pathlib.Path:
    """The newest trace in a folder that `jax.profiler.trace` wrote to.

    Raises:
      UserError: there is none.
    """
    found = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"no trace in {folder}: its steps were never reached, or another wrote it")
    return found[-1]


Event = tuple[str, float, float]  # name, start and duration in nanoseconds


def events(path: pathlib.Path, module: str) -> Iterator[list[Event]]:
    """The operations of a program that each line (a thread or a stream) of a trace ran.

    Args:
      path: of the trace, as `newest` finds it.
      module: name of the program, such as "jit_step".
    """
    with warnings.catch_warnings():
        # jaxlib 0.11's types lack a name; as an error this warning would end the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                found = []
                for event in line.events:
                    stats = dict(event.stats)
                    if stats.get("hlo_module") == module and not event.name.startswith("end: "):
                        name = str(stats.get("hlo_op", event.name))
                        found.append((name, event.start_ns, event.duration_ns))
                yield found


def kernels(folder: pathlib.Path) -> list[Operation]:
    """What ran on accelerators in the newest trace of a folder, the most expensive first.

    Unlike `operations` it needs no program, and no kernel that names the operation that it is of.

    Raises:
      UserError: there is no trace.
    """
    calls: dict[str, int] = defaultdict(int)
    nanoseconds: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `events`
        for plane in jax.profiler.ProfileData.from_file(str(newest(folder))).planes:
            for line in plane.lines if plane.name.startswith("/device:") else ():
                # XLA's own lines repeat the kernels as modules, operations and layers.
                for event in line.events if "Stream" in (line.name or "") else ():
                    calls[event.name] += 1
                    nanoseconds[event.name] += event.duration_ns
    rows = [
        Operation(name=n, kind="kernel", place=n, calls=calls[n], milliseconds=total / 1e6)
        for n, total in nanoseconds.items()
    ]
    return sorted(rows, key=lambda row: -row.milliseconds)


def self_times(events: Iterable[Event]) -> list[tuple[str, float]]:
    """Name and nanoseconds of each event of a line, less those of the events within it."""
    times: list[tuple[str, float]] = []
    open_until: list[tuple[float, int]] = []  # end, place in `times`
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_until and open_until[-1][0] <= start:
            open_until.pop()
        if open_until:
            outer = open_until[-1][1]
            times[outer] = (times[outer][0], times[outer][1] - duration)
        open_until.append((start + duration, len(times)))
        times.append((name, duration))
    return times


def by_kind(rows: Sequence[Operation]) -> Mapping[str, float]:
    """Milliseconds of each kind of operation, the most expensive first."""
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        sums[row.kind] += row.milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
