"""The table of enhancement: what systems' T1c shows beside T1, over patients."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from cdm_jax.metrics.aggregate import summarize
from cdm_jax.metrics.enhancement import LEAST_ML, METRICS, POSTCONTRAST, THRESHOLD, agreement
from cdm_jax.records import WHOLE, Record, per_patient
from cdm_jax.report.render import TextTable
from cdm_jax.report.tables import ABSENT, with_interval

REGIONS = {"whole_tumor": "in the tumor", WHOLE: "in the brain"}  # as the records name them
FOOTER = (
    f"Enhancement: T1c less T1, each in units of its brain's median, above {THRESHOLD:g}; of "
    f"the synthesis against the truth. Detected: patients with at least {LEAST_ML:g} ml in "
    "both, of those with as much in truth; none where none is: patients with less in both, of "
    "those with less in truth. ml: mean volumes; R²: of the volumes, negative where the "
    "truths' mean would do better; Dice: mean and 95 % bootstrap interval over patients in "
    "whom anything enhances. Vessels and meninges enhance too."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnhancementTable(TextTable):
    """Systems against measures of enhancement, a line for each system and region."""

    lines: pd.DataFrame
    footer: str = FOOTER

    def texts(self, separator: str = " ") -> pd.DataFrame:
        """What is printed."""
        return self.lines


def enhancement_table(records: Sequence[Record]) -> EnhancementTable:
    """Tabulates detection, volume and overlap of every row that has them.

    Detection is told inside tumors only: vessels enhance in every brain. Records without the
    metrics of enhancement count as missing.

    Raises:
        UserError: The records are not comparable, or none was scored by `volume`.
    """
    values = per_patient(records, "volume")
    rows = dict.fromkeys(row for record in records for row in record["rows"])
    lines = {}
    for region, place in REGIONS.items():
        for row in rows:
            wanted = [(row, POSTCONTRAST, region, metric) for metric in METRICS]
            found = values.reindex(columns=wanted)
            made, true, overlap = (found[key] for key in wanted)
            if true.notna().any():
                lines[f"{row}, {place}"] = _line(made, true, overlap, region)
    return EnhancementTable(
        lines=pd.DataFrame.from_dict(lines, orient="index").rename_axis("System")
    )


def _line(made: pd.Series, true: pd.Series, overlap: pd.Series, region: str) -> dict[str, str]:
    found = agreement(made.to_numpy(), true.to_numpy())
    others = found.patients - found.enhancing
    detection = {"detected": ABSENT, "none where none is": ABSENT}
    if region != WHOLE:
        detection = {
            "detected": f"{found.detected} of {found.enhancing}",
            "none where none is": f"{found.cleared} of {others}",
        }
    return {
        "patients": str(found.patients),
        **detection,
        "ml": _text(summarize(made).mean, ".1f"),
        "true ml": _text(summarize(true).mean, ".1f"),
        "R²": _text(found.r_squared, ".2f"),
        "Dice": with_interval(summarize(overlap), ".2f"),
    }


def _text(number: float, form: str) -> str:
    return ABSENT if math.isnan(number) else f"{number:{form}}"
