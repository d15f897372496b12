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
# # 05 · Training: teach a network to find and undo noise
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/05_training.ipynb)
#
# MAD-AD learns from **normal brains only**. We damage the latent of a normal slice ourselves, in random patches, and ask a
# network two questions about it. *Where is it damaged?* And: *what was there before?* No patient is needed for that. At test
# time, so the idea goes, a lesion is just another kind of damage.
#
# Is it? In this notebook you train the network as the paper does, with Gaussian noise as the only damage, run it on patients, and
# see it disappoint. Then you find out why, change two things, and train it again. The two networks that you train here are measured
# properly, beside the shipped one, in notebook 07.
#
# **What you will learn**
#
# - how the random patch masks are drawn;
# - the masked forward process, equation and code side by side;
# - why the network has two heads, and which loss trains each (the paper and the authors' code differ here);
# - how to train on a CPU or a GPU, where to keep the checkpoints, and how to go on after an interruption;
# - how to check that the network has learnt something, before trusting a single anomaly map;
# - why a network that is good at finding noise is not yet good at finding lesions, and what to do about it.
#
# **What it needs:** this package with its shipped autoencoder (notebook 03 explains it); no download. All subjects are
# **simulated** from the MNI152 template; no real person's scan appears here.
#
# **How long it takes:** about 4 minutes on two free CPU cores; much longer beside other work. Section 13 estimates the times of GPUs.
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
# `FULL_SETTINGS` is the one switch of this notebook. `False` trains the *nano* network (2.7 million parameters) twice, each time for about
# a minute on a CPU. `True` trains the paper's network *L* (258 million) with the paper's loss and masks, for 40 passes
# with batches of 24 instead of 300 with 96, and half its learning rate (section 13 says why). You need a GPU for that: in Colab, *Runtime → Change runtime type → T4*. `SCANS` says on whom:
# `"cohort"` simulates normal subjects, `"ixi"` downloads 581 healthy people (5 GB), and the path of a folder takes your own T1 scans.

# %%
# NBVAL_IGNORE_OUTPUT
import csv
import dataclasses
import itertools
import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from sklearn.metrics import roc_auc_score
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from madad_lite import plotting
from madad_lite.denoiser import SIZES, Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.evaluation import metrics
from madad_lite.extensions.lesion_like import corrupt
from madad_lite.masking import brain_cells, random_patch_mask
from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import widgets
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject, write_cohort
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.latent_cache import LatentDataset, encode_latents
from madad_lite.training.settings import RECIPES, configured
from madad_lite.training.settings import table as recipe_table

FULL_SETTINGS = False  # True: the paper's network and settings; needs a GPU
SCANS = "cohort"  # "ixi", or a folder with NIfTI files of healthy people
STEPS = 200  # of each of the two small trainings
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}")

# %% [markdown]
# **Where do the checkpoints go?** A training of hours belongs in a folder that outlives the session. In Colab that is Google Drive: run
#
#     from google.colab import drive
#     drive.mount("/content/drive")
#
# in a cell of its own *before* the next one. Without Drive everything is written beside the notebook, and in Colab that is lost when the session ends.

# %%
# NBVAL_IGNORE_OUTPUT
DRIVE = Path("/content/drive/MyDrive")
RUNS = DRIVE / "madad_lite" if DRIVE.is_dir() else Path("runs")
WORK = RUNS / ("05_full" if FULL_SETTINGS else f"05_{STEPS}_steps")
WORK.mkdir(parents=True, exist_ok=True)
print("everything is kept in", WORK)
if Path("/content").is_dir() and not DRIVE.is_dir():
    print("CAREFUL: Drive is not mounted. This folder is lost when the Colab session ends.")
if DEVICE == "cuda":
    free, total = (v / 1e9 for v in torch.cuda.mem_get_info())
    print(f"{torch.cuda.get_device_name()}: {free:.1f} of {total:.1f} GB are free")
else:
    free = psutil.virtual_memory().available / 1e9
    print(f"no GPU: {torch.get_num_threads()} CPU thread(s), {free:.1f} GB of memory are free")
plotting.method()

# %% [markdown]
# The method in one picture: training above, what happens to a scan below. The small print gives the shape of every tensor, for $N$ slices at
# once. This notebook is about the upper row.
#
# ## 2. Normal subjects, as latents
#
# A small simulated cohort, cut into slices (notebook 02). Training sees normal subjects only. Every cell from here on may be run again after an
# interruption: what is done is found and not done again. (IXI's scans are whole heads; `prepare_folder` takes the brain out of them.)

# %%
# NBVAL_IGNORE_OUTPUT
DATA = WORK / "prepared"
scans = WORK / "cohort" if SCANS == "cohort" else RUNS / "ixi-t1" if SCANS == "ixi" else Path(SCANS)
if SCANS == "ixi":
    # !wget -qN https://github.com/madad-lite/madad-lite/raw/main/data_download.sh
    # !bash data_download.sh ixi-t1 --out {RUNS}
    pass
if SCANS == "cohort" and not (scans / "participants.tsv").exists():
    count = 24 if FULL_SETTINGS else 6
    write_cohort(scans, normal=count, patients=0, seed=21, force=True)
manifest = prepare_folder(scans, DATA, contrast="t1")
assert {scan["group"] for scan in manifest.scans()} == {"normal"}
train_slices, val_slices = SliceDataset(DATA, "train"), SliceDataset(DATA, "val", lesion_free=True)
assert not set(train_slices.subjects) & set(
    val_slices.subjects
)  # divided by subject, never by slice
shown = range(20, len(train_slices), 40)
titles = [f"slice {i + 1} of {len(train_slices)}" for i in shown]
plotting.slice_grid(torch.stack([train_slices[i]["image"] for i in shown]), titles)

# %% [markdown]
# The diffusion network never sees these pixels. Each slice is encoded **once**, and what is stored is the encoder's
# posterior: a mean and a standard deviation for each latent value (already scaled by $s$ to unit spread).
# Then every training step can draw a fresh sample of it, $z_0 = \mathrm{mean} + \mathrm{std} \odot \varepsilon'$. Each training slice
# is stored twice, once as it is and once moved and mirrored a little, with other brightness.

# %%
# NBVAL_IGNORE_OUTPUT
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)
lite, paper = (RECIPES[name].denoiser for name in ("lite", "paper"))
if FULL_SETTINGS:  # as in the paper, but for smaller batches and fewer passes, for the sake of a T4
    config = configured(paper, batch_size=24, epochs=40, learning_rate=2.5e-4, validate_every=200)
