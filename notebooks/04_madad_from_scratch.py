# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · MAD-AD from scratch
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/04_madad_from_scratch.ipynb)
#
# Everything that makes up the method, written out in PyTorch: nothing of it is imported from the package. You draw the masks, noise
# the latents, build the network, train it, let it heal a patient, and score the result. It takes about two
# hundred lines. At the end we compare them, number for number, with the package.
#
# The same code stands in one file, [madad_from_scratch.py](madad_from_scratch.py), to be read without interruption.
#
# **What you will learn**
#
# - how each equation of the paper becomes a few lines of code;
# - what a U-Net with two heads is made of;
# - how the reverse process replaces only what the network doubts;
# - how far a minute of training gets, and how to tell.
#
# **What it needs:** the shipped autoencoder, which turns slices into latents (notebook 03); no download. All subjects are
# **simulated** from the MNI152 template; no real person's scan appears here.
#
# **How long it takes:** about a minute on two CPU cores.
#
# ## 1. Set-up
#
# The first cell installs the package where it is missing (in Colab); elsewhere it does nothing. It leaves the
# installed versions of PyTorch and NumPy alone.

# %%
try:
    import madad_lite
except ImportError:  # as in Colab, where what is installed stays as it is
    # !pip list --format=freeze > /tmp/installed.txt
    # %pip install -q -c /tmp/installed.txt "madad-lite[paint,prep] @ git+https://github.com/madad-lite/madad-lite"
    # !wget -q https://github.com/madad-lite/madad-lite/raw/main/notebooks/checks.py
    import madad_lite

from madad_lite.threads import use_free_cores

use_free_cores()  # beside other work PyTorch is faster in fewer threads

# %% [markdown]
# From the package we take what surrounds the method: simulated subjects, the encoder, pictures. The names that begin with
# `package` serve only to compare: the shipped network in section 8, our lines in section 9.

# %%
# NBVAL_IGNORE_OUTPUT
import math
import tempfile
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from madad_lite import diffusion as package_diffusion
from madad_lite import masking as package_masking
from madad_lite import plotting
from madad_lite import scoring as package_scoring
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject

STEPS = 300  # of the training; about a minute on a CPU

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}")

# %% [markdown]
# The letters of the method:
#
# | symbol | in code | shape | what it is |
# |---|---|---|---|
# | $z_0$ | `z0` | (N, C, h, w) | latent of a slice |
# | $\varepsilon$ | `eps` | (N, C, h, w) | standard normal noise |
# | $M$ | `M` | (N, 1, h, w) | patch mask, 1 = noised, 0 = left as it is |
# | $t$ | `t` | (N,) | noise level, $0 \ldots T-1$, $T = 10$ |
# | $\bar\alpha_t$ | `abar` | (T,) | share of the latent's variance that is left at level $t$ |
# | $z_t$ | `z_t` | (N, C, h, w) | what the network sees |
# | $\hat z_0$ | `z0_hat` | (N, C, h, w) | its guess of the clean latent |
# | $\hat M$ | `M_hat` | (N, 1, h, w) | its chance of "noised" for every cell |
# | $x_0,\ \hat x_0$ | `scan`, `healed` | (N, 1, H, W) | the scan, and the decoded healed latent |
# | $\tau$ | `threshold` | | a cell is replaced where $\hat M$ is above |
#
# ## 2. The material: latents of normal brains, and a patient
#
# Six simulated people without any lesion, cut into slices of 96 × 96 pixels of 2 mm and encoded once. The encoder's answer is a
# Gaussian for every latent value; we keep its mean and its standard deviation.

# %%
pipe = MadAdPipeline.from_pretrained("t1")


def simulated(seed, **options):
    """A simulated subject's slices (n, 1, H, W): image in [-1, 1], brain and lesion bool."""
    subject = simulate_subject(seed, **options)
    parts = {"scan": subject.images["t1"], "brain": subject.brain, "lesion": subject.lesion}
    for name, image in parts.items():
        save_nifti(image, WORK / f"{name}.nii.gz", force=True)
    scan, brain, lesion = (WORK / f"{name}.nii.gz" for name in parts)
    prepared = pipe.prepare(scan, brain=brain, lesion=lesion)
    return (torch.from_numpy(x)[:, None] for x in (prepared.image, prepared.brain, prepared.lesion))


