"""MAD-AD's two processes (arXiv 2502.16943, section 3): masked forward and selective reverse.

| here                | paper          | meaning                                                      |
|---------------------|----------------|--------------------------------------------------------------|
| z0                  | z_0            | latent of a scan, (N, C, h, w)                               |
| epsilon             | epsilon        | standard normal, same shape                                  |
| M                   | M              | 1 = noised, 0 = left alone, (N, 1, h, w)                     |
| t                   | t              | step, 0 .. T-1, T = 10                                       |
| alphas_cumprod[t]   | alpha-bar_t    | share of the signal's variance that is left at step t        |
| z_t                 | z_t            | what the denoiser sees                                       |
| z0_hat              | z_0-hat        | the denoiser's estimate of the clean latent                  |
| probability         | M-hat          | sigmoid of the denoiser's mask logits: chance of "noised"    |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from madad_lite.settings import DetectionSettings, check_steps

# (z_t (N, C, h, w), t (N,)) -> (z0_hat (N, C, h, w), mask logits (N, 1, h, w))
DenoiserFunction = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_scheduler(num_train_timesteps: int = 10) -> DDIMScheduler:
    """The noise schedule: T = 10 steps, cosine alpha-bar; the network predicts z_0 itself (section 3)."""
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,  # latents are not confined to [-1, 1]; the default would clamp them
        timestep_spacing="leading",
    )


def masked_forward(
    z0: torch.Tensor, epsilon: torch.Tensor, M: torch.Tensor, t: torch.Tensor, scheduler: DDIMScheduler
) -> torch.Tensor:
    """z_t = M * (sqrt(abar_t) z_0 + sqrt(1 - abar_t) epsilon) + (1 - M) * z_0  (section 3.1).

    z0, epsilon: (N, C, h, w). M: (N, 1, h, w), 1 = noised. t: (N,) integers, 0..T-1.
    Returns z_t (N, C, h, w).
    """
    noised = scheduler.add_noise(z0, epsilon, t)  # (N, C, h, w)
    return torch.where(M.bool(), noised, z0)  # (N, C, h, w)


def denoising_losses(
    z0_hat: torch.Tensor,
    mask_logits: torch.Tensor,
    z0: torch.Tensor,
    M: torch.Tensor,
    *,
    mask_loss: str = "bce",  # the paper's; "mse": the authors' code, on the sigmoid
    mask_weight: float = 1.0,  # lambda
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MSE(z0_hat, z0) + lambda * BCE(M-hat, M), for each sample (section 3.1).

    z0_hat, z0: (N, C, h, w). mask_logits, M: (N, 1, h, w), 1 = noised.
    Returns (latent loss, mask loss, their weighted sum), each (N,). ValueError: another mask_loss.
    """
    latent = F.mse_loss(z0_hat, z0, reduction="none").flatten(1).mean(1)  # (N,)
    if mask_loss == "bce":
        per_cell = F.binary_cross_entropy_with_logits(mask_logits, M, reduction="none")  # (N, 1, h, w)
    elif mask_loss == "mse":
        per_cell = F.mse_loss(mask_logits.sigmoid(), M, reduction="none")  # (N, 1, h, w)
    else:
        raise ValueError(f'mask_loss is "bce" or "mse", not {mask_loss!r}')
    masked = per_cell.flatten(1).mean(1)  # (N,)
    return latent, masked, latent + mask_weight * masked


@dataclass
class ReverseResult:
    """What the selective reverse process gives back; S executed steps."""

    latent: torch.Tensor  # (N, C, h, w), healed
    mask_probability: torch.Tensor  # (S, N, 1, h, w) in [0, 1], M-hat at each step
    replaced: torch.Tensor  # (S, N, 1, h, w) bool, the cells replaced at each step
    trajectory: torch.Tensor  # (S + 1, N, C, h, w), the latent before each step, and the last one
    timesteps: torch.Tensor  # (S,) the steps taken, the highest first


@torch.no_grad()
def selective_reverse(
    denoiser: DenoiserFunction,
    z0: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    num_inference_steps: int = DetectionSettings.num_inference_steps,
    eta: float = DetectionSettings.eta,
    threshold: float = DetectionSettings.mask_threshold,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    step_noise: torch.Tensor | None = None,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> ReverseResult:
    """z_{t-1} = M-hat * DDIM(z_t, z0_hat, t) + (1 - M-hat) * z_t, M-hat = [probability > threshold]  (section 3).

    It starts from the scan's own latent; no noise is added. num_inference_steps, eta, threshold: as in
    DetectionSettings. z0: (N, C, h, w). generator: one, or one a sample. step_noise: (S, N, C, h, w) in place
    of drawn noise, for exact comparisons. on_step: (step, t, z_{t-1}) -> z_{t-1}, called after each step.
    Returns a ReverseResult. ValueError: settings out of range.
    """
    DetectionSettings(num_inference_steps, eta=eta, mask_threshold=threshold)  # refuses what is out of range
    check_steps(num_inference_steps, scheduler.config.num_train_timesteps)
    scheduler = copy.copy(scheduler)  # its steps are this call's own: others may use it at the same time
    scheduler.set_timesteps(num_inference_steps)
    z_t = z0  # (N, C, h, w)
    probabilities, replaced, trajectory = [], [], [z0]
    for i, t in enumerate(scheduler.timesteps):
        z0_hat, logits = denoiser(z_t, t.to(z0.device).expand(len(z0)))  # (N, C, h, w), (N, 1, h, w)
        probability = logits.sigmoid()  # (N, 1, h, w)
        noisy = probability > threshold  # (N, 1, h, w) bool
        noise = None if step_noise is None or eta == 0 else step_noise[i]  # (N, C, h, w)
        draw = dict(eta=eta, variance_noise=noise, generator=generator if noise is None else None)
        step = scheduler.step(z0_hat, t, z_t, **draw).prev_sample  # (N, C, h, w)
        z_t = torch.where(noisy, step, z_t)  # (N, C, h, w), now z_{t-1}
        if on_step is not None:
            z_t = on_step(i, t, z_t)  # (N, C, h, w)
        probabilities.append(probability)
        replaced.append(noisy)
        trajectory.append(z_t)
    stacks = (torch.stack(x) for x in (probabilities, replaced, trajectory))  # (S, N, ...), (S + 1, N, ...)
    return ReverseResult(z_t, *stacks, scheduler.timesteps.clone())
