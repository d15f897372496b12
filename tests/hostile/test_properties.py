"""Drawn headers, manifests and settings: each gives a result, or one of the errors that are meant for the user, in
one line; no file is changed by it. The draws are the same in every run.
"""

import gzip
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from case import LONGEST, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import prepared
from world import AFFINE, volume

from madad_lite.errors import Refused, foreseen
from madad_lite.scans.nifti import load_volume
from madad_lite.settings import DetectionSettings
from madad_lite.slices.manifest import Manifest
from madad_lite.training.settings import AutoencoderConfig, DenoiserConfig, TrainingConfig, configured


def drawn(examples: int):
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def result_or_refusal(call):
    """What the call gives; None where it is refused."""
    try:
        return call()
    except Exception as error:
        said = str(error)
        assert foreseen(error), repr(error)
        assert said and "\n" not in said and len(said) < LONGEST, said
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all draws: hypothesis calls a test many times."""
    return tmp_path_factory.mktemp("drawn")


# ------------------------------------------------------------------------------------------------ NIfTI headers

VOXELS = volume((8, 9, 7)).tobytes()
FLOAT = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 8.0, math.nan, math.inf, -math.inf]), st.floats(width=32))
SHORT = st.one_of(st.sampled_from([-1, 0, 1, 2, 3, 4]), st.integers(-(2**15), 2**15 - 1))
TYPES = st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304])
FIELDS = {  # of a header; the other fields do not matter
    "sizeof_hdr": st.sampled_from([0, 348, 540, -1]),
    "dim": st.tuples(st.integers(-1, 8), *[st.one_of(st.sampled_from([7, 8, 9]), SHORT)] * 7),
    "datatype": st.one_of(TYPES, SHORT),
    "bitpix": st.one_of(st.sampled_from([8, 16, 32, 64]), SHORT),
    "pixdim": st.tuples(*[FLOAT] * 8),
    "vox_offset": st.one_of(st.sampled_from([0.0, 352.0, 348.0, 1e9]), FLOAT),
    "scl_slope": FLOAT,
    "scl_inter": FLOAT,
    "xyzt_units": st.integers(0, 255),
    "qform_code": SHORT,
    "sform_code": SHORT,
    "quatern_b": FLOAT,
    "quatern_c": FLOAT,
    "quatern_d": FLOAT,
    "qoffset_x": FLOAT,
    "srow_x": st.tuples(*[FLOAT] * 4),
    "srow_y": st.tuples(*[FLOAT] * 4),
    "srow_z": st.tuples(*[FLOAT] * 4),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b"", b"\xff\xff\xff\xff"]),
}


@st.composite
def headers(draw) -> bytes:
    """Of a good scan, with up to three fields drawn."""
    header = nib.Nifti1Header(endianness=draw(st.sampled_from("<>")))
    header.set_data_shape((8, 9, 7))
    header.set_data_dtype(np.float32)
    header.set_sform(AFFINE, code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True)):
        header[name] = draw(FIELDS[name])
    return header.binaryblock


@drawn(300)
@given(header=headers(), cut=st.one_of(st.none(), st.integers(0, len(VOXELS))), packed=st.booleans())
def test_a_drawn_header_gives_a_finite_volume_or_a_refusal(folder, header, cut, packed):
    path = folder / ("scan.nii.gz" if packed else "scan.nii")
    content = header + bytes(4) + VOXELS[:cut]
    if packed:
        content = gzip.compress(content, 1)
    path.write_bytes(content)
    image = result_or_refusal(lambda: load_volume(path))
    assert path.read_bytes() == content
    if image is not None:
        data = np.asarray(image.dataobj)
        assert data.dtype == np.float32 and data.ndim == 3 and np.isfinite(data).all()
        assert np.isfinite(image.affine).all()


# ---------------------------------------------------------------------------------------------------- manifests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
CHANGES = st.sampled_from(["replace", "remove", "double", "add"])


def places(content) -> list[tuple]:
    """(container, key) of everything in it."""
    if not isinstance(content, (dict, list)):
        return []
    keys = list(content) if isinstance(content, dict) else range(len(content))
    return [p for key in keys for p in [(content, key), *places(content[key])]]


def change(content: dict, draw) -> None:
    """At one place of a manifest's content another value, none, the same one twice, or one more."""
    inside, key = draw(st.sampled_from(places(content)))
    what = draw(CHANGES)
    if what == "remove":
        del inside[key]
    elif what == "double" and isinstance(inside, list):
        inside.insert(key, inside[key])
    elif what == "add" and isinstance(inside, dict):
        inside[draw(st.text(max_size=4))] = draw(JSON)
    else:
        old = inside[key]
        numbers = isinstance(old, (int, float)) and not isinstance(old, bool)
        inside[key] = draw(st.integers(-3, 40) | JSON if numbers else JSON)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("manifest")
    return folder, json.dumps(prepared(folder))


@drawn(150)
@given(data=st.data())
def test_a_changed_manifest_is_whole_or_refused(manifest, data):
    folder, good = manifest
    content = json.loads(good)
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            change(content, data.draw)
    (folder / "manifest.json").write_text(json.dumps(content))
    before = contents(folder)

    def everything() -> Manifest:
        loaded = Manifest.load(folder)
        loaded.verify()
        return loaded

    loaded = result_or_refusal(everything)
    assert contents(folder) == before
    if loaded is not None:  # whatever it holds lies within the folder, and can be counted
        assert all(loaded.scan_folder(s).parent == folder / "scans" for s in loaded.scans())
        assert all(len(loaded.array(s, "image")) == s["n_slices"] > 0 for s in loaded.scans())


# ----------------------------------------------------------------------------------------------------- settings

CONFIGS = [TrainingConfig(), AutoencoderConfig(), DenoiserConfig()]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 100),
    st.integers(),
    st.floats(-1, 2),
    st.floats(),
    st.sampled_from(["cosine", "nano", "bce", "auto", "lite", "input", "reconstruction"]),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.complex_numbers(),
    st.fractions(),
    st.floats(0, 1).map(np.float32),
    st.just(np.zeros(2)),
)


def changes_of(config):
    names = list(vars(config))
    return st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2)


def plain(config) -> bool:
    """Nothing in it but finite numbers, words and None, so that it can be written to a file and read again."""
    kinds = str, bool, int, float, type(None)
    return all(
        type(v) in kinds and (not isinstance(v, float) or math.isfinite(v)) for v in vars(config).values()
    )


@drawn(300)
@given(config=st.sampled_from(CONFIGS), data=st.data())
def test_drawn_settings_of_a_training_are_checked_or_refused(config, data):
    before = vars(config).copy()
    changes = data.draw(changes_of(config))
    made = result_or_refusal(lambda: configured(config, **changes))
    assert vars(config) == before
    if made is not None:
        assert plain(made) and type(made) is type(config)
        assert configured(type(config)(), **json.loads(json.dumps(vars(made)))) == made


@drawn(300)
@given(changes=changes_of(DetectionSettings()))
def test_drawn_settings_of_a_detection_are_checked_or_refused(changes):
    made = result_or_refusal(lambda: DetectionSettings(**changes))
    if made is not None:
        assert plain(made) and type(made.num_inference_steps) is int and made.num_inference_steps >= 1
        assert 0 <= made.eta <= 1 and 0 <= made.mask_threshold <= 1
        assert made.gamma is None or made.gamma > 0
        assert made.reference in ("input", "reconstruction")


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(Refused, match="no such setting: step"):
        configured(TrainingConfig(), step=1)
