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
# # 01 · Diffusion in half an hour
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/01_diffusion.ipynb)
#
# A diffusion model learns to undo noise. That is all it learns, and from it everything follows: drawing new samples, filling holes, and, in
# the notebooks to come, healing a lesion. Here you build one twice, first for points in the plane, where you can see every single one of them,
# then for small brain slices. Masks do not appear until section 10; there you will see why one wants them.
#
# **What you will learn**
#
# - the forward process, as a chain of small steps and as one formula;
# - three things that a network can be asked for, $\varepsilon$, $x_0$ or $v$, and why they are the same;
# - a diffusion model in forty lines;
# - two ways back, DDPM and DDIM, and what $\eta$ is;
# - how to fill a hole in an image with a model that knows nothing about holes.
#
# **What it needs:** nothing but this package; no download. The slices are **simulated** from the MNI152 template; no real person's scan appears here.
#
# **How long it takes:** about 2 minutes on two CPU cores.
#
# **Symbols** are those of [the notation page](../docs/notation.md), which also has a glossary. Here there are $T = 100$ noise levels, later 10.
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

# %%
# NBVAL_IGNORE_OUTPUT
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import nn
from tqdm.auto import tqdm

from madad_lite.scans.registration import template
from madad_lite.simulation.cohort import simulate_subject

POINT_STEPS = 1500  # of the training on points, half a minute on a CPU
SLICE_STEPS = 300  # of the training on slices, about a minute
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}")

# %% [markdown]
# ## 2. Points in the shape of a brain
#
# Our first "images" are points with two coordinates. They lie on two lines of a brain slice: its edge, and the rim of its white matter, smoothed. A
# model that learns this distribution can put new points on those lines.

# %%
white = np.asarray(template("wm").dataobj)
affine = template("wm").affine
slice_z = int(round((20 - affine[2, 3]) / affine[2, 2]))  # z = 20 mm: through the ventricles
inside = ndimage.binary_fill_holes(np.asarray(template("brain").dataobj)[:, :, slice_z] > 0)
matter = ndimage.gaussian_filter(white[:, :, slice_z].astype(float), 5) > 100
outline = (inside ^ ndimage.binary_erosion(inside)) | (matter ^ ndimage.binary_erosion(matter))
rng = np.random.default_rng(0)
places = np.argwhere(outline)
chosen = places[rng.integers(len(places), size=20_000)] + rng.uniform(-0.5, 0.5, (20_000, 2))
x0 = torch.tensor((chosen - chosen.mean(0)) / chosen.std(), dtype=torch.float32)  # (N, 2)
tree = cKDTree(x0.numpy())


def distance(points):
    """Mean distance of points to the nearest point of the data: 0 would be a perfect fit."""
    return float(np.mean(tree.query(points.numpy())[0]))


def scatter(panels, titles):
    """Clouds of points beside each other."""
    fig, axes = plt.subplots(1, len(panels), figsize=(2.1 * len(panels), 2.4), layout="constrained")
    for ax, points, title in zip(np.atleast_1d(axes), panels, titles):
        ax.plot(points[:3000, 0], points[:3000, 1], ".", ms=1.2, color="#0072B2")
        ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=9)
    plt.close(fig)
    return fig


noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
near, far = distance(x0), distance(noise)
print(f"distance to the data: of its own points {near:.3f}, of Gaussian noise {far:.3f}")
assert distance(x0) == 0 and distance(noise) > 0.1
scatter([x0, noise], ["the data, $x_0$", "Gaussian noise"])

# %% [markdown]
# ## 3. The forward process
#
# ### Step by step
#
# Take a point, shrink it a little towards the middle, add a little noise; again, and again:
#
# $$ x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\;\varepsilon_t, \qquad \varepsilon_t \sim \mathcal N(0, I). $$
#
# The factor $\sqrt{1 - \beta_t}$ keeps the spread at 1: what the noise adds, the shrinking takes away. After $T$ steps nothing of the
# brain is left.

# %%
T = 100


