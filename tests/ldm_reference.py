"""The autoencoder of latent diffusion (Rombach et al. 2022; the layers as in their published model), written
small.

Only for tests: an independent forward pass to compare imported weights with, and a source of files as the
authors have them.
"""

import contextlib
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.dropout, self.conv2 = (
            norm(c_out),
            nn.Dropout(0.0),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (N, C, L)
        weight = (torch.einsum("ncl,ncm->nlm", q, k) / x.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("nlm,ncm->ncl", weight, v).view_as(x))


class Resample(nn.Module):
    def __init__(self, c: int, down: bool):
        super().__init__()
        self.conv, self.down = nn.Conv2d(c, c, 3, stride=2 if down else 1, padding=0 if down else 1), down

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


def middle(c: int) -> nn.Module:
    m = nn.Module()
    m.block_1, m.attn_1, m.block_2 = ResnetBlock(c, c), AttnBlock(c), ResnetBlock(c, c)
    return m


class Half(nn.Module):
    """Encoder or decoder; levels are counted from the finest, as in their code."""

    def __init__(self, widths, layers: int, c_in: int, c_out: int, down: bool):
        super().__init__()
        self.is_encoder = down
        start, end = (widths[0], widths[-1]) if down else (widths[-1], widths[0])
        self.conv_in = nn.Conv2d(c_in, start, 3, padding=1)
        levels, c = [], start
        for i in range(len(widths)) if down else reversed(range(len(widths))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(layers if down else layers + 1):
                level.block.append(ResnetBlock(c, widths[i]))
                c = widths[i]
            if down and i < len(widths) - 1:
                level.downsample = Resample(c, True)
            if not down and i > 0:
                level.upsample = Resample(c, False)
            levels.append(level)
        if down:
            self.down = nn.ModuleList(levels)
        else:
            self.up = nn.ModuleList(levels[::-1])
        self.mid = middle(widths[-1])
        self.norm_out, self.conv_out = norm(end), nn.Conv2d(end, c_out, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        if not self.is_encoder:
            h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in self.down if self.is_encoder else reversed(self.up):
            for block in level.block:
                h = block(h)
            for name in ("downsample", "upsample"):
                h = getattr(level, name)(h) if hasattr(level, name) else h
        if self.is_encoder:
            h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    def __init__(self, channels: int = 1, widths=(32, 64, 64, 64), layers: int = 1, latent: int = 4):
        super().__init__()
        self.encoder = Half(widths, layers, channels, 2 * latent, True)
        self.decoder = Half(widths, layers, latent, channels, False)
        self.quant_conv, self.post_quant_conv = (
            nn.Conv2d(2 * latent, 2 * latent, 1),
            nn.Conv2d(latent, latent, 1),
        )
        self.loss = nn.Module()  # what only its training needs
        self.loss.logvar = nn.Parameter(torch.zeros(()))
        self.loss.discriminator = nn.Sequential(
            nn.Conv2d(channels, 8, 4), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)
        )
        self.image_key, self.act = "image", F.silu

    def encode(self, x):
        return self.quant_conv(self.encoder(x)).chunk(2, 1)[0]  # the mode

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


PLACES = {
    AutoencoderKL: "ldm.models.autoencoder",
    Half: "ldm.modules.diffusionmodules.model",
    ResnetBlock: "ldm.modules.diffusionmodules.model",
    AttnBlock: "ldm.modules.diffusionmodules.model",
    Resample: "ldm.modules.diffusionmodules.model",
}


@contextlib.contextmanager
def pickled_as_theirs():
    """While it lasts, these classes are pickled under the names of the published code."""
    before = {cls: cls.__module__ for cls in PLACES}
    added = set()
    for cls, place in PLACES.items():
        parts = place.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                added.add(name)
        cls.__module__ = place
        setattr(sys.modules[place], cls.__name__, cls)
    try:
        yield
    finally:
        for cls, name in before.items():
            cls.__module__ = name
        for name in added:
            del sys.modules[name]
