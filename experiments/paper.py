"""The whole paper on your patients: all systems, Tables I to IV, Figures 4 and 5, by one command.

  python -m experiments.paper --dataset=brats --root=<folder of BraTS2023>
  python -m experiments.paper --dataset=upenn_gbm --root=<folder of UPenn-GBM>

On all GPUs that JAX shows. It says first what disk, memory and time that takes (`--estimate`: only
that), then trains every system in `<workdir>/<dataset>`, scores them, measures CDM and Diffusion
for several numbers of sampling steps, and writes tables and figures to `<workdir>/paper`:
`paper.md` is of all data sets that were run there. The same command goes on where it was stopped.
`--config.<key>=<value>` changes a config. `--smoke` does all of it in minutes on a few simulated
patients in the data set's layout, or on those of `--root`, with networks that learn nothing.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Collection, Sequence

import jax

from cdm_jax import parallel
from cdm_jax.data.dataset import make_phantom
from cdm_jax.errors import UserError
from cdm_jax.writer import console
from configs import phantom, phantom_upenn
from experiments import figure4, figure5, table1, table2, table3, table4
from experiments.estimate import Estimate
from experiments.study import Study, write

# Of each data set: its name, the module and number of its table of systems, and patients in its
# layout.
DATASETS = {
    "brats": ("BraTS2023", table1, "Table I", phantom),
    "upenn_gbm": ("UPenn-GBM", table2, "Table II", phantom_upenn),
}
OUTCOME = "paper"  # folder of tables and figures beside the data sets' runs
ROWS = tuple(dict.fromkeys((*table1.ROWS, *table3.ROWS)))


class Trained(Study):
    """A study whose systems are trained and scored, so that tables and figures only collect."""

    def run(self, systems: Sequence[str], rows: Collection[str]) -> None:
        """Does nothing."""

    def command(self, name: str) -> str:
        """The command that makes every record."""
        return f"python -m experiments.paper --dataset={self.dataset}{' --smoke' * self.smoke}"


def foresee(study: Study) -> None:
    """Says what the paper's networks take on these patients, also where smaller ones are tried.

    Raises:
      UserError: there is no patient, or too little room on a disk for a run that is no trial.
    """
    estimate = Estimate(dataclasses.replace(study, smoke=False), ROWS)
    console.print(estimate.markdown(), soft_wrap=True, markup=False, highlight=False)
    if study.smoke:
        console.print("That is of the paper's networks; this trial takes minutes.")
    else:
        estimate.check_disk()


def run(study: Study) -> None:
    """Trains and scores what is missing, then writes all records, tables and figures."""
    study.run(("all",), ROWS)
    trained = Trained(**vars(study))
    _, systems, *_ = DATASETS[study.dataset]
    for module in (systems, table3, figure5, figure4):
        module.measure(trained)
    for module in (systems, table3, table4, figure5, figure4):  # Table IV: of figure 5's sweep
        module.show(trained)


def page(folder: pathlib.Path) -> str:
    """Markdown of the tables and figures of every data set that lies in a folder of outcomes."""
    parts = []
    for dataset, (cohort, systems, number, _) in DATASETS.items():
        names = {systems.__name__.rpartition(".")[2]: number}
        names |= {"table3": "Table III", "table4": "Table IV"}
        if (folder / dataset / "figure4.svg").exists():  # the last that is written
            for name, title in names.items():
                parts.append(f"## {title}: {cohort}")
                parts.append((folder / dataset / f"{name}.md").read_text(encoding="utf-8"))
            for n in (4, 5):
                parts.append(f"## Figure {n}: {cohort}\n\n![Figure {n}]({dataset}/figure{n}.png)")
    return "\n\n".join(["# The paper's tables and figures", *parts]) + "\n"


def simulated(dataset: str, workdir: pathlib.Path) -> str:
    """Writes a few simulated patients in the layout of a data set; returns their folder."""
    *_, config = DATASETS[dataset]
    return str(make_phantom(config.get_config("cdm,smoke"), workdir))


def make_study(options: argparse.Namespace, overrides: Sequence[str]) -> Study:
    """The study that the command line asks for.

    Raises:
      UserError: several processes, or no folder of patients.
    """
    parallel.start()
    if jax.process_count() > 1:
        raise UserError(
            f"this is one of {jax.process_count()} processes: start it once, on one machine, of "
            "which it takes all GPUs"
        )
    if not options.root and not options.smoke:
        raise UserError("--root is missing: give the folder of patients, or --smoke for a trial")
    if options.smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of its time
    folder = options.workdir or pathlib.Path("runs/smoke" if options.smoke else "runs")
    workdir = folder / options.dataset
    return Study(
        dataset=options.dataset,
        small=False,
        smoke=options.smoke,
        root=options.root or simulated(options.dataset, workdir),
        workdir=workdir,
        overrides=tuple(overrides),
        output=folder / OUTCOME / options.dataset,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--root", default="", help="folder of the patients")
    parser.add_argument("--workdir", type=pathlib.Path, help="default runs, of --smoke runs/smoke")
    parser.add_argument("--estimate", action="store_true", help="only say what it will take")
    parser.add_argument("--smoke", action="store_true", help="a trial of the whole, in minutes")
    options, overrides = parser.parse_known_args(arguments)
    if wrong := [text for text in overrides if not text.startswith("--config.")]:
        parser.error(f"unexpected {wrong[0]}: settings of a config are --config.<key>=<value>")
    try:
        study = make_study(options, overrides)
        foresee(study)
        if options.estimate:
            return
        run(study)
        path = study.workdir.parent / OUTCOME / "paper.md"
        write(path, page(path.parent))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on with what is not done")
    console.print(f"written: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
