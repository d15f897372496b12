"""After MAEDiff (Xu, Wang, Du 2024, arXiv 2401.10561): no code or sizes are public, so the sizes are ours.

As in pDDPM a box ("upper-level patch") is diffused while the rest of the slice stays visible; here boxes overlap, and
what they say is averaged. The slice is divided further into small cells ("sub-level"); a masked-autoencoder
transformer reads those that are not noised, guesses something for the others, and what it says of every cell is a
condition of the U-Net, beside the slice itself. Both learn together. Score: |x_hat - x|.

    hidden: a box      predicted: x_0, with L1      condition: the transformer's word on every cell

Ours: boxes of half the slice's side, a quarter from one to the next (3 x 3); cells of 8 pixels; a transformer of two
layers and one, 64 wide, 4 heads, which gives 8 numbers for each of a cell's 2 x 2 places; noise, t = 500, one pass a
box, L1 and full-size settings as in pDDPM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from madad_lite.family.frame import knob
from madad_lite.family.parts import SIZES, make_unet
from madad_lite.family.pddpm import PDDPM

CELL, WORDS = 8, 8


def positions(h: int, w: int, width: int) -> torch.Tensor:
    """Sines and cosines of a cell's row and column, (h * w, width), as in Vaswani et al. 2017."""
    rates = 10_000 ** -(torch.arange(width // 4) / (width // 4))  # (width / 4,)
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    angles = [p.flatten()[:, None] * rates for p in (y, x)]  # (h * w, width / 4) each
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)


class CellReader(ModelMixin, ConfigMixin):
    """Slices (N, 1, H, W) and their visible cells (N, h * w) bool -> WORDS numbers for each of a cell's 2 x 2
    places, (N, WORDS, 2h, 2w).
    """

    @register_to_config
    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()

        def transformer(n: int) -> nn.ModuleList:
            options = dict(dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
            return nn.ModuleList(
                nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(n)
            )

        self.look = nn.Linear(CELL**2, width)
        self.reader, self.guesser = transformer(layers), transformer(1)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.say = nn.Linear(width, 4 * WORDS)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        h, w = (side // CELL for side in x.shape[2:])
        cells = F.pixel_unshuffle(x, CELL).flatten(2).transpose(1, 2)  # (N, h * w, 64)
        where = positions(h, w, self.config.width).to(x)
        tokens = self.look(cells) + where
        for layer in self.reader:  # what is hidden is not looked at
            tokens = layer(tokens, src_key_padding_mask=~visible)
        tokens = torch.where(visible[..., None], tokens, self.hidden + where)
        for layer in self.guesser:
            tokens = layer(tokens)  # (N, h * w, width)
        words = self.say(tokens).transpose(1, 2).unflatten(2, (h, w))  # (N, 4 * WORDS, h, w)
        return F.pixel_shuffle(words, 2)  # (N, WORDS, 2h, 2w)


class MAEDiff(PDDPM):
    title = "after MAEDiff"
    kinds = {"unet": UNet2DModel, "reader": CellReader}

    @dataclass(frozen=True)
    class Config(PDDPM.Config):
        stride: float = knob(0.25, (0.1, 1))

    @property
    def divisor(self):
        return max(2 * CELL, super().divisor)

    def build(self):
        channels = SIZES[self.config.size].fold ** 2
        return {"unet": make_unet(channels + WORDS, channels, self.config.size), "reader": CellReader()}

    def rebuild(self, x_t, t, box):
        """The reader sees the slice outside the box."""
        visible = ~F.max_pool2d(box.float(), CELL).bool().flatten(1)  # (N or 1, h * w)
        words = self.reader(x_t, visible.expand(len(x_t), -1))  # (N, WORDS, H/4, W/4)
        fold = SIZES[self.config.size].fold
        folded = F.pixel_unshuffle(x_t, fold)  # (N, fold * fold, H/fold, W/fold)
        words = F.interpolate(words, size=folded.shape[2:])
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        return F.pixel_shuffle(self.unet(torch.cat([folded, words], 1), t).sample, fold).float()
