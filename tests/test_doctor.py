"""Doctor finds what is wrong with a data folder, each fault by its code, and nothing else."""

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from cdm_jax import main, workers
from cdm_jax.data.findings import KINDS, Finding
from cdm_jax.doctor import Diagnosis, diagnose, write_page
from cdm_jax.phantom import PhantomSettings, write_cohort

ENDS = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "t2f": "t2f", "segmentation": "seg"}
SMALL = {"shape": (48, 48, 36), "voxel_mm": 4.0}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Two simulated patients with whom nothing is wrong."""
    root = tmp_path_factory.mktemp("doctor") / "clean"
    write_cohort(root, PhantomSettings(num_patients=2, seed=5, **SMALL), num_workers=1)
    return root


@pytest.fixture
def cohort(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "cohort")


def name(index):
    return f"BraTS-GLI-{index:05d}-000"


def file(root, modality, index=0):
    return root / name(index) / f"{name(index)}-{ENDS[modality]}.nii.gz"


def alarms(found):
    """What is worse than a note: codes and of what."""
    return {(f.code, f.about) for f in found.findings if f.severity != "note"}


def codes(found):
    return {finding.code for finding in found.findings}


def changed(path, change=lambda values: values, affine=None, **header):
    """Saves an image with other voxels, affine or fields of its header."""
    image = nib.load(path)
    values = change(np.asarray(image.dataobj).astype(np.float32))
    new = nib.Nifti1Image(values, image.affine if affine is None else affine)
    new.header.set_xyzt_units("mm")
    new.set_sform(new.affine, 1)
    new.set_qform(new.affine, 1)
    nib.save(new, path)
    if header:
        rewritten(path, lambda stored: [stored.__setitem__(*field) for field in header.items()])


def rewritten(path, change):
    """Changes the bytes of the header, past anything that nibabel would mend."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    change(header)
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def rng():
    return np.random.default_rng(0)


def truncate(root):
    path = file(root, "t2")
    path.write_bytes(path.read_bytes()[:-2000])


def swap(one, other):
    def sabotage(root):
        first, second = file(root, one), file(root, other)
        beside = root / "beside"
        first.rename(beside)
        second.rename(first)
        beside.rename(second)

    return sabotage


def claim_everything(root):
    def change(header):
        header["dim"][1:4] = 10_000

    rewritten(file(root, "t1"), change)


def on_voxels(modality, change):
    return lambda root: changed(file(root, modality), change)


def with_value(where, value):
    def change(values):
        values[where(values)] = value
        return values

    return change


def middle(values):
    return tuple(extent // 2 for extent in values.shape)


def other_grid(root):
    path = file(root, "t2f")
    affine = nib.load(path).affine @ np.diag([1, 1, 2, 1])
    changed(path, lambda values: values[..., ::2], affine)


def shifted(root):
    affine = nib.load(file(root, "t2")).affine.copy()
    affine[0, 3] += 30
    changed(file(root, "t2"), affine=affine)


def without_orientation(root):
    for modality in ENDS:
        changed(file(root, modality), sform_code=0, qform_code=0)


def turned_apart(root):
    changed(file(root, "t1c"), qoffset_z=50.0)


def in_meters(root):
    rewritten(file(root, "t1"), lambda header: header.set_xyzt_units("meter"))


def four_dimensions(root):
    changed(file(root, "t1"), lambda values: np.stack([values, values], -1))


def complex_numbers(root):
    path = file(root, "t1")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.complex64), image.affine), path)


def strange_labels(root):
    changed(file(root, "segmentation"), lambda values: np.where(values == 2, 7, values))


def copied_patient(root):
    for modality in ENDS:
        shutil.copy(file(root, modality, 0), file(root, modality, 1))


def same_file(root):
    shutil.copy(file(root, "t1"), file(root, "t1c"))


def with_scalp(values):
    """A shell of 12 mm around the brain, which is then about as large as a head; air is 0."""
    from scipy.ndimage import binary_dilation

    shell = binary_dilation(values > 0, iterations=6) & (values == 0)
    return np.where(shell, 900 + 50 * rng().standard_normal(values.shape), values)


def beside(values):
    """Moved by 104 mm, so that a part is beyond the edge."""
    moved = np.zeros_like(values)
    moved[:, 26:] = values[:, :-26]
    return moved