normal = [simulated(seed) for seed in range(4100, 4106)]
x, x_brain, _ = (torch.cat(parts) for parts in zip(*normal))
assert x.shape[1:] == (1, 96, 96) and x.min() == -1 and x.max() <= 1
shown = range(30, len(x), 60)
plotting.slice_grid(x[shown, 0], titles=[f"slice {i + 1} of {len(x)}" for i in shown])

# %% [markdown]
# A latent cell counts as brain when at least half of its pixels are brain. Only such cells will be noised: noise on the
# empty background would be too easy to find.

# %%
with torch.no_grad():
    # this autoencoder takes each 4 x 4 pixels as 16 channels
    posterior = [pipe.autoencoder.encode(F.pixel_unshuffle(b, 4)).latent_dist for b in x.split(64)]
    s = pipe.autoencoder.config.scaling_factor  # makes the latents' spread 1
    mean, std = (torch.cat([getattr(p, k) for p in posterior]) * s for k in ("mean", "std"))
cells = (F.avg_pool2d(x_brain.float(), 4) >= 0.5).float()  # (K, 1, h, w)
K, C, h, w = mean.shape
print(f"{K} latents of {C} x {h} x {w}; spread {mean.std():.2f};", end=" ")
print(f"brain covers {cells.mean():.0%} of the cells")
assert (C, h, w) == (4, 24, 24) and abs(mean.std() - 1) < 0.25

# %% [markdown]
# And the patient whom the network must never see while it learns: an old stroke of 25 mL, dark in T1. We keep the slice
# with most of it.

# %%
patient, patient_brain, patient_lesion = simulated(9001, lesion="stroke", volume_ml=25)
k = int(patient_lesion.sum((1, 2, 3)).argmax())
sick, sick_brain, truth = (v[[k]] for v in (patient, patient_brain, patient_lesion))  # (1, 1, H, W)
z_sick = pipe.encode(sick)  # (1, C, h, w)
print(f"the stroke covers {truth.sum() / sick_brain.sum():.1%} of the brain in this slice")
assert 0.01 < truth.sum() / sick_brain.sum() < 0.3
plotting.slice_grid(sick[:, 0], titles=["the patient"], truth=truth[:, 0])

# %% [markdown]
# ## 3. Noise: how much, and where
#
# The whole method in one picture, training above, what happens to a patient's scan below, with the shape of every tensor. Lit is what comes next.

# %%
plotting.method("mask")

# %% [markdown]
# ### How much: the schedule
#
# Ten levels. Level $t$ leaves the share $\bar\alpha_t$ of the latent's variance and fills up with noise. The shares fall along
# a cosine:
#
# $$ \bar\alpha_t = \prod_{i=0}^{t} (1 - \beta_i), \qquad
#    \beta_i = \min\!\left(1 - \frac{\cos^2\!\big(\tfrac{(i+1)/T + 0.008}{1.008}\tfrac{\pi}{2}\big)}
#    {\cos^2\!\big(\tfrac{i/T + 0.008}{1.008}\tfrac{\pi}{2}\big)},\ 0.999\right). $$

# %%
T = 10