else:
    brief = {"steps": STEPS, "validate_every": STEPS // 4, "batch_size": 8, "ema_decay": 0.98}
    config = configured(lite, variants=2, corruption_share=0.0, last_step_share=0.0, **brief)
NOISE, REGIONS = WORK / "noise", WORK / "regions"  # the folders of the two trainings
CACHE = encode_latents(DATA, pipe.autoencoder, NOISE / "latents", config)
train, val = LatentDataset(CACHE, "train"), LatentDataset(CACHE, "val")
print({name: tuple(x.shape) for name, x in train[0].items()})
assert len(train) == config.variants * len(train_slices) and len(val) == len(val_slices)
assert (
    abs(val.arrays["mean"].astype("float32").std() - 1) < 0.25
)  # unit spread, on subjects nobody measured it on

# %% [markdown]
# ## 3. The patch mask $M$
#
# $M$ says which latent cells will be noised: **1 = noised**, 0 = left alone, as in the paper's equations. (The authors' code
# stores the opposite, and one caption of the paper reads like it; notebook 08 shows both.) Which cells may be noised at all? Only those that lie on brain. Noise on the empty background would be
# too easy to find, and background never needs healing.
#
# For each batch, the sides of the patch are drawn, independently in $y$ and $x$, from $\{1, 2, 4, 8\}$ cells with
# probabilities $.2, .3, .3, .2$. For each sample, the share of noised patches is drawn from $U[0, 0.4]$. So the network
# meets everything from a single cell to large blocks, and sometimes nothing at all. That last case matters: it must also
# learn to say "all is well". (The titles below give the share of the *brain's* cells; it can exceed 40 %, because the ratio counts patches of
# the whole latent, and the mask is cut to the brain afterwards.)

# %%
item = val_slices[len(val_slices) // 2]
x0, brain = item["image"][None], item["brain"][None]  # (1, 1, H, W)
size = tuple(val[0]["mean"].shape[1:])  # (h, w)
cells = brain_cells(brain, size, config.brain_fraction, config.brain_block)  # (1, 1, h, w) bool
print(f"{size[0]} x {size[1]} cells;", end=" ")
print(f"a cell counts as brain from {config.brain_fraction:.0%} brain pixels on")

generator = torch.Generator().manual_seed(0)
masks = torch.cat([random_patch_mask(1, size, brain=cells, generator=generator) for _ in range(12)])
assert set(masks.unique().tolist()) <= {0.0, 1.0}
assert not (masks * ~cells).any()  # never outside the brain
many = random_patch_mask(2000, size, generator=generator, sides=(2,), side_probabilities=(1.0,))
share = many.mean((1, 2, 3))
assert share.max() < 0.41 and abs(share.mean() - 0.2) < 0.02  # U[0, 0.4] has the mean 0.2
plotting.mask_examples(masks, brain=cells, images=x0[:, 0])

# %% [markdown]
# Play with them. *Highest share* is the 0.4 from above. (The sliders need a running kernel; the picture above shows the
# same function for those who read this page without one.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.mask_explorer(size, brain=cells, image=x0[0, 0])

# %% [markdown]
# ## 4. The masked forward process
#
# There are $T = 10$ noise levels. Level $t$ keeps the share $\bar\alpha_t$ of the latent's variance and fills up with noise.
# The $\bar\alpha_t$ fall along a cosine, from almost 1 to almost 0,
#
# $$ \bar\alpha_t = \prod_{i=0}^{t} (1 - \beta_i), \qquad
#    \beta_i = \min\!\left(1 - \frac{\cos^2\!\big(\tfrac{(i+1)/T + 0.008}{1.008}\tfrac{\pi}{2}\big)}
#    {\cos^2\!\big(\tfrac{i/T + 0.008}{1.008}\tfrac{\pi}{2}\big)},\ 0.999\right). $$

# %%
scheduler = make_scheduler()
abar = scheduler.alphas_cumprod  # (T,)
T = len(abar)
u = torch.arange(T + 1, dtype=torch.float64) / T
cosine = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
beta = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
assert torch.allclose((1 - beta).cumprod(0).float(), abar, atol=1e-5)  # the scheduler's
assert (abar.diff() < 0).all() and abar[0] > 0.95 and abar[-1] < 0.001
plotting.schedule(scheduler)

# %% [markdown]
# Ordinary diffusion noises the whole latent. MAD-AD noises only where $M = 1$:
#
# $$ z_t = M \odot \big( \underbrace{\sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon}_{\text{noised}} \big)
#    + (1 - M) \odot \underbrace{z_0}_{\text{as it was}}, \qquad \varepsilon \sim \mathcal N(0, 1). $$
#
# The next cell computes it line by line for one slice, checks that the package's function does the same, and decodes
# $z_t$ for growing $t$, so that we can *see* it: the chosen patches dissolve, and the rest of the brain does not move.
# (Nearly so in the picture: the decoder looks a little beyond a cell's border.)

# %%
z0 = pipe.encode(x0)  # (1, C, h, w)
M = random_patch_mask(
    1, size, brain=cells, generator=generator, sides=(4,), side_probabilities=(1.0,)
)
eps = torch.randn(z0.shape, generator=generator)  # (1, C, h, w)
t = torch.tensor([6])

noised = abar[t].sqrt() * z0 + (1 - abar[t]).sqrt() * eps  # (1, C, h, w)
z_t = M * noised + (1 - M) * z0  # (1, C, h, w); M has one channel and applies to all C

assert torch.allclose(z_t, masked_forward(z0, eps, M, t, scheduler), atol=1e-6)
assert torch.equal(
    z_t[(M == 0).expand_as(z_t)], z0[(M == 0).expand_as(z0)]
)  # untouched, to the last bit
levels = [0, 2, 4, 6, 8, 9]
z_all = torch.cat(
    [masked_forward(z0, eps, M, torch.tensor([level]), scheduler) for level in levels]
)
assert ((z_all - z0).square().mean((1, 2, 3)).diff() > 0).all()  # further and further away
plotting.forward_process(pipe.decode(z_all), levels, mask=M, original=x0)

# %% [markdown]
# Look at $t = 0$ and $t = 2$: the damage is faint. At $t = 9$ nothing of the tissue is left. The network has to cope with
# both, and is told $t$.
#
# ## 5. One network, two answers
#
# The network gets $(z_t, t)$ and answers both questions at once:
#
# - **latent head**: $\hat z_0$, its guess of the clean latent, everywhere;
# - **mask head**: one logit for each cell, $\ell$; $\hat M = \mathrm{sigmoid}(\ell)$ is the probability of "noised".
#
# Both heads sit on one U-Net (diffusers' `UNet2DModel`): three resolutions, 24, 12 and 6 cells wide, with attention, so
# that a cell can be judged by what the other side of the brain looks like.

# %%
torch.manual_seed(0)
untrained = Denoiser.of_size(config.size, latent_channels=z0.shape[1]).to(DEVICE).eval()
with torch.no_grad():
    z0_hat, logits = (x.cpu() for x in untrained(z_t.to(DEVICE), t.to(DEVICE)))
print("z_t    ", tuple(z_t.shape), "what it sees")
print("z0_hat ", tuple(z0_hat.shape), "latent head")
print("logits ", tuple(logits.shape), "mask head")
print("sizes  ", ", ".join(SIZES))
millions = sum(p.numel() for p in untrained.parameters()) / 1e6
assert z0_hat.shape == z0.shape and logits.shape == M.shape
assert FULL_SETTINGS or 2 < millions < 4

# %% [markdown]
# ## 6. Two losses
#
# $$ \mathcal L = \underbrace{\lVert \hat z_0 - z_0 \rVert_2^2}_{\text{latent loss}}
#    + \lambda\ \underbrace{\mathrm{BCE}(\hat M, M)}_{\text{mask loss}}, \qquad
#    \mathrm{BCE} = -M \ln \hat M - (1 - M) \ln (1 - \hat M), $$
#
# each averaged over cells (and channels). The weight $\lambda$ is 1 in the paper and 0.1 here: in a training of thousands of steps the mask is learnt long before the latent, and with a smaller
# share of the loss it leaves more of the training to the harder task. (In the first hundred steps it is the other way round, as you will see.) Note that the latent loss also covers the cells that were *not* noised: there the
# network has to hand back what it got.

# %%
M_hat = logits.sigmoid()
latent_loss = (z0_hat - z0).square().mean()
bce = (-M * M_hat.log() - (1 - M) * (1 - M_hat).log()).mean()
mse = (M_hat - M).square().mean()  # the authors' code

from_package = denoising_losses(z0_hat, logits, z0, M, mask_loss="bce", mask_weight=0.1)
assert torch.allclose(
    torch.stack([latent_loss, bce, latent_loss + 0.1 * bce]), torch.cat(from_package), rtol=1e-4
)
assert torch.allclose(mse, denoising_losses(z0_hat, logits, z0, M, mask_loss="mse")[1], rtol=1e-4)
print("this run's mask loss:", config.mask_loss, "with weight", config.mask_weight)

# %% [markdown]
# **The paper and the authors' published code differ here.** The paper's mask loss is the cross-entropy above. The code
# takes the squared error $(\hat M - M)^2$, with the tiny weight 0.001. What is the difference? Look at the push that each
# gives to the logit $\ell$ of a cell that *is* noised ($M = 1$):
#
# $$ -\frac{\partial\, \mathrm{BCE}}{\partial \ell} = 1 - \hat M, \qquad
#    -\frac{\partial\, (\hat M - 1)^2}{\partial \ell} = 2\, (1 - \hat M)\ \hat M (1 - \hat M). $$

# %%
ell = torch.linspace(-8, 8, 161, requires_grad=True)
one = torch.ones_like(ell)
losses = {
    "BCE (paper)": F.binary_cross_entropy_with_logits(ell, one, reduction="none"),
    "MSE of the sigmoid (authors' code)": (ell.sigmoid() - one).square(),
}
push = {name: -torch.autograd.grad(loss.sum(), ell)[0] for name, loss in losses.items()}
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, value), style in zip(push.items(), ("-", "--")):
    ax.plot(ell.detach(), value, style, label=name)
ax.set(xlabel=r"logit $\ell$ of a noised cell", ylabel="push towards 'noised'")
ax.legend(frameon=False)
plt.close(fig)
wrong = 0  # ell = -8: quite sure, and wrong
assert (
    push["BCE (paper)"][wrong] > 0.99 and push["MSE of the sigmoid (authors' code)"][wrong] < 0.01
)
fig

# %% [markdown]
# A cell that is confidently wrong (far left) gets a full push from the cross-entropy and next to none from the squared
# error. So we use the paper's. `mask_loss="mse"` gives you the other.
#
# ## 7. A training step by hand
#
# This is all there is to it. `train_denoiser` does the same, with the usual comforts around it.


# %%
def training_loss(model, batch, generator):
    mean, std, cells = (
        batch["mean"],
        batch["std"],
        batch["brain"],
    )  # (N, C, h, w) twice, (N, 1, h, w)
    z0 = mean + std * torch.randn(mean.shape, generator=generator)  # a sample of the posterior
    M = random_patch_mask(
        len(z0), tuple(z0.shape[2:]), brain=cells, generator=generator
    )  # (N, 1, h, w)
    eps = torch.randn(z0.shape, generator=generator)
    t = torch.randint(T, (len(z0),), generator=generator)  # every slice its own noise level
    z_t = masked_forward(z0, eps, M, t, scheduler)  # (N, C, h, w)
    z0_hat, logits = (x.cpu() for x in model(z_t.to(DEVICE), t.to(DEVICE)))
    return F.mse_loss(z0_hat, z0) + 0.1 * F.binary_cross_entropy_with_logits(logits, M)


# %% [markdown]
# A good first test of any training code: take one batch, freeze all randomness, and let the network learn it by heart. If
# the loss does not fall now, it never will.

# %%
# NBVAL_IGNORE_OUTPUT
items = [train[i] for i in range(0, len(train), len(train) // 8)][:8]
batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
torch.manual_seed(0)
pupil = Denoiser.of_size("nano", latent_channels=z0.shape[1]).to(DEVICE)
optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-3)
by_heart = []
for _ in range(12):
    loss = training_loss(pupil, batch, torch.Generator().manual_seed(0))  # the same noise each time
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    by_heart.append(loss.item())
print(f"loss of the one batch: {by_heart[0]:.2f} at the first step, {by_heart[-1]:.2f} after 12")
assert by_heart[-1] < by_heart[0] * 2 / 3

# %% [markdown]
# ## 8. Train, with noise alone
#
# The package's function adds: shuffled batches, warm-up and decay of the learning rate, an averaged copy of the weights (the
# one that is kept), validation on held-out subjects, checkpoints, mixed precision on a GPU, and the bar with the two losses. It writes a line of
# its `log.jsonl` every ten steps. A second thread can read that and draw the curves *while it trains*, in the place of the cell's output:


# %%
@contextmanager
def live_curves(run, seconds=3):
    """The loss curves of the training in `run`, drawn again and again while the block runs."""
    place, done = display(Markdown("*waiting for the first step*"), display_id=True), Event()

    def redraw():
        if (run / "log.jsonl").exists() and (lines := plotting.read_log(run)):
            place.update(plotting.training_curves(lines))

    def watch():
        while not done.wait(seconds):
            redraw()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        redraw()


# %% [markdown]
# **This is the cell to run again after a disconnect** (with those above it: they find what they did before). `resume=True` goes on from the last checkpoint, and returns at once
# when nothing is left to do. Change a setting and it refuses, with a sentence that says which: a run has one setting from its first step to its last.

# %%
# NBVAL_IGNORE_OUTPUT
with live_curves(NOISE):
    train_denoiser(DATA, pipe.autoencoder, NOISE, config, resume=True)

# %% [markdown]
# Orange is validation, on a subject that the network does not train on. Both parts of the loss fall. The mask loss starts near $\ln 2 = 0.69$, what a network that knows nothing scores, and needs some fifty steps before it falls clearly.

# %%
# NBVAL_IGNORE_OUTPUT
validated = [line for line in plotting.read_log(NOISE) if "val_mask" in line]
for line in (validated[0], validated[-1]):
    print(f"step {line['step']}: latent loss {line['val_latent']:.3f},", end=" ")
    print(f"mask loss {line['val_mask']:.3f}")
assert validated[-1]["val_latent"] < validated[0]["val_latent"]
assert validated[-1]["val_mask"] < validated[0]["val_mask"]

# %% [markdown]
# ## 9. Stop and go on, exactly
#
# Trainings get interrupted: a Colab session ends, the power goes. Here a resumed training ends with the same weights as one that was never
# interrupted, on a CPU to the last bit. That works because every random draw of step $k$ comes from a generator
# seeded with (seed, $k$), and because the checkpoint holds optimiser, schedule and averaged weights too.
#
# Let us prove it with 12 tiny steps and a checkpoint every 5. First without interruption.

# %%
tiny = dataclasses.replace(
    config, size="nano", epochs=None, steps=12, batch_size=4, checkpoint_every=5, validate_every=12
)


def start(name, resume=False):
    shutil.copytree(CACHE, WORK / name / "latents", dirs_exist_ok=True)  # spare the encoding
    return train_denoiser(DATA, pipe.autoencoder, WORK / name, tiny, resume=resume, progress=False)


for name in ("whole", "halves"):
    shutil.rmtree(WORK / name, ignore_errors=True)  # of an earlier visit
whole = start("whole")
assert plotting.read_log(whole)[-1]["step"] == 12

# %% [markdown]
# Now the same again, with a power cut after step 8. `resume=True` goes back to the checkpoint of step 5.

# %%
step_number = itertools.count(1)


def power_cut(*_):
    if next(step_number) == 8:
        raise KeyboardInterrupt


cable = register_optimizer_step_post_hook(power_cut)  # called after each optimiser step
try:
    start("halves")
except KeyboardInterrupt:
    checkpoint = torch.load(WORK / "halves" / "checkpoint.pt", weights_only=True)
    print("interrupted; the checkpoint is of step", checkpoint["step"])
finally:
    cable.remove()
halves = start("halves", resume=True)
a, b = (Denoiser.from_pretrained(r / "last").state_dict() for r in (whole, halves))
apart = max((a[name].float() - b[name].float()).abs().max().item() for name in a)
print(f"largest difference of any weight: {apart:g}")
assert a.keys() == b.keys() and apart <= (0 if DEVICE == "cpu" else 1e-3)

# %% [markdown]
# (On a GPU some sums are added up in another order each time, with or without an interruption. There the two agree within a tolerance.)
#
# ## 10. Has it learnt anything?
#
# A falling curve is not enough; a network that always answers "average tissue, nothing noised" has a falling curve too.
# So we ask two questions to which we know the answer of an ignorant network, on a subject that was not trained on:
#
# 1. **The error of $\hat z_0$ on the noised cells alone** (`val_masked` in the log). At $t = 9$ nothing of the tissue is left
#    in a noised cell. Whoever knows no anatomy can only guess the mean latent of brain, and scores the variance
#    around it. Less is possible only by looking at the *neighbourhood*. At smaller $t$ the noised value itself still tells something. Whoever shrinks
#    it towards the mean, each value for itself, as much as is best, scores
#    $\frac{\mathrm{var}\,(1 - \bar\alpha_t)}{\mathrm{var}\,\bar\alpha_t + 1 - \bar\alpha_t}$, and needs no anatomy either.
# 2. **The AUROC of the mask head** on brain cells: how often a noised cell gets a higher logit than a clean one. Guessing
#    scores 0.5.

# %%
z_val = torch.from_numpy(val.arrays["mean"][::3].astype("float32"))  # (N, C, h, w), the modes
cells_val = torch.from_numpy(val.arrays["brain"][::3].copy())  # (N, 1, h, w), each third slice


@torch.no_grad()
def examine(model, t):
    """AUROC of the mask head and squared error on the noised cells, at level t."""
    generator = torch.Generator().manual_seed(t)
    M = torch.cat(
        [random_patch_mask(1, size, brain=c[None], generator=generator) for c in cells_val]
    )
    eps, t = torch.randn(z_val.shape, generator=generator), torch.full((len(M),), t)
    z_t = masked_forward(z_val, eps, M, t, scheduler)
    z0_hat, logits = (x.cpu() for x in model(z_t.to(DEVICE), t.to(DEVICE)))
    error = (z0_hat - z_val).square().mean(1, keepdim=True)  # (N, 1, h, w)
    return roc_auc_score(M[cells_val], logits[cells_val]), error[M > 0].mean().item()


trained = Denoiser.from_pretrained(NOISE / "best").to(DEVICE).eval()
models = {"untrained": untrained, "yours": trained, "shipped": pipe.denoiser.eval()}
answers = {
    name: np.array([examine(model, t) for t in range(T)]).T for name, model in models.items()
}

# %% [markdown]
# The noise of each level is a task of its own, so we draw both answers against $t$.

# %%
ignorant = (
    z_val.movedim(1, -1)[cells_val[:, 0]].var(0).mean().item()
)  # always the mean latent of brain
shrunk = ignorant * (1 - abar) / (abar * ignorant + 1 - abar)  # (T,), each value for itself
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, (auroc, error) in answers.items():
    axes[0].plot(error, "o-", ms=4, label=name)
    axes[1].plot(auroc, "o-", ms=4, label=name)
axes[0].axhline(ignorant, color="0.6", ls=":", label="always the mean")
axes[0].plot(shrunk, color="0.2", ls=":", label="shrunk to the mean")
axes[1].axhline(0.5, color="0.6", ls=":", label="guessing")
axes[0].set(
    xlabel="noise level t", ylabel="error on the noised cells", ylim=(0, 1), xticks=range(T)
)
axes[1].set(
    xlabel="noise level t", ylabel="AUROC of the mask head", ylim=(0.3, 1.02), xticks=range(T)
)
for ax in axes:
    ax.legend(frameon=False, fontsize=8)
plt.close(fig)
assert validated[-1]["val_masked"] < ignorant and answers["shipped"][1, 9] < ignorant
assert answers["shipped"][1].mean() < shrunk.mean()
assert answers["yours"][0].mean() > max(0.5, answers["untrained"][0].mean()) + 0.1  # it finds noise
fig

# %% [markdown]
# After a minute, **yours finds noise**, the better the stronger it is. What belongs there it hardly knows yet. On the left it lies below both dotted lines only from about $t = 1$ to $5$, and
# not far below. At $t = 0$ shrinking does better, and from about $t = 6$ on, where little or nothing is left of the tissue, even the mean does. That it beats "always the mean" when averaged over all levels, as
# `val_masked` is, says little: shrinking scores less than it does. (In one thing the dotted lines have it easier: they are told which cells are noised.) The shipped network, trained longer and on more subjects (simulated and real), lies below both from $t = 1$ on, and
# far below at $t = 9$: it knows some anatomy. (Latents have a spread of 1, so one might take "`val_masked` is below 1" for a success. But brain cells resemble each other
# more than brain and background do. Always ask what an ignorant network would score.)
#
# Numbers convince, pictures explain. Here is the damaged slice of section 4 ($t = 6$): the cells that we noised, the cells
# that your network found, and the slice that it would put there, $\hat z_0$ where it says "noised" and $z_t$ elsewhere.

# %%
# NBVAL_IGNORE_OUTPUT
with torch.no_grad():
    z0_hat, logits = (x.cpu() for x in trained(z_t.to(DEVICE), t.to(DEVICE)))
found = (logits.sigmoid() > 0.5).float()
healed = torch.where(found.bool(), z0_hat, z_t)
overlap = 2 * (found * M).sum() / (found + M).sum()  # Dice of the found and the true cells
pictures = pipe.decode(torch.cat([z0, z_t, z_t, healed]))[:, 0]
nothing = torch.zeros_like(M)
print(f"Dice of the cells that it found and the cells that were noised: {overlap:.2f}")
assert overlap > 0.5
titles = ["decoded z0", "M: noised", "M-hat > 0.5: found", "healed by yours"]
plotting.mask_examples(torch.cat([nothing, M, found, nothing]), images=pictures, titles=titles)

# %% [markdown]
# ## 11. Your network meets patients
#
# Up to here everything is fine: it finds noise, and undoes it. But nobody needs a detector of Gaussian noise. So we give it eight simulated **patients**, each with an old
# stroke of 20 mL, dark and sharp, the easiest lesion there is, and add no noise at all. Every eighth slice is enough for a first look.

# %%
# NBVAL_IGNORE_OUTPUT
parts, who, SICK = [], [], WORK / "patients"
SICK.mkdir(exist_ok=True)
for seed in tqdm(range(9101, 9109), desc="patients"):
    sick = simulate_subject(seed, lesion="stroke", volume_ml=20)
    images = {"t1": sick.images["t1"], "brain": sick.brain, "lesion": sick.lesion}
    files = {part: SICK / f"{seed}_{part}.nii.gz" for part in images}
    for part, image in images.items():
        save_nifti(image, files[part], force=True)
    scan = pipe.prepare(files["t1"], brain=files["brain"], lesion=files["lesion"])
    arrays = (scan.image, scan.brain, scan.lesion)
    parts.append([torch.from_numpy(a[::8])[:, None] for a in arrays])
    who += [seed] * len(parts[-1][0])
x_sick, b_sick, l_sick = (torch.cat(p) for p in zip(*parts))  # (N, 1, H, W) each
with_lesion = int(l_sick.flatten(1).any(1).sum())
print(f"{len(parts)} patients, {len(x_sick)} slices, {with_lesion} of them with lesion")
assert len(parts) == 8 and 8 <= with_lesion < len(x_sick)

# %% [markdown]
# One function measures any network: the pooled Dice coefficient at the best threshold (notebook 07 says what is wrong with "best"), with a 95 % interval over the patients; and, from the very first step, what the
# mask head answers in cells of the lesion and in the other cells of the brain.

# %%
# NBVAL_IGNORE_OUTPUT
f = x_sick.shape[-1] // size[1]  # pixels along a cell
lesion_cells = F.avg_pool2d(l_sick.float(), f) >= 0.5  # (N, 1, h, w)
other_cells = brain_cells(b_sick, size, 0.5) & (F.max_pool2d(l_sick.float(), f) == 0)


def meets_patients(denoiser):
    """What a network makes of the patients; all but the network is that of the shipped model."""
    own = MadAdPipeline(pipe.autoencoder, denoiser, pipe.scheduler, **OWN)
    out = own(x_sick, brain=b_sick, generator=torch.Generator().manual_seed(0))
    dice = metrics.pooled_max_dice(out.anomaly_map, l_sick, b_sick)[0]
    low, high = metrics.bootstrap_interval(
        "pooled_max_dice", out.anomaly_map, l_sick, who, brain=b_sick
    )
    first, ever = out.mask_probability[0], out.replaced.any(0)
    numbers = {"dice": dice, "low": low, "high": high}
    for name, cells in (("lesion", lesion_cells), ("other", other_cells)):
        numbers |= {
            name: first[cells].mean().item(),
            f"{name} replaced": ever[cells].float().mean().item(),
        }
    return out, numbers


OWN = {k: pipe.config[k] for k in ("grid", "mask_threshold", "sigma", "reference", "weighted")}
outs, numbers = {}, {}
outs["noise alone"], numbers["noise alone"] = meets_patients(trained)
outs["shipped"], numbers["shipped"] = meets_patients(pipe.denoiser)
for name, n in numbers.items():
    print(f"{name:13} Dice {n['dice']:.2f} [{n['low']:.2f}, {n['high']:.2f}]", end="   ")
    print(f"M-hat in the lesion {n['lesion']:.2f}, elsewhere {n['other']:.2f};", end="   ")
    print(f"replaced: {n['lesion replaced']:.0%} and {n['other replaced']:.0%}")
assert numbers["noise alone"]["dice"] < numbers["shipped"]["dice"]

# %% [markdown]
# Read the lines slowly. Your network is not *blind* to the stroke. But it is not sure of it either, and it doubts much that is healthy: look at the share of healthy cells that it replaced. That it gets any Dice at all it owes to the latent head, which puts
# plausible tissue into the healthy cells that were replaced without need, so that little changes there.
#
# So train longer? The next table is a network of the same size, trained on the same subjects with noise alone (batches of 16 slices and a constant learning rate, so its row of 200 steps is not quite yours), looked at again and again. The rows were computed by
# `python benchmarks/noise_alone.py`, on eight simulated strokes of 20 mL. The columns: the Dice coefficient with its interval, replaced above the authors' threshold of one half; $\hat M$ in the first step; the share of the cells that were ever replaced.

# %%
LONGER = """
training,step,dice,dice_low,dice_high,m_hat_lesion,m_hat_healthy,replaced_lesion,replaced_healthy
noise,50,0.0387,0.0253,0.0738,0.5017,0.5311,0.7131,0.846
noise,100,0.2676,0.1901,0.3429,0.4389,0.3323,0.4713,0.0925
noise,200,0.4175,0.2643,0.5646,0.3523,0.1249,0.4795,0.0143
noise,400,0.297,0.212,0.3788,0.1744,0.0406,0.2172,0.0208
noise,800,0.2679,0.2097,0.3349,0.0287,0.007,0.0164,0.0024
noise,1600,0.2742,0.2185,0.3392,0.0126,0.0025,0.0041,0.0002
shipped,9000,0.6414,0.543,0.7418,0.5145,0.0095,0.5861,0.0023
"""
rows = list(csv.DictReader(LONGER.strip().splitlines()))
alone = [
    {k: float(v) for k, v in row.items() if k != "training"}
    for row in rows
    if row["training"] == "noise"
]
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
steps = [row["step"] for row in alone]
axes[0].plot(steps, [row["m_hat_lesion"] for row in alone], "o-", label="cells of the stroke")
axes[0].plot(
    steps, [row["m_hat_healthy"] for row in alone], "s--", label="other cells of the brain"
)
axes[0].set(
    title="The better it knows noise, the less it doubts", ylabel=r"mean $\hat M$ at the first step"
)
gap = [
    [row["dice"] - row["dice_low"] for row in alone],
    [row["dice_high"] - row["dice"] for row in alone],
]
axes[1].errorbar(
    steps, [row["dice"] for row in alone], gap, fmt="o-", capsize=3, label="noise alone"
)
shipped_dice = float(rows[-1]["dice"])
axes[1].axhline(shipped_dice, color="0.6", ls=":", label=f"shipped: {shipped_dice:.2f}")
axes[1].set(title="Dice of the strokes (replaced above 0.5)", ylabel="Dice, pooled, best threshold")
for ax in axes:
    ax.set(xlabel="training steps", xscale="log", ylim=(0, 0.85))
    ax.set_xticks(steps, [f"{step:.0f}" for step in steps])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
plt.close(fig)
best = max(alone, key=lambda row: row["dice"])
print(f"Dice {best['dice']:.2f} after {best['step']:.0f} steps,", end=" ")
print(f"{alone[-1]['dice']:.2f} after {alone[-1]['step']:.0f}")
assert alone[-1]["m_hat_lesion"] < alone[0]["m_hat_lesion"] and alone[-1]["dice"] < best["dice"]
fig

# %% [markdown]
# Left: the longer it is trained, the less it doubts, and that includes the stroke: there $\hat M$ falls from 0.50 after 50 steps to 0.01 after 1,600. Right: the Dice coefficient rises at first, because the healthy cells stop being replaced sooner than the stroke does. Then it turns and **falls**: 0.42 after 200 steps,
# 0.30 after 400, 0.27 after 800 and 1,600. All the while the network gets *better* at what it is trained for: its error on noised cells of a validation subject falls from 0.44 to 0.16 (`val_masked` in [the whole table](../benchmarks/noise_alone.csv)). There is no contradiction. A network that knows Gaussian noise perfectly answers "not noised" for everything that is not Gaussian
# noise, a stroke too: in the end it replaces less than 1 % of the stroke's cells. (So the 0.27 that is left is not healing. It comes from the fine detail that the decoder loses, which differs between a lesion and the rest.)
#
# A lower threshold does not help. Replaced above 0.2 and weighted by $\hat M$, as the shipped model does it, the Dice falls to less than a third: 0.46 after 200 steps, then 0.40, 0.18 and, after 1,600, 0.13 (95 % interval 0.11 to 0.17; after 200 steps it was 0.33 to 0.59). The shipped weights' [card](../madad_lite/weights/t1/README.md) reports such a fall of a
# training on real scans, too.
#
# ## 12. Teach it to doubt something else
#
# **What a detector marks is what it was taught to doubt.** Nobody said that the damage has to be Gaussian. Let us add another kind: in half of the training slices
# some regions get *foreign tissue*, before the slice is encoded: any grey level, the same tissue darker or brighter, another contrast, a piece of another slice (`extensions/lesion_like.py`). This is this repository's
# extension of the method. No disease is imitated, and no patient is used: it is the same healthy subjects (six are simulated; four of them train, one validates, one is left over).

# %%
items = [train_slices[i] for i in range(12, len(train_slices), 50)][:6]
plain, inside = (torch.stack([item[key] for item in items]) for key in ("image", "brain"))
foreign = corrupt(plain, inside, torch.Generator().manual_seed(4))
changed = (foreign - plain).abs() > 0.1
assert torch.equal(foreign[~inside], plain[~inside]) and changed.any()
titles = ["as it is"] * len(plain) + ["foreign tissue"] * len(plain)
outlines = torch.cat([changed * 0, changed])
plotting.slice_grid(torch.cat([plain, foreign]), titles, columns=6, truth=outlines)

# %% [markdown]
# The cells that such a region covers count as noised: $M = 1$, and the network has to say so and to guess what was there before. (Half of the samples with regions keep their noised patches beside them, the others lose them.)
#
# So we change two things, as for the shipped weights: besides the regions, $t$ is set to $T - 1$, pure noise, in three samples of ten, so that 37 % of all are there and not 10 % (`last_step_share`). The rest stays as it was, the number of steps too.

# %%
# NBVAL_IGNORE_OUTPUT
taught = dataclasses.replace(config, corruption_share=0.5, last_step_share=0.3)
with live_curves(REGIONS):
    train_denoiser(DATA, pipe.autoencoder, REGIONS, taught, resume=True)

# %%
# NBVAL_IGNORE_OUTPUT
doubter = Denoiser.from_pretrained(REGIONS / "best").to(DEVICE).eval()
outs["with regions"], numbers["with regions"] = meets_patients(doubter)
for name in ("noise alone", "with regions", "shipped"):
    n = numbers[name]
    print(f"{name:13} Dice {n['dice']:.2f} [{n['low']:.2f}, {n['high']:.2f}]", end="   ")
    print(f"M-hat in the lesion {n['lesion']:.2f}, elsewhere {n['other']:.2f};", end="   ")
    print(f"replaced: {n['lesion replaced']:.0%} and {n['other replaced']:.0%}")
ratio = {name: n["lesion"] / n["other"] for name, n in numbers.items()}
print(
    "times as much doubt in the lesion:", {name: round(value, 1) for name, value in ratio.items()}
)
assert ratio["shipped"] > ratio["noise alone"]

# %% [markdown]
# The three networks on one slice, the one with the largest lesion. Cyan is the true lesion. First what each takes for noise in the first step, $\hat M$, with its mean over the cells of the lesion and over the other cells of the brain on this slice:

# %%
# NBVAL_IGNORE_OUTPUT
k = int(l_sick.flatten(1).sum(1).argmax())
order = ("noise alone", "with regions", "shipped")
height, width = x_sick.shape[-2:]
fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), dpi=80, layout="constrained")
axes[0].imshow(x_sick[k, 0], cmap="gray", vmin=-1, vmax=1)
axes[0].set_title("scan", fontsize=9)
for ax, name in zip(axes[1:], order):
    first = outs[name].mask_probability[0, k, 0]  # (h, w)
    means = (first[cells[k, 0]].mean() for cells in (lesion_cells, other_cells))
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)  # cells are drawn into the frame of the slice
    chance = ax.imshow(first, cmap="viridis", vmin=0, vmax=1, extent=frame)
    ax.set_title("{}\nlesion {:.2f}, elsewhere {:.2f}".format(name, *means), fontsize=9)
