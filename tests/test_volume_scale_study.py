"""The study of the scale of whole volumes: what it says of made-up patients, and that it runs."""

import dataclasses

import numpy as np
import pytest

from cdm_jax.records import per_patient
from experiments import volume_scale as study
from experiments.study import Study
from tests.helpers import STAGES, copy_run


def records(gain, patients=12):
    rng, made = np.random.default_rng(0), []
    for n in range(patients):
        base = 20 + rng.standard_normal()
        levels = (base, base + gain + 0.1 * rng.standard_normal(), base + 3)
        told = {"factor": 0.9 + 0.01 * n, "mae_brightest": 0.1}
        rows = {
            f"{row}, {kind}": {study.CONVENTION: {"t2f": told | {"psnr": level}}}
            for row in study.ROWS
            for kind, level in zip(study.KINDS, levels, strict=True)
        }
        identity = {"subject": f"s{n}", "patient": f"p{n}", "split": "a", "conventions": {}}
        made.append(identity | {"rows": rows})
    return made


@pytest.mark.parametrize(
    ("gain", "said"), [(1.0, "gains, +"), (-1.0, "LOSES, -"), (0.0, "NOTHING beyond chance, ")]
)
def test_what_is_said_follows_the_numbers(gain, said):
    patients = per_patient(records(gain), study.CONVENTION)
    found = study.sentence(patients, "M1", "t2f")
    assert said in found and "would give +3.00 [+3.00, +3.00] dB" in found
    factors = np.log(0.9 + 0.01 * np.arange(12))
    assert f"vary by {factors.std(ddof=1):.0%}" in found
    text = study.report({"command": "python -m x", "overrides": ["--y"], "records": records(gain)})
    assert "Made by `python -m x`, with `--y`." in text and text.count("| M1 ") == 2


@pytest.mark.slow
def test_the_study_runs_and_corrects_what_has_a_line(finished_run, tmp_path, monkeypatch):
    copy_run(finished_run, tmp_path / f"run_{study.quantiles.NAME}", STAGES)
    workdir = tmp_path / "run"
    own = Study(dataset="phantom", small=True, root="", workdir=workdir, smoke=True)
    own = dataclasses.replace(own, output=tmp_path / "out")
    study.measure(own)
    study.show(own)
    content = own.load(study.NAME)
    found = per_patient(content["records"], study.CONVENTION)
    for row in study.ROWS:
        plain, best = (
            study.values(found, f"{row}, {kind}", "t2f", "psnr")
            for kind in (study.AS_PREDICTED, study.BEST)
        )
        assert (best >= plain - 1e-3).all()
    assert "Made by" in (tmp_path / "out" / "volume_scale.md").read_text()
