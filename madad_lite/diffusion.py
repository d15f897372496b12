"""The two equations of MAD-AD (arXiv 2502.16943, section 3): masked forward process, selective reverse
process.

| here                | paper          | meaning                                                      |
|---------------------|----------------|--------------------------------------------------------------|
| z0                  | z_0            | latent of a scan, (N, C, h, w)                               |
| noise               | epsilon        | standard normal, same shape                                  |
| mask                | M              | 1 = noised, 0 = left alone, (N, 1, h, w)                     |
| t                   | t              | step, 0 .. T-1, T = 10                                       |
| alphas_cumprod[t]   | alpha-bar_t    | share of the signal's variance that is left at step t        |
| latent              | z_t            | what the denoiser sees                                       |
| prediction          | z_0-hat        | the denoiser's estimate of the clean latent                  |
| probability         | M-hat          | sigmoid of the denoiser's mask logits: chance of "noised"    |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

# (z_t (N, C, h, w), t (N,)) -> (z0_hat (N, C, h, w), mask logits (N, 1, h, w))
DenoiserFunction = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_scheduler(num_train_timesteps: int = 10) -> DDIMScheduler:
    """The noise schedule: T = 10 steps, cosine alpha-bar; the network predicts the clean latent itself."""
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,  # latents are not confined to [-1, 1]; the default would clamp them
        timestep_spacing="leading",
    )


def masked_forward(
    z0: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor, t: torch.Tensor, scheduler: DDIMScheduler
) -> torch.Tensor:
    """z_t = M * (sqrt(abar_t) z_0 + sqrt(1 - abar_t) epsilon) + (1 - M) * z_0.

    z0, noise: (N, C, h, w). mask: (N, 1, h, w), 1 = noised. t: (N,) integer steps. Returns z_t, shape of z0.
    """
    return torch.where(mask.bool(), scheduler.add_noise(z0, noise, t), z0)


@dataclass
class ReverseResult:
    """What the selective reverse process gives back; S executed steps."""

    latent: torch.Tensor  # (N, C, h, w), healed
    mask_probability: torch.Tensor  # (S, N, 1, h, w) in [0, 1], the network's chance of "noised" at each step
    replaced: torch.Tensor  # (S, N, 1, h, w) bool, the cells replaced at each step
    trajectory: torch.Tensor  # (S + 1, N, C, h, w), the latent before each step, and the last one
    timesteps: torch.Tensor  # (S,) the steps taken, T-1 first


@torch.no_grad()
def selective_reverse(
    denoiser: DenoiserFunction,
    z0: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    num_inference_steps: int = 10,  # 10 of T = 10; the paper's ablation also has 5 and 2
    eta: float = 0.5,  # 0: deterministic DDIM; the authors use 0.5
    threshold: float = 0.5,  # a cell is replaced where M-hat is above
    generator: torch.Generator | None = None,
    step_noise: torch.Tensor | None = None,  # (S, N, C, h, w) instead of drawing; for exact comparison
    on_step: Callable[[], None] | None = None,  # called after each step, for a progress bar
) -> ReverseResult:
    """Heal a latent: at each step replace only the cells which the network takes for noise.

    z_{t-1} = M-hat * DDIM(z_t, z_0-hat, t) + (1 - M-hat) * z_t, with M-hat = [probability > threshold],
    starting from the scan's own latent without any noise added. z0: (N, C, h, w).
    """
    scheduler.set_timesteps(num_inference_steps)
    latent = z0
    probabilities, replaced, trajectory = [], [], [z0]
    for i, t in enumerate(scheduler.timesteps):
        prediction, logits = denoiser(latent, t.to(z0.device).expand(len(z0)))  # (N, C, h, w), (N, 1, h, w)
        probability = logits.sigmoid()
        noisy = probability > threshold
        noise = None if step_noise is None or eta == 0 else step_noise[i]
        step = scheduler.step(
            prediction,
            t,
            latent,
            eta=eta,
            generator=None if noise is not None else generator,
            variance_noise=noise,
        )
        latent = torch.where(noisy, step.prev_sample, latent)
        probabilities.append(probability)
        replaced.append(noisy)
        trajectory.append(latent)
        if on_step is not None:
            on_step()
    return ReverseResult(
        latent,
        torch.stack(probabilities),
        torch.stack(replaced),
        torch.stack(trajectory),
        scheduler.timesteps.clone(),
    )


def denoising_losses(
    prediction: torch.Tensor,
    mask_logits: torch.Tensor,
    z0: torch.Tensor,
    mask: torch.Tensor,
    *,
    mask_loss: str = "bce",  # the paper's; "mse": the authors' code, on the sigmoid
    mask_weight: float = 1.0,  # lambda
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two losses of each sample: (latent, mask, latent + lambda * mask), each (N,).

    latent: MSE(z0_hat, z0). mask: BCE(M-hat, M) or the mean squared error of the probabilities.
    """
    latent = F.mse_loss(prediction, z0, reduction="none").flatten(1).mean(1)  # (N,)
    if mask_loss == "bce":
        per_cell = F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none")
    elif mask_loss == "mse":
        per_cell = F.mse_loss(mask_logits.sigmoid(), mask, reduction="none")
    else:
        raise ValueError(f'mask_loss is "bce" or "mse", not {mask_loss!r}')
    masked = per_cell.flatten(1).mean(1)  # (N,)
    return latent, masked, latent + mask_weight * masked
