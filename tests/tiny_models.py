"""The smallest autoencoder and denoiser, size "tiny", for tests that train in processes of their own."""

import pytest

from madad_lite.autoencoder import AUTOENCODERS
from madad_lite.denoiser import SIZES, DenoiserSize

ENTRIES = (
    (AUTOENCODERS, {**AUTOENCODERS["nano"], "block_out_channels": (16,)}),
    (SIZES, DenoiserSize(32, 1, (1, 1), (False, True), 1)),
)


def make_tiny_known() -> None:
    """In a process that a test has started."""
    for sizes, entry in ENTRIES:
        sizes["tiny"] = entry


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Known while the tests of a module run, and to no other test."""
    with pytest.MonkeyPatch.context() as patch:
        for sizes, entry in ENTRIES:
            patch.setitem(sizes, "tiny", entry)
        yield
