"""Table IV: CDM by the number of sampling steps N, with its time a slice.

python -m experiments.table4 --dataset=phantom --small
python -m experiments.table4 --dataset=brats --root=<folder>
"""

from cdm_jax.metrics.aggregate import summarize
from cdm_jax.records import AVERAGE, WHOLE, Record, per_patient
from cdm_jax.report.tables import ResultsTable, results_table, with_interval
from experiments import published
from experiments.study import Study, chosen, main
from experiments.sweep import BESIDE, STEPS, sweep
from experiments.table1 import ROWS

REFERENCE = "N = 30"
CONVENTIONS = ("paper", "volume")


def measure(study: Study) -> None:
    """Trains CDM where it is missing and measures it for every N."""
    study.run(["cdm"], ROWS)
    sweep(study, ("cunet",), study.command("table4"))


def joined(study: Study) -> list[Record]:
    """One record a subject: rows without N, then for every N one sample and the mean of eight."""
    content = study.load("sampling")
    records = chosen(content["beside"], {row: ROWS[row] for row in BESIDE})
    for steps in map(str, STEPS):
        renamed = chosen(
            content["systems"]["cunet"][steps]["records"],
            {"cunet": f"N = {steps}", "cunet/mean_of_8": f"N = {steps}, mean of 8"},
        )
        for record, new in zip(records, renamed, strict=True):
            record["rows"] = record["rows"] | new["rows"]
    return records


def tables(study: Study) -> dict[str, ResultsTable]:
    """A table a convention, with the time that one sample of a slice takes."""
    content, records = study.load("sampling"), joined(study)
    times = {
        f"N = {steps}": f"{1000 * row['seconds_a_slice']:.1f}"
        for steps, row in content["systems"]["cunet"].items()
    }
    found = {}
    for name in CONVENTIONS:
        found[name] = results_table(records, name, reference=REFERENCE)
        found[name].print_beside("ms a slice", times)
    if study.dataset not in published.TABLE_2_ALONE:
        texts = {f"N = {steps}": published.text(row) for steps, row in published.TABLE_4.items()}
        found["paper"].print_beside("Avg printed in Table IV", texts)
    return found


def finding(study: Study) -> str:
    """What more steps buy, in a sentence."""
    values = per_patient(joined(study), "volume")
    psnr = {n: values[f"N = {n}", AVERAGE, WHOLE, "psnr"] for n in STEPS}
    parts = []
    for few, many in ((1, 10), (10, 30), (30, 40)):
        difference = with_interval(summarize(psnr[many] - psnr[few]), "+.2f", " dB")
        parts.append(f"from N = {few} to {many} {difference}")
    return f"- One sample's PSNR ({AVERAGE}, volume): {', '.join(parts)}."


def show(study: Study) -> None:
    """Draws the table from the record."""
    device = study.load("sampling")["device"]
    note = f"Times: one sample, in a full batch, compiled and warm, on {device}."
    study.save_tables("table4", tables(study), [note, finding(study)])


if __name__ == "__main__":
    main(None, __doc__, measure, show)
