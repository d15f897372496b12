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
# MAD-AD learns from **normal brains only**. The trick: we damage the latent of a normal slice ourselves, in random patches,
# with noise. Then we ask a network two questions about it. *Where is it damaged?* And: *what was there before?* No lesion
# is ever shown. At test time a lesion is just another kind of damage (notebook 06).
#
# **What you will learn**
#
# - how the random patch masks are drawn;
# - the masked forward process, equation and code side by side;
# - why the network has two heads, and which loss trains each (the paper and the authors' code differ here);
# - how to train on a CPU or a GPU, stop, and resume without any difference;
# - how to check that the network has learnt something, before trusting a single anomaly map.
#
# **What it needs:** this package with its shipped autoencoder (notebook 03 explains it); no download. All subjects are
# **simulated** from the MNI152 template; no real person's scan appears here.
#
# **How long it takes:** about 3 minutes on two CPU cores; about a quarter of an hour on a Colab T4 with the large settings (estimated, not measured).
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

# %% [markdown]
# `FULL_SETTINGS` is the one switch of this notebook. `False` trains the *nano* network (2.7 million parameters) for about
# a minute on a CPU. `True` trains the paper's network *L* (258 million) with the paper's loss, learning rate and masks on a larger
# simulated cohort of our 96 × 96 slices, with batches of 24 for 40 passes instead of 96 for 300. You need a GPU for that: in Colab, *Runtime → Change runtime type → T4*.

# %%
# NBVAL_IGNORE_OUTPUT
import dataclasses
import itertools
import shutil
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from sklearn.metrics import roc_auc_score
from torch.optim.optimizer import register_optimizer_step_post_hook

from madad_lite import plotting
from madad_lite.denoiser import SIZES, Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.masking import brain_cells, random_patch_mask
from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import widgets
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.latent_cache import LatentDataset, encode_latents
from madad_lite.training.settings import RECIPES, configured
from madad_lite.training.settings import table as recipe_table

FULL_SETTINGS = False  # True: the paper's network and settings; needs a GPU
STEPS = 200  # of the small training on a CPU, about a minute
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(
    f"madad_lite {madad_lite.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}"
)
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")

# %% [markdown]
# ## 2. Normal subjects, as latents
#
# A small simulated cohort, cut into slices (notebook 02). Training sees normal subjects only.

# %%
DATA = WORK / "prepared"
cohort = write_cohort(
    WORK / "cohort", normal=24 if FULL_SETTINGS else 6, patients=0, seed=21, progress=False
)
manifest = prepare_folder(cohort, DATA, contrast="t1", progress=False)
assert {scan["group"] for scan in manifest.scans()} == {"normal"}
train_slices, val_slices = SliceDataset(DATA, "train"), SliceDataset(DATA, "val", lesion_free=True)
assert not set(train_slices.subjects) & set(
    val_slices.subjects
)  # divided by subject, never by slice
plotting.slice_grid(
    torch.stack([train_slices[i]["image"] for i in range(5, len(train_slices), 40)])
)

# %% [markdown]
# The diffusion network never sees these pixels. Each slice is encoded **once**, and what is stored is the encoder's
# posterior: a mean and a standard deviation for each latent value (already scaled to unit spread, $s = 1/\mathrm{std}$).
# Then every training step can draw a fresh sample of it, $z_0 = \mu + \sigma \odot \varepsilon'$. Each training slice
# is stored twice, once as it is and once moved and mirrored a little, with other brightness.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)
lite, paper = (RECIPES[name].denoiser for name in ("lite", "paper"))
if (
    FULL_SETTINGS
):  # as in the paper, but batches of 24, not 96, and 40 passes, not 300, for the sake of a T4
    config = configured(paper, batch_size=24, epochs=40, validate_every=200)
