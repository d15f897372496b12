"""The training step written plainly: the baseline of the training benchmark, to be read beside
madad_lite/training/denoiser.py.

Float32 throughout; every slice is encoded again at every step; masks are drawn sample by sample; attention
keeps the whole matrix softmax(Q K^T); losses are read at every step.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention_processor import Attention

from madad_lite.autoencoder import encode
from madad_lite.denoiser import Denoiser


class PlainAttention:
    """softmax(Q K^T / sqrt(d)) V as it is written, as a processor of diffusers' Attention."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> torch.Tensor:
        n, c, h, w = hidden_states.shape
        x = attn.group_norm(hidden_states.view(n, c, h * w)).transpose(1, 2)  # (N, hw, C)
        q, k, v = (
            to(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, dim=-1)  # (N, heads, hw, hw)
        x = (weights @ v).transpose(1, 2).flatten(2)  # (N, hw, C)
        return hidden_states + attn.to_out[0](x).transpose(1, 2).view(n, c, h, w)


def plain_masks(brain: torch.Tensor, max_ratio: float = 0.4) -> torch.Tensor:
    """brain (N, 1, h, w) bool cells -> (N, 1, h, w) float32, 1 = noised; one sample and one rectangle after
    the other.
    """
    n, _, h, w = brain.shape
    py, px = random.choices((1, 2, 4, 8), (0.2, 0.3, 0.3, 0.2), k=2)
    masks = torch.zeros(n, 1, h, w)
    for i in range(n):
        patches = [(y, x) for y in range(0, h, py) for x in range(0, w, px)]
        random.shuffle(patches)
        for y, x in patches[int((1 - random.uniform(0, max_ratio)) * len(patches)) :]:
            masks[i, :, y : y + py, x : x + px] = 1
        masks[i][~brain[i]] = 0
    return masks


def plain_loss(
    model, z0, noise, mask, t, scheduler: DDIMScheduler, mask_weight: float
) -> tuple[torch.Tensor, ...]:
    """(loss, latent loss, mask loss), all means."""
    abar = scheduler.alphas_cumprod.to(z0.device)[t].view(-1, 1, 1, 1)
    z_t = mask * (abar.sqrt() * z0 + (1 - abar).sqrt() * noise) + (1 - mask) * z0
    prediction, logits = model(z_t, t)
    latent_loss = ((prediction - z0) ** 2).mean()
    mask_loss = F.binary_cross_entropy(torch.sigmoid(logits), mask)
    return latent_loss + mask_weight * mask_loss, latent_loss, mask_loss


class PlainTraining:
    def __init__(
        self, model: Denoiser, autoencoder: AutoencoderKL, scheduler: DDIMScheduler, mask_weight: float
    ):
        for module in model.modules():
            if isinstance(module, Attention):
                module.set_processor(PlainAttention())
        self.model, self.autoencoder, self.scheduler, self.mask_weight = (
            model,
            autoencoder,
            scheduler,
            mask_weight,
        )
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(self, images: torch.Tensor, brain: torch.Tensor, z0: torch.Tensor | None = None) -> None:
        """images (N, 1, H, W), brain (N, 1, h, w) cells. z0: leaves the encoder out."""
        if z0 is None:
            with torch.no_grad():
                z0 = encode(self.autoencoder, images, sample=True)
        mask, noise = plain_masks(brain.cpu()).to(z0.device), torch.randn_like(z0)
        t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(z0),), device=z0.device)
        losses = plain_loss(self.model, z0, noise, mask, t, self.scheduler, self.mask_weight)
        losses[0].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].mul_(0.999).add_(p, alpha=0.001)
        for loss in losses:
            loss.item()