def cosine_abar(T):
    """alpha-bar (T,), from almost 1 to almost 0 along a cosine."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(0).float()


abar = cosine_abar(T)
before = torch.cat([torch.ones(1), abar[:-1]])  # alpha-bar of the level below
beta = 1 - abar / before
generator = torch.Generator().manual_seed(1)
x, chain = x0, {}
for t in range(T):
    x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * torch.randn(x.shape, generator=generator)
    chain[t] = x
shown = [5, 20, 40, 60, 99]
spread = [chain[t].std().item() for t in shown]
print("spread:", " ".join(f"t={t}: {v:.2f}" for t, v in zip(shown, spread)))
assert all(abs(v - 1) < 0.05 for v in spread)  # it stays at 1
scatter([chain[t] for t in shown], [f"$x_{{{t}}}$" for t in shown])

# %% [markdown]
# ### In one go
#
# A hundred small Gaussian steps are one large Gaussian step. Levels count from 0, and level 0 has had one step already; $x_0$ stays the name of the clean point, which lies before it. With $\bar\alpha_t = \prod_{i=0}^{t} (1 - \beta_i)$:
#
# $$ x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\;\varepsilon . $$
#
# This is what makes training cheap: any level can be made directly. Is it really the same? We take one single point, send 20,000 copies of it through the chain and
# through the formula, and compare mean and spread.

# %%
# NBVAL_IGNORE_OUTPUT
start = x0[:1].expand(20_000, 2)
by_chain = start
for t in range(41):
    by_chain = (1 - beta[t]).sqrt() * by_chain + beta[t].sqrt() * torch.randn(
        start.shape, generator=generator
    )
at_once = abar[40].sqrt() * start + (1 - abar[40]).sqrt() * torch.randn(
    start.shape, generator=generator
)
for name, points in {"chain": by_chain, "formula": at_once}.items():
    x, y = points.mean(0).tolist()
    print(f"{name:8} mean {x:+.3f} {y:+.3f}, spread {points.std(0).mean():.3f}")
assert torch.allclose(by_chain.mean(0), at_once.mean(0), atol=0.03)
assert torch.allclose(by_chain.std(0), at_once.std(0), atol=0.02)

# %% [markdown]
# $\bar\alpha_t$ is the share of the variance that is still signal. It falls from 1 to 0; half of it is gone near the middle.

# %%
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(abar.sqrt(), label=r"signal $\sqrt{\bar\alpha_t}$")
ax.plot((1 - abar).sqrt(), "--", label=r"noise $\sqrt{1-\bar\alpha_t}$")
ax.set(xlabel="level t", ylabel="factor")
ax.legend(frameon=False)
plt.close(fig)
half = int((abar < 0.5).nonzero()[0])
print(f"from t = {half} on there is more noise than signal")
assert 40 < half < 60
fig

# %% [markdown]
# ## 4. What to ask the network for
#
# The network sees $x_t$ and $t$. What should it answer? The noise $\varepsilon$, the clean point $x_0$, or a mixture of both, the velocity
# $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1 - \bar\alpha_t}\,x_0$? Since $x_t$ is known, each of them gives the other two:
#
# $$ \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\hat\varepsilon}{\sqrt{\bar\alpha_t}}
#    = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1 - \bar\alpha_t}\,\hat v . $$
#
# They differ in what a small mistake costs. An error in $\hat\varepsilon$ is multiplied by $\sqrt{(1 - \bar\alpha_t)/\bar\alpha_t}$ when it becomes an error in $\hat x_0$: little at small $t$,
# without limit at large $t$. MAD-AD asks for $x_0$, since that is the healed latent which it wants.


# %%
def x0_from_eps(x_t, eps, t):
    return (x_t - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()


def x0_from_v(x_t, v, t):
    return abar[t].sqrt() * x_t - (1 - abar[t]).sqrt() * v


for t in (5, 50, 95):
    eps = noise
    x_t = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * eps
    v = abar[t].sqrt() * eps - (1 - abar[t]).sqrt() * x0
    assert torch.allclose(x0_from_eps(x_t, eps, t), x0, atol=1e-3) and torch.allclose(
        x0_from_v(x_t, v, t), x0, atol=1e-4
    )
    of_eps, of_v = ((1 - abar[t]) / abar[t]).sqrt(), (1 - abar[t]).sqrt()
    print(f"t = {t:2}: an error of 0.1 in eps becomes {0.1 * of_eps:.2f} in x0,", end=" ")
    print(f"one in v becomes {0.1 * of_v:.2f}")

# %% [markdown]
# ## 5. A diffusion model in forty lines
#
# For points a small network of a few layers is enough. It gets the coordinates and $t$ not as bare numbers but as sines and cosines of several frequencies: a clock, too, tells the time with
# a slow hand and a fast one.


# %%
# NBVAL_IGNORE_OUTPUT
class PointNet(nn.Module):
    """(x_t (N, 2), t (N,)) -> eps_hat (N, 2)."""

    def __init__(self, width=128):
        super().__init__()
        self.enter = nn.Linear(2 + 3 * 12, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, 2)

    def forward(self, x_t, t):
        numbers = torch.cat([x_t / 3, t[:, None] / T], 1)  # (N, 3), each within about [-1, 1]
        angle = (numbers[:, :, None] * math.pi / 2 * 2.0 ** torch.arange(6)).flatten(1)  # (N, 18)
        hands = torch.cat([angle.sin(), angle.cos()], 1)  # (N, 36)
        h = F.silu(self.enter(torch.cat([x_t, hands], 1)))  # (N, width)
        for layer in self.layers:
            h = h + F.silu(layer(h))  # (N, width)
        return self.leave(h)  # (N, 2)


def train_points(steps, seed=0):
    torch.manual_seed(seed)
    model, generator = PointNet(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in tqdm(range(steps), desc="points", mininterval=1.0):
        clean = x0[torch.randint(len(x0), (512,), generator=generator)]  # (512, 2)
        t = torch.randint(T, (512,), generator=generator)
        eps = torch.randn(clean.shape, generator=generator)
        a = abar[t][:, None]
        loss = F.mse_loss(model(a.sqrt() * clean + (1 - a).sqrt() * eps, t), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), losses


model, losses = train_points(POINT_STEPS)
print(
    f"loss: {np.mean(losses[:20]):.2f} at first, {np.mean(losses[-100:]):.2f} at the end;", end=" "
)
print("always answering 0 would score 1.00")
assert np.mean(losses[-100:]) < 0.9 * np.mean(losses[:20])

# %% [markdown]
# The loss does not go to zero, and must not: from a very noisy $x_t$ nobody can tell which noise it was.
#
# ## 6. The way back: DDPM
#
# Start with pure noise at $t = T - 1$. Ask the network for $\hat\varepsilon$, get $\hat x_0$ from it, and go one level down. Bayes' rule says where $x_{t-1}$ lies when $x_t$ and $x_0$ are known: it is Gaussian with
#
# $$ \text{mean}\ \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\,\hat x_0 + \frac{\sqrt{1-\beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\,x_t,
#    \qquad \text{variance}\ \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\,\beta_t . $$
#
# At the highest levels a small error in $\hat\varepsilon$ becomes a huge one in $\hat x_0$ (section 4: up to two thousand times as large at $t = 99$). So the samplers clip $\hat x_0$ to where data can lie, here $\pm 3$; that of section 8 clips to the range of the slices, $\pm 1$.


# %%
# NBVAL_IGNORE_OUTPUT
@torch.no_grad()
def ddpm(model, n=3000, seed=0):
    """n new points, and the cloud at some levels on the way."""
    generator = torch.Generator().manual_seed(seed)
    x, seen = torch.randn(n, 2, generator=generator), {}
    for t in reversed(range(T)):
        x0_hat = x0_from_eps(x, model(x, torch.full((n,), t)), t).clamp(-3, 3)
        mean = (
            before[t].sqrt() * beta[t] / (1 - abar[t]) * x0_hat
            + (1 - beta[t]).sqrt() * (1 - before[t]) / (1 - abar[t]) * x
        )
        variance = (1 - before[t]) / (1 - abar[t]) * beta[t]
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator)
        seen[t] = x
    return x, seen


points, seen = ddpm(model)
print(f"distance to the data: {distance(points):.3f} (noise: {distance(noise):.3f})")
assert distance(points) < distance(noise) / 2
scatter([seen[t] for t in (80, 40, 20, 8, 0)], [f"after t = {t}" for t in (80, 40, 20, 8, 0)])

# %% [markdown]
# The edge of the brain is back, as a broad band. What is missing is the second line, the rim of the white matter: of it there is only a haze.
#
# ## 7. Fewer steps: DDIM and $\eta$
#
# A hundred evaluations for every sample is slow. DDIM writes the step in another way. It takes $\hat x_0$, and goes straight to a level $t' < t$ by putting noise of level $t'$ back:
#
# $$ x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1 - \bar\alpha_{t'} - \sigma_t^2}\;\hat\varepsilon + \sigma_t\,\varepsilon,
#    \qquad \sigma_t = \eta \sqrt{\tfrac{1 - \bar\alpha_{t'}}{1 - \bar\alpha_t}\big(1 - \tfrac{\bar\alpha_t}{\bar\alpha_{t'}}\big)} . $$
#
# The noise that it puts back is partly the one that the network found, $\hat\varepsilon$, partly fresh. $\eta$ says how much is fresh: with $\eta = 0$ nothing is random any more after the start, with $\eta = 1$ and every
# level visited it *is* DDPM. And $t'$ (`s` in the code) need not be $t - 1$.


# %%
# NBVAL_IGNORE_OUTPUT
@torch.no_grad()
def ddim(model, steps, eta, n=3000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator)
    levels = (
        torch.linspace(T - 1, -1, steps + 1).round().long().tolist()
    )  # the last one, -1, is no noise at all
    for t, s in zip(levels, levels[1:]):
        a_s = abar[s] if s >= 0 else torch.tensor(1.0)
        eps_hat = model(x, torch.full((n,), t))
        x0_hat = x0_from_eps(x, eps_hat, t).clamp(-3, 3)
        eps_hat = (x - abar[t].sqrt() * x0_hat) / (
            1 - abar[t]
        ).sqrt()  # the same, unless x0_hat was clamped
        sigma = eta * ((1 - a_s) / (1 - abar[t]) * (1 - abar[t] / a_s)).sqrt()
        x = a_s.sqrt() * x0_hat + (1 - a_s - sigma**2).clamp_min(0).sqrt() * eps_hat
        x = x + sigma * torch.randn(x.shape, generator=generator)
    return x


results = {
    (steps, eta): ddim(model, steps, eta) for steps in (5, 10, 20, 100) for eta in (0.0, 1.0)
}
print("distance to the data   eta = 0   eta = 1")
for steps in (5, 10, 20, 100):
    print(
        f"{steps:3} steps{distance(results[steps, 0.0]):21.3f}{distance(results[steps, 1.0]):10.3f}"
    )
assert torch.equal(
    ddim(model, 10, 0.0), results[10, 0.0]
)  # from the same noise, always the same points
assert distance(results[20, 0.0]) < 0.7 * distance(noise)
scatter(
    [results[k] for k in ((5, 0.0), (10, 0.0), (10, 1.0), (100, 1.0))],
    ["5 steps, eta 0", "10 steps, eta 0", "10 steps, eta 1", "100 steps, eta 1"],
)

# %% [markdown]
# On these points the deterministic way gets by with fewer steps. That is no law: on other data, and with another network, fresh noise can wash out the
# mistakes of earlier steps. MAD-AD takes ten steps, and its authors' code $\eta = 0.5$; notebook 06 shows what that does to a lesion.
#
# diffusers has this step as `DDIMScheduler`. Is ours the same?

# %%
# NBVAL_IGNORE_OUTPUT
scheduler = DDIMScheduler(
    T, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", clip_sample=False
)
scheduler.set_timesteps(T)
x_t = torch.randn(500, 2, generator=torch.Generator().manual_seed(3))
with torch.no_grad():
    eps_hat = model(x_t, torch.full((500,), 60))
theirs = scheduler.step(eps_hat, 60, x_t, eta=0.0).prev_sample
ours = abar[59].sqrt() * x0_from_eps(x_t, eps_hat, 60) + (1 - abar[59]).sqrt() * eps_hat
print(f"one step of ours and of diffusers differ by at most {(ours - theirs).abs().max():.0e}")
assert torch.allclose(ours, theirs, atol=1e-4)

# %% [markdown]
# ## 8. The same for brain slices
#
# Nothing changes but the network: a U-Net (convolutions that look at the slice at several resolutions; notebook 04 builds one) in place of a few layers. Our slices are small, 32 × 32 pixels of 6.5 mm, so that a minute is enough to see something. They come from eight
# simulated people.


# %%
def slices_of(seed, **options):
    """A simulated subject's axial slices (n, 1, 32, 32) in [-1, 1] and lesion masks; 6.5 mm."""
    subject = simulate_subject(seed, spacing=6.5, **options)
    scan, brain, lesion = (
        np.asarray(i.dataobj) for i in (subject.images["t1"], subject.brain, subject.lesion)
    )
    scan = np.clip(scan / np.median(scan[brain > 0]) - 1, -1, 1) * (brain > 0) - (brain == 0)
    found = []
    for volume, outside in ((scan, -1), (lesion, 0)):
        room = [(32 - s) // 2 for s in volume.shape[:2]]
        padded = np.full((32, 32, volume.shape[2]), float(outside))
        padded[room[0] : room[0] + volume.shape[0], room[1] : room[1] + volume.shape[1]] = volume[
            :32, :32
        ]
        found.append(torch.tensor(np.rot90(padded).transpose(2, 0, 1).copy()).float()[:, None])
    return found


volumes = [slices_of(seed)[0] for seed in range(50, 58)]
slices = torch.cat([v[8:22] for v in volumes])  # (N, 1, 32, 32), those with much brain
low, high = slices.min(), slices.max()
print(f"{len(slices)} slices of {tuple(slices.shape[1:])}, from {low:.0f} to {high:.0f}")


def show(images, titles, columns=8, outline=None):
    fig, axes = plt.subplots(1, len(images), figsize=(1.3 * len(images), 1.6), layout="constrained")
    for i, (ax, image, title) in enumerate(zip(np.atleast_1d(axes), images, titles)):
        ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        if outline is not None and outline[i] is not None:
            ax.contour(outline[i][0], [0.5], colors="cyan", linewidths=1)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=8)
    plt.close(fig)
    return fig


