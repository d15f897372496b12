"""Files for `madad import-official` that hold other things than weights, or too much of them."""

import functools
import resource
import zipfile
from pathlib import Path

import torch
from case import Case
from ldm_reference import AutoencoderKL, pickled_as_theirs
from torch import nn

from madad_lite.authors.checkpoints import import_official

FIRST = "input_blocks.0.0.weight"  # of a UNet of the authors


def saved(content):
    """content: a function, so that nothing is made before its test runs."""

    def make(folder: Path) -> None:
        with pickled_as_theirs():
            torch.save(content(), folder / "weights.pt")

    return make


def imported(folder: Path, **options) -> None:
    import_official(folder / "weights.pt", folder / "imp", **options)


def four_heads(folder: Path) -> None:
    imported(folder, num_heads=4)


def complex_numbers():
    return torch.zeros(32, 4, 3, 3, dtype=torch.complex64)


KINDS = [  # what a tensor is, how it is made, what is said
    ("complex", complex_numbers, "of type complex64"),
    ("of whole numbers", lambda: torch.zeros(32, 4, 3, 3, dtype=torch.int64), "of type int64"),
    ("of truth values", lambda: torch.zeros(32, 4, 3, 3, dtype=torch.bool), "of type bool"),
    ("of 8 bits", lambda: torch.zeros(32, 4, 3, 3).to(torch.float8_e4m3fn), "of type float8"),
    ("sparse", lambda: torch.zeros(32, 4).to_sparse(), "is sparse_coo"),
    ("sparse by rows", lambda: torch.zeros(32, 4).to_sparse_csr(), "is sparse_csr"),
    ("without data", lambda: torch.zeros(32, 4, 3, 3, device="meta"), "on the device meta"),
    ("nested", lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "is a nested tensor"),
    ("with its sign turned", lambda: complex_numbers().conj().imag, "sign turned"),
    ("of 8 GB in one number", lambda: torch.zeros(1).expand(2**31), "larger than what is stored"),
    ("overlapping", lambda: torch.zeros(128).as_strided((60, 60), (1, 1)), "larger than what is stored"),
    ("without numbers", lambda: torch.zeros(0, 4, 3, 3), "width 0"),
    ("without channels", lambda: torch.zeros(32, 0, 3, 3), "0 channels"),
    ("much too wide", lambda: torch.zeros(32 * 10_000, 1, 1, 1), "width 320000"),
    ("of one dimension", lambda: torch.zeros(32), "no convolution"),
]


def encoder(levels: int = 1, layers: int = 1, width: int = 32, channels: int = 1, quant: int = 8) -> dict:
    """As much of an autoencoder as decides how it is built; all of one storage."""
    conv = torch.zeros(width, channels, 1, 1)
    blocks = [(0, j) for j in range(layers)] + [(i, 0) for i in range(1, levels)]
    return {
        "encoder.conv_in.weight": conv,
        "quant_conv.weight": torch.zeros(quant, quant, 1, 1),
        **{f"encoder.down.{i}.block.{j}.conv1.weight": conv for i, j in blocks},
    }


def sequence(*children) -> nn.Module:
    return nn.Sequential(*children)


def twice_a_level() -> nn.Module:
    """2^40 ways down."""
    return functools.reduce(lambda inner, _: sequence(inner, inner), range(40), nn.Identity())


def a_circle() -> nn.Module:
    module = sequence()
    module._modules["again"] = module
    return module


def with_attribute(name: str, value) -> nn.Module:
    module = sequence()
    module.__dict__[name] = value
    return module


