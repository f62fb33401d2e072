"""What a header claims is checked before memory is taken for it, and sizes without the voxels."""

import gzip
import resource
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data import formats
from cdm_jax.errors import UserError
from tests.odd_inputs import head, save

MEGABYTE = 2**20


def claiming(path, shape, kind=np.float64, *, voxels=b"", packed=True):
    """A file whose header claims a shape, and that holds these bytes of voxels."""
    header = nib.Nifti2Header()
    header.set_data_dtype(kind)
    header["dim"][:4] = [3, *shape]
    header["vox_offset"] = 544
    header["magic"] = b"n+2\0\r\n\032\n"
    header.set_sform(np.eye(4), 1)
    content = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "shape, said",
    [((10_000,) * 3, r"claims 1e\+12 voxels"), ((1000, 1000, 900), "its header claims 7200000544")],
)
def test_what_a_header_claims_is_refused_before_memory_is_taken(tmp_path, shape, said, packed):
    path = claiming(tmp_path / f"t1.nii{'.gz' if packed else ''}", shape, packed=packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(UserError, match=said):
        formats.read_image(path).get_fdata()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MEGABYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_what_follows_the_voxels_is_read_and_not_kept(tmp_path):
    """A gzip bomb: a small file with 300 MB behind a small image."""
    path = claiming(tmp_path / "t1.nii.gz", (8, 8, 8), np.uint8, voxels=bytes(300 * MEGABYTE))
    tracemalloc.start()
    assert formats.read_image(path).shape == (8, 8, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MEGABYTE


class TestCheckSize:
    @pytest.fixture
    def reads(self, monkeypatch):
        """Paths that are read whole."""
        found, read = [], formats.read_image
        monkeypatch.setattr(formats, "read_image", lambda path: found.append(path) or read(path))
        return found

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_a_whole_file_is_not_read(self, tmp_path, ending, reads):
        path = save(tmp_path / f"t1{ending}", head("t1"))
        formats.check_size(path)
        assert not reads

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("share", [0.5, 0.999])
    def test_a_truncated_file_is_refused(self, tmp_path, ending, share):
        path = save(tmp_path / f"t1{ending}", head("t1"))
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"t1\.nii.* cannot be read as an image"):
            formats.check_size(path)

    @pytest.mark.parametrize("kind", ["in two parts", "with more behind"])
    def test_odd_sizes_are_no_fault(self, tmp_path, kind, reads):
        path = save(tmp_path / "t1.nii", head("t1"))
        content = path.read_bytes()
        parts = [content[:5000], content[5000:]] if kind == "in two parts" else [content + bytes(9)]
        packed = tmp_path / "t1.nii.gz"
        packed.write_bytes(b"".join(map(gzip.compress, parts)))
        formats.check_size(packed)
        assert reads == [packed]
        np.testing.assert_array_equal(formats.read_image(packed).get_fdata(), head("t1"))

    @pytest.mark.parametrize(
        "ending, kind", [(".mgz", nib.MGHImage), (".mgh", nib.MGHImage), (".img", nib.Nifti1Pair)]
    )
    def test_other_kinds(self, tmp_path, ending, kind):
        formats.check_size(save(tmp_path / f"t1{ending}", head("t1"), kind=kind))