# Sabotage, and what is found: code and of what. One fault each.
FAULTS = {
    "truncated": (truncate, ("unreadable", "t2")),
    "an empty file": (lambda root: file(root, "t1").write_bytes(b""), ("unreadable", "t1")),
    "10^12 voxels claimed": (claim_everything, ("shape", "t1")),
    "two volumes": (four_dimensions, ("shape", "t1")),
    "complex numbers": (complex_numbers, ("datatype", "t1")),
    "NaN in the brain": (on_voxels("t2", with_value(middle, np.nan)), ("not-finite", "t2")),
    "infinity": (on_voxels("t1", with_value(middle, np.inf)), ("not-finite", "t1")),
    "all zero": (on_voxels("t1c", np.zeros_like), ("empty", "t1c")),
    "constant": (on_voxels("t1c", lambda v: np.full_like(v, 7)), ("empty", "t1c")),
    "other grid": (other_grid, ("grid", "t1, t1c, t2, t2f")),
    "moved": (shifted, ("grid", "t1, t1c, t2, t2f")),
    "no orientation": (without_orientation, ("no-orientation", "t1, t1c, t2, t2f")),
    "two affines": (turned_apart, ("two-affines", "t1c")),
    "meters": (in_meters, ("spacing", "t1")),
    "slab": (on_voxels("t2f", with_value(lambda v: np.s_[..., 22:], 0)), ("slab", "t2f")),
    "gap": (on_voxels("t2f", with_value(lambda v: np.s_[..., 16:19], 0)), ("slab", "t2f")),
    "T1 and T2 swapped": (swap("t1", "t2"), ("swapped", "t1, t2")),
    "T2 and FLAIR swapped": (swap("t2", "t2f"), ("swapped", "t2, t2f")),
    "T1 and T1c swapped": (swap("t1", "t1c"), ("swapped", "t1, t1c")),
    "scaled": (on_voxels("t1", lambda v: v / v.max()), ("scaled", "t1")),
    "z-score": (
        on_voxels("t1", lambda v: np.where(v > 0, (v - v[v > 0].mean()) / v[v > 0].std(), 0)),
        ("z-score", "t1"),
    ),
    "noise in the air": (
        on_voxels("t1", lambda v: v + np.abs(20 * rng().standard_normal(v.shape))),
        ("skull", "t1"),
    ),
    "a scalp": (on_voxels("t2", with_scalp), ("skull", "t2")),
    "not registered": (on_voxels("t2", beside), ("apart", "t1, t2")),
    "strange labels": (strange_labels, ("labels", "segmentation")),
    "one file twice": (same_file, ("same-image", "t1, t1c")),
    "one patient twice": (copied_patient, ("same-voxels", "")),
}  # fmt: skip
FOLLOWS = {  # further alarms that are right
    "constant": {("skull", "t1c")},
    "not registered": {("apart", pair) for pair in ("t1c, t2", "t2, t2f")} | {("slab", "t2")},
}


class TestFaults:
    def test_simulated_patients_raise_no_alarm(self, clean):
        found = diagnose(clean, num_workers=1)
        assert (found.subjects, found.images) == (2, 8)
        assert alarms(found) == set()

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_is_found_and_nothing_else(self, fault, cohort):
        sabotage, expected = FAULTS[fault]
        sabotage(cohort)
        found = diagnose(cohort, num_workers=1)
        assert expected in alarms(found)
        assert alarms(found) <= {expected} | FOLLOWS.get(fault, set())
        (finding,) = [f for f in found.findings if (f.code, f.about) == expected]
        assert finding.subject == name(int(fault == "one patient twice"))
        assert finding.found and finding.advice
        assert found.counts["error"] == (KINDS[expected[0]].severity == "error")

    def test_there_are_sixteen_and_more_of_them(self):
        assert len(FAULTS) >= 16
        assert {code for _, (code, _) in FAULTS.values()} <= set(KINDS)


