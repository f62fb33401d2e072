"""What a step, a sample, a batch, a score and a start take on a CPU, beside other libraries.

  python -m benchmarks.efficiency [--studies=training,sampling] [--turns=5] [--smoke] [--show]
      [--other_python=<interpreter>] [--record=<file>] [--workdir=<folder>]

`STUDIES` lists what can be measured, in order of worth. Whatever is timed runs in a process of its
own and in turn with what it is compared with, so that no two share the cores; the record has
medians over the turns. The libraries' networks have as many parameters, or nothing is compared.
The others are PyTorch, MONAI, torchmetrics and scikit-image (`pip install cdm_jax[dev,parity]`), in
this environment or in that of `--other_python`; what is not installed is said and left out.

The record, `benchmarks/results/efficiency.json`, is written after every row, and studies that are
not asked for stay as they are. `--show` draws `efficiency.md` and `efficiency.png` in docs/results
from it. Times are this machine's: nothing else should run.
"""

import argparse
import functools
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from benchmarks import records
from benchmarks.parts.checks import ROOT
from benchmarks.parts.machine import version
from benchmarks.parts.rows import Row
from benchmarks.parts.session import collect
from benchmarks.studies.contest import Setting
from benchmarks.studies.drawing import draw
from benchmarks.studies.growth import frames, growth
from benchmarks.studies.limits import roofline
from benchmarks.studies.loaders import loading
from benchmarks.studies.metrics import metrics
from benchmarks.studies.networks import sampling, training
from benchmarks.studies.start import compilations, start
from benchmarks.studies.telling import markdown
from cdm_jax.errors import UserError, nearest
from cdm_jax.files import read_json
from cdm_jax.workers import cores
from cdm_jax.writer import console
from experiments.records import write_rounded
from experiments.study import DOCS, write

NAME = "efficiency"
OTHERS = ("torch", "monai", "torchmetrics", "scikit-image")
VERSIONS = """
import json, sys
from benchmarks.parts.machine import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "grain")
STUDIES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "training": training,
    "sampling": sampling,
    "roofline": roofline,
    "metrics": metrics,
    "loading": loading,
    "frames": frames,
    "start": start,
    "compilations": compilations,
    "growth": growth,
}


def machine() -> Row:
    """What decides times: two records of different machines do not go together."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def others(python: str) -> Row:
    """Versions of the libraries that an interpreter compares this package with."""
    found = subprocess.run(
        [python, "-c", VERSIONS, *OTHERS], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return json.loads(found.stdout)


def _processor() -> str:
    """The model of the processor, where the system tells it."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def begun(path: pathlib.Path, smoke: bool) -> Row:
    """The record so far, or a new one.

    Raises:
      UserError: the record is of another machine or other versions.
    """
    here = machine()
    if not path.exists():
        return {"machine": here, "smoke": smoke, "studies": {}}
    content = read_json(path)
    for name, value in here.items():
        if content["machine"].get(name) != value:
            raise UserError(
                f"{path} is of {name} {content['machine'].get(name)}, and this is {value}: give "
                "another --record, or delete that one"
            )
    return content


def measure(chosen: Sequence[str], setting: Setting, path: pathlib.Path) -> Row:
    """Makes the chosen studies one after the other; returns the record.

    Raises:
      UserError: see `begun`.
    """
    content = begun(path, setting.smoke) | {"others": others(setting.other_python)}
    save = functools.partial(write_rounded, path, content)
    for name in chosen:
        console.rule(name)
        found: Row = {"rows": [], "turns": setting.turns}
        studies = content["studies"] | {name: found}
        content["studies"] = {n: studies[n] for n in STUDIES if n in studies}
        collect(functools.partial(STUDIES[name], setting), found, save)
        save()
    console.print(f"written to {path}", soft_wrap=True)
    return content


def show(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Prints the record's tables, and writes them and the picture into a folder.

    Raises:
      UserError: there is no record.
    """
    if not path.exists():
        raise UserError(f"there is no record {path}: run this without --show first")
    content = read_json(path)
    text = markdown(content)
    write(folder / f"{NAME}.md", text)
    draw(content).savefig(folder / f"{NAME}.png", dpi=200)
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def chosen_studies(text: str) -> list[str]:
    """The studies that a comma-separated list names, in order of worth.

    Raises:
      UserError: there is none of that name.
    """
    names = text.split(",")
    for name in names:
        if name not in STUDIES:
            hint = nearest(name, STUDIES)
            raise UserError(f"unknown study '{name}'{hint}: allowed are {', '.join(STUDIES)}")
    return [name for name in STUDIES if name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the record, or draws from it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", default=",".join(STUDIES), help="comma-separated")
    parser.add_argument("--turns", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, for tests")
    parser.add_argument("--show", action="store_true", help="only draw from the record")
    parser.add_argument("--other_python", default=sys.executable, help="that has PyTorch and MONAI")
    parser.add_argument("--record", type=pathlib.Path, help="file to write, or to show")
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="of patients; default: a temporary one"
    )
    options = parser.parse_args(arguments)
    name = f"{NAME}_smoke" if options.smoke else NAME
    path = options.record or records.RESULTS / f"{name}.json"
    try:
        if options.turns < 1:
            raise UserError(f"--turns is {options.turns}: use 1 or more")
        chosen = chosen_studies(options.studies)
        if options.show:
            show(path, DOCS if path == records.RESULTS / f"{NAME}.json" else path.parent)
            return
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(
                smoke=options.smoke,
                turns=options.turns,
                workdir=options.workdir or pathlib.Path(folder),
                other_python=options.other_python,
            )
            measure(chosen, setting, path)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