assert slices.shape[1:] == (1, 32, 32) and slices.min() == -1
show(slices[7::14], [f"person {i}" for i in range(1, 9)])


# %%
# NBVAL_IGNORE_OUTPUT
def make_unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


unet, generator = make_unet(), torch.Generator().manual_seed(0)
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SLICE_STEPS)
losses = []
for _ in tqdm(range(SLICE_STEPS), desc="slices", mininterval=1.0):
    clean = slices[torch.randint(len(slices), (16,), generator=generator)]
    clean = torch.where(
        torch.rand(16, 1, 1, 1, generator=generator) < 0.5, clean, clean.flip(-1)
    )  # mirrored: more to see
    t = torch.randint(T, (16,), generator=generator)
    eps = torch.randn(clean.shape, generator=generator)
    a = abar[t].view(-1, 1, 1, 1)
    x0_hat = unet(
        a.sqrt() * clean + (1 - a).sqrt() * eps, t
    ).sample  # this one predicts x0, as MAD-AD does
    loss = F.mse_loss(x0_hat, clean)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
unet.eval()
million = sum(p.numel() for p in unet.parameters()) / 1e6
print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-30:]):.3f};", end=" ")
print(f"{million:.1f} million parameters")
assert np.mean(losses[-30:]) < np.mean(losses[:10]) / 3

