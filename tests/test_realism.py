"""The study of realism: what its record says of the phantom, and that the record can be trusted."""

import json

import numpy as np
import pytest

from cdm_jax.phantom.patient import VERSIONS
from experiments import realism
from experiments.records import load_results


@pytest.fixture(scope="module")
def record():
    return load_results(realism.NAME)


def compared(record, protocol):
    patients = [patient[protocol] for patient in record["real"]]
    return realism.comparison(patients, record["simulated"][protocol])


def test_the_record_is_of_this_version_and_names_no_patient(record):
    assert record["versions"] == VERSIONS
    assert len(record["real"]) >= 4
    for index, patient in enumerate(record["real"]):
        assert set(patient) == {"index", "source", *realism.GRIDS_MM}
        assert patient["index"] == index
    assert "GLI" not in json.dumps(record) and "TCGA-" not in json.dumps(record)


def test_the_random_phantom_covers_the_real_patients(record):
    table = compared(record, "random")
    assert len(table) > 50
    outside = table.index[table["outside"] > 0]
    assert len(outside) <= 2 and (table.loc[outside, "outside"] == 1).all()


@pytest.mark.parametrize("modality", realism.MODALITIES)
def test_the_random_phantom_is_centered_on_the_level_of_real_patients(record, modality):
    row = compared(record, "random").loc[f"{modality} level"]
    assert row["lowest"] <= row["median"] <= row["highest"]


@pytest.mark.parametrize("modality", realism.MODALITIES)
def test_the_fixed_phantoms_noise_is_within_the_measured_range(record, modality):
    row = compared(record, "fixed").loc[f"{modality} noise"]
    assert row["lowest"] <= row["median"] <= row["highest"]


def test_what_is_drawn_from_the_record_is_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(realism, "DOCS", tmp_path)
    realism.show()
    committed = realism.pathlib.Path(__file__).parents[1] / "docs/results/realism.md"
    assert (tmp_path / "realism.md").read_text() == committed.read_text()


def test_a_quantity_outside_is_counted():
    simulated = [{"a": float(n), "b": float(n)} for n in range(101)]
    table = realism.comparison([{"a": 50.0, "b": 2.0}, {"a": 90.0, "b": 97.0}], simulated)
    assert table["outside"].tolist() == [0, 2]
    assert table.loc["a", "5 %"] == 5 and table.loc["a", "95 %"] == 95


@pytest.mark.slow
def test_real_patients_are_measured_by_index_and_source(real_data):
    first = next(realism.measure_real(real_data))
    assert first["index"] == 0 and first["source"] in {path.name for path in real_data.iterdir()}
    assert 0 < first["random"]["t1 noise"] < 0.1
    assert np.isfinite(list(first["fixed"].values())).all()
