"""Table II: the systems of Table I on another cohort, beside what the paper prints for UPenn-GBM.

  python -m experiments.table2 --root=<folder>
  python -m experiments.table2 --dataset=phantom_upenn --small

The measurement is that of `experiments.table1`. The simulated cohort has other patients and another
scanner than that of Table I (configs/phantom_upenn.py).
"""

from experiments import published
from experiments.study import Study, main
from experiments.table1 import ROWS, SYSTEMS, notes, tables


def measure(study: Study) -> None:
    """Trains and evaluates the systems; writes the record."""
    study.measure("systems", "table2", SYSTEMS, ROWS)


def show(study: Study) -> None:
    """Draws the table from the record."""
    numbers = tables(study, published.TABLE_2, "Table II")
    study.save_tables("table2", numbers, notes(study, "UPenn-GBM"))


if __name__ == "__main__":
    main(None, __doc__, measure, show, datasets=("upenn_gbm", "phantom_upenn"))