# %% [markdown]
# New brains out of noise, with DDIM in 20 steps. They belong to nobody.


# %%
# NBVAL_IGNORE_OUTPUT
@torch.no_grad()
def denoise(x, levels, between=None):
    """DDIM with eta = 0 through the levels, from high to low, then to no noise.

    between(x, s): called after each step to level s.
    """
    for t, s in zip(levels, [*levels[1:], -1]):
        a_s = abar[s] if s >= 0 else torch.tensor(1.0)
        x0_hat = unet(x, torch.full((len(x),), t)).sample.clamp(-1, 1)
        eps_hat = (x - abar[t].sqrt() * x0_hat) / (1 - abar[t]).sqrt()
        x = a_s.sqrt() * x0_hat + (1 - a_s).sqrt() * eps_hat
        if between is not None:
            x = between(x, s)
    return x


start = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
drawn = denoise(start, list(range(99, -1, -5)))
nearest = (
    torch.cdist(drawn.flatten(1), slices.flatten(1)).min(1).values / 32
)  # root mean square, pixels
far = torch.cdist(start.clamp(-1, 1).flatten(1), slices.flatten(1)).min(1).values / 32
print("root mean square difference to the nearest slice that was trained on:", end=" ")
print(f"{nearest.mean():.2f}; of noise: {far.mean():.2f}")
assert nearest.mean() < far.mean() / 2
show(drawn, [f"new brain {i}" for i in range(1, 9)])

