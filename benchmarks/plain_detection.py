"""Detection written plainly, one slice after the other: the baseline of the detection benchmark."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from benchmarks.plain_training import PlainAttention
from madad_lite.autoencoder import decode, encode
from madad_lite.pipeline import MadAdPipeline


def with_plain_attention(pipe: MadAdPipeline) -> MadAdPipeline:
    for module in pipe.denoiser.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(PlainAttention())
    return pipe


@torch.no_grad()
def plain_maps(pipe: MadAdPipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Anomaly maps (N, 1, H, W) of the reverse process with eta = 0, each slice decided alone.

    images (N, 1, H, W) in [-1, 1], brain (N, 1, H, W) bool.
    """
    c, abar = pipe.config, pipe.scheduler.alphas_cumprod.tolist()
    maps = []
    for image, inside in zip(images[:, None], brain[:, None]):  # (1, 1, H, W) each
        z0 = encode(pipe.autoencoder, image)
        z, probability = z0, torch.zeros(1)
        for t in range(9, -1, -1):
            prediction, logits = pipe.denoiser(z, torch.tensor([t]))
            noisy = torch.sigmoid(logits)
            noise = (z - abar[t] ** 0.5 * prediction) / (1 - abar[t]) ** 0.5
            previous = abar[t - 1] if t > 0 else 1.0
            step = previous**0.5 * prediction + (1 - previous) ** 0.5 * noise
            z = torch.where(noisy > c.mask_threshold, step, z)
            probability = torch.maximum(probability, noisy)
        reconstruction, healed = (
            torch.where(inside, decode(pipe.autoencoder, x).clamp(-1, 1), -1.0) for x in (z0, z)
        )
        difference = (healed - (image if c.reference == "input" else reconstruction)).abs()
        difference = (difference**2 if c.squared else difference).clamp(max=c.gamma) / c.gamma
        if c.weighted:
            difference = difference * torch.nn.functional.interpolate(
                probability, size=image.shape[-2:], mode="bilinear"
            )
        smooth = (
            ndimage.gaussian_filter(difference[0, 0].numpy(), c.sigma)
            if c.sigma > 0
            else difference[0, 0].numpy()
        )
        bright = (image if c.contrast != "t1" else -image).clamp(0, 1)[0, 0].numpy()
        smooth = np.clip(smooth, 0, 1) * (1 + c.intensity_weight * bright) / (1 + c.intensity_weight)
        maps.append(np.where(inside[0, 0].numpy(), smooth, 0))
    return torch.from_numpy(np.stack(maps))[:, None].float()
