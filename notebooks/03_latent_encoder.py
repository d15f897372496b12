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
# # 03 · The latent encoder: what it keeps and what it loses
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/03_latent_encoder.ipynb)
#
# MAD-AD does not work on the pixels of a brain scan. A first network, an *autoencoder*, turns each slice into a small
# stack of pictures, the **latent**, and can turn a latent back into a slice. The diffusion model of the following notebooks
# only ever sees latents. Whatever the autoencoder loses, nothing after it can find; so we look at it closely first.
#
# **What you will learn**
#
# - why diffusion models like to work on latents, and what a latent looks like;
# - how to measure what an autoencoder keeps and loses, over the whole brain, at its edges and inside a lesion;
# - what *posterior*, *KL* and *scaling* mean, each beside the line that computes it;
# - how to train an autoencoder of your own, and how to tell whether it is good enough.
#
# **What it needs:** nothing but this package; no download. The subjects are **simulated** (from the MNI152 template), so
# that you can share and repeat everything here. No real patient appears in this notebook.
#
# **How long it takes:** about 3 minutes on two CPU cores; about half an hour on a Colab T4 with the large settings (estimated, not measured).
#
# **Symbols** are those of [the notation page](../docs/notation.md), which also has a glossary.
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
# `FULL_SETTINGS` is the one switch of this notebook. `False` trains a small autoencoder, about a minute on two idle CPU cores and several on busy ones.
# `True` trains the layout that the paper uses (Stable Diffusion's, 83.6 million parameters, 256 x 256 pixels) for three
# passes over a larger simulated cohort. You need a GPU for that: in Colab, *Runtime → Change runtime type → T4*.

# %%
# NBVAL_IGNORE_OUTPUT
import tempfile
import time
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from madad_lite import plotting
from madad_lite.autoencoder import (
    decode,
    downsampling,
    encode,
    make_autoencoder,
    measure_scaling,
    posterior,
)
from madad_lite.evaluation.compare import load_split
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.scans.nifti import load_volume, save_nifti
from madad_lite.simulation.cohort import implant_lesion, write_cohort
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.autoencoder import psnr as package_psnr
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.settings import RECIPES, AutoencoderConfig, configured

FULL_SETTINGS = False  # True: the paper's autoencoder; needs a GPU
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 240  # of the small training on a CPU, about a minute

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__},", end=" ")
print(f"diffusers {diffusers.__version__}")
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")

# %% [markdown]
# ## 2. A few simulated subjects
#
# We write a small cohort as NIfTI files and cut it into slices, as notebook 02 explains: all on one grid, intensities in
# $[-1, 1]$, the median of the brain at 0 and the background at exactly $-1$. Subjects, not slices, are divided into
# training, validation and test.

# %%
DATA = WORK / "prepared"
cohort = write_cohort(WORK / "cohort", normal=6, patients=0, seed=11, progress=False)
manifest = prepare_folder(cohort, DATA, contrast="t1", progress=False)
subjects = {
    split: {scan["subject"] for scan in manifest.scans(split)} for split in ("train", "val", "test")
}
print({split: len(names) for split, names in subjects.items()}, "subjects")
assert not manifest.skipped
assert not subjects["train"] & subjects["test"] and not subjects["train"] & subjects["val"]

# %% [markdown]
# `x0` will be our slices, $N \times 1 \times H \times W$, and `brain` says which pixels are brain. We take the test
# subject, whom no training in this notebook sees.