# %% [markdown]
# Brain-like, and not sharp: a minute, eight people.
#
# ## 9. Healing: how far to go back?
#
# Here is a patient with a stroke. The model has seen healthy brains only. So: noise the patient's slice up to some level, and let the model bring it back. What the noise has
# hidden, the model fills in from what it knows, and it knows only health. This is AnoDDPM (Wyatt et al. 2022).

# %%
# NBVAL_IGNORE_OUTPUT
sick_volume, sick_mask = slices_of(73, lesion="stroke", volume_ml=60)
k = int(sick_mask.sum((1, 2, 3)).argmax())
sick, lesion = sick_volume[[k]], sick_mask[[k]] > 0.5
brain = sick > -1
eps = torch.randn(sick.shape, generator=torch.Generator().manual_seed(0))
healed = {
    t: denoise(abar[t].sqrt() * sick + (1 - abar[t]).sqrt() * eps, list(range(t, -1, -5)))
    for t in (20, 40, 60, 80)
}
inside, outside = lesion & brain, ~lesion & brain
print("mean change       in the lesion   elsewhere")
for t, x in healed.items():
    change = (x - sick).abs()
    print(f"noised to t = {t}{change[inside].mean():14.2f}{change[outside].mean():13.2f}")
gain = [(x - sick).abs()[inside].mean() for x in healed.values()]
loss_elsewhere = [(x - sick).abs()[outside].mean() for x in healed.values()]
assert gain[-1] > gain[0] and loss_elsewhere[-1] > loss_elsewhere[0]
show(
    [sick[0], *[x[0] for x in healed.values()]],
    ["patient", *[f"from t = {t}" for t in healed]],
    outline=[lesion[0], None, None, None, None],
)

