"""What is said to a reader of the images follows the numbers."""

import pytest

from cdm_jax.methods.segmenter import REGIONS
from cdm_jax.report.judgements import ACQUIRED, JUDGED_BY, NOTHING, judgements

INTERVALS = {"level": 0.9, "patients": 41, "quantiles": [0.05, 0.95]}


def evaluated(shown, true, patients=4, extra=0.0):
    """Records of one system; of each patient the volumes that enhance in his tumor, in ml."""
    records = []
    for n in range(patients):
        scores = {"enhancing_ml": shown[n], "true_enhancing_ml": true[n], "enhancement_dice": 0.5}
        t1c = {"psnr": 20.0 + extra, "regions": {"whole_tumor": scores}}
        identity = {"subject": f"s{n}", "patient": f"p{n}", "split": "a"}
        rows = {"m1": {"volume": {"t1c": t1c}}}
        records.append(identity | {"conventions": {"volume": "x"}, "rows": rows})
    return records


def judged(dice):
    """A segmenter's records: row to the Dice of every region."""
    return [
        {
            "subject": f"s{n}",
            "patient": f"p{n}",
            "split": "a",
            "conventions": {JUDGED_BY: ""},
            "rows": {
                row: {JUDGED_BY: {r: {"dice": value + 0.01 * n, "hd95": 3.0} for r in REGIONS}}
                for row, value in dice.items()
            },
        }
        for n in range(5)
    ]


def test_without_calibration_and_segmenter_that_is_said():
    found = judgements("m1", evaluated([0, 0, 0, 0], [3, 3, 0, 0]))
    assert "No interval is calibrated" in found["Where it may be wrong"]
    assert "No segmenter has judged" in found["Finding the tumor"]


def test_enhancement_is_told_by_patients():
    found = judgements("m1", evaluated([2, 0.1, 0, 4], [3, 3, 0, 0.1]))["Enhancement"]
    assert "The tumor of 2 patients enhances" in found
    assert "shows it in 1 of them" in found
    assert "Of 2 in whom none does, it shows none in 1" in found
    assert "it shows 1.5 ml where there are 1.5 ml" in found


def test_without_enhancement_nothing_is_said_of_it():
    records = evaluated([0, 0, 0, 0], [0, 0, 0, 0])
    for record in records:
        del record["rows"]["m1"]["volume"]["t1c"]["regions"]
    assert "Enhancement" not in judgements("m1", records)
    others = [record | {"conventions": {"paper": "x"}} for record in records]
    assert "Enhancement" not in judgements("m1", others)


def test_calibrated_intervals_say_for_whom():
    told = judgements("m1", evaluated([0] * 4, [1] * 4), (), INTERVALS)["Where it may be wrong"]
    assert "wider where the network expects to err" in told
    assert "90% of a brain; this was set on 41 patients" in told
    samples = judgements("m1", evaluated([0] * 4, [1] * 4), (), INTERVALS | {"quantiles": []})
    assert "wider where samples differ" in samples["Where it may be wrong"]


@pytest.mark.parametrize(
    ("dice", "verdict"),
    [(0.7, "helps (+0.20)"), (0.3, "HARMS (-0.20)"), (0.5, "adds nothing that can be told")],
)
def test_a_synthesis_is_compared_with_none(dice, verdict):
    seen = judged({ACQUIRED: 0.8, "m1": dice, NOTHING: 0.5})
    told = judgements("m1", evaluated([0] * 4, [1] * 4), seen)["Finding the tumor"]
    assert verdict in told
    assert f"{dice + 0.02:.2f} [" in told and "0.52 [" in told and "0.82 [" in told
    assert "over 5 patients" in told