else:
    brief = {"steps": STEPS, "validate_every": STEPS // 4, "batch_size": 16, "ema_decay": 0.98}
    config = configured(
        lite, variants=2, corruption_share=0.0, last_step_share=0.0, **brief
    )  # as in the paper
CACHE = encode_latents(
    DATA, pipe.autoencoder, WORK / "denoiser" / "latents", config, progress=False
)
train, val = LatentDataset(CACHE, "train"), LatentDataset(CACHE, "val")
print({name: tuple(x.shape) for name, x in train[0].items()})
assert len(train) == config.variants * len(train_slices) and len(val) == len(val_slices)
assert (
    abs(val.arrays["mean"].astype("float32").std() - 1) < 0.25
)  # unit spread, on subjects nobody measured it on

# %% [markdown]
# ## 3. The patch mask $M$
#
# $M$ says which latent cells will be noised: **1 = noised**, 0 = left alone (the paper's polarity; the authors' code
# stores the opposite). Which cells may be noised at all? Only those that lie on brain. Noise on the empty background would be
# too easy to find, and background never needs healing.
#
# For each batch, the sides of the patch are drawn, independently in $y$ and $x$, from $\{1, 2, 4, 8\}$ cells with
# probabilities $.2, .3, .3, .2$. For each sample, the share of noised patches is drawn from $U[0, 0.4]$. So the network
# meets everything from a single cell to large blocks, and sometimes nothing at all. That last case matters: it must also
# learn to say "all is well".

# %%
item = val_slices[len(val_slices) // 2]
x0, brain = item["image"][None], item["brain"][None]  # (1, 1, H, W)
size = tuple(val[0]["mean"].shape[1:])  # (h, w)
cells = brain_cells(brain, size, config.brain_fraction, config.brain_block)  # (1, 1, h, w) bool
print(
    f"{size[0]} x {size[1]} cells; a cell counts as brain from {config.brain_fraction:.0%} brain pixels on"
)

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
# each averaged over cells (and channels). The weight $\lambda$ is 1 in the paper and 0.1 here, because the mask is learnt long before the latent: with a smaller
# share of the loss it leaves more of the training to the harder task. Note that the latent loss also covers the cells that were *not* noised: there the
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
print("the loss fell by more than a third:", by_heart[-1] < by_heart[0] * 2 / 3)
assert by_heart[-1] < by_heart[0] * 2 / 3

# %% [markdown]
# ## 8. Train
#
# The package's function adds: shuffled batches, warm-up and decay of the learning rate, an averaged copy of the weights (the
# one that is kept), validation on held-out subjects, checkpoints, mixed precision on a GPU, and the bar with the two
# losses, shown apart.

# %%
# NBVAL_IGNORE_OUTPUT
run = train_denoiser(DATA, pipe.autoencoder, WORK / "denoiser", config)
print(sorted(p.name for p in run.iterdir()))

# %% [markdown]
# The curves are drawn from the run's `log.jsonl`. From another notebook you can draw them **while it trains**; run the
# cell again to refresh. Orange is validation, on a subject that the network does not train on.

# %%
log = plotting.read_log(run)
validated = [line for line in log if "val_mask" in line]
assert validated[-1]["val_latent"] < validated[0]["val_latent"]
assert validated[-1]["val_mask"] < validated[0]["val_mask"]
plotting.training_curves(run)

# %% [markdown]
# ## 9. Stop and go on, exactly
#
# Trainings get interrupted: a Colab session ends, the power goes. Here a resumed training ends with **the same weights, to the last
# bit**, as one that was never interrupted. That works because every random draw of step $k$ comes from a generator
# seeded with (seed, $k$), and because the checkpoint holds optimiser, schedule and averaged weights too.
#
# Let us prove it with 12 tiny steps and a checkpoint every 5. First without interruption.

# %%
tiny = dataclasses.replace(
    config, size="nano", epochs=None, steps=12, batch_size=4, checkpoint_every=5, validate_every=12
)


def start(name, resume=False):
    shutil.copytree(
        CACHE, WORK / name / "latents", dirs_exist_ok=True
    )  # same latents: spare the encoding
    return train_denoiser(DATA, pipe.autoencoder, WORK / name, tiny, resume=resume, progress=False)


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
equal = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
print("all weights are equal, to the last bit:", equal)
assert equal

# %% [markdown]
# (On a GPU, some operations are not repeatable to the last bit, with or without an interruption.)
#
# ## 10. On a GPU, with the settings of the paper
#
# Three named recipes come with the package: `lite`, which you just used in part; `paper`, the settings of section 4.1 of the
# paper; and `authors`, what their published code does. Notebook 08 looks at the differences one by one. One row is this repository's own: the weights
# that ship have seen *lesion-like regions* beside the noise, slices in which some tissue was replaced by foreign tissue before they were encoded (`extensions/lesion_like.py`), and more samples at the highest noise level. Notebook 06
# shows what that is good for.

# %%
paper, authors = RECIPES["paper"].denoiser, RECIPES["authors"].denoiser
assert (paper.size, paper.epochs, paper.batch_size, paper.learning_rate) == ("L", 300, 96, 5e-4)
assert (authors.mask_loss, authors.epochs, authors.learning_rate, authors.dropout) == (
    "mse",
    200,
    4e-5,
    0.4,
)
Markdown(recipe_table())

# %% [markdown]
# The training runs on [accelerate](https://huggingface.co/docs/accelerate), so it uses a GPU when there is one, with
# mixed precision (`bfloat16` where the GPU has it, `float16` on a T4, plain `float32` on a CPU, where half precision
# would be slower). From a terminal:
#
# ```bash
# madad prepare IXI-T1/ --out data/ixi --contrast t1 --spacing 1 --size 256
# madad train autoencoder --data data/ixi --out runs/autoencoder --recipe paper
# madad train denoiser --data data/ixi --out runs/denoiser --recipe paper \
#     --autoencoder runs/autoencoder/best
# madad assemble --autoencoder runs/autoencoder/best --denoiser runs/denoiser/best \
#     --data data/ixi --recipe paper --out runs/model
# madad train denoiser ... --resume                                     # after an interruption
# accelerate launch --multi_gpu -m madad_lite.cli train denoiser ...    # on several GPUs
# ```
#
# A batch of 96 with size L needs a large GPU. On a T4 take `--set batch_size=24`; a smaller batch wants a smaller
# learning rate.
#
# ## 11. Has it learnt anything?
#
# A falling curve is not enough; a network that always answers "average tissue, nothing noised" has a falling curve too.
# So we ask two questions to which we know the answer of an ignorant network, on a subject that was not trained on:
#
# 1. **The error of $\hat z_0$ on the noised cells alone** (`val_masked` in the log). At $t = 9$ nothing of the tissue is left
#    in a noised cell. Whoever knows no anatomy can only guess the mean latent of brain, and scores the variance
#    around it. Less is possible only by looking at the *neighbourhood*.
# 2. **The AUROC of the mask head** on brain cells: how often a noised cell gets a higher logit than a clean one. Guessing
#    scores 0.5.

# %%
z_val = torch.from_numpy(val.arrays["mean"].astype("float32"))  # (N, C, h, w), the modes
cells_val = torch.from_numpy(val.arrays["brain"].copy())  # (N, 1, h, w)


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


trained = Denoiser.from_pretrained(run / "best").to(DEVICE).eval()
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
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, (auroc, error) in answers.items():
    axes[0].plot(error, "o-", ms=4, label=name)
    axes[1].plot(auroc, "o-", ms=4, label=name)
axes[0].axhline(ignorant, color="0.6", ls=":", label="always the mean")
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
assert answers["yours"][0].mean() > max(0.5, answers["untrained"][0].mean()) + 0.1  # it finds noise
fig

# %% [markdown]
# After a minute, **yours finds noise**, the better the stronger it is. And averaged over all levels it undoes it better than
# "always the mean". But look at large $t$ on the left: where nothing is left of the tissue, a minute was not enough to
# know what belongs there. The shipped network, trained longer and on more subjects (simulated and real), passes below the dotted
# line even at $t = 9$: it knows some anatomy. (Latents have a spread of 1, so one might take "`val_masked` is below 1" for a success. But brain cells resemble each other
# more than brain and background do: always giving the mean brain cell already scores the dotted line. Always ask what an ignorant network would score.)
#
# Numbers convince, pictures explain. Here is the damaged slice of section 4 ($t = 6$): the cells that we noised, the cells
# that your network found, and the slice that it would put there, $\hat z_0$ where it says "noised" and $z_t$ elsewhere.

# %%
with torch.no_grad():
    z0_hat, logits = (x.cpu() for x in trained(z_t.to(DEVICE), t.to(DEVICE)))
found = (logits.sigmoid() > 0.5).float()
healed = torch.where(found.bool(), z0_hat, z_t)
overlap = 2 * (found * M).sum() / (found + M).sum()  # Dice of the found and the true cells
pictures = pipe.decode(torch.cat([z0, z_t, z_t, healed]))[:, 0]
nothing = torch.zeros_like(M)
print("found and true cells agree (Dice above 0.5):", bool(overlap > 0.5))
assert overlap > 0.5
titles = ["decoded z0", "M: noised", "M-hat > 0.5: found", "healed by yours"]
plotting.mask_examples(torch.cat([nothing, M, found, nothing]), images=pictures, titles=titles)

# %% [markdown]
# ## 12. What to take with you
#
# - Training needs normal brains only. The damage is made by us, so its place is known exactly.
# - $z_t$ is noised where $M = 1$ and untouched elsewhere. The network learns *where* and *what*.
# - Cross-entropy pushes confident mistakes; the squared error of the sigmoid does not.
# - Before you trust a map: an error on noised cells well below that of the mean, and a mask AUROC well above chance.
#
# **Next:** [06_mask_visualization](06_mask_visualization.ipynb) gives the network a patient's scan and adds no noise at all.
#
# ## Exercises
#
# Each has a cell for your answer and a cell that checks it. Untouched, the check says that the exercise is not done.
#
# ### Exercise 1: the level where signal and noise are equal
#
# From which $t$ on is the noise in a noised cell stronger than the latent, $1 - \bar\alpha_t > \bar\alpha_t$? Read it off the
# figure of section 4, or compute it from `abar`.

# %%
first_t = None  # your answer, an integer

# %%
if first_t is None:
    print("Exercise 1: not done yet")
else:
    assert abar[first_t] < 0.5 <= abar[first_t - 1], "the first t whose abar is below one half"
    print("Exercise 1: right.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `first_t = int((abar < 0.5).nonzero()[0])`. The curve of $\bar\alpha_t$ crosses one half there.
#
# </details>

# %% [markdown]
# ### Exercise 2: noise everything
#
# Ordinary diffusion is the special case in which every cell is noised. Make the mask `M_all` for which
# `masked_forward(z0, eps, M_all, t, scheduler)` is the plain forward process, for a latent of shape `z0.shape`.

# %%
M_all = None  # your answer, a tensor (1, 1, h, w)

# %%
if M_all is None:
    print("Exercise 2: not done yet")
else:
    plain = scheduler.add_noise(z0, eps, t)
    assert torch.allclose(masked_forward(z0, eps, M_all, t, scheduler), plain), (
        "every cell should be noised"
    )
    print("Exercise 2: right. And what would the mask head learn from such masks?")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `M_all = torch.ones(1, 1, *size)`. With such masks the mask head would learn to always say "noised"; it needs clean cells
# beside noised ones, in one picture, to learn the difference.
#
# </details>