# %%
test = load_split(DATA, "test")
x0, brain = test.image, test.brain  # (N, 1, H, W) each
shown = [len(x0) // 4, len(x0) // 2, 3 * len(x0) // 4]
assert x0.min() == -1 and x0.max() <= 1 and abs(x0[brain].median()) < 0.1
plotting.slice_grid(x0[shown], titles=["low", "middle", "high"])

# %% [markdown]
# ## 3. Why latents?
#
# Three reasons. The second one is special to MAD-AD.
#
# 1. **Size.** A diffusion network is run many times. On a grid that is $f$ times smaller in each direction, each run costs
#    about $f^2$ times less, and attention, which compares every place with every other, $f^4$ times less.
# 2. **Noise that means something.** Single pixels of noise are easy to see and say nothing about anatomy. A latent cell
#    stands for a patch of tissue; noise in it damages the whole patch at once, as a lesion does. That is MAD-AD's hope;
#    notebook 05 shows how far it carries.
# 3. **Less to learn.** Texture and scanner noise are left to the autoencoder; the diffusion model learns anatomy.
#
# Here is the shipped model. We need only its autoencoder now.

# %%
pipe = MadAdPipeline.from_pretrained("t1")
autoencoder = pipe.autoencoder
z0 = pipe.encode(x0)  # (N, C, h, w)
f = downsampling(autoencoder)  # pixels along one side of a latent cell
print(f"slice  {tuple(x0.shape[1:])}: {x0[0].numel()} numbers")
print(f"latent {tuple(z0.shape[1:])}: {z0[0].numel()} numbers, one cell = {f} x {f} pixels")
assert z0.shape[2:] == (x0.shape[2] // f, x0.shape[3] // f)
assert z0[0].numel() * 4 == x0[0].numel()  # a quarter of the numbers

# %% [markdown]
# ## 4. What it keeps: encode, decode, compare
#
# The decoder turns the latent back into a slice, the *reconstruction*. What the reconstruction lacks is lost for good.
# The two look alike; their difference, on a scale of its own, shows what is lost: red where the reconstruction is too bright, blue where it is too dark.

# %%
reconstruction = torch.where(brain, pipe.decode(z0), -1.0)  # (N, 1, H, W)


SLICE = ("gray", -1, 1, "intensity")  # colour map, its two ends, what its bar says
ERROR = ("RdBu_r", -0.25, 0.25, "error of the intensity")  # red: too bright, blue: too dark


def pictures(*panels):
    """Pictures in a row: (image, title, look) each. Neighbours of one look share a colour bar."""
    size = (2.6 * len(panels), 2.3)
    fig, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for i, (ax, (image, title, look)) in enumerate(zip(axes[0], panels)):
        cmap, vmin, vmax, label = look
        drawn = ax.imshow(np.squeeze(np.asarray(image)), cmap=cmap, vmin=vmin, vmax=vmax)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
        if i + 1 == len(panels) or panels[i + 1][2] is not look:
            fig.colorbar(drawn, ax=ax, shrink=0.8, label=label)
    plt.close(fig)
    return fig


k = shown[1]
error = reconstruction - x0
pictures(
    (x0[k], "slice", SLICE),
    (reconstruction[k], "reconstruction", SLICE),
    (error[k], "reconstruction minus slice", ERROR),
)

# %% [markdown]
# One number for this is the **peak signal-to-noise ratio**, in decibel. Our intensities span $[-1, 1]$, so the peak
# is 2:
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{2^2}{\mathrm{MSE}}, \qquad
#   \mathrm{MSE} = \frac{1}{|\text{brain}|} \sum_{\text{brain}} (\hat x_0 - x_0)^2 .$$
#
# Ten decibel more means a ten times smaller squared error. Background is easy, so only brain counts. A number needs
# company: we "encode" by plain shrinking, and "decode" by enlarging again. Once to 24 x 24, the grid of the latent, and
# once to 48 x 48, which is as many numbers as the latent has in its four channels.


# %%
def psnr(guess, truth, inside):
    mse = (guess - truth)[inside].square().mean()
    return (10 * torch.log10(4 / mse)).item()


def shrunk(side):
    small = F.interpolate(x0, size=(side, side), mode="area")
    return F.interpolate(small, size=x0.shape[2:], mode="bicubic").clamp(-1, 1)


shipped_psnr = psnr(reconstruction, x0, brain)
assert (
    abs(shipped_psnr - package_psnr(reconstruction, x0, brain)) < 1e-3
)  # the package computes the same
assert shipped_psnr > psnr(shrunk(24), x0, brain) + 3  # less than half the squared error
quality = {"autoencoder": shipped_psnr}
quality |= {f"shrunk to {n} x {n}": psnr(shrunk(n), x0, brain) for n in (24, 48)}
plotting.compare_methods({name: {"PSNR (dB)": value} for name, value in quality.items()})

# %% [markdown]
# On the same grid of 24 x 24 places the autoencoder is far better. With the same *number of values*, 48 x 48, plain shrinking
# does about as well! So what an autoencoder buys is not fewer numbers but **fewer places with more said about each**: a
# quarter of the places for the diffusion network to visit, a sixteenth of the pairs of places for its attention.
#
# ### Which structures suffer?
#
# A single number hides where the errors are. First by **edges**: we sort the brain's pixels by how steeply the intensity
# changes there (the gradient's length $|\nabla x_0|$) and look at the error in five equal groups. Then by **tissue**: in
# a T1 scan fluid is dark, grey matter lies below the median of the brain (our 0), white matter above it.

# %%
dy, dx = torch.gradient(x0, dim=(2, 3))
steepness = (dx**2 + dy**2).sqrt()
cuts = torch.quantile(
    steepness[brain][::7], torch.linspace(0, 1, 6)
).tolist()  # borders of five equal groups
edges = ["flat", "", "", "", "steep"]
groups = [brain & (steepness >= low) & (steepness < high) for low, high in zip(cuts[:-1], cuts[1:])]
tissues = {"fluid": (-1.0, -0.5), "grey\nmatter": (-0.5, 0.0), "white\nmatter": (0.0, 1.0)}
groups += [brain & (x0 >= low) & (x0 < high) for low, high in tissues.values()]
rms = [error[g].square().mean().sqrt().item() for g in groups]
fig, ax = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
ax.bar([0, 1, 2, 3, 4, 6, 7, 8], rms, color=["#0072B2"] * 5 + ["#D55E00"] * 3)
ax.set_xticks([0, 1, 2, 3, 4, 6, 7, 8], [*edges, *tissues])
ax.set(ylabel="root mean squared error", title="Error by steepness (blue) and by tissue (orange)")
plt.close(fig)
assert rms[4] > 1.5 * rms[0]  # the error lives at the edges
fig

# %% [markdown]
# Edges suffer most: at the border of a ventricle or in a narrow sulcus a patch of 4 x 4 pixels holds more detail than its
# four numbers can describe; and most fluid of a slice lies in narrow places. Keep this in mind for the anomaly map. A thin bright line along
# every edge would be the *autoencoder's* error, not disease. There are two remedies. The authors' code compares the healed slice with the **reconstruction**, so that errors which both share
# cancel out. The shipped model compares it with the scan, as the paper does, and lets a difference count only as far as the network doubted the place (notebook 08, section 6).
#
# ### And a lesion?
#
# This is the question that matters. The autoencoder was trained on slices without lesions. If it "repaired" lesions by
# itself, or drew nonsense in their place, the diffusion model would never see them. We put a simulated stroke into our test
# subject's own anatomy, so that we have the same slice with and without it.

# %%
# NBVAL_IGNORE_OUTPUT
scan = Path(manifest.scans("test")[0]["source"])
mask_file = next(scan.parent.glob("*desc-brain_mask.nii.gz"))
changed, true_lesion = implant_lesion(
    load_volume(scan), load_volume(mask_file), seed=3, volume_ml=20
)
save_nifti(changed, WORK / "stroke_T1w.nii.gz")
save_nifti(true_lesion, WORK / "stroke_mask.nii.gz")
before = pipe.prepare(scan, brain=mask_file)
after = pipe.prepare(
    WORK / "stroke_T1w.nii.gz", brain=mask_file, lesion=WORK / "stroke_mask.nii.gz"
)
n = int(after.lesion.sum((1, 2)).argmax())  # the slice with most lesion
pair = torch.from_numpy(np.stack([before.image[n], after.image[n]]))[
    :, None
]  # (2, 1, H, W): without, with
lesion = torch.from_numpy(after.lesion[n])  # (H, W)
decoded = pipe.decode(pipe.encode(pair))
darker = [(x[0] - x[1])[0][lesion].mean() for x in (pair, decoded)]  # by the stroke: truth, decoded
print(f"the stroke darkens the slice by {darker[0]:.2f} (of a range of 2);", end=" ")
print(f"of that {darker[1] / darker[0]:.0%} survive")
assert darker[1] > 0.7 * darker[0]
plotting.slice_grid(
    torch.cat([pair, decoded]),
    columns=4,
    truth=torch.stack([0 * lesion, lesion] * 2),
    titles=["before", "with stroke", "before, decoded", "stroke, decoded"],
)

# %% [markdown]
# The lesion (cyan outline) survives encoding and decoding. Good: an autoencoder for anomaly detection must be a faithful
# *codec*, for healthy and for diseased tissue. (Other methods hope for the opposite, that the autoencoder fails on
# lesions, and use its error as the anomaly score. Notebook 07 measures how well that works.) Ours is helped by a trick of
# its training: a share of the slices is given an arbitrary, random contrast, so that it has seen dark and bright
# patches everywhere.
#
# ## 5. Latents as pictures
#
# A latent has $C = 4$ channels. Each can be drawn as a small picture.

# %%
plotting.latent_channels(z0[shown], titles=["low", "middle", "high"])

# %% [markdown]
# Nobody told the channels what to mean, and yet you can recognise the brain in them. That is so because the encoder is
# made of convolutions: place is kept. A cell in the upper left corner of the latent describes the upper left corner of
# the slice. MAD-AD depends on it: a mask over latent cells is a mask over tissue.
#
# ### What one latent cell sees
#
# How much of the slice does one cell look at? We ask the gradient: how strongly does each pixel change this cell,
# $\left|\partial z_{c,i,j} / \partial x\right|$?

# %%
i = j = z0.shape[2] // 2  # the cell in the middle
x = x0[k][None].clone().requires_grad_()
posterior(autoencoder, x).mode()[0, :, i, j].abs().sum().backward()
influence = x.grad[0, 0].abs()
window = slice(
    max(0, (i - 2) * f), (i + 3) * f
)  # the cell itself and two cells on each side: 5 x 5 cells
share = influence[window, window].sum() / influence.sum()
assert share > 0.5
seen = influence / influence.max()
pictures(
    (x0[k], "slice", SLICE),
    (seen, "pixels that one cell sees", ("viridis", 0, 1, "share of the strongest influence")),
)

# %% [markdown]
# More than half of the cell's sensitivity lies within two cells of it. It sees its own patch and some of the
# neighbourhood, not the whole brain. (Exercise 4 asks the same of the decoder.)
#
# ### A lesion in the latent
#
# We have the same slice without and with a stroke. What does the stroke change in the latent?
# The change of each latent cell is the length of its change over the channels,
# $d_{ij} = \lVert z^{\text{stroke}}_{ij} - z^{\text{before}}_{ij} \rVert_2$. We compare cells in the lesion with cells
# far from it.

# %%
# NBVAL_IGNORE_OUTPUT
z_before, z_after = pipe.encode(pair)
d = (z_after - z_before).square().sum(0).sqrt()  # (h, w)
covered = F.avg_pool2d(lesion[None, None].float(), f)[
    0, 0
]  # (h, w), the lesion's share of each cell
near = F.max_pool2d(covered[None], 5, stride=1, padding=2)[0] > 0  # within two cells of the lesion
in_lesion, far = d[covered > 0.5].mean(), d[~near].mean()
print(f"mean change: {in_lesion:.2f} in the lesion, {far:.3f} far from it")
assert in_lesion > 3 * far
pictures(
    (covered, "how much of each cell is lesion", ("viridis", 0, 1, "share of the cell")),
    (d, "change of the latent", ("viridis", 0, d.max(), "length of the change $d$")),
)

# %% [markdown]
# So a lesion in the slice is a *compact, strong change of a few latent cells*. In place and extent, though not in kind, that is the damage that
# the forward process of MAD-AD imitates with noise (notebook 04), and it explains the name: **mask**ed diffusion.
#
# ## 6. Not a point but a cloud: the posterior
#
# The encoder does not give one latent. It gives a mean $\mu_q$ and a standard deviation $\sigma_q$ for each value: the
# *posterior* $q(z \mid x_0) = \mathcal N(\mu_q, \sigma_q^2)$. While training, a **sample** is decoded,
#
# $$ z = \mu_q + \sigma_q \odot \varepsilon, \qquad \varepsilon \sim \mathcal N(0, 1), $$
#
# so that the decoder learns to accept a neighbourhood of each latent. It is a small one, as the next cell prints: what the
# diffusion model puts in place of a lesion lies far outside, and the decoder has to cope with that untrained.
# At test time we take the **mode**, which is $\mu_q$: no randomness.

# %%
# NBVAL_IGNORE_OUTPUT
with torch.no_grad():
    q = posterior(autoencoder, x0)
mu, sigma = q.mean, q.std
noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
sample = (mu + sigma * noise) * autoencoder.config.scaling_factor  # section 7 explains the factor
assert torch.equal(q.mode(), mu)
assert (
    psnr(torch.where(brain, pipe.decode(sample), -1.0), x0, brain) < shipped_psnr
)  # a sample costs a little
print(f"typical sigma {sigma.median():.3f}, spread of the means {mu.std():.2f}: a small cloud")
assert sigma.median() < mu.std() / 3

# %% [markdown]
# How far may the posterior be from a standard normal distribution? Training charges for the distance, the
# **Kullback-Leibler divergence**, for each latent value
#
# $$ \mathrm{KL}\big(q \,\Vert\, \mathcal N(0,1)\big) = \tfrac12 \left( \mu_q^2 + \sigma_q^2 - 1 - \ln \sigma_q^2 \right). $$
#
# It is zero exactly when $\mu_q = 0$ and $\sigma_q = 1$, and then the latent says nothing about the slice.

# %%
kl = 0.5 * (mu**2 + sigma**2 - 1 - (sigma**2).log())  # (N, C, h, w)
assert torch.allclose(kl.sum((1, 2, 3)), q.kl(), rtol=1e-3)  # diffusers computes the same
assert (kl >= -1e-4).all()
print("KL of a posterior that knows nothing:", float(0.5 * (0**2 + 1**2 - 1 - np.log(1**2))))
print("weight of the KL in our training:", AutoencoderConfig().kl_weight)

# %% [markdown]
# The weight is tiny, on purpose. With a weight near 1 this would be a *variational autoencoder* that can invent new
# brains, with blurred reconstructions. Here inventing is the diffusion model's task; the autoencoder only has to be
# faithful, and the KL only keeps the latents from growing without limit. The next cell shows that our decoder cannot
# invent: a latent of pure noise does not decode to a brain.

# %%
invented = pipe.decode(torch.randn(1, *z0.shape[1:], generator=torch.Generator().manual_seed(1)))
pictures(
    (reconstruction[k], "decoded: latent of a slice", SLICE),
    (invented[0], "decoded: pure noise", SLICE),
)

# %% [markdown]
# ## 7. The scaling $s = 1/\mathrm{std}$
#
# The forward process will mix latents with noise of standard deviation 1. Which mixture is "half noise" depends on how
# large latents are. So they are multiplied by a constant that gives them unit spread,
#
# $$ z_0 = s \cdot \mu_q, \qquad s = \frac{1}{\mathrm{std}(\mu_q)} \ \text{ over all values of the training latents.} $$
#
# You will meet the number 0.18215 in other people's code. It is $1/\mathrm{std}$ for *Stable Diffusion's* autoencoder
# on photographs, and right for nothing else.

# %%
# NBVAL_IGNORE_OUTPUT
train = load_split(DATA, "train")
with torch.no_grad():
    raw = posterior(autoencoder, train.image).mode()  # not yet scaled
s = 1 / raw.std()
stored = autoencoder.config.scaling_factor
print(f"1 / std here: {s:.3f}; stored with the weights, from other subjects: {stored:.3f}")
assert abs((stored * raw).std() - 1) < 0.25
assert abs(measure_scaling(autoencoder, train.image.split(32)) / s - 1) < 1e-3

# %% [markdown]
# ## 8. Build one yourself
#
# The loss is simple: reconstruct, sharply, with small latents,
#
# $$ \mathcal L = \underbrace{\lVert \hat x_0 - x_0 \rVert_1
#    + \tfrac12 \lVert \nabla \hat x_0 - \nabla x_0 \rVert_1}_{\text{reconstruction}}
#    + 10^{-4}\, \mathrm{KL}. $$
#
# All three are means: over pixels, over differences, over latent values.
# The second term compares the differences of neighbouring pixels; it asks for edges in the right place. All of it in code, the smallest version first: two convolutions
# halve the slice twice, two more double it again.


# %%
class SmallAutoencoder(nn.Module):
    """Slice (N, 1, H, W) -> latent (N, 4, H / 4, W / 4) -> slice."""

    def __init__(self, width=32, channels=4):
        super().__init__()

        def block(c_in, c_out, stride=1):
            conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1)
            return nn.Sequential(conv, nn.GroupNorm(8, c_out), nn.SiLU())

        up = nn.Upsample(scale_factor=2)
        self.encoder = nn.Sequential(
            block(1, width, 2), block(width, 2 * width, 2), nn.Conv2d(2 * width, 2 * channels, 1)
        )
        self.decoder = nn.Sequential(
            *(block(channels, 2 * width), up, block(2 * width, width), up, block(width, width)),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x, noise=0.0):
        mu, log_variance = self.encoder(x).chunk(2, 1)  # (N, 4, h, w) each
        z = mu + (log_variance / 2).exp() * noise  # the mode without noise
        return self.decoder(z), mu, log_variance


# %% [markdown]
# And the loss, term by term.


# %%
def loss_of(x0_hat, x0, mu, log_variance):
    sharp = sum(F.l1_loss(x0_hat.diff(dim=d), x0.diff(dim=d)) for d in (2, 3))
    kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).mean()
    return F.l1_loss(x0_hat, x0) + 0.5 * sharp + 1e-4 * kl


