"""What `synthesize --bids` writes, as the official validator of BIDS sees it."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from cdm_jax import shipped
from cdm_jax.phantom import PhantomSettings, write_patient
from cdm_jax.synthesize import synthesize_folder

PROGRAM = pathlib.Path(sys.executable).with_name("bids-validator-deno")
NAMES = {"t1n": "T1w", "t2w": "T2w"}
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="needs bids-validator-deno")


def errors(folder: pathlib.Path) -> set[str]:
    """Codes of what the validator calls an error."""
    command = [str(PROGRAM), str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["issues"]["issues"]
    assert found, done.stderr  # at least recommendations
    codes = {issue["code"] for issue in found if issue["severity"] == "error"}
    assert bool(codes) == bool(done.returncode)
    return codes


def sample_representations(monkeypatch) -> None:
    """Has the model that ships sample a representation, so that a deviation is written too."""
    model, provenance = shipped.load_model()
    provenance.config.cunet.null_y = False
    monkeypatch.setattr(shipped, "load_model", lambda: (model, provenance))


def test_derivatives_are_valid_and_the_validator_would_tell_if_not(tmp_path, monkeypatch):
    """Of one patient with a session by BIDS names, and one by those of BraTS."""
    given, made = tmp_path / "given", tmp_path / "made"
    given.mkdir()
    for index in range(2):
        write_patient(given, PhantomSettings(shape=(40, 48, 20), voxel_mm=5.0), index)
    (first, _) = sorted(path for path in given.iterdir() if path.is_dir())
    anatomy = given / "sub-01" / "ses-02" / "anat"
    anatomy.mkdir(parents=True)
    for ending, suffix in NAMES.items():
        (image,) = first.glob(f"*-{ending}.nii.gz")
        shutil.move(image, anatomy / f"sub-01_ses-02_{suffix}.nii.gz")
    shutil.rmtree(first)
    sample_representations(monkeypatch)
    synthesize_folder(given, made, None, samples=2, make=("t1c", "t2f"), replace=True, bids=True)
    written = sorted(str(path.relative_to(made)) for path in made.rglob("*.nii.gz"))
    assert len(written) == 8 and any("sub-01/ses-02/anat" in path for path in written)
    assert errors(made) == set()

    (made / "dataset_description.json").unlink()
    assert errors(made)