class TestNotes:
    def test_time_points_strangers_and_what_lacks(self, cohort):
        shutil.copytree(cohort / name(1), cohort / "BraTS-GLI-00000-001")
        for path in (cohort / "BraTS-GLI-00000-001").iterdir():
            path.rename(path.with_name(path.name.replace(name(1), "BraTS-GLI-00000-001")))
        shutil.rmtree(cohort / name(1))
        file(cohort, "t2f").unlink()
        shutil.copy(file(cohort, "t2"), cohort / name(0) / "dwi.nii.gz")
        found = diagnose(cohort, num_workers=1)
        assert codes(found) - {"outlier"} == {"time-points", "incomplete", "unknown-name"}
        told = {f.code: f.found + f.file for f in found.findings}
        assert "BraTS-GLI-00000-000, BraTS-GLI-00000-001" in told["time-points"]
        assert told["incomplete"] == "has no t2f"
        assert told["unknown-name"].endswith("dwi.nii.gz")

    def test_harmless_oddities_are_noted(self, cohort):
        changed(file(cohort, "t1"), with_value(middle, -5.0), sform_code=2)
        changed(file(cohort, "t2"), lambda v: np.where(v > 0, v, np.nan))
        changed(file(cohort, "t1c"), with_value(middle, 1e6))
        changed(file(cohort, "t2f"), sform_code=0, qform_code=0)
        found = diagnose(cohort, num_workers=1)
        assert alarms(found) == set()
        expected = {"t1": {"codes", "negative"}, "t2": {"nan-background"}, "t1c": {"outlier"}}
        for modality, wanted in (expected | {"t2f": {"unstated-orientation"}}).items():
            assert wanted <= {f.code for f in found.findings if f.about == modality}

    def test_the_odd_one_of_a_cohort_is_noted(self, cohort):
        for modality in ENDS:
            image = nib.load(file(cohort, modality, 1))
            values = np.asarray(image.dataobj)[4:, ::-1]
            affine = image.affine @ np.diag([1, -1, 1, 1])
            nib.save(nib.Nifti1Image(values, affine), file(cohort, modality, 1))
        found = diagnose(cohort, num_workers=1)
        assert alarms(found) == set()
        odd = {f.code: (f.subject, f.found) for f in found.findings if f.code.startswith("other")}
        assert odd["other-shape"][1].startswith("44 x 48 x 36 voxels, where 1 of 2 subjects")
        assert odd["other-axes"] == (name(1), "LAS, where 1 of 2 subjects have LPS")
        assert "other-spacing" not in odd


class TestFolders:
    def test_the_same_patient_in_two_folders(self, clean, cohort, tmp_path):
        """The voxels are told under another name, on a larger grid and in another axis order."""
        other = tmp_path / "other" / "UPENN-GBM-00007_11"
        other.mkdir(parents=True)
        for modality, end in {"t1": "T1", "t2": "T2"}.items():
            image = nib.load(file(clean, modality))
            padded = np.pad(np.asarray(image.dataobj)[:, ::-1], ((3, 0), (0, 0), (0, 2)))
            path = other / f"UPENN-GBM-00007_11_{end}.nii.gz"
            nib.save(nib.Nifti1Image(padded, image.affine @ np.diag([1, -1, 1, 1])), path)
        shutil.rmtree(cohort / name(1))
        changed(file(cohort, "t1"), lambda values: values + 3 * (values > 0))
        found = diagnose(cohort, against=other.parent, num_workers=1)
        (finding,) = [f for f in found.findings if f.severity == "error"]
        assert (finding.code, finding.subject) == ("overlap", name(0))
        assert "UPENN-GBM-00007_11" in finding.found

    def test_a_name_alone_is_a_warning(self, cohort, clean):
        for modality in ENDS:
            if modality != "segmentation":
                changed(file(cohort, modality), lambda v: np.rint(1.5 * v))
        shutil.rmtree(cohort / name(1))
        assert alarms(diagnose(cohort, against=clean, num_workers=1)) == {("same-name", "")}

    def test_two_files_for_one_modality(self, cohort):
        shutil.copytree(cohort / name(0), cohort / "again" / name(0))
        found = diagnose(cohort, num_workers=1)
        assert alarms(found) == {("ambiguous", "")}

    def test_a_folder_without_patients(self, tmp_path):
        (tmp_path / "data").mkdir()
        assert alarms(diagnose(tmp_path / "data", num_workers=1)) == {("no-subject", "")}

    def test_processes_find_what_one_finds(self, cohort, monkeypatch):
        swap("t1", "t2")(cohort)
        asked, pool = [], workers.pool
        monkeypatch.setattr(workers, "pool", lambda number: asked.append(number) or pool(number))
        alone, together = (diagnose(cohort, num_workers=number) for number in (1, 9))
        assert asked == [1, 2]
        assert alone == together