for ax in axes:
    ax.contour(l_sick[k, 0], levels=[0.5], colors="cyan", linewidths=1.2)
    ax.axis("off")
fig.colorbar(chance, ax=axes, shrink=0.9, label="probability of noise")
plt.close(fig)
whose = torch.tensor(who)
for name in order:
    first = outs[name].mask_probability[0]  # (N, 1, h, w)
    means = [first[lesion_cells & (whose == p).view(-1, 1, 1, 1)].mean() for p in whose.unique()]
    print(f"{name:13} in the lesion, patient by patient:", *(f"{mean:.2f}" for mean in means))
fig

# %% [markdown]
# Patients differ. After two hundred steps the mean in the lesion reaches from about 0.4 to 0.7, beside 0.3 elsewhere in every patient; on this slice the lesion is hardly doubted more than the rest, and on one slice of the third patient "noise alone" doubts it less.
# The shipped network is quite sure of some lesions and not of others.
#
# And the anomaly maps that come of it:

# %%
# NBVAL_IGNORE_OUTPUT
three = dict(images=x_sick[[k] * 3], titles=order, columns=3, truth=l_sick[[k] * 3])
plotting.slice_grid(**three, overlay=torch.cat([outs[name].anomaly_map[[k]] for name in order]))

# %% [markdown]
# The first two networks differ in two things, the regions and the more samples of pure noise; the subjects, the size and the number of steps are the same. What each of the two does is not told apart here, but in [another table](../benchmarks/ABLATION.md), with smaller networks on real heads: more pure noise
# alone helps a little (Dice 0.14 to 0.22, clearly with two seeds of three), regions alone help most (0.14 to 0.65, with all three).
#
# Look first at both values of $\hat M$, in the lesion and elsewhere: the first should be high *and* the second low. How many times as much the lesion is doubted (the last line) does not decide: in the table of section 11 the ratio rises from 3 to 5 while the Dice coefficient falls from 0.42 to 0.27, because $\hat M$
# in the lesion falls too. Your two networks hardly differ in either value. Then look at the Dice coefficients and at
# how far their intervals overlap: two hundred steps are little, and eight patients are few. What more training of the *second* kind can do, the shipped network shows, with 9,000 steps and 154 subjects: it is sure of what is healthy and replaces next to nothing of it, though it still leaves a part of the lesions alone. What more training of the *first* kind does, section 11 told.
#
# ### Keep both networks for notebook 07
#
# Notebook 07 measures them beside the shipped one, on patients of all kinds. It looks for this folder.

