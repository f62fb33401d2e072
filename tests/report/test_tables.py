import io

import numpy as np
import pytest
from rich.console import Console

from cdm_jax.errors import UserError
from cdm_jax.metrics.aggregate import summarize
from cdm_jax.report.tables import results_table


def cohort(systems, patients=8, targets=("t1c", "t2f"), **changes):
    """Records whose PSNR is the system's level plus the target's index plus a patient's offset."""
    offsets = np.random.default_rng(0).normal(size=patients)
    return [
        {
            "subject": f"P{i}-000",
            "patient": f"P{i}",
            "split": "cafe01",
            "conventions": {"volume": "beef02"},
            "rows": {
                name: {
                    "volume": {
                        target: {
                            "psnr": level + place + offset,
                            "ssim": 0.9,
                            "mae": 0.01,
                            "regions": {"tumor_core": {"psnr": 5.0, "ssim": 0.5, "mae": 0.1}},
                        }
                        for place, target in enumerate(targets)
                    }
                }
                for name, level in systems.items()
            },
            **changes,
        }
        for i, offset in enumerate(offsets)
    ]


def printed(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table.rich())
    return console.file.getvalue()


def line(table, system, modality, metric):
    """Numbers of a system, by their columns."""
    return table.numbers.set_index(["system", "modality", "metric"]).loc[system, modality, metric]


def rows(table):
    """Cells of the table in Markdown by the system's name, the headings by "System"."""
    text = table.markdown().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in li.strip("|").split(" | ")] for li in text if li[1] != ":"]
    return {name: others for name, *others in cells}


def test_cells_are_statistics_over_patients_and_avg_the_mean_of_modalities():
    records = cohort({"cdm": 30.0, "unet": 28.0})
    table = results_table(records, "volume")
    assert list(table.texts().index) == ["cdm", "unet"]
    values = [record["rows"]["cdm"]["volume"]["t1c"]["psnr"] for record in records]
    expected, found = summarize(np.array(values)), line(table, "cdm", "t1c", "psnr")
    assert (found["mean"], found["low"], found["high"]) == (expected.mean, *expected.interval)
    assert found["standard_deviation"] == expected.standard_deviation
    assert (found["median"], found["patients"]) == (expected.median, 8)
    assert line(table, "cdm", "t2f", "psnr")["mean"] == pytest.approx(np.mean(values) + 1)
    assert line(table, "cdm", "Avg", "psnr")["mean"] == pytest.approx(np.mean(values) + 0.5)
    assert np.isnan(line(table, "cdm", "Avg", "psnr")["difference"])


@pytest.mark.parametrize("targets", [("t1c",), ("t1", "t2", "ct")])
def test_targets_come_from_the_records(targets):
    table = results_table(cohort({"cdm": 30.0}, targets=targets), "volume")
    assert list(table.numbers["modality"].unique()) == [*targets, "Avg"]


def test_the_reference_is_compared_with_every_other_row():
    records = cohort({"m1": 28.0, "better": 29.0, "same": 28.0})
    table = results_table(records, "volume", reference="m1")
    assert np.isnan(line(table, "m1", "t1c", "psnr")["difference"])
    assert line(table, "better", "Avg", "psnr")["difference"] == pytest.approx(1)
    assert line(table, "better", "Avg", "psnr")["p_value"] < 0.05
    assert line(table, "same", "Avg", "psnr")["p_value"] == 1
    marked = {name for name, cells in rows(table).items() if "†" in "".join(cells)}
    assert marked == {"better"}
    assert "† differs from m1" in table.markdown().splitlines()[-1]


def test_a_region_takes_the_place_of_the_whole():
    table = results_table(cohort({"cdm": 30.0}), "volume", region="tumor_core")
    assert line(table, "cdm", "Avg", "psnr")["mean"] == 5
    assert "inside tumor core" in table.footer