class TestCommand:
    def run(self, *flags):
        return main.main(["cdm-jax", "doctor", *map(str, flags)])

    def test_a_clean_folder_is_0_and_json_says_so(self, clean, tmp_path, capsys):
        assert self.run(f"--input={clean}", f"--json={tmp_path / 'new/found.json'}") == 0
        content = json.loads((tmp_path / "new/found.json").read_text())
        assert content["format"] == 1 and content["counts"]["error"] == 0
        assert (content["subjects"], content["images"]) == (2, 8)
        assert "2 subjects, 8 images: 0 errors, 0 warnings" in capsys.readouterr().out

    def test_an_error_is_1_and_said_in_table_json_and_page(self, cohort, tmp_path, capsys):
        truncate(cohort)
        files = (tmp_path / "found.json", tmp_path / "found.html")
        assert self.run(f"--input={cohort}", f"--json={files[0]}", f"--page={files[1]}") == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"error: errors in {cohort}: 1; ") and said.err.count("\n") == 1
        assert "unreadable" in said.out
        (finding,) = [f for f in json.loads(files[0].read_text())["findings"]
                      if f["severity"] == "error"]  # fmt: skip
        assert finding["code"] == "unreadable" and finding["file"] == str(file(cohort, "t2"))
        assert str(file(cohort, "t2")) in files[1].read_text()

    def test_a_config_says_the_names(self, clean, tmp_path, capsys):
        (tmp_path / "data/one").mkdir(parents=True)
        for modality, own in {"t1": "T1", "t1c": "T1POST", "t2": "T2", "t2f": "FLAIR"}.items():
            shutil.copy(file(clean, modality), tmp_path / f"data/one/{own}.nii.gz")
        assert self.run(f"--input={tmp_path / 'data'}") == 1
        assert "no-subject" in capsys.readouterr().out
        config = "--config=configs/real.py:cdm"
        assert self.run(f"--input={tmp_path / 'data'}", config) == 0
        assert "1 subject, 4 images: 0 errors" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "flags, said",
        [
            (["--input=nowhere"], "there is no folder"),
            ([], "doctor needs --input=<folder>"),
            (["--input=x", "--page=x.txt"], "'x.txt' should end in .html"),
            (["--input=x", "--config.data.size=3"], "give --config=<file>:<stage> too"),
        ],
    )
    def test_bad_calls_are_one_line(self, flags, said, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert self.run(*flags) in (1, 2)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_page_escapes_what_it_shows(tmp_path):
    """Names of files and folders may be anything."""
    evil = '<script>alert("x")</script>'
    finding = Finding(code="unreadable", found=evil, subject=evil, file=f"/data/{evil}")
    found = Diagnosis(folder=tmp_path / evil, subjects=1, images=1, findings=(finding,))
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert") >= 4


REAL = {
    "t1": "*-t1n|*_t1|*_t1_bet|T1",
    "t1c": "*-t1c|*_t1ce|*_t1c_bet|T1POST",
    "t2": "*-t2w|*_t2|*_t2_bet|T2",
    "t2f": "*-t2f|*_flair|*_fla_bet|FLAIR",
    "segmentation": "*-seg|*_seg",
}


@pytest.mark.slow
def test_real_patients_have_the_oddities_that_are_known_of_them(real_data):
    found = diagnose(real_data, patterns=REAL)
    assert (found.subjects, found.images) == (4, 16)
    told = {(f.subject, f.code, f.about): f.found for f in found.findings}
    glioma, cropped, low_grade, sclerosis = (
        "BraTS-GLI-00001-000", "BraTS2021_01306", "TCGA-DU-7294", "patient19",
    )  # fmt: skip
    assert {f.code for f in found.findings if f.subject == glioma} == {"outlier"}
    assert "15462" in told[glioma, "outlier", "t1c"]
    for modality in ("t1", "t1c", "t2", "t2f"):
        assert told[cropped, "scaled", modality] == "values lie in [-1, 1]: scaled already"
        assert told[cropped, "codes", modality].startswith("the code of sform is 2")
        assert (low_grade, "negative", modality) in told
        assert (sclerosis, "negative", modality) in told
        assert told[sclerosis, "codes", modality].startswith("the code of sform is 0")
    assert "0, 1, 2, 3, 4" in told[cropped, "labels", "segmentation"]
    assert told[cropped, "other-shape", ""].startswith("192 x 192 x 144")
    assert "qform 2" in told[low_grade, "codes", "t1"]
    assert told[sclerosis, "other-axes", ""] == "LAS, where 3 of 4 subjects have LPS"
    assert alarms(found) == {("labels", "segmentation")} | {
        ("scaled", modality) for modality in ("t1", "t1c", "t2", "t2f")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol, scanner, number", [("random", "mixed", 100), ("fixed", "mixed", 20),
                                  ("fixed", "mprage", 20)],
)  # fmt: skip
def test_a_hundred_simulated_patients_raise_no_alarm(protocol, scanner, number, tmp_path):
    settings = PhantomSettings(
        num_patients=number, protocol=protocol, scanner=scanner, seed=11, **SMALL
    )
    write_cohort(tmp_path / "cohort", settings, num_workers=min(2, os.cpu_count() or 1))
    found = diagnose(tmp_path / "cohort", num_workers=1)
    assert found.subjects == number
    assert [f for f in found.findings if f.severity != "note"] == []
