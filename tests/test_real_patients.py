"""Real patients of mixed layouts: one is left out, synthesized and scored."""

import nibabel as nib
import pytest

from cdm_jax.data.dataset import load_dataset
from cdm_jax.data.nifti import GRID_FIELDS
from cdm_jax.evaluate import evaluate_run
from cdm_jax.synthesize import synthesize_folder
from cdm_jax.train import train_stage
from configs import real

LEFT_OUT = "patient19"  # multiple sclerosis, from another scanner than the three with gliomas
STEPS = {"mrm": 60, "mdn": 60, "cunet": 300}


@pytest.fixture(scope="module")
def left_out(real_data, tmp_path_factory):
    """Workdir and records of a run on all patients but one, at 32x32."""
    workdir = tmp_path_factory.mktemp("real")
    config = real.get_config("cdm,size=32")
    config.data.update({"root": str(real_data), "test_patients": (LEFT_OUT,)})
    config.evaluate.update({"systems": ("cunet",), "conventions": ("volume",), "num_samples": 2})
    dataset = load_dataset(config, workdir)
    for stage, steps in STEPS.items():
        config[stage].train.num_steps = steps
        config.stage = stage
        train_stage(config, workdir, dataset)
    return workdir, evaluate_run(config, workdir, dataset)


@pytest.mark.slow
def test_the_patient_left_out_is_better_synthesized_than_without_training(left_out):
    """On four patients this holds of their mean, and of this one for each target."""
    _, (record,) = left_out
    assert record["patient"] == LEFT_OUT
    for target in ("t1c", "t2f"):
        psnr = {row: scores["volume"][target]["psnr"] for row, scores in record["rows"].items()}
        assert psnr["cunet/mean_of_2"] > max(psnr["copy"], psnr["brain_mean"])


@pytest.mark.slow
def test_the_patient_left_out_gets_images_on_his_own_grid(left_out, real_data, tmp_path):
    workdir, _ = left_out
    patient = real_data / "openms" / LEFT_OUT
    synthesize_folder(patient, tmp_path, workdir / "cunet", samples=1)
    reference = nib.load(patient / "T1.nii.gz").header
    for target in ("t1c", "t2f"):
        header = nib.load(tmp_path / LEFT_OUT / f"{LEFT_OUT}-{target}.nii.gz").header
        for field in GRID_FIELDS:
            assert header[field].tobytes() == reference[field].tobytes(), field
