"""Table III: what the condition and its decoupling are worth, and the condition audit.

  python -m experiments.table3 --dataset=phantom --small
  python -m experiments.table3 --dataset=brats --root=<folder>

`oracle` shows C-UNet the encoder's y of the true targets, a leak that no patient with missing
targets can have; `null` takes the condition away, `mean` gives the training mean, `shuffled`
another patient's sample. M1 with the 1x1 branch has the capacity of C-UNet and no condition.
"""

from collections.abc import Sequence

import pandas as pd

from cdm_jax.metrics.aggregate import summarize
from cdm_jax.records import WHOLE, Record, per_patient
from cdm_jax.report.tables import ResultsTable, results_table, with_interval
from experiments import published
from experiments.study import Study, chosen, main

SYSTEMS = ("cdm", "m1_1x1", "m2", "rcg")
REFERENCE = "M1"
CONVENTIONS = ("paper", "volume")
ROWS = {
    "copy": "Copy of a source",
    "brain_mean": "Brain's mean",
    "regression": "Intensity regression",
    "rcg": "RCG",
    "m1": REFERENCE,
    "m1_1x1": "M1 with the 1x1 branch",
    "m2": "M2, one sample",
    "m2/mean_of_8": "M2",
    "cunet": "CDM, one sample",
    "cunet/mean_of_8": "CDM",
    "cunet/mean_representation": "CDM, mean of 8 representations",
    "cunet/null": "CDM, null",
    "cunet/mean": "CDM, mean",
    "cunet/shuffled": "CDM, shuffled",
    "cunet/oracle": "CDM, oracle (a leak)",
}
# The question, the row, the row that it is compared with.
QUESTIONS = (
    ("Does the condition help?", "CDM", "M1"),
    ("Is it more than capacity?", "CDM", "M1 with the 1x1 branch"),
    ("Does the decoupling help?", "CDM", "M2"),
    (
        "Is it this patient's condition (does shuffling it cost)?",
        "CDM, one sample",
        "CDM, shuffled",
    ),
    ("How far does the leak go?", "CDM, oracle (a leak)", "CDM"),
)


def measure(study: Study) -> None:
    """Trains and evaluates the systems; writes the record."""
    study.measure("table3", "table3", SYSTEMS, ROWS)


def tables(study: Study, records: Sequence[Record]) -> dict[str, ResultsTable]:
    """A table a convention; the paper's numbers stand in that which is nearest to them."""
    found = {name: results_table(records, name, reference=REFERENCE) for name in CONVENTIONS}
    if study.dataset not in published.TABLE_2_ALONE:
        texts = {system: published.text(row) for system, row in published.TABLE_3.items()}
        found["paper"].print_beside("Avg printed in Table III", texts)
    return found


def findings(records: Sequence[Record]) -> list[str]:
    """An answer to each question: paired differences of PSNR over patients, a target at a time."""
    values = per_patient(records, "volume")
    targets = list(records[0]["rows"]["Copy of a source"]["volume"])
    lines = []
    for question, row, other in QUESTIONS:
        if not {row, other} <= records[0]["rows"].keys():
            continue
        answers = [f"{target} {difference(values, row, other, target)}" for target in targets]
        lines.append(f"- {question} {row} against {other}, PSNR (volume): {'; '.join(answers)}.")
    return ["\n".join(lines)]


def difference(values: pd.DataFrame, row: str, other: str, target: str) -> str:
    """A paired difference of PSNR with its interval, and its side of zero, in words.

    Args:
      values: as `records.per_patient` gives them.
      row: of the first system.
      other: of the system that is subtracted.
      target: modality.
    """
    found = summarize(values[row, target, WHOLE, "psnr"] - values[other, target, WHOLE, "psnr"])
    text = with_interval(found, "+.2f", " dB")
    if found.interval is None:
        return f"{text} ({found.n} patients: too few for an interval)"
    low, high = found.interval
    verdict = "more" if low > 0 else "less" if high < 0 else "no difference seen"
    return f"{text}, {verdict}"


def show(study: Study) -> None:
    """Draws the table from the record and answers the questions."""
    records = chosen(study.load("table3")["records"], ROWS)
    note = "One seed; intervals are over patients. M2 and CDM are means of eight samples."
    study.save_tables("table3", tables(study, records), [note, *findings(records)])


if __name__ == "__main__":
    main(None, __doc__, measure, show)
