"""What looks odd and is right: the same scan in every form that NIfTI allows gives the same numbers."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from headers import extended, pair, parts
from nifti import DIM, NAN, PLACES, header, put, raw, whole
from world import AFFINE, volume

from madad_lite.errors import ScanError
from madad_lite.scans.nifti import check_intensities, load_volume


def in_bytes_of(kind, endianness="<"):
    return kind(volume(), AFFINE, kind.header_class(endianness=endianness)).to_bytes()


def with_dims(*dims: int):
    content = bytearray(whole())
    struct.pack_into(PLACES["dim"][1], content, PLACES["dim"][0], *dims)
    return put("bad.nii", bytes(content))


FORMS = {
    "plain": put("bad.nii", whole()),
    "packed": put("bad.nii.gz", whole()),
    "big-endian": put("bad.nii", in_bytes_of(nib.Nifti1Image, ">")),
    "NIfTI-2": put("bad.nii", in_bytes_of(nib.Nifti2Image)),
    "NIfTI-2, big-endian, packed": put("bad.nii.gz", in_bytes_of(nib.Nifti2Image, ">")),
    "in two packs": raw("bad.nii.gz", parts(whole()[:9000], whole()[9000:])),
    "zeros behind a pack": raw("bad.nii.gz", gzip.compress(whole()) + bytes(512)),
    "bytes behind the voxels": put("bad.nii", whole() + b"more"),
    "one volume of four dimensions": with_dims(*DIM(4, 20, 24, 20, 1)),
    "nonsense behind the last dimension": with_dims(3, 20, 24, 20, -5, 0, 7, 9),
    "no scale": header(scl_slope=(NAN,), scl_inter=(NAN,)),
    "a scale of 0": header(scl_slope=(0,), scl_inter=(7,)),
    "an intent": header(intent_code=(1002,)),
    "an extension": extended(16),
    "a header beside its voxels": pair(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_scan(form, tmp_path):
    (tmp_path / "scans").mkdir()
    FORMS[form](tmp_path)
    (file,) = (p for p in (tmp_path / "scans").iterdir() if p.suffix != ".img")
    image = load_volume(file)
    assert np.array_equal(np.asarray(image.dataobj), volume()) and np.allclose(image.affine, AFFINE)


def test_bright_vessels_and_ripples_are_no_damage():
    scan = volume() + np.float32(1e-7) * np.random.default_rng(0).standard_normal((20, 24, 20)).astype(
        np.float32
    )
    scan[10, 12, 10] = 50 * scan.max()
    check_intensities("scan.nii", scan)
    check_intensities("scan.nii", -scan)
    scan[10, 12, 10] = 1e5 * scan.max()
    with pytest.raises(ScanError, match="scan.nii: holds a value of .*nearly all others lie within"):
        check_intensities("scan.nii", scan)
