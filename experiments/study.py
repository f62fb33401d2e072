"""What the tables and figures share: a data set's workdir, its trained systems, their outputs.

Every table and figure is `python -m experiments.NAME [--dataset=<data set>] [--small]
[--root=<patients>] [--workdir=...] [--show]`. They share one workdir a data set: what one of them
has trained or evaluated, the others find. The record goes to `experiments/results/<dataset>/`, what
is drawn from it to `docs/results/<dataset>/`; `--show` draws from the committed record alone.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import matplotlib
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cdm_jax import checkpoint
from cdm_jax import main as command_line
from cdm_jax.config import load_config
from cdm_jax.data.dataset import Dataset, load_dataset
from cdm_jax.errors import UserError
from cdm_jax.records import Record
from cdm_jax.report.tables import ResultsTable
from cdm_jax.rescaling import rescale_stage
from cdm_jax.rows import REFERENCE_ROWS, system_of
from cdm_jax.writer import console
from configs.common import SYSTEMS
from experiments import records
from experiments.records import load_records, main_values, read_results, write_rounded

DATASETS = ("phantom", "phantom_upenn", "brats", "upenn_gbm")
FORMATS = ("png", "pdf", "svg")
PAGE_WIDTH = 7.2  # inches of two columns of print; text is then as large as figures ask for
# Okabe and Ito's colors, which the color-blind can tell apart.
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "results"
# Tables name rows by the paper's N and eight samples, also of networks that learn nothing.
SMOKE = (
    *("--config.sampler.num_steps=30", "--config.evaluate.num_samples=8"),
    "--config.data.num_workers=1",  # a few patients take less time than processes to start
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One data set, at one scale.

    Attributes:
      dataset: one of `DATASETS`.
      small: small networks and slices for a CPU, instead of the paper's.
      root: the patients' folder; empty for the phantom.
      workdir: of all systems.
      smoke: the smallest networks and a few steps, to test the whole; its numbers mean nothing.
      overrides: of every config, such as "--config.diffusion.optimizer.accumulate=2".
      output: folder of the records and of what is drawn from them; None: those of the project.
    """

    dataset: str
    small: bool
    root: str
    workdir: pathlib.Path
    smoke: bool = False
    overrides: tuple[str, ...] = ()
    output: pathlib.Path | None = None

    def config(self, system: str) -> ConfigDict:
        """The config of a system, as the command line makes it."""
        return load_config(self._file(system), self._overrides())

    def data(self) -> Dataset:
        """The prepared patients."""
        return load_dataset(self.config("cdm"), self.workdir)

    def arguments(self, system: str, rows: Collection[str] = ()) -> list[str]:
        """The command line that trains a system and scores it.

        Args:
          system: of the config.
          rows: of the evaluation, also those of other systems; all of this one where empty.
        """
        arguments = ["train", f"--config={self._file(system)}", f"--workdir={self.workdir}"]
        arguments += self._overrides()
        scored = (*REFERENCE_ROWS, *self.config(system).evaluate.systems)
        if own := tuple(row for row in rows if system_of(row) in scored):
            arguments.append(f"--config.evaluate.rows={own}")
        return arguments

    def _file(self, system: str) -> str:
        scale = "smoke" if self.smoke else "small,length=study" if self.small else "small=false"
        return f"configs/{self.dataset}.py:{system},{scale}"

    def _overrides(self) -> list[str]:
        root = [f"--config.data.root={self.root}"] if self.root else []
        return [*root, *(SMOKE if self.smoke else ()), *self.overrides]

    def command(self, name: str) -> str:
        """The command that reproduces a record, with as many devices: a batch grows with them."""
        count, kind = jax.device_count(), jax.default_backend()
        devices = f"JAX_NUM_CPU_DEVICES={count} " if kind == "cpu" and count > 1 else ""
        options = f"--dataset={self.dataset}{' --small' * self.small}"
        return f"{devices}python -m experiments.{name} {options}"

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

    def train(self, stages: Sequence[str]) -> None:
        """Trains stages where they are missing, fits what corrects them, and evaluates none."""
        for number, stage in enumerate(stages, 1):
            if checkpoint.finished(self.workdir / stage):
                rescale_stage(self.workdir / stage, self.data())  # it may have been stopped before
                continue
            console.rule(f"{self.workdir.name}: {stage} ({number} of {len(stages)})")
            alone = "--config.pipeline=()"  # no evaluation, which `m1` as a system would end with
            if command_line.main(["cdm_jax.main", *self.arguments(stage), alone]):
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
        self.save(record, content)

    def save(self, record: str, content: Mapping[str, Any]) -> None:
        """Writes the record of this name."""
        write_rounded(self.record_path(f"{record}.json"), content)

    def load(self, record: str) -> dict[str, Any]:
        """Reads the record of this name.

        Raises:
          UserError: it is damaged.
        """
        return read_results(self.record_path(f"{record}.json"))

    def record_path(self, name: str) -> pathlib.Path:
        """Where a record lies, there or not yet."""
        folder = self.output / "records" if self.output else records.RESULTS / self.dataset
        return folder / name

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
        warning = ["**A trial of the program by networks that learn nothing.**"] * self.smoke
        text = "\n\n".join([*warning, *findings, *(table.markdown() for table in tables.values())])
        console.print(text, soft_wrap=True)
        write(self._docs(f"{name}.md"), text)
        for part, table in tables.items():
            write(self._docs(f"{name}_{part}.csv"), table.csv())
            write(self._docs(f"{name}_{part}.tex"), table.latex())

    def save_text(self, name: str, text: str) -> None:
        """Prints a Markdown text, and writes it."""
        console.print(text, soft_wrap=True, markup=False)
        write(self._docs(f"{name}.md"), text)

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
        folder = self.output or DOCS / self.dataset
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
    with _errors_in_a_line():
        if not options.show:
            measure(study)
        show(study)


@contextlib.contextmanager
def _errors_in_a_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is not there: run this without --show first")


def seed_by_seed(
    arguments: Sequence[str] | None,
    text: str | None,
    measure: Callable[[Sequence[int], pathlib.Path], None],
    show: Callable[[], None],
    workdir: str,
) -> None:
    """The command line of a study that repeats itself with several seeds.

    Args:
      arguments: of the command line; those of the process where None.
      text: the module's docstring, whose first line says what it does.
      measure: trains and scores these seeds in a workdir, and writes the record.
      show: reads the record, prints and writes what is drawn from it.
      workdir: by default.
    """
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path(workdir))
    parser.add_argument("--show", action="store_true", help="only draw from the committed record")
    options = parser.parse_args(arguments)
    with _errors_in_a_line():
        if not options.show:
            measure([int(seed) for seed in options.seeds.split(",")], options.workdir.absolute())
        show()
