"""MAD-AD itself (Beizaee et al. 2025, arXiv 2502.16943) as rows of the same frame.

`mad_ad` is this repository's: lesion-like regions beside the noise, more samples of pure noise, a lower threshold,
neighbouring slices that decide together (the recipe "lite"). `mad_ad_paper` is the paper's: noise only, each slice
alone, eta and threshold as published, squared difference clipped at 0.2. The networks are the same, and so is the code:
this file only carries settings to the method's own modules.

    hidden: random patches, a share of up to 0.4      predicted: z_0 (MSE) and the mask (BCE)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from madad_lite.autoencoder import downsampling
from madad_lite.denoiser import SIZES, Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.extensions.lesion_like import with_regions
from madad_lite.family.frame import FamilyConfig, Method, knob
from madad_lite.pipeline import MadAdPipeline
from madad_lite.settings import DetectionSettings
from madad_lite.slices.augment import AUGMENTATIONS
from madad_lite.training.denoiser import masked_draw, masked_step
from madad_lite.training.settings import RECIPES, DenoiserConfig

SHARED = ("augmentation", "variants", "seed", "steps", "batch_size", "learning_rate", "weight_decay")

# the frame's length and rate, the rest as the recipe's or the paper's section 3
OURS = RECIPES["lite"]
PAPER = replace(OURS, denoiser=DenoiserConfig(mask_weight=1.0), detection=RECIPES["paper"].detection)


class MadAd(Method):
    title = "MAD-AD"
    kinds = {"denoiser": Denoiser}
    latent = True
    recipe = OURS
    paper = dict(size="L", epochs=300, batch_size=96, learning_rate=5e-4, weight_decay=1e-2, variants=1)

    tried = ({}, {"mask_threshold": 0.1})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        size: str = knob("nano", (*SIZES, "tiny"))
        augmentation: str = knob("lite", AUGMENTATIONS)
        mask_threshold: float | None = knob(None, (0, 1))  # None: the recipe's

    @property
    def divisor(self):
        levels = len(self.denoiser.config.channel_multipliers)
        return downsampling(self.autoencoder) * 2 ** (levels - 1)

    def build(self):
        channels, size = self.autoencoder.config.latent_channels, self.config.size
        if size == "tiny":  # as the other methods' tiny U-Net: two levels of 32, no attention
            tiny = dict(channel_multipliers=(1, 1), attention_levels=(False, False))
            return {"denoiser": Denoiser.of_size("nano", latent_channels=channels, **tiny)}
        return {"denoiser": Denoiser.of_size(size, latent_channels=channels)}

    def cache_config(self):
        return replace(self.recipe.denoiser, **{k: getattr(self.config, k) for k in SHARED})

    def draw_batch(self, batch, generator, stage, augment):
        c, scheduler = self.recipe.denoiser, make_scheduler()
        shares = dict(max_ratio=c.max_ratio, last_step_share=c.last_step_share)
        drawn = masked_draw(batch, scheduler, generator, **shares)
        if c.corruption_share > 0:
            drawn = with_regions(drawn, batch, c.corruption_share, scheduler, generator)
        return {k: drawn[k] for k in ("z0", "M", "t", "z_t")}

    def loss(self, drawn):
        return masked_step(self.denoiser, drawn, self.recipe.denoiser)[0]["loss"]

    def detection(self) -> DetectionSettings:
        """Gaussian smoothing is left to postprocess.py, as every method's."""
        chosen = self.config.mask_threshold
        own = {} if chosen is None else {"mask_threshold": chosen}
        return replace(self.recipe.detection, sigma=0.0, **own)

    def maps(self, slices, brain, volumes, seeds, batch_size):
        about = dict(contrast=self.contrast, grid=self.grid or None)
        parts = self.autoencoder, self.denoiser, make_scheduler()
        pipe = MadAdPipeline(*parts, **about, **vars(self.detection())).to(self.device)
        generator = torch.Generator().manual_seed(seeds[0])
        run = dict(brain=brain, volumes=volumes, generator=generator, batch_size=batch_size, progress=False)
        return pipe(slices, **run).anomaly_map


class MadAdPaper(MadAd):
    title = "MAD-AD as published"
    recipe = PAPER
    tried = ({},)
