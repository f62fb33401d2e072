"""What a system's numbers mean for who reads its images, in sentences.

PSNR and SSIM reward a dim copy of a source. What a reader asks is whether an image tells where it
may be wrong, whether it shows what enhances, and whether a tumor can be found with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cdm_jax.metrics.aggregate import compare, summarize
from cdm_jax.metrics.enhancement import LEAST_ML, METRICS, POSTCONTRAST, agreement
from cdm_jax.records import AVERAGE, WHOLE, Record, per_patient
from cdm_jax.report.tables import with_interval

ACQUIRED, COPY, NOTHING = "all acquired", "copied source", "nothing, no synthesis"
JUDGED_BY = "brats"  # convention of a segmenter's records, whose targets are regions


def judgements(
    row: str,
    records: Sequence[Record],
    judged: Sequence[Record] = (),
    intervals: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Topic to sentences on one system.

    Args:
      row: by which the system is judged.
      records: of its evaluation.
      judged: by a segmenter, where the run has one.
      intervals: what `calibrate` wrote of this system, as JSON; None where it did not.
    """
    found = {"Where it may be wrong": _uncertainty(intervals)}
    if shown := _enhancement(row, records):
        found["Enhancement"] = shown
    found["Finding the tumor"] = _segmentation(row, judged)
    return found


def _uncertainty(intervals: Mapping[str, Any] | None) -> str:
    if intervals is None:
        return (
            "No interval is calibrated: nothing in these images tells where they may be wrong "
            "(cdm-jax calibrate makes intervals)."
        )
    where = "where the network expects to err" if intervals["quantiles"] else "where samples differ"
    return (
        f"Each voxel has an interval, wider {where}, that is to hold the true value in "
        f"{intervals['level']:.0%} of a brain; this was set on {intervals['patients']} patients. "
        "In a tumor it may hold far less often, least in what enhances: it excludes no finding."
    )


def _enhancement(row: str, records: Sequence[Record]) -> str:
    """Nothing where no enhancement was measured."""
    if "volume" not in records[0]["conventions"]:
        return ""
    keys = [(row, POSTCONTRAST, "whole_tumor", metric) for metric in METRICS]
    made, true, _ = (per_patient(records, "volume").reindex(columns=keys)[key] for key in keys)
    if not true.notna().any():
        return ""
    found = agreement(made.to_numpy(), true.to_numpy())
    others = found.patients - found.enhancing
    return (
        f"The tumor of {found.enhancing} patients enhances ({LEAST_ML:g} ml or more): the "
        f"synthetic T1c shows it in {found.detected} of them. Of {others} in whom none does, it "
        f"shows none in {found.cleared}. In the mean it shows {summarize(made).mean:.1f} ml where "
        f"there are {summarize(true).mean:.1f} ml. Enhancement must not be read from it, nor "
        "excluded by it."
    )


def _segmentation(row: str, judged: Sequence[Record]) -> str:
    if not judged or row not in judged[0]["rows"]:
        return (
            "No segmenter has judged these images (train the stage segmenter in the same workdir, "
            "then evaluate again)."
        )
    patients = per_patient(judged, JUDGED_BY)

    def scores(name: str) -> Any:
        return patients[(name, AVERAGE, WHOLE, "dice")]

    gain = compare(scores(row), scores(NOTHING))
    low, high = gain.interval or (0.0, 0.0)
    verdict = "helps" if low > 0 else "HARMS" if high < 0 else "adds nothing that can be told"
    texts = {
        name: with_interval(summarize(scores(name)), ".2f") for name in (row, NOTHING, ACQUIRED)
    }
    return (
        f"A program that looks for tumors finds them with a mean Dice of {texts[row]} with the "
        f"synthetic images, {texts[NOTHING]} with the sources alone and {texts[ACQUIRED]} with "
        f"acquired images, over {gain.n} patients: the synthesis {verdict} "
        f"({gain.difference:+.2f})."
    )
