"""What the tables and figures share: a data set's workdir, its trained systems, their outputs.

Every table and figure is `python -m experiments.NAME [--dataset=<data set>] [--small]
[--root=<patients>] [--workdir=...] [--show]`. They share one workdir a data set: what one of them
has trained or evaluated, the others find. The record goes to `experiments/results/<dataset>/`, what
is drawn from it to `docs/results/<dataset>/`; `--show` draws from the committed record alone.
"""

import argparse
import importlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cdm_jax import checkpoint
from cdm_jax import main as command_line
from cdm_jax.data.dataset import Dataset, load_dataset
from cdm_jax.errors import UserError
from cdm_jax.records import Record
from cdm_jax.report.tables import ResultsTable
from cdm_jax.rows import REFERENCE_ROWS, system_of
from cdm_jax.writer import console
from configs.common import SYSTEMS
from experiments.records import load_records, main_values, save_results

DATASETS = ("phantom", "phantom_upenn", "brats", "upenn_gbm")
FORMATS = ("png", "pdf", "svg")
PAGE_WIDTH = 7.2  # inches of two columns of print; text is then as large as figures ask for
# Okabe and Ito's colors, which the color-blind can tell apart.
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One data set, at one scale.

    Attributes:
      dataset: one of `DATASETS`.
      small: small networks and slices for a CPU, instead of the paper's.
      root: the patients' folder; empty for the phantom.
      workdir: of all systems.
    """

    dataset: str
    small: bool
    root: str
    workdir: pathlib.Path

    def config(self, system: str) -> ConfigDict:
        """The config of a system, as the command line makes it."""
        module = importlib.import_module(f"configs.{self.dataset}")
        config = module.get_config(self._argument(system))
        config.data.root = self.root
        return config

    def data(self) -> Dataset:
        """The prepared patients."""
        return load_dataset(self.config("cdm"), self.workdir)

    def arguments(self, system: str, rows: Collection[str] = ()) -> list[str]:
        """The command line that trains a system and scores it.

        Args:
          system: of the config.
          rows: of the evaluation, also those of other systems; all of this one where empty.
        """
        arguments = ["train", f"--config=configs/{self.dataset}.py:{self._argument(system)}"]
        arguments += [f"--workdir={self.workdir}"]
        if self.root:
            arguments.append(f"--config.data.root={self.root}")
        scored = (*REFERENCE_ROWS, *self.config(system).evaluate.systems)
        if own := tuple(row for row in rows if system_of(row) in scored):
            arguments.append(f"--config.evaluate.rows={own}")
        return arguments

    def _argument(self, system: str) -> str:
        return f"{system},small,length=study" if self.small else f"{system},small=false"

    def command(self, name: str) -> str:
        """The command that reproduces a record."""
        return f"python -m experiments.{name} --dataset={self.dataset}{' --small' * self.small}"

    def run(self, systems: Sequence[str], rows: Collection[str]) -> None:
        """Trains these systems and scores these rows where missing, saying how long it may take."""
        start, missing = time.perf_counter(), [s for s in systems if not self._is_trained(s)]
        for system in systems:
            told = f"{self.dataset}: {system} ({systems.index(system) + 1} of {len(systems)})"
            if system in missing and missing.index(system):
                spent = (time.perf_counter() - start) / 60
                left = spent / missing.index(system) * (len(missing) - missing.index(system))
                told += f", {spent:.0f} min spent, about {left:.0f} left"
            console.rule(told)
            if command_line.main(["cdm_jax.main", *self.arguments(system, rows)]):
                raise SystemExit(1)

    def measure(
        self, record: str, name: str, systems: Sequence[str], rows: Collection[str]
    ) -> None:
        """Trains and evaluates systems where they are missing, and writes these rows' record.

        Args:
          record: its name below the data set's, such as "systems".
          name: of the experiment whose command reproduces it.
          systems: to run.
          rows: of the evaluation: no others are scored for this record, or kept in it.
        """
        self.run(systems, rows)
        found = [main_values(record) for record in load_records(self.workdir)]
        content = {
            "command": self.command(name),
            "records": chosen(found, {row: row for row in rows}),
        }
        save_results(f"{self.dataset}/{record}", content)

    def _is_trained(self, system: str) -> bool:
        return all(checkpoint.finished(self.workdir / stage) for stage in SYSTEMS[system])

    def save_tables(
        self, name: str, tables: Mapping[str, ResultsTable], findings: Sequence[str] = ()
    ) -> None:
        """Prints tables, and writes them as Markdown, CSV and LaTeX.

        Args:
          name: of the files, such as "table1".
          tables: a file's further name, such as the convention's, to the table.
          findings: sentences to put above them.
        """
        text = "\n\n".join([*findings, *(table.markdown() for table in tables.values())])
        console.print(text, soft_wrap=True)
        write(self._docs(f"{name}.md"), text)
        for part, table in tables.items():
            write(self._docs(f"{name}_{part}.csv"), table.csv())
            write(self._docs(f"{name}_{part}.tex"), table.latex())

    def save_figure(self, name: str, figure: Figure) -> None:
        """Writes a figure in each of `FORMATS`, the same bytes for the same numbers.

        PDFs embed fonts as TrueType, which journals ask for.
        """
        for kind in FORMATS:
            path = self._docs(f"{name}.{kind}")
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
            with matplotlib.rc_context({"svg.hashsalt": name, "pdf.fonttype": 42}):
                figure.savefig(path, dpi=200, metadata=dates.get(kind))
        console.print(f"drawn: {self._docs(name)}.png, .pdf, .svg")

    def _docs(self, name: str) -> pathlib.Path:
        folder = DOCS / self.dataset
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def write(path: pathlib.Path, text: str) -> None:
    """Writes a text file as a whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def chosen(records: Sequence[Record], names: Mapping[str, str]) -> list[Record]:
    """Records with some of their rows, in this order and under other names."""
    return [
        {
            **record,
            "rows": {
                new: record["rows"][old] for old, new in names.items() if old in record["rows"]
            },
        }
        for record in records
    ]


def main(
    arguments: Sequence[str] | None,
    text: str | None,
    measure: Callable[[Study], None],
    show: Callable[[Study], None],
    datasets: Sequence[str] = DATASETS,
) -> None:
    """The command line of a table or figure: measure what is missing, then draw from the record.

    Args:
      arguments: of the command line; those of the process where None.
      text: the module's docstring, whose first line says what it does.
      measure: trains, evaluates and writes the record.
      show: reads the record, prints and writes what is drawn from it.
      datasets: that it may be of, the default first.
    """
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=datasets, default=datasets[0])
    parser.add_argument("--small", action="store_true", help="small networks at 64x64, for a CPU")
    parser.add_argument("--root", default="", help="folder of patients; none for the phantom")
    parser.add_argument("--workdir", type=pathlib.Path, help="default runs/<dataset>[_small]")
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args(arguments)
    name = f"{options.dataset}{'_small' * options.small}"
    study = Study(
        dataset=options.dataset,
        small=options.small,
        root=options.root,
        workdir=options.workdir or pathlib.Path("runs") / name,
    )
    try:
        if not options.show:
            measure(study)
        show(study)
    except UserError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is not there: run this without --show first")
