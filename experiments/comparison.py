"""Every system on the same phantom patients with an equal budget: a first Table I and III.

  python -m experiments.comparison [--systems=cdm,m2,pix2pix] [--workdir=runs/comparison]

Budget: every image network sees the same number of slices (`configs/common.py`, `shrink`), with the
proportions of its official schedule; no system is tuned. What is trained or evaluated already is
not done again. Writes `experiments/results/phantom/comparison.json` and prints its tables.
"""

import argparse
import pathlib
import time

from cdm_jax import main as command_line
from cdm_jax.metrics.aggregate import Record
from cdm_jax.report.tables import results_table, to_markdown
from cdm_jax.writer import console
from configs.common import SYSTEMS
from experiments.records import load_records, load_results, main_values, save_results

NAME = "phantom/comparison"
COMMAND = "python -m experiments.comparison"
REFERENCE = "cunet"


def run_system(system: str, workdir: pathlib.Path) -> None:
    """Trains a system and adds its rows to the workdir's records."""
    start = time.perf_counter()
    config = f"--config=configs/phantom.py:{system}"
    console.rule(system)
    if command_line.main(["cdm_jax.main", "train", config, f"--workdir={workdir}"]):
        raise SystemExit(1)
    console.print(f"{system}: {time.perf_counter() - start:.0f} s")


def comparable(record: Record) -> Record:
    """A record of the systems' own rows alone, without CDM's condition audit."""
    rows = {
        row: scores
        for row, scores in main_values(record)["rows"].items()
        if "/" not in row or "/mean_of_" in row
    }
    return {**record, "rows": rows}


def main() -> None:
    """Runs what is missing, writes the record, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    systems = [name for name in SYSTEMS if name != "all"]
    parser.add_argument("--systems", default=",".join(systems), help="comma-separated")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/comparison"))
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        for system in options.systems.split(","):
            run_system(system, options.workdir)
        records = [comparable(record) for record in load_records(options.workdir)]
        save_results(NAME, {"command": COMMAND, "records": records})
    records = load_results(NAME)["records"]
    for convention in ("volume", "paper"):
        table = results_table(records, convention, reference=REFERENCE)
        console.print(to_markdown(table), soft_wrap=True)
        console.print()


if __name__ == "__main__":
    main()
