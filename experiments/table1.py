"""Table I: every system on the same patients with an equal budget, beside rows without training.

  python -m experiments.table1 --dataset=phantom --small
  python -m experiments.table1 --dataset=brats --root=<folder>

Budget: every image network trains on the same number of slices (two-stage systems so many in each);
there is one seed. The small study chose on validation patients: C-UNet's recipe and rate, the
factor on its noise (`error_scale`), and the rate of the diffusion networks. GANs have their
official rates, scaled to the batch; nothing of theirs was chosen. At paper scale nothing was.
"""

from collections.abc import Mapping, Sequence

from cdm_jax.report.tables import ResultsTable, results_table
from cdm_jax.rows import REFERENCE_ROWS
from experiments import published
from experiments.study import Study, chosen, main

SYSTEMS = ("cdm", "pix2pix", "cyclegan", "gcgan", "cut", "reggan", "resvit", "diffusion")
REFERENCE = "CDM"
CONVENTIONS = ("paper", "volume")
ROWS = {
    "copy": "Copy of a source",
    "brain_mean": "Brain's mean",
    "regression": "Intensity regression",
    "pix2pix": "Pix2pix",
    "cyclegan": "CycleGAN",
    "gcgan": "GcGAN",
    "cut": "CUT",
    "reggan": "RegGAN",
    "resvit": "ResViT",
    "diffusion": "Diffusion",
    "m1": "M1 (UNet alone)",
    "cunet": "CDM, one sample",
    "cunet/mean_of_8": REFERENCE,
    "resampled_truth": "Truth at the model's size",
}
# Stage to the row that stands for it: the last one, the mean of samples where there is one.
HEADLINES = {row.partition("/")[0]: row for row in ROWS if row not in REFERENCE_ROWS}


def measure(study: Study) -> None:
    """Trains and evaluates the systems; writes the record."""
    study.measure("systems", "table1", SYSTEMS, ROWS)


def tables(
    study: Study, numbers: Mapping[str, Sequence[published.Numbers]], title: str
) -> dict[str, ResultsTable]:
    """A table a convention; the paper's numbers stand in that which is nearest to them."""
    records = chosen(study.load("systems")["records"], ROWS)
    found = {name: results_table(records, name, reference=REFERENCE) for name in CONVENTIONS}
    for place, heading in enumerate(published.HEADINGS):
        texts = {system: published.text(row[place]) for system, row in numbers.items()}
        found["paper"].print_beside(f"{heading} printed in {title}", texts)
    return found


def notes(study: Study, cohort: str) -> list[str]:
    """What a reader of the table has to know: of the rows, of the paper's data set, the budget."""
    budget = (
        " Equal budget: 1000 steps of 8 slices for each image network, one seed. In this study"
        " every compared system's rate decays and its gradients are clipped, official or not;"
        " C-UNet's recipe, its noise factor and the rate of Diffusion were chosen on validation"
        " patients of the first phantom cohort, nothing of the GANs was."
    )
    measured = study.load("systems")["records"][0]["rows"]
    missing = ", ".join(name for row, name in ROWS.items() if row not in measured)
    absent = f" Not trained on this cohort: {missing}." if missing else ""
    return [
        "CDM is the mean of eight samples. Printed: PSNR / SSIM / MAE of the paper on "
        f"{cohort}.{budget if study.small else ''}{absent}"
    ]


def show(study: Study) -> None:
    """Draws the table from the record."""
    numbers = tables(study, published.TABLE_1, "Table I")
    study.save_tables("table1", numbers, notes(study, "BraTS2023"))


if __name__ == "__main__":
    main(None, __doc__, measure, show, datasets=("brats", "phantom"))