def cosine_schedule(T: int = T) -> torch.Tensor:
    """abar (T,): from almost 1 to almost 0 along a cosine (Nichol and Dhariwal 2021)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(0).float()


abar = cosine_schedule()
print("abar:", " ".join(f"{a:.3f}" for a in abar))
assert (abar.diff() < 0).all() and abar[0] > 0.95 and abar[-1] < 0.001
plotting.schedule(abar)

# %% [markdown]
# ### Where: the patch mask
#
# The sides of a patch are drawn once for the whole batch, in $y$ and in $x$, from $\{1, 2, 4, 8\}$ cells. Every slice draws
# its own share of noised patches from $U[0, 0.4]$. So the network meets single cells and large blocks, and sometimes nothing at
# all: it must also learn to say that all is well.


# %%
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


M_examples = torch.cat(
    [draw_mask(cells[[35]], torch.Generator().manual_seed(i)) for i in range(12)]
)
share = M_examples.sum((1, 2, 3)) / cells[35].sum()
print("noised share of the brain's cells:", " ".join(f"{v:.0%}" for v in share))
assert set(M_examples.unique().tolist()) <= {0.0, 1.0} and not (M_examples * (1 - cells[35])).any()
plotting.mask_examples(M_examples, brain=cells[[35]], images=x[35])

# %% [markdown]
# (A share can exceed 40 % of the *brain's* cells: the draw counts patches of the whole latent, and the mask is cut to the brain afterwards.)
#
# ### The masked forward process
#
# Ordinary diffusion noises everything. MAD-AD noises where $M = 1$ and leaves the rest exactly as it was. (So the paper's equations have it. A caption of the paper speaks of *non-masked* regions that are noised, and the authors' code stores the opposite of $M$; here 1 is noised, always.)
#
# $$ z_t = M \odot \big(\sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon\big) + (1 - M) \odot z_0 . $$


# %%
def masked_forward(z0, eps, M, t, abar) -> torch.Tensor:
    """z_t = M (sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps) + (1 - M) z_0."""
    a = abar[t].view(-1, 1, 1, 1)
    noised = a.sqrt() * z0 + (1 - a).sqrt() * eps
    return M * noised + (1 - M) * z0


z0, M = mean[[35]], draw_mask(cells[[35]], torch.Generator().manual_seed(2))
eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
levels = [0, 3, 5, 7, 9]
z_levels = torch.cat([masked_forward(z0, eps, M, torch.tensor([t]), abar) for t in levels])
change = (z_levels - z0).square().mean((1, 2, 3))
print("mean squared change:", " ".join(f"t={t}: {c:.2f}" for t, c in zip(levels, change)))
assert (change.diff() > 0).all() and torch.equal(
    z_levels * (1 - M), (z0 * (1 - M)).expand_as(z_levels)
)
plotting.forward_process(pipe.decode(z_levels), levels, mask=M, original=x[[35]])

# %% [markdown]
# ## 4. The network: one U-Net, two heads
#
# It has to answer two questions about $z_t$. *What was there?* is the latent head, *where is it noised?* the mask head. Both need
# to see the whole brain, so below them sits a U-Net: it looks at the latent at three resolutions, 24, 12 and 6 cells wide.

# %%
plotting.method("network")

# %% [markdown]
# Two building blocks. The first is a pair of convolutions with a way around them, so that the block only has to learn a *change*;
# the noise level enters as a shift of the features.


# %%
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


# %% [markdown]
# The second lets every cell look at every other one. It sits where there are only 36 of them. With it the left half of the brain
# can be judged by the right half.


# %%
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


# %% [markdown]
# Now the whole. Follow the shapes: down twice, once through the middle, up twice; on the way up each level also gets what the
# way down had found at that resolution.


# %%
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


torch.manual_seed(0)
model = TwoHeadUNet().eval()
with torch.no_grad():
    z0_hat, logits = model(z_levels, torch.tensor(levels))
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
print(
    "z_t",
    tuple(z_levels.shape),
    "-> z0_hat",
    tuple(z0_hat.shape),
    "and logits",
    tuple(logits.shape),
)
assert z0_hat.shape == z_levels.shape and logits.shape == (5, 1, h, w)

# %% [markdown]
# ## 5. Two losses, one loop
#
# $$ \mathcal L = \lVert \hat z_0 - z_0 \rVert_2^2 + \lambda\, \mathrm{BCE}(\hat M, M), \qquad \hat M = \mathrm{sigmoid}(\text{logits}). $$
#
# The first is zero when the clean latent is guessed everywhere, the second when every cell is told apart. $\lambda = 0.1$ is this repository's
# choice (the paper has 1, the authors' code 0.001). Both terms are means over the cells.


# %%
def two_losses(z0_hat, logits, z0, M) -> tuple[torch.Tensor, torch.Tensor]:
    """(||z0_hat - z0||^2, BCE(M_hat, M)), each the mean over cells, channels and samples."""
    return F.mse_loss(z0_hat, z0), F.binary_cross_entropy_with_logits(logits, M)


latent_loss, mask_loss = two_losses(z0_hat, logits, z0.expand_as(z0_hat), M.expand_as(logits))
print(f"untrained: latent loss {latent_loss:.2f}, mask loss {mask_loss:.2f}", end=" ")
print(f"(a coin would have {math.log(2):.2f})")
assert latent_loss > 0.1 and mask_loss > 0.3

# %% [markdown]
# The loop. Everything random comes from one generator, so that the same seed gives the same network.


# %%
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


# %%
# NBVAL_IGNORE_OUTPUT
bar = tqdm(total=STEPS, desc="training", mininterval=1.0)


def show(step, latent_loss, mask_loss):
    bar.update()
    if step % 10 == 9:
        bar.set_postfix(latent=f"{latent_loss:.3f}", mask=f"{mask_loss:.3f}")


torch.manual_seed(0)
model = TwoHeadUNet()
history = torch.tensor(train(model, mean, std, cells, steps=STEPS, on_step=show))  # (STEPS, 2)
bar.close()
begin, end = history[:30].mean(0), history[-30:].mean(0)
assert (end < begin / 1.5).all()
log = [{"step": i + 1, "latent": a, "mask": b} for i, (a, b) in enumerate(history.tolist())]
plotting.training_curves(log)

# %% [markdown]
# ## 6. Has it learnt its own task?
#
# Before a patient comes, a test with a known answer. We take a person who was not trained on, noise a block of 4 × 4 cells
# completely, and ask which cells the network takes for noise.

# %%
# NBVAL_IGNORE_OUTPUT
other, other_brain, _ = simulated(4200)
z_other = pipe.encode(other[[35]])
M = torch.zeros(1, 1, h, w)
M[..., 10:14, 6:10] = 1
eps = torch.randn(z_other.shape, generator=torch.Generator().manual_seed(0))
z_t = masked_forward(z_other, eps, M, torch.tensor([9]), abar)
with torch.no_grad():
    z0_hat, logits = model(z_t, torch.tensor([9]))
M_hat = logits.sigmoid()
inside, outside = M_hat[M > 0].mean().item(), M_hat[M == 0].mean().item()
block = M.expand_as(z_t) > 0  # (1, C, h, w)
error, damage = ((z - z_other)[block].square().mean() for z in (z0_hat, z_t))
print(f"mean chance of noise: {inside:.2f} in the block, {outside:.3f} elsewhere")
print(f"squared error of z0_hat in the block: {error:.2f};", end=" ")
print(f"of the noise that was there: {damage:.2f}")
assert inside > 0.5 and outside < 0.15 and error < damage / 2
filled = torch.where(M_hat > 0.5, z0_hat, z_t)
pictures = pipe.decode(torch.cat([z_other, z_t, z_t, filled]))[:, 0]
nothing = torch.zeros_like(M)
titles = ["a healthy person", "noised block", "found", "filled in"]
plotting.mask_examples(
    torch.cat([nothing, M, (M_hat > 0.5).float(), nothing]), images=pictures, titles=titles
)

# %% [markdown]
# It finds the block and fills it with something brain-like, blurred: so little training cannot know better.
#
# ## 7. The selective reverse process

# %%
plotting.method("reverse")

# %% [markdown]
# Now the idea of the paper. To a patient's latent we add **no noise at all**, and still run the process that removes noise, from
# $t = 9$ down to $0$. At each step only the cells that the network takes for noise are replaced:
#
# $$ z \leftarrow [\hat M > \tau] \odot \mathrm{DDIM}(z, \hat z_0, t) + [\hat M \le \tau] \odot z . $$
#
# DDIM's step goes from level $t$ to $t - 1$. It takes $\hat z_0$, and puts back the part of the noise that belongs to level
# $t-1$: partly the noise that $z$ must have contained, $\hat\varepsilon$, partly a fresh draw. $\eta$ says how much of it is fresh:
#
# $$ \hat\varepsilon = \frac{z - \sqrt{\bar\alpha_t}\,\hat z_0}{\sqrt{1 - \bar\alpha_t}}, \qquad
#    \sigma_t = \eta \sqrt{\frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\Big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\Big)}, $$
#
# $$ \mathrm{DDIM}(z, \hat z_0, t) = \sqrt{\bar\alpha_{t-1}}\,\hat z_0 + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\;\hat\varepsilon + \sigma_t\,\varepsilon . $$
#
# $\tau$ is 0.5 in the paper; we take 0.2, as the shipped weights do.
#
# One remark on the first step. At $t = 9$ the network expects that what is noised is *nothing but* noise. A lesion that it takes for noise plays this part: in
# $\hat\varepsilon$ the lesion itself stands for the noise. With $\eta = 0$ it would be carried along from step to step; $\eta > 0$ mixes fresh noise
# in and lets go of it.


# %%
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


# %%
# NBVAL_IGNORE_OUTPUT
generator = torch.Generator().manual_seed(0)
z_healed, M_hats = selective_reverse(model, z_sick, eta=0.5, threshold=0.2, generator=generator)
replaced = (M_hats > 0.2).any(0)  # (1, 1, h, w), at any step
lesion_cells = F.avg_pool2d(truth.float(), 4) >= 0.5
other_cells = (F.avg_pool2d(sick_brain.float(), 4) >= 0.5) & ~lesion_cells
of_lesion, of_other = (replaced[c].float().mean() for c in (lesion_cells, other_cells))
print(f"replaced: {of_lesion:.0%} of the lesion's cells, {of_other:.0%} of the other brain cells")
assert torch.equal(
    z_healed[~replaced.expand_as(z_healed)], z_sick[~replaced.expand_as(z_sick)]
)  # the rest is untouched
assert M_hats.shape == (T, 1, 1, h, w)

# %% [markdown]
# ## 8. The score
#
# What healing changed is the anomaly. The squared difference is clipped at $\gamma$, so that one voxel cannot outshine the rest, and smoothed, because lesions are blobs:
#
# $$ a = G_\sigma * \frac{\min\big((\hat x_0 - x_0)^2,\ \gamma\big)}{\gamma}, \qquad \gamma = 0.2, $$
#
# where $G_\sigma *$ is Gaussian smoothing, here by 2 pixels.


# %%
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


# %% [markdown]
# And one number: the Dice coefficient $2|F \cap L| / (|F| + |L|)$ of what lies at or above a threshold, $F$, and the true lesion, $L$, at the best of 201
# thresholds. (The best threshold is chosen on the very slice that is measured, which flatters. Notebook 07 shows how to do it properly.)


# %%
# NBVAL_IGNORE_OUTPUT
def max_dice(score, truth, thresholds=201) -> tuple[float, float]:
    """(best Dice over thresholds in [0, 1], that threshold), all voxels pooled."""
    best = (0.0, 0.0)
    for threshold in torch.linspace(0, 1, thresholds)[1:].tolist():
        found = score >= threshold
        dice = (2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1)).item()
        best = max(best, (dice, threshold))
    return best


def judged(z_healed):
    """Decoded, scored and measured on the patient's slice: (healed slice, map, Dice)."""
    healed = torch.where(sick_brain, pipe.decode(z_healed), -1.0)
    a = anomaly_map(healed, sick, sick_brain.float())
    return healed, a, max_dice(a, truth)[0]


