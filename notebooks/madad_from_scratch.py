"""MAD-AD (arXiv 2502.16943) in one file, from PyTorch alone: the code of notebook 04.

| here    | shape        | what it is                                                        |
|---------|--------------|-------------------------------------------------------------------|
| z0      | (N, C, h, w) | latent of a slice                                                 |
| eps     | (N, C, h, w) | standard normal noise                                             |
| M       | (N, 1, h, w) | patch mask, 1 = noised, 0 = left as it is                         |
| t       | (N,)         | noise level, 0 .. T - 1, T = 10                                   |
| abar    | (T,)         | alpha-bar: share of the latent's variance that is left at level t |
| z_t     | (N, C, h, w) | what the network sees                                             |
| z0_hat  | (N, C, h, w) | its guess of the clean latent                                     |
| M_hat   | (N, 1, h, w) | its chance of "noised" for every cell, the sigmoid of `logits`    |
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

T = 10


def cosine_schedule(T: int = T) -> torch.Tensor:
    """abar (T,): from almost 1 to almost 0 along a cosine (Nichol and Dhariwal 2021)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(0).float()


def draw_mask(
    brain: torch.Tensor, generator: torch.Generator, max_ratio: float = 0.4
) -> torch.Tensor:
    """M (N, 1, h, w): a random share of patches of one random shape, on brain (N, 1, h, w) only."""
    n, _, h, w = brain.shape
    sides, chances = (1, 2, 4, 8), torch.tensor([0.2, 0.3, 0.3, 0.2])
    drawn = torch.multinomial(chances, 2, replacement=True, generator=generator)
    py, px = (sides[i] for i in drawn.tolist())  # one shape a batch, y and x apart
    rows, columns = -(-h // py), -(-w // px)  # so many patches cover the latent
    rank = torch.rand(n, rows * columns, generator=generator).argsort(1).argsort(1)
    ratio = torch.rand(n, 1, generator=generator) * max_ratio  # each sample its own, U[0, 0.4]
    chosen = (rank < ratio * rows * columns).float().view(n, 1, rows, columns)
    M = chosen.repeat_interleave(py, 2).repeat_interleave(px, 3)[..., :h, :w]
    return M * brain


def masked_forward(z0, eps, M, t, abar) -> torch.Tensor:
    """z_t = M (sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps) + (1 - M) z_0."""
    a = abar[t].view(-1, 1, 1, 1)
    noised = a.sqrt() * z0 + (1 - a).sqrt() * eps
    return M * noised + (1 - M) * z0


class Block(nn.Module):
    """Two convolutions and a way around them; the noise level shifts the features in between."""

    def __init__(self, c_in: int, c_out: int, c_time: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.shift = nn.Linear(c_time, c_out)
        self.second = nn.Sequential(
            nn.GroupNorm(8, c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, time):
        y = self.first(x) + self.shift(time)[:, :, None, None]  # (N, c_out, h, w)
        return self.skip(x) + self.second(y)  # (N, c_out, h, w)


class Attention(nn.Module):
    """Every cell looks at every other one: the left of the brain is judged by the right."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attend = nn.MultiheadAttention(channels, 4, batch_first=True)

    def forward(self, x):
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, h*w, channels)
        y = self.attend(tokens, tokens, tokens, need_weights=False)[0]  # (N, h*w, channels)
        return x + y.transpose(1, 2).view_as(x)  # (N, channels, h, w)


class TwoHeadUNet(nn.Module):
    """(z_t, t) -> (z0_hat, logits): one small U-Net, two answers."""

    def __init__(self, latent_channels: int = 4, width: int = 32):
        super().__init__()
        c, c_time = width, 4 * width
        self.width = width
        self.time = nn.Sequential(
            nn.Linear(width, c_time), nn.SiLU(), nn.Linear(c_time, c_time), nn.SiLU()
        )
        self.stem = nn.Conv2d(latent_channels, c, 3, padding=1)
        self.down1, self.shrink1 = Block(c, c, c_time), nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.down2, self.shrink2 = (
            Block(2 * c, 2 * c, c_time),
            nn.Conv2d(2 * c, 3 * c, 3, stride=2, padding=1),
        )
        self.middle1, self.attention, self.middle2 = (
            Block(3 * c, 3 * c, c_time),
            Attention(3 * c),
            Block(3 * c, 3 * c, c_time),
        )
        self.up2, self.up1 = Block(5 * c, 2 * c, c_time), Block(3 * c, c, c_time)
        self.latent_head = nn.Sequential(
            nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, latent_channels, 3, padding=1)
        )
        self.mask_head = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, 1, 3, padding=1))

    def embed(self, t):
        """Sines and cosines of t at many frequencies: (N,) -> (N, width)."""
        frequency = torch.exp(-math.log(10_000) * torch.arange(self.width // 2) / (self.width // 2))
        angle = t[:, None].float() * frequency.to(t.device)  # (N, width / 2)
        return torch.cat([angle.sin(), angle.cos()], 1)

    def forward(self, z_t, t):
        time = self.time(self.embed(t))  # (N, 4 width)
        a = self.down1(self.stem(z_t), time)  # (N, c, h, w)
        b = self.down2(self.shrink1(a), time)  # (N, 2c, h/2, w/2)
        x = self.middle1(self.shrink2(b), time)  # (N, 3c, h/4, w/4)
        x = self.middle2(self.attention(x), time)  # (N, 3c, h/4, w/4)
        x = self.up2(
            torch.cat([F.interpolate(x, scale_factor=2.0), b], 1), time
        )  # (N, 2c, h/2, w/2)
        x = self.up1(torch.cat([F.interpolate(x, scale_factor=2.0), a], 1), time)  # (N, c, h, w)
        return self.latent_head(x), self.mask_head(x)  # z0_hat (N, C, h, w), logits (N, 1, h, w)


def two_losses(z0_hat, logits, z0, M) -> tuple[torch.Tensor, torch.Tensor]:
    """(||z0_hat - z0||^2, BCE(M_hat, M)), each the mean over cells, channels and samples."""
    return F.mse_loss(z0_hat, z0), F.binary_cross_entropy_with_logits(logits, M)


def train(
    model,
    mean,
    std,
    brain,
    *,
    steps,
    batch_size=16,
    learning_rate=1e-3,
    lam=0.1,
    seed=0,
    on_step=None,
):
    """Teach the network to find and undo noise in latents of normal brains. Returns the losses.

    mean, std: (K, C, h, w), the encoder's posterior of K slices. brain: (K, 1, h, w), 1 = brain.
    on_step: called with (step, latent loss, mask loss).
    """
    abar, generator = cosine_schedule(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    model.train()
    for step in range(steps):
        rows = torch.randint(len(mean), (batch_size,), generator=generator)
        noise, eps = torch.randn(2, batch_size, *mean.shape[1:], generator=generator)
        z0 = mean[rows] + std[rows] * noise  # a sample of the posterior
        M = draw_mask(brain[rows], generator)
        t = torch.randint(T, (batch_size,), generator=generator)  # every slice its own level
        z_t = masked_forward(z0, eps, M, t, abar)
        z0_hat, logits = model(z_t, t)
        latent_loss, mask_loss = two_losses(z0_hat, logits, z0, M)
        optimizer.zero_grad()
        (latent_loss + lam * mask_loss).backward()
        optimizer.step()
        schedule.step()
        history.append((latent_loss.item(), mask_loss.item()))
        if on_step is not None:
            on_step(step, *history[-1])
    model.eval()
    return history


@torch.no_grad()
def selective_reverse(model, z0, *, eta=0.5, threshold=0.5, generator=None, noises=None):
    """Heal a latent that was not noised: only what the network takes for noise is replaced.

    Returns the healed latent (N, C, h, w) and M_hat of each step (T, N, 1, h, w).
    noises: (T, N, C, h, w), the Gaussian noise of each step, instead of drawing it.
    """
    abar, z, masks = cosine_schedule().to(z0.device), z0, []
    for i, t in enumerate(reversed(range(T))):
        z0_hat, logits = model(z, torch.full((len(z),), t, device=z.device))
        M_hat = logits.sigmoid()
        a, a_next = abar[t], abar[t - 1] if t > 0 else torch.tensor(1.0)
        eps_hat = (z - a.sqrt() * z0_hat) / (
            1 - a
        ).sqrt()  # the noise that would lead from z0_hat to z
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        eps = noises[i] if noises is not None else torch.randn(z.shape, generator=generator)
        z_next = (
            a_next.sqrt() * z0_hat
            + (1 - a_next - sigma**2).clamp_min(0).sqrt() * eps_hat
            + sigma * eps
        )
        z = torch.where(M_hat > threshold, z_next, z)
        masks.append(M_hat)
    return z, torch.stack(masks)


def smooth(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of (N, 1, H, W) by sigma pixels; mirrored at the border."""
    reach = int(4 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    for _ in range(2):
        x = torch.cat(
            [x[:, :, :reach].flip(2), x, x[:, :, -reach:].flip(2)], 2
        )  # (N, 1, H + 2 reach, W)
        x = F.conv2d(x, kernel).transpose(2, 3)  # (N, 1, W, H), and back
    return x


def anomaly_map(healed, scan, brain, *, gamma=0.2, sigma=2.0) -> torch.Tensor:
    """a = G_sigma * min((healed - scan)^2, gamma) / gamma, 0 outside the brain; (N, 1, H, W)."""
    difference = (healed - scan).square().clamp(max=gamma) / gamma
    return smooth(difference, sigma) * brain


def max_dice(score, truth, thresholds=201) -> tuple[float, float]:
    """(best Dice over thresholds in [0, 1], that threshold), all voxels pooled."""
    best = (0.0, 0.0)
    for threshold in torch.linspace(0, 1, thresholds)[1:].tolist():
        found = score >= threshold
        dice = (2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1)).item()
        best = max(best, (dice, threshold))
    return best
