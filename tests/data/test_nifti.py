"""Volumes in and out: the right voxel at the right place, the same grid to the bit."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cdm_jax.data import grids, nifti
from cdm_jax.errors import UserError

ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "PIR", "ASL", "SRA", "IPL", "LIA", "SPR"]
SHAPE = (5, 7, 9)
VOXEL_SIZE = (0.7, 1.3, 2.9)  # along the file's own axes
GRID_FIELDS = [  # written down once more: a field that `nifti.GRID_FIELDS` lacks is missed here
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
]


def oblique_affine(codes: str) -> np.ndarray:
    """An affine whose axes point roughly along `codes`, tilted by some 15 degrees."""
    axes = np.zeros((3, 3))
    for column, letter in enumerate(codes):
        row = ["LR", "PA", "IS"].index(next(pair for pair in ("LR", "PA", "IS") if letter in pair))
        axes[row, column] = 1 if letter in "RAS" else -1
    a, b = np.deg2rad([12.3, -9.7])
    tilt_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    tilt_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt_x @ tilt_z @ axes @ np.diag(VOXEL_SIZE)
    affine[:3, 3] = [-31.4, 15.9, 26.5]
    return affine


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header) -> Path:
    like = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image = nib.Nifti1Image(values, None, like.header)  # no affine: nibabel leaves the fields be
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def raw_header(path: Path, header_class: type = nib.Nifti1Header) -> nib.Nifti1Header:
    with nib.openers.ImageOpener(str(path)) as stream:
        return header_class.from_fileobj(stream, check=False)


def random_values(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(params=ORIENTATIONS)
def affine(request) -> np.ndarray:
    affine = oblique_affine(request.param)
    assert "".join(nib.aff2axcodes(affine)) == request.param
    return affine


class TestReading:
    def test_axes_run_up_back_and_left_in_the_world(self, tmp_path, affine):
        index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
        right, anterior, superior = np.moveaxis(nib.affines.apply_affine(affine, index), -1, 0)
        for axis, world in enumerate([superior, -anterior, -right]):
            volume = nifti.read_volume(save(tmp_path / "v.nii.gz", world, affine))
            assert (np.diff(volume, axis=axis) > 0).all()

    def test_a_landmark_keeps_its_place_in_the_world(self, tmp_path, affine):
        values = np.zeros(SHAPE, np.float32)
        values[3, 1, 6] = 1
        path = save(tmp_path / "v.nii.gz", values, affine)
        volume, geometry = nifti.read_volume(path), nifti.read_geometry(path)
        index = np.argwhere(volume)
        assert len(index) == 1 and volume.shape == geometry.shape
        found = nib.affines.apply_affine(geometry.affine, index[0])
        np.testing.assert_allclose(found, affine[:3] @ [3, 1, 6, 1], atol=1e-5)

    def test_agrees_with_nibabels_canonical_order(self, tmp_path, affine):
        path = save(tmp_path / "v.nii.gz", random_values(), affine)
        canonical = nib.as_closest_canonical(nib.load(path))
        expected = canonical.get_fdata()[::-1, ::-1, :].transpose(2, 1, 0)
        np.testing.assert_array_equal(nifti.read_volume(path), expected)
        zooms = canonical.header.get_zooms()
        np.testing.assert_allclose(nifti.read_voxel_size(path), zooms[::-1], rtol=1e-5)

    def test_volume_is_contiguous_native_float32(self, tmp_path, affine):
        volume = nifti.read_volume(save(tmp_path / "v.nii", random_values(), affine))
        assert volume.dtype == np.float32 and volume.dtype.isnative
        assert volume.flags.c_contiguous and volume.flags.writeable

    def test_scale_and_offset_are_applied(self, tmp_path):
        path = save(tmp_path / "v.nii", np.full(SHAPE, 4, np.int16))
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([0.5, 10], "<f4").tobytes()  # scl_slope, scl_inter
        path.write_bytes(content)
        assert (nifti.read_volume(path) == 12).all()

    def test_a_trailing_axis_of_one_is_dropped(self, tmp_path):
        values = random_values()
        flat = nifti.read_volume(save(tmp_path / "flat.nii", values))
        deep = nifti.read_volume(save(tmp_path / "deep.nii", values[..., None]))
        np.testing.assert_array_equal(flat, deep)

    def test_qform_is_used_where_the_sform_is_empty(self, tmp_path):
        affine = oblique_affine("PIR")
        image = nib.Nifti1Image(random_values(), affine)
        nib.save(image, tmp_path / "sform.nii")
        image.set_qform(affine, code=1)
        image.header["sform_code"] = 0
        for row in ("srow_x", "srow_y", "srow_z"):
            image.header[row] = 0
        nib.save(image, tmp_path / "qform.nii")
        grids.check_same_grid([tmp_path / "sform.nii", tmp_path / "qform.nii"])
        np.testing.assert_array_equal(
            nifti.read_volume(tmp_path / "sform.nii"), nifti.read_volume(tmp_path / "qform.nii")
        )

    def test_without_codes_the_order_is_las(self, tmp_path):
        values = random_values()
        path = save(tmp_path / "v.nii", values, sform_code=0, qform_code=0)
        np.testing.assert_array_equal(nifti.read_volume(path), values[:, ::-1].transpose(2, 1, 0))

    def test_labels_keep_their_values(self, tmp_path, affine):
        labels = np.random.default_rng(1).integers(0, 5, SHAPE)
        as_float = save(tmp_path / "f.nii.gz", labels.astype(np.float64), affine)
        as_byte = save(tmp_path / "b.nii.gz", labels.astype(np.uint8), affine)
        read = nifti.read_labels(as_float)
        assert read.dtype == np.int16
        np.testing.assert_array_equal(read, nifti.read_labels(as_byte))
        np.testing.assert_array_equal(read, nifti.read_volume(as_float))


class TestBadFiles:
    @pytest.mark.parametrize("read", [nifti.read_volume, nifti.read_labels, nifti.read_geometry])
    def test_missing_file_is_named(self, tmp_path, read):
        with pytest.raises(UserError, match=r"no file .*gone\.nii\.gz"):
            read(tmp_path / "gone.nii.gz")

    @pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.999])
    @pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
    def test_truncated_file_is_named(self, tmp_path, suffix, kept):
        path = save(tmp_path / f"cut.{suffix}", random_values((16, 16, 16)))
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(UserError, match=r"cut\.nii.* (cannot be read|is empty)"):
            nifti.read_volume(path)

    @pytest.mark.parametrize("place", [-6, 100, 2000])
    def test_a_flipped_bit_is_noticed(self, tmp_path, place):
        path = save(tmp_path / "bit.nii.gz", random_values((16, 16, 16)))
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bit\.nii\.gz"):
            nifti.read_volume(path)

    def test_other_content_is_refused(self, tmp_path):
        path = tmp_path / "text.nii.gz"
        path.write_bytes(gzip.compress(b"not an image at all" * 100))
        with pytest.raises(UserError, match=r"text\.nii\.gz"):
            nifti.read_volume(path)

    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 9, 2), (5, 7, 9, 1, 3)])
    def test_only_one_3d_volume_is_taken(self, tmp_path, shape):
        with pytest.raises(UserError, match="one 3D volume"):
            nifti.read_volume(save(tmp_path / "v.nii", random_values(shape)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_voxels_that_are_no_numbers_are_counted(self, tmp_path, bad):
        values = random_values()
        values[1, 2, 3:5] = bad
        with pytest.raises(UserError, match=r"v\.nii has 2 voxels"):
            nifti.read_volume(save(tmp_path / "v.nii", values))

    @pytest.mark.parametrize("bad", [0.5, 2.999999, 40000.0, 1e30])
    def test_labels_must_be_integers(self, tmp_path, bad):
        values = np.ones(SHAPE)
        values[0, 0, 0] = bad
        with pytest.raises(UserError, match="among its labels"):
            nifti.read_labels(save(tmp_path / "v.nii", values))

    @pytest.mark.parametrize(
        ("kind", "held"),
        [(np.complex64, "complex numbers"), ([(color, "u1") for color in "RGB"], "colors")],
    )
    def test_complex_and_color_are_refused(self, tmp_path, kind, held):
        with pytest.raises(UserError, match=rf"v\.nii holds {held}: give a file of real numbers"):
            nifti.read_volume(save(tmp_path / "v.nii", np.ones(SHAPE, kind)))

    @pytest.mark.parametrize("kind", ["<u2", ">i4", "<f8", ">f4"])
    def test_numbers_of_any_kind_and_order_read_alike(self, tmp_path, kind):
        values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
        header = nib.Nifti1Header(endianness=kind[0])
        header.set_data_dtype(np.dtype(kind))
        image = nib.Nifti1Image(values.astype(kind), np.eye(4), header)
        nib.save(image, tmp_path / "v.nii.gz")
        expected = nifti.read_volume(save(tmp_path / "plain.nii", values.astype(np.float32)))
        np.testing.assert_array_equal(nifti.read_volume(tmp_path / "v.nii.gz"), expected)

    @pytest.mark.parametrize("row", [0.0, np.nan])
    def test_an_affine_that_maps_no_volume_is_refused(self, tmp_path, row):
        path = save(tmp_path / "v.nii", random_values(), srow_x=row)
        with pytest.raises(UserError, match="affine"):
            nifti.read_volume(path)


class TestImagesInMemory:
    def test_an_image_or_array_reads_as_its_file(self, tmp_path, affine):
        path = save(tmp_path / "v.nii.gz", random_values(), affine)
        image, array = nib.load(path), (random_values().astype(np.float64), affine.tolist())
        for source in (image, nifti.as_image(image), nifti.as_image(array)):
            np.testing.assert_array_equal(nifti.read_volume(source), nifti.read_volume(path))
            geometry, expected = nifti.read_geometry(source), nifti.read_geometry(path)
            assert geometry.shape == expected.shape
            np.testing.assert_allclose(geometry.affine, expected.affine, atol=1e-5)
            grids.check_same_grid([path, source])

    def test_a_scaled_file_reads_alike_either_way(self, tmp_path):
        image = nib.Nifti1Image(np.linspace(-3, 900, 315).reshape(SHAPE), np.eye(4))
        image.set_data_dtype(np.int16)
        nib.save(image, tmp_path / "v.nii")
        loaded = nib.load(tmp_path / "v.nii")
        assert loaded.dataobj.slope != 1
        expected = nifti.read_volume(tmp_path / "v.nii")
        np.testing.assert_array_equal(nifti.read_volume(loaded), expected)

    def test_paths_are_kept_and_a_tilde_is_the_home(self):
        assert nifti.as_image("~/t1.nii") == Path.home() / "t1.nii"

    @pytest.mark.parametrize(
        "source", [3, None, random_values(), (random_values(),), (random_values(), np.eye(3))]
    )
    def test_anything_else_is_refused(self, source):
        with pytest.raises(UserError, match=r"give the path of a NIfTI file, a nibabel NIfTI"):
            nifti.as_image(source)

    @pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 1), (3, 4)])
    @pytest.mark.parametrize("loaded", [False, True])
    def test_an_image_like_another_is_what_a_file_like_it_holds(
        self, tmp_path, affine, codes, loaded
    ):
        path = save(tmp_path / "r.nii", random_values(), affine)
        like = nib.load(path)
        like.set_qform(affine, code=codes[0])
        like.set_sform(affine, code=codes[1])
        nib.save(like, tmp_path / "reference.nii")
        reference = tmp_path / "reference.nii"
        volume = nifti.read_volume(reference) + 1
        nifti.write_like(tmp_path / "file.nii", volume, reference, description="new")
        image = nifti.image_like(
            volume, nib.load(reference) if loaded else reference, description="new"
        )
        nib.save(image, tmp_path / "image.nii")
        assert (tmp_path / "image.nii").read_bytes() == (tmp_path / "file.nii").read_bytes()
        np.testing.assert_array_equal(image.affine, nib.load(reference).affine)


class TestSameGrid:
    def test_axis_order_on_disk_does_not_matter(self, tmp_path, affine):
        path = save(tmp_path / "a.nii", random_values(), affine)
        nib.save(nib.as_closest_canonical(nib.load(path)), tmp_path / "b.nii")
        grids.check_same_grid([path, tmp_path / "b.nii"])

    @pytest.mark.parametrize("shift, same", [(1e-3, True), (0.03, True), (0.04, False)])
    def test_tolerance_is_a_twentieth_of_the_smallest_side_of_a_voxel(self, tmp_path, shift, same):
        affine = oblique_affine("LPS")
        moved = affine.copy()
        moved[1, 3] += shift  # the smallest side is 0.7 mm
        paths = [
            save(tmp_path / "a.nii", random_values(), affine),
            save(tmp_path / "b.nii", random_values(), affine),
            save(tmp_path / "c.nii", random_values(), moved),
        ]
        if same:
            grids.check_same_grid(paths)
        else:
            with pytest.raises(UserError, match=r"a\.nii .*c\.nii .*up to 0\.04 mm apart"):
                grids.check_same_grid(paths)

    def test_a_turn_counts_at_the_far_corner(self, tmp_path):
        affine, turned = np.diag([1.0, 1, 1, 1]), np.diag([1.0, 1, 1, 1])
        turned[0, 1] = 0.01  # 0.01 a voxel: 0.06 at the last of seven
        paths = [
            save(tmp_path / "a.nii", random_values(), affine),
            save(tmp_path / "b.nii", random_values(), turned),
        ]
        with pytest.raises(UserError, match=r"up to 0\.06 mm apart"):
            grids.check_same_grid(paths)

    def test_other_shape_is_named(self, tmp_path):
        first = save(tmp_path / "a.nii", random_values())
        second = save(tmp_path / "b.nii", random_values((5, 7, 8)))
        with pytest.raises(UserError, match=r"\(9, 7, 5\) against \(8, 7, 5\)"):
            grids.check_same_grid([first, second])


class TestWriting:
    def assert_same_grid_bytes(self, path, reference, header_class=nib.Nifti1Header):
        ours, theirs = raw_header(path, header_class), raw_header(reference, header_class)
        for field in GRID_FIELDS:
            assert ours[field].tobytes() == theirs[field].tobytes(), field
        assert ours.get_data_shape() == theirs.get_data_shape()

    @pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 1), (3, 4)])
    def test_round_trip_is_exact(self, tmp_path, affine, codes):
        image = nib.Nifti1Image(random_values(), affine)
        image.set_sform(affine, code=codes[1])
        image.set_qform(oblique_affine("LAS"), code=codes[0])  # need not agree with the sform
        image.header.set_xyzt_units("mm", "sec")
        reference, path = tmp_path / "reference.nii.gz", tmp_path / "written.nii.gz"
        nib.save(image, reference)
        nifti.write_like(path, nifti.read_volume(reference), reference)
        self.assert_same_grid_bytes(path, reference)
        stored = np.asanyarray(nib.load(path).dataobj)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, image.get_fdata())

    @pytest.mark.parametrize("field", GRID_FIELDS)
    def test_a_changed_field_is_named(self, tmp_path, field):
        reference = save(tmp_path / "r.nii", random_values(), oblique_affine("LPS"))
        header = raw_header(reference)
        header[field] = header[field] + 1
        path = tmp_path / "changed.nii"
        path.write_bytes(header.binaryblock + reference.read_bytes()[348:])
        assert nifti.changed_fields(path, reference) == (field,)
        assert nifti.changed_fields(reference, reference) == ()

    @pytest.mark.parametrize("qfac", [-1, 0, 1])
    def test_even_odd_header_fields_stay(self, tmp_path, qfac):
        values = random_values((*SHAPE, 1))
        pixdim = [qfac, 0.7, 1.3, 2.9, 0, 0, 0, 0]
        reference = save(tmp_path / "r.nii", values, oblique_affine("PIR"), qform_code=1)
        content = bytearray(reference.read_bytes())
        content[76:108] = np.array(pixdim, "<f4").tobytes()
        reference.write_bytes(content)
        nifti.write_like(tmp_path / "w.nii", nifti.read_volume(reference), reference)
        self.assert_same_grid_bytes(tmp_path / "w.nii", reference)
        np.testing.assert_array_equal(nib.load(tmp_path / "w.nii").get_fdata(), values)

    @pytest.mark.parametrize("header_class", [nib.Nifti1Header, nib.Nifti2Header])
    @pytest.mark.parametrize("endianness", ["<", ">"])
    def test_other_encodings_stay(self, tmp_path, header_class, endianness):
        image_class = {348: nib.Nifti1Image, 540: nib.Nifti2Image}[header_class.sizeof_hdr]
        header = header_class(endianness=endianness)
        header.set_data_dtype(np.float32)
        reference = tmp_path / "r.nii.gz"
        nib.save(image_class(random_values(), oblique_affine("SRA"), header), reference)
        nifti.write_like(tmp_path / "w.nii.gz", nifti.read_volume(reference), reference)
        self.assert_same_grid_bytes(tmp_path / "w.nii.gz", reference, header_class)
        np.testing.assert_array_equal(
            nifti.read_volume(tmp_path / "w.nii.gz"), nifti.read_volume(reference)
        )

    def test_only_the_grid_is_inherited(self, tmp_path):
        image = nib.Nifti1Image(random_values(), oblique_affine("LPS"))
        afni = nib.nifti1.Nifti1Extension("afni", b"<AFNI_attributes/>" + b" " * 2490)
        image.header.extensions.append(afni)
        image.header["cal_max"] = 4000
        image.header["descrip"] = b"someone else"
        nib.save(image, tmp_path / "r.nii.gz")
        assert raw_header(tmp_path / "r.nii.gz")["vox_offset"] == 2880
        volume = nifti.read_volume(tmp_path / "r.nii.gz")
        path = tmp_path / "w.nii.gz"
        nifti.write_like(path, volume, tmp_path / "r.nii.gz", description="synthetic T1c")
        header = raw_header(path)
        assert header["descrip"] == b"synthetic T1c" and header["cal_max"] == 0
        assert header["vox_offset"] == 352 and not header.extensions
        assert header["scl_slope"] == 1 and header["scl_inter"] == 0

    def test_labels_are_stored_as_integers(self, tmp_path, affine):
        reference = save(tmp_path / "r.nii.gz", random_values(), affine)
        stored = np.random.default_rng(1).integers(0, 5, SHAPE).astype(np.int16)
        labels = nifti.read_labels(save(tmp_path / "l.nii.gz", stored, affine))
        nifti.write_like(tmp_path / "w.nii.gz", labels, reference, dtype=np.uint8)
        assert nib.load(tmp_path / "w.nii.gz").get_data_dtype() == np.uint8
        np.testing.assert_array_equal(nib.load(tmp_path / "w.nii.gz").get_fdata(), stored)

    @pytest.mark.parametrize("bad", [0.5, -1.0, 256.0])
    def test_labels_are_never_bent_to_fit(self, tmp_path, bad):
        reference = save(tmp_path / "r.nii", random_values())
        labels = np.full(SHAPE[::-1], bad, np.float32)
        with pytest.raises(UserError, match="uint8"):
            nifti.write_like(tmp_path / "w.nii", labels, reference, dtype=np.uint8)

    def test_a_long_description_is_cut(self, tmp_path):
        reference = save(tmp_path / "r.nii", random_values())
        volume = nifti.read_volume(reference)
        nifti.write_like(tmp_path / "w.nii", volume, reference, description="x" * 200)
        assert raw_header(tmp_path / "w.nii")["descrip"] == b"x" * 79

    def test_other_shape_or_name_is_refused(self, tmp_path):
        reference = save(tmp_path / "r.nii", random_values())
        volume = nifti.read_volume(reference)
        with pytest.raises(UserError, match="reference"):
            nifti.write_like(tmp_path / "w.nii", volume[1:], reference)
        with pytest.raises(UserError, match=r"must end in \.nii\.gz"):
            nifti.write_like(tmp_path / "w.png", volume, reference)

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        reference = save(tmp_path / "r.nii", random_values())
        volume = nifti.read_volume(reference)
        nifti.write_like(tmp_path / "out" / "w.nii", volume, reference)
        before = (tmp_path / "out" / "w.nii").read_bytes()

        def full_disk(*_):
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            nifti.write_like(tmp_path / "out" / "w.nii", volume + 1, reference)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["w.nii"]
        assert (tmp_path / "out" / "w.nii").read_bytes() == before


REAL_FILES = {
    "brats2023/BraTS-GLI-00001-000/BraTS-GLI-00001-000-{}.nii.gz": ["t1n", "t1c", "t2f", "seg"],
    "brats2021/BraTS2021_01306/BraTS2021_01306_{}.nii.gz": ["t1", "t1ce", "flair", "seg"],
    "tcga/TCGA-DU-7294/TCGA-DU-7294_{}_bet.nii.gz": ["t1", "t1c", "fla"],
    "openms/patient19/{}.nii.gz": ["T1", "T1POST", "FLAIR"],
}


@pytest.mark.parametrize("pattern", REAL_FILES)
def test_real_patients_go_in_and_out_unchanged(real_data, tmp_path, pattern):
    paths = [real_data / pattern.format(name) for name in REAL_FILES[pattern]]
    grids.check_same_grid(paths)
    path = tmp_path / "written.nii"
    volume = nifti.read_volume(paths[-1])
    nifti.write_like(path, volume, paths[-1])
    TestWriting().assert_same_grid_bytes(path, paths[-1])
    np.testing.assert_array_equal(
        np.asanyarray(nib.load(path).dataobj), nib.load(paths[-1]).get_fdata(dtype=np.float32)
    )
    assert nifti.read_voxel_size(paths[0]) == (1, 1, 1)


@pytest.mark.parametrize("pattern", [name for name in REAL_FILES if "brats" in name])
def test_real_segmentations_hold_the_known_labels(real_data, pattern):
    labels = nifti.read_labels(real_data / pattern.format("seg"))
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4}