# %%
# NBVAL_IGNORE_OUTPUT
torch.manual_seed(0)
first, losses = SmallAutoencoder(), []
optimizer = torch.optim.AdamW(first.parameters(), lr=3e-3)
for _ in range(150):
    batch = train.image[torch.randint(len(train.image), (8,))]  # (8, 1, H, W)
    loss = loss_of(*[(o := first(batch, torch.randn(8, 4, *z0.shape[2:])))[0], batch, *o[1:]])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    first_decoded = torch.where(brain, first(x0)[0], -1.0)
print(f"loss: {losses[0]:.2f} at first, {losses[-1]:.3f} at the end")
print(f"PSNR: {psnr(first_decoded, x0, brain):.1f} dB, the shipped one {shipped_psnr:.1f} dB")
assert losses[-1] < losses[0] / 3 and psnr(first_decoded, x0, brain) < shipped_psnr
pictures(
    (x0[k], "slice", SLICE),
    (first_decoded[k], "yours, decoded", SLICE),
    ((first_decoded - x0)[k], "decoded minus slice", ERROR),
)

# %% [markdown]
# Fifty lines and a few seconds give a brain, with its folds blurred. What it lacks: depth, time, and slices in random contrasts. The package's adds these and
# what a longer training needs (progress bar, validation on subjects that are held out, averaged weights, checkpoints); it is the same loop as for the
# diffusion model. The bar shows the losses as it goes.