def test_the_footer_says_that_our_own_syntheses_are_0_outside_the_brain():
    records = cohort({"cdm": 30.0})
    assert "outside the sources' brain" not in results_table(records, "volume").footer
    ours = [record | {"checkpoint": {"cunet": "abc"}} for record in records]
    assert "0 outside the sources' brain" in results_table(ours, "volume").footer


def test_a_patient_without_a_value_is_left_out_and_the_cell_says_so():
    records = cohort({"cdm": 30.0, "unet": 28.0})
    records[0]["rows"]["cdm"]["volume"]["t1c"]["psnr"] = None
    del records[1]["rows"]["unet"]
    table = results_table(records, "volume")
    counts = [line(table, "cdm", t, "psnr")["patients"] for t in ("t1c", "t2f", "Avg")]
    assert counts == [7, 8, 7]
    cells = rows(table)
    assert "".join(cells["cdm"]).count("(n=7)") == 2
    assert "".join(cells["unet"]).count("(n=7)") == 9


def test_a_target_that_a_system_lacks_is_a_dash():
    records = cohort({"cdm": 30.0, "t1c only": 28.0})
    for record in records:
        del record["rows"]["t1c only"]["volume"]["t2f"]
    assert rows(results_table(records, "volume"))["t1c only"][3:] == ["–"] * 6


def test_markdown_by_hand():
    """Three equal patients: intervals of no width, so every character is known."""
    records = cohort({"cdm": 30.0}, patients=3)
    for record in records:
        for target in ("t1c", "t2f"):
            record["rows"]["cdm"]["volume"][target]["psnr"] = 31.0
    table = results_table(records, "volume")
    modalities, metrics = ("T1c", "T2f", "Avg"), ("PSNR", "SSIM", "MAE")
    assert rows(table) == {
        "System": [f"{modality} {metric}" for modality in modalities for metric in metrics],
        "cdm": ["31.00 ± 0.00", "0.900 ± 0.000", "0.0100 ± 0.0000"] * 3,
    }
    head, sides, *_, empty, footer = table.markdown().splitlines()
    assert head.startswith("| System ") and empty == ""
    assert [side.strip("-") for side in sides.strip("|").split("|")] == [":", *[":"] * 9]
    assert sides.startswith("|:--") and sides.endswith("-:|")
    assert footer == (
        "Convention volume (beef02); 3 patients; split cafe01. PSNR in dB. "
        "Mean ± half the width of the 95 % bootstrap interval over patients."
    )


def test_half_the_intervals_width_stands_beside_the_mean():
    table = results_table(cohort({"cdm": 30.0}), "volume")
    found = line(table, "cdm", "t1c", "psnr")
    half = (found["high"] - found["low"]) / 2
    assert half > 0.05
    assert rows(table)["cdm"][0].endswith(f" ± {half:.2f}")


def test_one_patient_has_values_without_intervals():
    cells = rows(results_table(cohort({"cdm": 30.0}, patients=1), "volume"))["cdm"]
    assert "±" not in "".join(cells)
    assert cells[1] == "0.900"


def test_the_terminal_shows_names_numbers_and_footer_as_they_are():
    text = printed(results_table(cohort({"cdm [oracle]": 30.0, "a|b": 28.0}), "volume"))
    for part in ("cdm [oracle]", "a|b", "T2f PSNR", "Avg MAE", "0.0100", "split cafe01"):
        assert part in text
    assert "a\\|b" in results_table(cohort({"a|b": 28.0}), "volume").markdown()


def test_wrong_choices_are_errors_that_list_the_right_ones():
    records = cohort({"cdm": 30.0})
    with pytest.raises(UserError, match="choose from volume"):
        results_table(records, "paper")
    with pytest.raises(UserError, match="choose from cdm"):
        results_table(records, "volume", reference="m1")
    with pytest.raises(UserError, match="split differs"):
        results_table([*records, *cohort({"unet": 1.0}, split="other")], "volume")