# %% [markdown]
# There is the dilemma. Little noise heals the lesion only in part. Much noise heals it further, and changes everything else as well: this is another person's brain, and the difference lights up
# everywhere.
#
# ## 10. If one knew where: filling a hole
#
# Suppose somebody told us where the lesion is. Then we could keep the rest. At every level we put the patient's own pixels back, noised to that level, and let the model
# speak only inside the mask $M$, which is 1 in the hole and 0 elsewhere:
#
# $$ x_{t'} \leftarrow M \odot x_{t'} + (1 - M) \odot \big(\sqrt{\bar\alpha_{t'}}\,x_0 + \sqrt{1 - \bar\alpha_{t'}}\,\varepsilon\big) . $$
#
# The model was never taught to fill holes. Yet at each step it sees the surroundings, and what it puts into the hole has to fit them. The levels and the noise are
# those of the last slice above, from $t = 80$; the hole begins as noise alone.

# %%
# NBVAL_IGNORE_OUTPUT
M = torch.from_numpy(ndimage.binary_dilation(lesion[0, 0].numpy()))[None, None]


def keep_the_rest(x, s):
    known = sick if s < 0 else abar[s].sqrt() * sick + (1 - abar[s]).sqrt() * eps
    return torch.where(M, x, known)


filled = denoise(keep_the_rest(eps, 80), list(range(80, -1, -5)), between=keep_the_rest)
change = (filled - sick).abs()
print(f"change: {change[inside].mean():.2f} in the lesion,", end=" ")
print(f"{change[~M & brain].mean():.2f} outside the mask")
assert (filled - sick).abs()[inside].mean() > 0.15 and torch.equal(filled[~M], sick[~M])
show(
    [sick[0], healed[80][0], filled[0]],
    ["patient", "all noised", "only the hole"],
    outline=[lesion[0], None, None],
)

