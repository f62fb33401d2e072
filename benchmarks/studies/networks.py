"""Training steps and sampling beside PyTorch, MDN's sampling also beside the limit of reading."""

from collections.abc import Iterator
from typing import Any

from benchmarks.parts.rows import Row
from benchmarks.studies.cases import Case, case, torch_options
from benchmarks.studies.contest import Contender, Setting, beside, contest

EAGER = {"library": "PyTorch", "mode": "eager"}
LAYOUTS = ("eager", "eager, channels last", "compiled", "compiled, channels last")
PLAIN = ("eager", "compiled")  # of networks with few convolutions
# Stage, scale, slices a step or call, PyTorch's modes.
STEPS = (
    ("cunet", "paper", 2, LAYOUTS),
    ("m1", "paper", 2, LAYOUTS),
    ("mdn", "paper", 12, PLAIN),
    ("cunet", "small", 8, LAYOUTS),
    ("m1", "small", 8, LAYOUTS),
    ("mdn", "small", 8, PLAIN),
)
SAMPLERS = (
    ("mdn", "paper", 1, PLAIN),
    ("mdn", "paper", 12, PLAIN),
    ("cunet", "paper", 1, LAYOUTS),
    ("mdn", "small", 1, PLAIN),
    ("cunet", "small", 8, LAYOUTS),
)
SMOKE_STEPS = (("cunet", "smoke", 2, ("eager",)), ("mdn", "smoke", 2, ("eager",)))
SMOKE_SAMPLERS = (("mdn", "smoke", 1, ("eager",)), ("cunet", "smoke", 2, ("eager",)))


def training(setting: Setting) -> Iterator[Row]:
    """A step of the squared error and Adam, in JAX and in PyTorch; and JAX's whole step."""
    for stage, scale, batch, modes in SMOKE_STEPS if setting.smoke else STEPS:
        one = case(scale, stage, batch)
        given: Row = {"case": one, "smoke": setting.smoke}
        contenders = [
            ("JAX", "network alone", "jax_side.network", given),
            ("JAX", "the loop's step", "jax_side.program", given | {"part": "step"}),
            *_of_pytorch("training", one, modes, setting),
        ]
        yield from _compared(one, contenders, setting)


def sampling(setting: Setting) -> Iterator[Row]:
    """Samples of y by MDN, and slices by MDN and C-UNet, in JAX and in PyTorch."""
    for stage, scale, batch, modes in SMOKE_SAMPLERS if setting.smoke else SAMPLERS:
        one = case(scale, stage, batch)
        part = "codes" if stage == "mdn" else "sampler"
        given: Row = {"case": one, "smoke": setting.smoke, "part": part}
        contenders = [
            ("JAX", "compiled", "jax_side.program", given),
            *_of_pytorch("sampling", one, modes, setting),
        ]
        yield from _compared(one, contenders, setting)


def _of_pytorch(function: str, one: Case, modes: tuple[str, ...], setting: Setting) -> list[Any]:
    options = {"given": torch_options(one), "stage": one["stage"], "smoke": setting.smoke}
    return [("PyTorch", mode, f"torch_side.{function}", options | {"mode": mode}) for mode in modes]


def _compared(one: Case, contenders: list[Any], setting: Setting) -> Iterator[Row]:
    """The rows of a case, with slices a second and how they compare with eager PyTorch."""
    names = {name: one[name] for name in ("stage", "scale", "batch")}
    rows = contest(
        [
            Contender(
                names=names | {"library": library, "mode": mode},
                side=side,
                given=given,
                python=setting.other_python if library == "PyTorch" else Contender.python,
            )
            for library, mode, side, given in contenders
        ],
        setting.turns,
    )
    for row in beside(rows, EAGER):
        if "milliseconds" in row:
            row |= {"slices_per_second": 1e3 * one["batch"] / row["milliseconds"]}
        yield row