healed, a, ours = judged(z_healed)
darkness = ((1 - sick) / 2).clamp(
    0, 1
) * sick_brain  # no network at all: the darker, the more suspicious
plain = max_dice(darkness, truth)[0]
with torch.no_grad():
    shipped = judged(
        package_diffusion.selective_reverse(
            pipe.denoiser,
            z_sick,
            pipe.scheduler,
            eta=0.5,
            threshold=0.2,
            generator=torch.Generator().manual_seed(0),
        ).latent
    )[2]
print(f"best Dice on this slice: yours {ours:.2f}, plain darkness {plain:.2f},", end=" ")
print(f"the shipped network {shipped:.2f}")
assert plain < ours <= 1 and plain < shipped <= 1
plotting.slice_grid(
    torch.cat([sick, healed, sick])[:, 0],
    titles=["the patient", "healed by yours", "anomaly map"],
    overlay=torch.cat([0 * a, 0 * a, a])[:, 0],
    truth=truth[:, 0].expand(3, -1, -1),
)

# %% [markdown]
# **The method runs from end to end, and on this slice it works**: the stroke is found and filled with something like tissue. Do not
# trust that too soon. It is one slice with one large, dark lesion, and the threshold was chosen on it. And look at the numbers of section 7: the network also
# replaced more than a third of the *healthy* cells. After a minute it doubts a great deal, and a stroke is among what it doubts. The map
# forgives it, because what it puts in place of healthy tissue resembles it.
#
# What if it were trained longer? It would get better at telling Gaussian noise from tissue, and a stroke is not Gaussian noise. Notebook 05, section 11,
# shows what comes of that: with noise alone the Dice coefficient first rises, and then *falls* as training goes on. So the shipped weights have also seen lesion-like
# regions in training (section 12 there).
#
# ## 9. Number for number
#
# Is this really the method, or something like it? The package is compared with the authors' published code in its tests. So we compare our lines with the package.