# %% [markdown]
# **That is what we want, and we cheated**: the mask came from the truth. A detector has to *find* it.
#
# MAD-AD's idea is to learn the mask along with the healing. During training it noises random patches and leaves the rest clean, so that every training slice has both, and asks the
# network not only what was there but also *where* the noise is. At test time the network's own mask decides what is kept and what is healed. You will build that in
# [04_madad_from_scratch](04_madad_from_scratch.ipynb), not on pixels, but on latents, which are smaller and which
# [03_latent_encoder](03_latent_encoder.ipynb) explains.
#
# ## 11. What to take with you
#
# - Noise is added in one go: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$. The network learns to undo it.
# - $\varepsilon$, $x_0$ and $v$ are three ways to say the same; MAD-AD predicts $x_0$.
# - DDPM goes down every level with fresh noise, DDIM may skip levels; $\eta$ says how much of the noise is fresh: 0 none, 1 as much as in DDPM.
# - Noising everything forces a choice between healing too little and changing too much. A mask resolves it.
#
# **Next:** [02_data_preparation](02_data_preparation.ipynb) brings real scans into the form that all of this needs.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/01_diffusion](solutions/01_diffusion.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): twice as many levels
#
# With the cosine schedule over $T = 200$ levels instead of 100, what is $\bar\alpha$ at $t = 99$, to one decimal? (Think of where 99 lies on the way from 0 to 200.)

# %%
abar_200_at_99 = None  # your answer, a number

# %%
checks.run(checks.check_01_abar, abar_200_at_99)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Section 3 printed from which $t$ on there is more noise than signal when $T = 100$.
#
# </details>
#
# ### Exercise 2 (code): the velocity back to the noise
#
# Write $\hat\varepsilon$ from $x_t$, $v$ and $t$.


# %%
def eps_from_v(x_t, v, t):
    raise NotImplementedError  # your line


# %%
checks.run(checks.check_01_eps_from_v, eps_from_v)

# %% [markdown]
# *What you should see*: with `x_t` and `v` as section 4 makes them, `(eps_from_v(x_t, v, t) - eps).abs().max()` is below $10^{-5}$ at every level.
#
# <details><summary>Hint 1</summary>
#
# $x_t$ and $v$ are two equations for the two unknowns $x_0$ and $\varepsilon$.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Multiply the first by $\sqrt{1-\bar\alpha_t}$, the second by $\sqrt{\bar\alpha_t}$, and add.
#
# </details>
#
# ### Exercise 3 (code): the forward step
#
# Write one step of the chain, from level $t - 1$ to level $t$.


# %%
def forward_step(x, t, eps):
    """x at level t - 1 and eps, both (N, 2); returns x at level t."""
    raise NotImplementedError  # your line


# %%
checks.run(checks.check_01_forward_step, forward_step)

# %% [markdown]
# *What you should see*: called for $t = 0, 1, \ldots, 99$ in a row, each time with fresh noise, it draws the row of clouds of section 3, from a brain to a round cloud with the spread 1.
#
# <details><summary>Hint 1</summary>
#
# The first equation of section 3.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `beta[t]` belongs to the step that *ends* at level $t$. The factors are its square root and that of `1 - beta[t]`.
#
# </details>
#
# ### Exercise 4 (investigate): a larger hole
#
# In section 10 the mask is the lesion and a pixel around it. Make it larger with `ndimage.binary_dilation(..., iterations=5)`. What happens to what is put into it, and how much of the healthy brain changes?
# What does that say about a detector whose mask is too generous?
#
# <details><summary>What to expect</summary>
#
# The filling is smooth and fits its surroundings, and it is somebody else's brain again. The mask now covers about a quarter of the healthy brain, not a twentieth, and what it covers changes about as much as when everything was
# noised; outside it nothing changes. The lesion is healed no better. So a mask that is too generous gains nothing here, and each healthy pixel in it may become a false alarm; one that is too small would leave some of the lesion as it is.
#
# </details>
