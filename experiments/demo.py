"""From nothing to a synthesized patient: train all stages, evaluate, synthesize, write the report.

  python -m experiments.demo --config=configs/phantom.py:cdm --workdir=runs/demo

Every step is a command of `cdm_jax.main`; a repeated demo does only what is missing. Beside what it
has trained itself, it shows what the shipped model makes of the same patient at twice the
resolution.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

from cdm_jax import checkpoint
from cdm_jax import main as command_line
from cdm_jax.phantom import PhantomSettings, write_patient
from cdm_jax.report.patients import choose
from cdm_jax.writer import console
from experiments.records import load_records


def run(*arguments: str) -> None:
    """Runs one command of the package as if typed; ends the demo where it fails."""
    console.print(f"\n[bold]$ python -m cdm_jax.main {' '.join(arguments)}[/]")
    if code := command_line.main(["cdm_jax.main", *arguments]):
        sys.exit(code)


def _values(arguments: Sequence[str]) -> dict[str, str]:
    return dict(argument.lstrip("-").split("=", 1) for argument in arguments)


def simulate_finer(workdir: pathlib.Path, patient: str) -> pathlib.Path:
    """The same simulated patient with voxels half as long; gives the folder."""
    saved = checkpoint.provenance(workdir / "cunet")
    assert saved is not None  # it has just been trained
    settings = PhantomSettings(**saved.config.phantom.to_dict())
    x, y, z = (2 * size for size in settings.shape)
    finer = dataclasses.replace(settings, shape=(x, y, z), voxel_mm=settings.voxel_mm / 2)
    root = workdir / "finer"
    if not (root / patient).exists():
        root.mkdir(exist_ok=True)
        write_patient(root, finer, int(patient.split("-")[2]))
    return root / patient


def main(arguments: Sequence[str]) -> None:
    """Runs the demo with the flags `--config` and `--workdir`."""
    start = time.perf_counter()
    values = _values(arguments)
    workdir = pathlib.Path(values["workdir"])
    run("train", *arguments)
    hardest = next(iter(choose(load_records(workdir), "cunet", "volume", 1)))
    patient = workdir / "patients" / hardest  # its tumor enhances most
    output = workdir / "synthesis"
    run(
        "synthesize",
        f"--workdir={workdir}",
        f"--input={patient}",
        f"--output={output}",
        "--samples=8",
    )
    finer = simulate_finer(workdir, hardest)
    run(
        "synthesize",
        f"--input={finer}",
        f"--output={workdir / 'shipped'}",
        "--make=t1c,t2f",
        "--replace",
    )
    run("report", f"--workdir={workdir}")
    console.print(
        f"\nDone in {time.perf_counter() - start:.0f} s. Look at:\n"
        f"  {workdir}/report/index.html (tables, pictures, curves, 3D; open it in a browser)\n"
        f"  {output / patient.name} (NIfTI for any viewer, beside {patient})\n"
        f"  {workdir / 'shipped' / patient.name} (the same, finer, by the model that ships)\n"
        f"  {workdir}/cunet/pictures, tensorboard --logdir {workdir} (training)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