# %%
# NBVAL_IGNORE_OUTPUT
gap = {}
scheduler = package_diffusion.make_scheduler()
gap["schedule"] = (abar - scheduler.alphas_cumprod).abs().max()
draws = [
    (
        draw_mask(cells[:8], torch.Generator().manual_seed(i)),
        package_masking.random_patch_mask(
            8, (h, w), brain=cells[:8], generator=torch.Generator().manual_seed(i)
        ),
    )
    for i in range(20)
]
gap["masks"] = max((a - b).abs().max() for a, b in draws)
z0, eps = mean[:8], torch.randn(8, C, h, w, generator=torch.Generator().manual_seed(1))
t, M = torch.arange(8), draws[0][0]
z_t = masked_forward(z0, eps, M, t, abar)
gap["forward process"] = (
    (z_t - package_diffusion.masked_forward(z0, eps, M, t, scheduler)).abs().max()
)
with torch.no_grad():
    z0_hat, logits = model(z_t, t)
theirs = package_diffusion.denoising_losses(z0_hat, logits, z0, M)
gap["losses"] = max((a - b.mean()).abs() for a, b in zip(two_losses(z0_hat, logits, z0, M), theirs))
noises = torch.randn(T, 1, C, h, w, generator=torch.Generator().manual_seed(2))
for eta in (0.0, 0.5):
    mine, _ = selective_reverse(model, z_sick, eta=eta, threshold=0.2, noises=noises)
    package = package_diffusion.selective_reverse(
        model, z_sick, scheduler, eta=eta, threshold=0.2, step_noise=noises
    )
    gap[f"reverse process, eta = {eta}"] = (mine - package.latent).abs().max()