MODULES = [
    ("a module twice at each of 40 levels", twice_a_level, "in a circle, or more than 20000"),
    (
        "a module 150 levels deep",
        lambda: functools.reduce(lambda m, _: sequence(m), range(150), nn.Identity()),
        "in a circle",
    ),
    ("a module in itself", a_circle, "in a circle"),
    (
        "20,000 layers beside each other",
        lambda: with_attribute("_modules", dict.fromkeys(map(str, range(20_001)), nn.Identity())),
        "more than 20000",
    ),
    ("a module of nothing", nn.Identity, "not a UNet"),
    (
        "parameters that are a tensor",
        lambda: with_attribute("_parameters", torch.zeros(2)),
        "_parameters is not a dictionary",
    ),
    (
        "parameters that are a list",
        lambda: with_attribute("_parameters", [1]),
        "_parameters is not a dictionary",
    ),
    (
        "modules by number",
        lambda: with_attribute("_modules", {1: nn.Identity()}),
        "_modules is not a dictionary",
    ),
    (
        "buffers of which none is known to stay",
        lambda: with_attribute("_non_persistent_buffers_set", 5),
        "not a UNet",
    ),
]

OTHERS = [
    ("a name of 10,000 lines", lambda: {"a\n" * 10_000: 5}, imported, "is no tensor"),
    (
        "an unexpected name of 10,000 lines",
        lambda: encoder() | {"a\n" * 10_000: torch.zeros(1)},
        imported,
        "unexpected",
    ),
    ("2,000 levels", lambda: encoder(levels=2000), imported, "2000 levels of 1 layers"),
    ("2,000 layers", lambda: encoder(layers=2000), imported, "1 levels of 2000 layers"),
    ("an encoder of width 0", lambda: encoder(width=0), imported, r"widths \[0\]"),
    ("an encoder of width 320,000", lambda: encoder(width=320_000), imported, r"widths \[320000\]"),
    ("an encoder without channels", lambda: encoder(channels=0), imported, "0 channels in"),
    ("an encoder without latents", lambda: encoder(quant=0), imported, "0 latent channels"),
    (
        "no heads",
        lambda: {FIRST: torch.zeros(32, 4, 3, 3)},
        lambda f: imported(f, num_heads=0),
        "with 0 heads",
    ),
    (
        "heads below zero",
        lambda: {FIRST: torch.zeros(32, 4, 3, 3)},
        lambda f: imported(f, num_heads=-4),
        "with -4 heads",
    ),
]


def packed(folder: Path) -> None:
    """The same file, but its parts are compressed: 8 MB of zeros in 8 KB."""
    torch.save({FIRST: torch.zeros(2_000_000)}, folder / "whole.pt")
    with (
        zipfile.ZipFile(folder / "whole.pt") as whole,
        zipfile.ZipFile(folder / "weights.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for part in whole.namelist():
            small.writestr(part, whole.read(part))
    (folder / "whole.pt").unlink()


def a_folder(folder: Path) -> None:
    (folder / "weights.pt").mkdir()


def an_encoder(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(AutoencoderKL(1, layers=1).state_dict(), folder / "weights.pt")


def a_file_in_the_way(folder: Path) -> None:
    an_encoder(folder)
    (folder / "imp").write_text("mine")


def on_a_full_disk(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # files of at most so many bytes
    try:
        imported(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def below_a_file(folder: Path) -> None:
    import_official(folder / "weights.pt", folder / "weights.pt" / "imp")


CASES = [
    *(
        Case(f"a tensor {name}", saved(lambda t=tensor: {FIRST: t()}), four_heads, says, "weights.pt")
        for name, tensor, says in KINDS
    ),
    *(Case(name, saved(module), imported, says, "weights.pt") for name, module, says in MODULES),
    *(Case(name, saved(content), call, says, "weights.pt") for name, content, call, says in OTHERS),
    Case("a file that grows", packed, imported, "grows when it is unpacked", "weights.pt"),
    Case("a folder as weights", a_folder, imported, "is not a file", "weights.pt"),
    Case("no weights", lambda f: None, imported, "no such file", "weights.pt"),
    Case("a full disk", an_encoder, on_a_full_disk, "cannot be written", "imp"),
    Case("a file in the way", a_file_in_the_way, imported, "exists already", "imp"),
    Case("a folder below a file", an_encoder, below_a_file, "cannot be written", "imp"),
]