# %%
STUDENT = RUNS / "student"
for name, run in (("noise_alone", NOISE), ("with_regions", REGIONS)):
    shutil.rmtree(STUDENT / name, ignore_errors=True)
    shutil.copytree(run / "best", STUDENT / name)
(STUDENT / "about.json").write_text(json.dumps({"steps": STEPS, "full": FULL_SETTINGS}))
print(sorted(p.name for p in STUDENT.iterdir()))

# %% [markdown]
# ## 13. On a GPU
#
# **Memory.** A training keeps, for each weight, the weight, its gradient, AdamW's two moments and the averaged copy: five numbers of four bytes. Beside that, for every slice of the batch, all intermediate results that the
# backward pass will need. These can be counted without a GPU: a network on PyTorch's `meta` device has shapes but no numbers. **Time**: the operations of a step (forward, and twice as many backward) over the speed of the card, of which such networks reach about a quarter. So everything in this
# table is **estimated** (and the memory for 32-bit numbers: mixed precision, below, needs up to half less), for 40 passes over 24 simulated subjects; your own run's bar shows what is true.


# %%
# NBVAL_IGNORE_OUTPUT
def needs(name):
    """(weights, bytes kept for the backward pass, operations forward), these two for one slice."""
    with torch.device("meta"):
        model = Denoiser.of_size(name, latent_channels=4)
        z, level = torch.zeros(1, 4, *size), torch.zeros(1, dtype=torch.long)
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += (
            0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
        )
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        FlopCounterMode(display=False) as counter,
    ):
        sum(x.sum() for x in model(z, level))
    return sum(p.numel() for p in model.parameters()), kept, counter.get_total_flops()