theirs = package_scoring.image_difference(
    healed, sick, gamma=0.2, squared=True, sigma=2.0, brain=sick_brain
)
gap["score"] = (a_map := anomaly_map(healed, sick, sick_brain.float())).sub(theirs).abs().max()
for name, value in gap.items():
    print(f"{name:28} differs by at most {value:.0e}")
assert all(value < 1e-4 for value in gap.values()) and gap["masks"] == 0

# %% [markdown]
# They agree. (The network and the training loop are smaller ones of our own, and are not compared.) From here on the notebooks use the package's functions, which do the same with bars, checkpoints and GPUs.
#
# ## 10. What to take with you
#
# - A mask says where noise goes; a network learns *where* and *what*; that is the whole training.
# - At test time nothing is noised. Whatever the network doubts is replaced step by step, the rest stays as it is to the last bit.
# - The map is the difference between the scan and its healed copy.
# - To be good at finding Gaussian noise and to be good at finding lesions are two things.
#
# **Next:** [05_training](05_training.ipynb) trains the package's network, with everything that a longer training needs.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/04_madad_from_scratch](solutions/04_madad_from_scratch.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): noise that nobody added
#
# In section 7 no noise was added. What does the reverse process return for a **healthy** latent, if the network takes no cell for noise at any step? Answer `"z0"` (exactly
# what went in), `"z0_hat"` (the network's guess) or `"noise"`.

