"""Table II: the systems of Table I, beside what the paper prints for UPenn-GBM.

  python -m experiments.table2 --root=<folder>
  python -m experiments.table2 --dataset=phantom --small

The measurement is that of `experiments.table1`, on this data set.
"""

from experiments import published
from experiments.study import Study, main
from experiments.table1 import measure, tables


def show(study: Study) -> None:
    """Draws the table from the record."""
    note = "CDM is the mean of eight samples. Printed: PSNR / SSIM / MAE of the paper on UPenn-GBM."
    study.save_tables("table2", tables(study, published.TABLE_2, "Table II"), [note])


if __name__ == "__main__":
    main(None, __doc__, measure, show, dataset="upenn_gbm")
