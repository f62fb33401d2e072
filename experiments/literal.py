"""The paper-literal variants beside what is built here: an MDN that sees no patient, and more.

  python -m experiments.literal --dataset=phantom --small
  python -m experiments.literal --dataset=brats --root=<folder>

The paper-literal condition is an MDN that sees no patient and a C-UNet that is trained on the
encoder's y of the true targets; two variants change one of both. "All as printed" takes everything
else as printed as well: the unsquared norms of Eqs. 1 and 4, one tower of residual blocks behind
the two linear layers, scales that are a Condition Embedding and nothing more, no residual around
it, no way past the body for the sources, no training without y. All are shown as a patient with
missing targets gets them, and as the leak of the true targets' y (the oracle) makes them look.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence

from cdm_jax import main as command_line
from cdm_jax.records import Record, per_patient
from cdm_jax.report.tables import results_table
from cdm_jax.writer import console
from experiments.records import load_records, main_values
from experiments.study import Study, chosen, main
from experiments.table3 import difference

REFERENCE = "M1"
CONVENTIONS = ("paper", "volume")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """CDM with some settings of its own.

    Attributes:
      title: of its rows.
      values: what is set.
      base: the variant whose finished stages it builds on; the study's own CDM where empty.
      kept: those stages.
    """

    title: str
    values: tuple[str, ...]
    base: str = ""
    kept: tuple[str, ...] = ()


PRINTED = (
    "volume_scale=false",
    "mrm.loss=l2norm",
    "mdn.condition=none",
    "mdn.decouple=merged",
    "cunet.encoder=printed",
    "cunet.residual=false",
    "cunet.source_skip=false",
    "cunet.condition_dropout=0.0",
    "cunet.loss=l2norm",
)
VARIANTS = {
    "letter": Variant(
        title="Paper-literal condition",
        values=("mdn.condition=none", "cunet.training_y=encoder"),
        kept=("mrm",),
    ),
    "encoder": Variant(
        title="MDN sees the sources",
        values=("cunet.training_y=encoder",),
        kept=("mrm", "mdn"),
    ),
    "sampled": Variant(
        title="C-UNet trained on samples",
        values=("cunet.training_y=sampled",),
        kept=("mrm", "mdn"),
    ),
    "printed": Variant(
        title="All as printed",
        values=(*PRINTED, "cunet.training_y=encoder"),
    ),
    "printed_sampled": Variant(
        title="All as printed, C-UNet trained on samples",
        values=(*PRINTED, "cunet.training_y=sampled"),
        base="printed",
        kept=("mrm", "mdn"),
    ),
}
HERE = "As here"
ROWS = {
    "cunet/mean_of_8": "mean of 8",
    "cunet": "one sample",
    "cunet/shuffled": "shuffled",
    "cunet/oracle": "oracle (a leak)",
}


def measure(study: Study) -> None:
    """Trains CDM and its variants where they are missing, and writes their record."""
    study.run(["cdm"], ("m1", *ROWS))
    usual = [main_values(record) for record in load_records(study.workdir)]
    records = chosen(usual, {"m1": REFERENCE} | _names(HERE))
    explained = {HERE: _explained(study)}
    for number, (name, variant) in enumerate(VARIANTS.items(), start=1):
        title, folder = variant.title, study.workdir / "literal"
        console.rule(f"{title} ({number} of {len(VARIANTS)})")
        own = dataclasses.replace(study, workdir=folder / name)
        base = folder / variant.base if variant.base else study.workdir
        for stage in variant.kept:
            shutil.copytree(base / stage, own.workdir / stage, dirs_exist_ok=True)
        shared = {
            "root": study.root or study.workdir / "patients",
            "cache": study.workdir / "cache",
            "split_file": study.workdir / "split.json",
        }
        arguments = [
            *own.arguments("cdm", ROWS),
            *(f"--config.data.{name}={place}" for name, place in shared.items()),
            *(f"--config.{value}" for value in variant.values),
            "--config.pipeline=('mrm', 'mdn', 'cunet')",
            "--config.evaluate.systems=('cunet',)",
        ]
        if command_line.main(["cdm_jax.main", *arguments]):
            raise SystemExit(1)
        found = chosen([main_values(r) for r in load_records(own.workdir)], _names(title))
        records = [
            {**record, "rows": record["rows"] | new["rows"]}
            for record, new in zip(records, found, strict=True)
        ]
        explained[title] = _explained(own)
    content = {"command": study.command("literal"), "explained": explained, "records": records}
    study.save("literal", content)


def _names(title: str) -> dict[str, str]:
    return {row: f"{title}, {name}" for row, name in ROWS.items()}


def _explained(study: Study) -> dict[str, float]:
    """Shares of y's variance that MDN's samples explain, on training and validation patients."""
    lines = (study.workdir / "mdn/metrics.jsonl").read_text().splitlines()
    values = {name: value for line in lines for name, value in json.loads(line).items()}
    return {
        f"{kind}_{part}": values[f"final/explained_{kind}_{part}"]
        for kind in ("one", "mean")
        for part in ("train", "validation")
    }


def findings(records: Sequence[Record], explained: dict[str, dict[str, float]]) -> list[str]:
    """What each variant is worth without and with the leak, and what MDN knows of y."""
    values = per_patient(records, "volume")
    targets = list(records[0]["rows"][REFERENCE]["volume"])
    lines = []
    for title, shares in explained.items():
        rows = [f"{title}, {name}" for name in (ROWS["cunet/mean_of_8"], ROWS["cunet/oracle"])]
        honest, leak = (
            "; ".join(f"{t} {difference(values, row, REFERENCE, t)}" for t in targets)
            for row in rows
        )
        lines.append(
            f"- {title}: mean of 8 against M1, PSNR (volume): {honest}; with the leak: {leak}. "
            f"One sample explains {shares['one_train']:.2f} of y's variance on training patients "
            f"and {shares['one_validation']:.2f} on validation patients."
        )
    return ["\n".join(lines)]


def show(study: Study) -> None:
    """Draws the tables from the record."""
    content = study.load("literal")
    records = content["records"]
    tables = {name: results_table(records, name, reference=REFERENCE) for name in CONVENTIONS}
    study.save_tables("literal", tables, findings(records, content["explained"]))


if __name__ == "__main__":
    main(None, __doc__, measure, show)