CARDS = {
    "T4": (14.7, 65e12 / 4),
    "L4": (22.0, 121e12 / 4),
}  # GB free, operations a second in half precision
if DEVICE == "cuda":
    CARDS["this one, memory"] = (torch.cuda.mem_get_info()[0] / 1e9, None)
PASSES = 40 * 19 * 70  # slices in 40 passes over 19 training subjects
lines = [
    "| size | million weights | "
    + " | ".join(f"largest batch, {c}" for c in CARDS)
    + " | T4, 40 passes | L4, 40 passes |"
]
lines.append("|---" * (lines[0].count("|") - 1) + "|")
for name in ("nano", "XS", "S", "M", "L"):
    weights, kept, flops = needs(name)
    room = [max(0, int((gb * 0.9e9 - 20 * weights) / kept)) for gb, _ in CARDS.values()]
    hours = [3 * flops * PASSES / speed / 60 for _, speed in CARDS.values() if speed]
    cells = [name, f"{weights / 1e6:.1f}", *map(str, room), *(f"{h:.1f} min" for h in hours)]
    lines.append("| " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# What the CPU needs is **measured**: the two trainings above say it themselves.

# %%
# NBVAL_IGNORE_OUTPUT
pupil.train()
started = time.perf_counter()
for _ in range(3):
    training_loss(pupil, batch, torch.Generator().manual_seed(0)).backward()
seconds = (time.perf_counter() - started) / 3
print(f"nano, a batch of {len(batch['mean'])} on {DEVICE}: {seconds:.2f} s a step, measured")

# %% [markdown]
# **Mixed precision.** On a GPU most of the arithmetic runs in 16-bit numbers: half the memory for what is kept, and several times the speed. The weights themselves and the sums of the optimiser stay in 32 bits, because a small update added to a large weight
# would be rounded away. There are two kinds. `bfloat16` (L4, A100) has the range of a 32-bit number and fewer digits: nothing else is needed. `float16` (T4) has more digits and a small range: small gradients would become zero, so the loss is multiplied by a large factor
# before the backward pass, and the gradients are divided by it afterwards (`scaler` in the checkpoint). `mixed_precision="auto"` takes what the card has, and 32 bits on a CPU, where 16 would be slower. [accelerate](https://huggingface.co/docs/accelerate) does the rest.
#
# **Learning rate and batch.** A gradient from fewer slices is noisier. When the batch shrinks by a factor, shrink the learning rate of Adam by about its square root: 96 → 24 means $5 \cdot 10^{-4}$ → $2.5 \cdot 10^{-4}$. `FULL_SETTINGS` does so. Or keep the batch and let
# `gradient_accumulation` divide it into parts that fit.
#
# **Recipes.** Three come with the package: `lite`, which you just used in part; `paper`, the settings of section 4.1 of the paper; and `authors`, what their published code does. Notebook 08 looks at the differences one by one.

# %%
paper, authors = RECIPES["paper"].denoiser, RECIPES["authors"].denoiser
assert (paper.size, paper.epochs, paper.batch_size, paper.learning_rate) == ("L", 300, 96, 5e-4)
assert (authors.mask_loss, authors.epochs, authors.learning_rate) == ("mse", 200, 4e-5)
Markdown(recipe_table())

# %% [markdown]
# From a terminal, on real scans of 1 mm:
#
# ```bash
# ./data_download.sh ixi-t1
# madad prepare data/ixi-t1 --out data/ixi --contrast t1 --spacing 1 --size 256
# madad train autoencoder --data data/ixi --out runs/autoencoder --recipe paper
# madad train denoiser --data data/ixi --out runs/denoiser --recipe paper \
#     --autoencoder runs/autoencoder/best
# madad assemble --autoencoder runs/autoencoder/best --denoiser runs/denoiser/best \
#     --data data/ixi --recipe paper --out runs/model
# madad train denoiser ... --resume                                     # after an interruption
# accelerate launch --multi_gpu -m madad_lite.cli train denoiser ...    # on several GPUs
# ```
#
# ## 14. What to take with you
#
# - Training needs normal brains only. The damage is made by us, so its place is known exactly.
# - $z_t$ is noised where $M = 1$ and untouched elsewhere. The network learns *where* and *what*.
# - Cross-entropy pushes confident mistakes; the squared error of the sigmoid does not.
# - Before you trust a map: an error on noised cells well below what an ignorant guess scores, and a mask AUROC well above chance.
# - And then ask the question that matters: does it doubt a *lesion*, and leave the rest alone? Look at both numbers, not only at their ratio. What a detector marks is what it was taught to doubt.
#
# **Next:** [06_mask_visualization](06_mask_visualization.ipynb) slows the reverse process down and looks inside.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/05_training](solutions/05_training.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): how much work is lost?
#
# A training of 1,000 steps writes a checkpoint every 200. The power goes after step 730. How many optimiser steps are computed in total until it is done?

# %%
steps_in_total = None  # your answer

# %%
checks.run(checks.check_05_steps_in_total, steps_in_total)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which checkpoint is the last one before the power goes? What comes after it is done twice.
#
# </details>
#
# ### Exercise 2 (code): the masked forward process
#
# `abar_t` is $\bar\alpha_t$ of each sample. Only cells with $M = 1$ are noised.


# %%
def my_forward(z0, eps, M, abar_t):
    """z0, eps: (N, C, h, w). M: (N, 1, h, w), 1 = noised. abar_t: (N,). Returns z_t."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_05_forward, my_forward)

# %% [markdown]
# *What you should see*: decoded and drawn for growing $t$, section 4's row of pictures, with patches that dissolve and a rest that does not move.
#
# <details><summary>Hint 1</summary>
#
# `abar_t` has to be reshaped to `(N, 1, 1, 1)` before it can multiply a latent.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The signal has the factor $\sqrt{\bar\alpha_t}$, the noise $\sqrt{1 - \bar\alpha_t}$; their squares add up to 1.
#
# </details>
#
# ### Exercise 3 (code): teach it to doubt a region
#
# The heart of section 12. `foreign` is the latent of the slice with foreign tissue, `changed` says in which cells. Put the region into `z_t`, and mark it.


# %%
def with_region(z_t, M, foreign, changed):
    """z_t, foreign: (N, C, h, w). M, changed: (N, 1, h, w), 0/1 and bool. Returns new (z_t, M)."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_05_with_region, with_region)

# %% [markdown]
# *What you should see*: the new mask covers the patches *and* the region; where both are, it is 1 and not 2. Outside the region `z_t` is the same to the last bit.
#
# <details><summary>Hint 1</summary>
#
# `torch.where(changed, a, b)` takes `a` where a cell changed. A mask with one channel applies to all $C$.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Cells that are noised already must stay marked. And what would the network learn if the region were put in without being marked?
#
# </details>
#
# ### Exercise 4 (investigate): longer, with noise alone
#
# Take the table `alone` of section 11. For every step: how many times as much does the network doubt a cell of the stroke as another cell (`m_hat_lesion / m_hat_healthy`)? Answer with a list, in the order of the table. Then explain: why may
# this ratio rise while $\hat M$ in the lesion falls, and which of the two decides, for a fixed threshold, whether the lesion is replaced?

# %%
doubt = None  # your answer, a list of numbers

# %%
checks.run(checks.check_05_doubt, doubt, alone)