# %%
answer = None  # "z0", "z0_hat" or "noise"

# %%
checks.run(checks.check_04_sure, answer)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Look at the line with `torch.where`. What does it choose where `M_hat > threshold` is false everywhere?
#
# </details>
#
# ### Exercise 2 (code): the authors' score
#
# The authors' code takes the *absolute* difference, clips it at 0.25, and compares the healed slice with the **decoded, unhealed latent** instead of the scan. Write it. All
# arguments are (N, 1, H, W); smooth with `sigma`, and set what is outside the brain to 0.


# %%
def authors_map(healed, decoded, brain, sigma=2.0):
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_04_authors_map, authors_map)

# %% [markdown]
# *What you should see*: the map of section 8 once more, with the stroke as bright and *more* grey elsewhere: the absolute difference is full at 0.25, the squared one only at 0.45.
#
# <details><summary>Hint 1</summary>
#
# Begin with `anomaly_map` and change one line of it.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `difference = (healed - decoded).abs().clamp(max=0.25) / 0.25`
#
# </details>
#
# ### Exercise 3 (code): DDIM without chance
#
# Write one deterministic step ($\eta = 0$) from level $t$ to $t-1$ for every cell, without any mask.


# %%
def ddim_step(z, z0_hat, t):
    """z, z0_hat: (N, C, h, w). t: int, above 0. Returns z at level t - 1."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_04_ddim_step, ddim_step)

# %% [markdown]
# *What you should see*: the first step hardly moves the latent. `ddim_step(z, z0_hat, 9)` is about $0.15\,\hat z_0 + 0.99\,z$. The last one, `ddim_step(z, z0_hat, 1)`, is about $0.49\,\hat z_0 + 0.52\,z$.
#
# <details><summary>Hint 1</summary>
#
# With $\eta = 0$ we have $\sigma_t = 0$: two terms are left.
#
# </details>
# <details><summary>Hint 2</summary>
#
# First `eps_hat`, as in `selective_reverse`; then `abar[t - 1].sqrt() * z0_hat + (1 - abar[t - 1]).sqrt() * eps_hat`.
#
# </details>
#
# ### Exercise 4 (investigate): how large is what it finds?
#
# Repeat section 6 with blocks of 1 × 1, 2 × 2 and 8 × 8 cells, and with $t = 3$ in place of 9. When does the network stop finding the block, and why is a
# faint block of one cell so much harder than a strong one of sixty-four?
#
# <details><summary>What to expect</summary>
#
# With $t = 9$ the blocks of 4 × 4 and 8 × 8 cells are found, with a mean chance of almost 0.8; of 2 × 2 it is 0.2 to 0.3, and a single cell is hardly doubted more than any other. With $t = 3$ even 8 × 8 cells stay below one half on average, 4 × 4 at about 0.3.
#
# At $t = 3$ the noise moves a value of the latent by about 0.6, and the network's own guess in the block is off by 0.4 to 0.5: what it sees might as well be tissue. One cell has four such values to show, sixty-four cells have 256 that disagree together. Longer training helps: with `pipe.denoiser` in place of `model`,
# 18 of 20 draws of noise in that single cell are found at $t = 3$. Does it help with a lesion, too, which is no Gaussian noise? That is the question of notebook 05.
#
# </details>