# %%
# NBVAL_IGNORE_OUTPUT
lite, paper = (RECIPES[name].autoencoder for name in ("lite", "paper"))
if (
    FULL_SETTINGS
):  # as in the paper, but 3 passes, not 100, and 4 slices at once, which a T4 can hold
    data = WORK / "prepared_large"
    larger = write_cohort(WORK / "cohort_large", normal=24, patients=0, spacing=1.0, seed=12)
    prepare_folder(larger, data, contrast="t1", grid=Grid(spacing=1.0, size=256))
    config = configured(paper, epochs=3, batch_size=4)
else:
    data = DATA
    config = configured(lite, steps=STEPS, validate_every=STEPS // 4, ema_decay=0.98)
started = time.time()
run = train_autoencoder(data, WORK / "autoencoder", config)
print(f"{config.size}: {time.time() - started:.0f} seconds")

# %% [markdown]
# Each line of the training's `log.jsonl` is one logged step. The curves show training and validation. Validation uses a subject
# that the training does not see; if its loss rose while the training's fell, that would be overfitting. Here the validation is even
# *below* the training, because only the training slices are moved, brightened and given random contrasts.

# %%
log = plotting.read_log(run)
validated = [line for line in log if "val_psnr" in line]
assert validated[-1]["val_psnr"] > validated[0]["val_psnr"]  # it learns
assert log[-1]["reconstruction"] < 0.5 * log[0]["reconstruction"]
plotting.training_curves(run)

# %% [markdown]
# The KL first rises: the latents start to carry information, and information has its price. Then the two terms settle.
#
# ### Yours beside the shipped one
#
# Same test subject, same measure. The shipped autoencoder has the layout `nano`, as the one that was trained just above. It was trained about ten times
# longer, on real brains: the healthy adults of the public IXI collection.

# %%
# NBVAL_IGNORE_OUTPUT
own = diffusers.AutoencoderKL.from_pretrained(run / "best").to(DEVICE)
own_test = load_split(data, "test")
with torch.no_grad():
    parts = [decode(own, encode(own, x.to(DEVICE))).cpu() for x in own_test.image.split(8)]
own_decoded = torch.where(own_test.brain, torch.cat(parts).clamp(-1, 1), -1.0)
own_error = own_decoded - own_test.image
own_psnr = psnr(own_decoded, own_test.image, own_test.brain)
print(f"PSNR: yours {own_psnr:.1f} dB, the shipped one {shipped_psnr:.1f} dB")
assert shipped_psnr > own_psnr
assert own_psnr > 15
m = len(own_error) // 2
pictures(
    (own_test.image[m], "slice", SLICE),
    (own_decoded[m], "yours, decoded", SLICE),
    (own_error[m], "error of yours", ERROR),
    (error[k], "error of the shipped one", ERROR),
)

# %% [markdown]
# Look where yours still differs: it has the large shapes, and the fine folds are missing. So short a training even leaves it behind the small one that you built: it is deeper, and it has to
# draw slices of random contrasts as well. Trained on, it passes it; the shipped one is the same network after more steps.
#
# ### Beside the layout of the paper
#
# The paper takes the layout of Stable Diffusion's autoencoder: $f = 8$, four channels, on 256 x 256 pixels of 1 mm. We
# build both without memory for their weights (PyTorch's `meta` device) and compare.

# %%
with torch.device("meta"):
    layouts = {name: make_autoencoder(name) for name in ("nano", "paper")}
print("layout  parameters  f  pixel  one cell  latent of a slice  numbers in : out")
for (name, model), (size, mm) in zip(layouts.items(), [(96, 2), (256, 1)]):
    million, fold = sum(p.numel() for p in model.parameters()) / 1e6, downsampling(model)
    side, channels = size // fold, model.config.latent_channels
    latent, ratio = f"{channels} x {side} x {side}", size**2 / (channels * side**2)
    print(f"{name:7} {million:8.1f} M  {fold}  {mm} mm   {fold * mm} mm      ", end="")
    print(f"{latent}        {ratio:.0f} : 1")
assert round(million, 1) == 83.6 and fold == 8

# %% [markdown]
# Read the table from right to left. The paper's squeezes four times harder, 16 : 1 instead of 4 : 1, but starts from pixels of
# 1 mm; in both, **one latent cell stands for 8 mm of brain**. So the diffusion model of this repository asks questions of
# the same size as the paper's. What we give up is detail below 2 mm, and lesions that small. What we gain is an
# autoencoder about seventy times smaller, which trains on a laptop.
#
# ## 9. What to take with you
#
# - A latent is a small picture of the slice: place is kept, and one cell stands for about 8 mm of brain.
# - The autoencoder must be faithful, for lesions too. Its errors live at edges, and a score has to allow for them.
# - A lesion changes few cells, and changes them much.
# - Latents are scaled to unit spread, so that "half noise" means the same for every autoencoder.
#
# **Next:** [04_madad_from_scratch](04_madad_from_scratch.ipynb) noises these latents, patch by patch, and trains a network to find and undo it.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/03_latent_encoder](solutions/03_latent_encoder.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): smaller cells
#
# A cell of the latent now stands for 4 x 4 pixels. If it stood for 2 x 2, how many times as many *pairs* of cells would attention compare?

# %%
times = None  # your answer

# %%
checks.run(checks.check_03_pairs, times)

# %% [markdown]
# <details><summary>Hint</summary>
#
# First: how many times as many cells?
#
# </details>

# %% [markdown]
# ### Exercise 2 (predict): another autoencoder
#
# Another autoencoder's latents have a standard deviation of 2.5. Which scaling $s$ belongs to it?

# %%
scale = None  # your answer

# %%
checks.run(checks.check_03_scale, scale)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Section 7: after scaling the spread is 1.
#
# </details>

# %% [markdown]
# ### Exercise 3 (code): the divergence
#
# Write the equation of section 6, for each latent value.


# %%
def kl(mu, sigma):
    """mu, sigma: tensors of one shape, sigma > 0. Returns the divergence of each value."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_03_kl, kl)

# %% [markdown]
# *What you should see*: drawn against $\mu_q$ at $\sigma_q = 1$ it is a parabola, 0 at $\mu_q = 0$ and 0.5 at $\mu_q = 1$; at $\mu_q = 0$ and $\sigma_q = 0.1$ it is 1.81.
#
# <details><summary>Hint 1</summary>
#
# $\ln \sigma_q^2 = 2 \ln \sigma_q$.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log())`
#
# </details>

# %% [markdown]
# ### Exercise 4 (investigate): what one latent cell draws
#
# Section 5 asked which pixels one cell *sees*. Now ask which pixels it *draws*: add 2.0 to all four channels of the middle cell `[i, j]` of a copy of `z0[[k]]`, decode, and look at the absolute change
# of the slice with `pictures((change, "change", ("viridis", 0, 1, "change of the intensity")))`. Which share of it falls into the window `[window, window]`?
#
# <details><summary>What to expect</summary>
#
# A bright spot where the cell is, about three cells wide. About four fifths of the change lies in the window; the rest is spread thinly around it, at no pixel more than a twentieth of the brightest. Place is kept on the way back, too: a replaced cell changes the slice where it lies.
#
# </details>
