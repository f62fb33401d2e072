"""What the rows of the records mean, in words for readers who have not read the code."""

from collections.abc import Mapping, Sequence

from cdm_jax.records import Record

NON_LEARNED: Mapping[str, str] = {
    "copy": "a source image, unchanged; no training",
    "brain_mean": "one constant gray in the brain; no training",
    "regression": "least squares on the intensities of the same pixel; no network",
}
CEILING = "resampled_truth"
LEAK = "oracle"
AUDITS: Mapping[str, str] = {
    LEAK: "LEAK, not a result: conditioned on the true targets",
    "null": "audit: the condition taken away",
    "mean": "audit: the training mean as the condition",
    "mean_representation": "conditioned on the mean of the sampled representations",
    "shuffled": "audit: conditioned on another patient",
}
MEAN_OF = "mean_of_"


def meaning(row: str) -> str:
    """What a row is, in a few words; empty where nothing is known of it."""
    if row in NON_LEARNED:
        return NON_LEARNED[row]
    if row == CEILING:
        return "CEILING, not a result: the truth itself at the model's resolution"
    system, _, variant = row.partition("/")
    if variant.startswith(MEAN_OF):
        return f"mean of {variant.removeprefix(MEAN_OF)} samples of {system}"
    return AUDITS.get(variant, "")


def is_result(row: str) -> bool:
    """Whether a row may be read as a result: neither a leak nor a ceiling."""
    return row != CEILING and row.partition("/")[2] != LEAK


def headline_rows(records: Sequence[Record]) -> dict[str, str]:
    """Each trained system to the row to judge it by: its samples' mean where it has one."""
    rows = dict.fromkeys(name for record in records for name in record["rows"])
    trained = {name for record in records for name in record.get("checkpoint", {})}
    means = {row.partition(f"/{MEAN_OF}")[0]: row for row in rows if f"/{MEAN_OF}" in row}
    return {name: means.get(name, name) for name in rows if name in trained}


def samples_of(row: str) -> int:
    """How many samples a row is the mean of; 1 for any other."""
    count = row.partition(f"/{MEAN_OF}")[2]
    return int(count) if count.isdigit() else 1
