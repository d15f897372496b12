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
# # 08 · The paper and the code
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/08_paper_and_code.ipynb)
#
# A method lives twice: as equations in a paper and as a program. The two are rarely the same. MAD-AD's paper
# ([arXiv 2502.16943](https://arxiv.org/abs/2502.16943)) and its authors' published code differ in a handful of points, none of
# them a scandal, all of them worth knowing before you compare numbers. This notebook puts them next to each other, each
# with a picture or a number.
#
# **What you will learn**
#
# - where paper and code differ, and which of the two this package follows by default;
# - what each difference does to an anomaly map;
# - how to read the paper's table for stroke, in which two kinds of average stand side by side;
# - how to load the authors' own checkpoints without running anything that is in the file.
#
# **What it needs:** this package with its shipped weights; no download. All patients are **simulated**.
#
# **How long it takes:** about a minute on two CPU cores; less on a Colab T4 (estimated, not measured).
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
import os
import tempfile
from argparse import Namespace
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from scipy.optimize import linprog

from madad_lite import plotting, scoring
from madad_lite.authors.checkpoints import denoiser_to_official, import_official, read_official
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.evaluation import metrics
from madad_lite.masking import brain_cells, random_patch_mask
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.settings import AUTHORS, PAPER
from madad_lite.simulation.cohort import simulate_subject
from madad_lite.training.settings import RECIPES
from madad_lite.training.settings import table as recipe_table

VOLUMES_ML = (1, 4, 12, 30, 60)  # of the patients' strokes
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__},", end=" ")
print(f"diffusers {diffusers.__version__}")

# %% [markdown]
# ## 2. The list
#
# The package knows three **recipes**: sets of settings with a name. `paper` follows the text and its equations, and where they are silent (which cells count
# as brain, how the encoder was trained) the authors' code or latent diffusion's settings. `authors` is what the published code does. `lite` is ours, for two CPU cores. Here they are side by side:

# %%
Markdown(recipe_table())

# %% [markdown]
# A recipe is chosen by name, from the command line (`madad train denoiser --recipe authors ...`) or from Python
# (`RECIPES["authors"].denoiser`). Some rows are only larger or longer. The sections below take those rows where the *method* differs. The maps are those of the
# shipped weights, at their own mask threshold.
#
# **Symbols** are those of [the notation page](../docs/notation.md): $z_0$ is the clean latent, $z_t$ the partly noised one, $\varepsilon$ noise, $\ell$ the mask head's logit for a cell and $\hat M = \mathrm{sigmoid}(\ell)$ its chance of "noised",
# $\eta$ the randomness of the reverse process, $\gamma$ the value at which differences are clipped, AP the average precision.
#
# First some data: five simulated patients with strokes from small to large. From each we take every second slice that the lesion reaches.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)
slices, brains, lesions, subjects = [], [], [], []
for seed, volume in enumerate(VOLUMES_ML, start=3001):
    patient = simulate_subject(seed, lesion="stroke", volume_ml=volume)
    files = {name: WORK / f"{seed}_{name}.nii.gz" for name in ("t1", "brain", "lesion")}
    for name, image in zip(files, (patient.images["t1"], patient.brain, patient.lesion)):
        save_nifti(image, files[name])
    scan = pipe.prepare(files["t1"], brain=files["brain"], lesion=files["lesion"])
    rows = np.flatnonzero(scan.lesion.any((1, 2)))[::2]
    for kept, array in ((slices, scan.image), (brains, scan.brain), (lesions, scan.lesion)):
        kept.append(torch.from_numpy(array[rows])[:, None])
    subjects += [seed] * len(rows)

x0, brain, lesion = (torch.cat(parts) for parts in (slices, brains, lesions))  # (N, 1, H, W)
out = pipe(x0, brain=brain, generator=torch.Generator().manual_seed(0), progress=False)
k = int(lesion.flatten(1).sum(1).argmax())  # the slice with the largest lesion: the one we look at
assert x0.shape == brain.shape == lesion.shape == out.anomaly_map.shape and len(set(subjects)) == 5
shown = range(0, len(x0), max(1, len(x0) // 8))[:8]
titles = [f"{VOLUMES_ML[subjects[i] - 3001]} mL" for i in shown]
plotting.slice_grid(x0[shown], titles, truth=lesion[shown])

# %% [markdown]
# ## 3. Which way round is the mask?
#
# The paper's $M$ is **1 where a patch is noised**. The code stores the opposite, `keep`: **1 where it is clean**, and its mask head learns to
# predict `keep`. The two forward processes are the same equation, once you know:
#
# $$ z_t = M \odot \text{noised} + (1 - M) \odot z_0 \quad = \quad (1 - \text{keep}) \odot \text{noised} + \text{keep} \odot z_0 . $$

# %%
generator = torch.Generator().manual_seed(0)
scheduler = make_scheduler()
z0 = pipe.encode(x0[[k]])  # (1, C, h, w)
cells = brain_cells(brain[[k]], tuple(z0.shape[2:]), 0.9)
squares = dict(sides=(4,), side_probabilities=(1.0,))
M = random_patch_mask(1, tuple(z0.shape[2:]), brain=cells, generator=generator, **squares)
keep = 1 - M
eps, t = torch.randn(z0.shape, generator=generator), torch.tensor([6])
abar = scheduler.alphas_cumprod[6]
theirs = (1 - keep) * (abar.sqrt() * z0 + (1 - abar).sqrt() * eps) + keep * z0
assert torch.allclose(theirs, masked_forward(z0, eps, M, t, scheduler), atol=1e-6)
titles = ["M, the paper's", "keep, the code's"]
plotting.mask_examples(torch.cat([M, keep]), images=x0[[k, k], 0], titles=titles, columns=2)

# %% [markdown]
# (The paper itself can be read both ways: its equation has 1 for noised, while the caption of its first figure speaks of *non-masked* regions that are noised. In this repository 1 is noised, always.)
#
# So their head's logit is the negative of ours, $\mathrm{sigmoid}(-\ell) = 1 - \mathrm{sigmoid}(\ell)$. Forget it, and everything
# healthy is healed and every lesion kept. When the package imports their weights, it turns the sign of that one layer.
#
# ## 4. Cross-entropy or squared error?
#
# The paper's mask loss is the binary cross-entropy, $\mathrm{BCE}(\hat M, M)$, beside the latent loss. The code's is
# $0.001 \cdot (\hat M - M)^2$, on the sigmoid. How fast does each teach? Take one cell that *is* noised, whose logit says with confidence that it
# is not ($\ell = -4$, that is $\hat M = 0.02$), and follow the gradient, with the package's own loss function.


# %%
def follow(mask_loss, weight, steps=400, rate=0.2):
    """M_hat of one noised cell after each step of gradient descent on its mask loss."""
    logit = torch.full((1, 1, 1, 1), -4.0, requires_grad=True)
    latent, noised = torch.zeros(1, 4, 1, 1), torch.ones(1, 1, 1, 1)
    course, how = [], dict(mask_loss=mask_loss, mask_weight=weight)
    for _ in range(steps):
        loss = denoising_losses(latent, logit, latent, noised, **how)[2].sum()
        logit = (logit - rate * torch.autograd.grad(loss, logit)[0]).detach().requires_grad_()
        course.append(logit.sigmoid().item())
    return course


settings = {
    "BCE, weight 1 (paper)": ("bce", 1),
    "MSE, weight 1": ("mse", 1),
    "MSE, weight 0.001 (code)": ("mse", 1e-3),
}
courses = {name: follow(*setting) for name, setting in settings.items()}
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, course), style in zip(courses.items(), ("-", "--", ":")):
    ax.plot(course, style, label=name)
ax.set(xlabel="step of gradient descent", ylabel=r"$\hat M$ of a noised cell", ylim=(0, 1))
ax.legend(frameon=False)
plt.close(fig)
first = {
    name: next((i for i, p in enumerate(course) if p > 0.5), None)
    for name, course in courses.items()
}
for name, step in first.items():
    print(f"{name}: {'not found' if step is None else f'found after {step} steps'}")
assert (
    first["BCE, weight 1 (paper)"] < first["MSE, weight 1"]
    and first["MSE, weight 0.001 (code)"] is None
)
fig

# %% [markdown]
# A toy, of course: AdamW rescales gradients, so that the small weight matters less than here, and a network shares what it learns among
# cells. But the flat start of the dashed line is real: where the sigmoid is confidently wrong, its squared error hardly pulls. **The shipped
# weights use BCE.**
#
# ## 5. Squared or absolute?
#
# From the healed slice to the score. The paper squares the difference and clips at $\gamma = 0.2$; the code takes the absolute difference and
# clips at $0.25$. Slices lie in $[-1, 1]$.
#
# $$ a_\text{paper} = \min(d^2, 0.2) / 0.2, \qquad a_\text{code} = \min(|d|, 0.25) / 0.25 . $$

# %%
d = torch.linspace(0, 1, 201).view(1, 1, 1, -1)
paper = {**PAPER, "sigma": 0.0}
code = {**AUTHORS, "sigma": 0.0}
both = {"squared": paper, "absolute": code}
curve = {name: scoring.image_difference(d, 0 * d, **how).flatten() for name, how in both.items()}
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, a), style in zip(curve.items(), ("-", "--")):
    ax.plot(d.flatten(), a, style, label=name)
ax.set(xlabel="difference $|d|$ of healed slice and scan", ylabel="score before smoothing")
ax.legend(frameon=False)
plt.close(fig)
small = int(0.1 * 200)  # |d| = 0.1, a twentieth of the range
squared, absolute = (float(a[small]) for a in curve.values())
print(f"a difference of 0.1 scores {squared:.2f} squared, {absolute:.2f} absolute")
assert abs(curve["squared"][small] - 0.05) < 1e-6
assert abs(curve["absolute"][small] - 0.4) < 1e-6
fig

# %% [markdown]
# The square forgives small differences (0.05 against 0.40) and is full only at $|d| = \sqrt{0.2} \approx 0.45$; the absolute value is full at 0.25. So
# the code's map is brighter, over lesions and over small errors of the decoder alike. In the maps of our slice, both against the decoded latent (section 6 asks about that):

# %%
sigma = pipe.config.sigma  # the authors' 5 belongs to 256 pixels
maps = {}
for name, how in both.items():
    how = {**how, "sigma": sigma}
    maps[name] = scoring.image_difference(out.healed, out.reconstruction, **how, brain=brain)
healthy_tissue = brain & ~lesion
share = {name: float(m[healthy_tissue].mean()) for name, m in maps.items()}
assert share["absolute"] > share["squared"]
shown = torch.cat([m[[k]] for m in maps.values()])
plotting.slice_grid(x0[[k, k]], list(maps), 2, overlay=shown, truth=lesion[[k, k]])

# %% [markdown]
# Brighter is not better or worse: what counts is the *order* of the pixels, and whether lesions come first. We measure that below, for all
# variants together.
#
# ## 6. Compared with what?
#
# The paper compares the healed slice with **the scan**. The code compares it with **the decoded latent before healing**. The first
# counts everything that the autoencoder loses, everywhere, as abnormal; the second cancels it, since both sides went through the same decoder.

# %%
# NBVAL_IGNORE_OUTPUT
maps = {
    "squared, decoded latent": maps["squared"],
    "absolute, decoded latent (code)": maps["absolute"],
}
for name, how in (("squared, scan (paper)", paper), ("absolute, scan", code)):
    how = {**how, "sigma": sigma}
    maps[name] = scoring.image_difference(out.healed, out.image, **how, brain=brain)
maps["squared, scan, weighted (lite)"] = out.anomaly_map
touched = F.interpolate(out.replaced.any(0).float(), size=x0.shape[-2:]).bool()  # (N, 1, H, W)
untouched = brain & ~touched
pair = {
    "against the decoded latent": "absolute, decoded latent (code)",
    "against the scan": "absolute, scan",
}
left = [float(maps[name][untouched].mean()) for name in pair.values()]
print(f"mean score where nothing was replaced: {left[0]:.3f} against the decoded latent,", end=" ")
print(f"{left[1]:.3f} against the scan")
assert left[0] < left[1]
shown = torch.cat([maps[name][[k]] for name in pair.values()])
plotting.slice_grid(x0[[k, k]], list(pair), 2, overlay=shown)

# %% [markdown]
# The recipe of the `t1` weights, `lite`, takes a third way: the scan as in the paper, with its fine detail, but every difference *weighted* by how sure the network was that
# there was something to heal. That is this repository's addition.
#
# All five variants on all slices. (A handful of simulated patients, and pooled numbers that know the best threshold: read the picture for how
# *little or how much* the choice matters, not as a ranking.)

# %%
rows = {}
for name, m in maps.items():
    dice, _ = metrics.pooled_max_dice(m, lesion, brain)
    rows[name] = {"pooled max Dice": dice, "AP": metrics.average_precision(m, lesion, brain)}
assert all(0 < value < 1 for row in rows.values() for value in row.values())
plotting.compare_methods(rows, highlight="squared, scan, weighted (lite)")

# %% [markdown]
# ## 7. Which cells may be noised?
#
# Noise is only put where there is brain. The paper's text leaves open what counts; the code wants **90 % brain in a block of 16 × 16 pixels**, that is
# 2 × 2 cells of its latent. At the rim of the brain, cells are then never noised, and the network learns to call them clean, whatever is there. Our `lite` recipe asks for half of the
# single cell.

# %%
size = tuple(z0.shape[2:])
d_ = {name: RECIPES[name].denoiser for name in ("authors", "lite")}
may = {
    name: brain_cells(brain[[k]], size, c.brain_fraction, c.brain_block) for name, c in d_.items()
}
touching = brain_cells(brain[[k]], size, 1e-6)  # any brain at all
never = {name: 1 - float(m.sum() / touching.sum()) for name, m in may.items()}
for name, share in never.items():
    print(f"{name}: {share:.0%} of the cells with brain are never noised")
assert never["authors"] > never["lite"]
shown = torch.cat([m.float() for m in may.values()])
plotting.mask_examples(shown, images=x0[[k, k], 0], titles=["authors", "lite"], columns=2)

# %% [markdown]
# (On our 2 mm slices a cell is 8 mm, as the paper's is at 1 mm with $f = 8$.)
#
# ## 8. How random is the healing?
#
# The code draws fresh noise in every reverse step, $\eta = 0.5$; the recipe `paper` draws none, $\eta = 0$. With $\eta = 0$ the same scan always gives the same map. How much do two runs
# with $\eta = 0.5$ differ?


# %%
def healed(eta, seed):
    generator = torch.Generator().manual_seed(seed)
    return pipe(x0[[k]], brain=brain[[k]], eta=eta, generator=generator, progress=False).healed


assert torch.equal(healed(0.0, 0), healed(0.0, 1))  # eta = 0: no draw matters
assert not torch.equal(healed(0.5, 0), healed(0.5, 1))
shown = torch.cat([x0[[k]], healed(0.5, 0), healed(0.5, 1), healed(0.0, 0)])
plotting.slice_grid(shown, ["scan", "eta 0.5, seed 0", "eta 0.5, seed 1", "eta 0"], 4)

# %% [markdown]
# ## 9. Pooled or per image: how to read the table for stroke
#
# In the paper's setting S1 (trained on IXI, tested on ATLAS; S2 is BraTS), the max Dice in per cent, beside THOR, another diffusion method (Bercea et al. 2024):
#
# | | average | small | medium | large |
# |---|---|---|---|---|
# | THOR | 29.7 | 11.5 | 39.2 | 63.6 |
# | MAD-AD | 51.6 | 15.5 | 50.1 | 64.1 |
#
# Ahead by 22 on average, but by 4, 11 and 0.5 in the three groups? An average of groups cannot do that. The averages must be of two kinds, and what their evaluations compute fits: THOR's is the mean over **images**, MAD-AD's
# is **pooled**: all pixels of all images in one Dice, where large lesions decide. Our own maps show the effect:

# %%
# NBVAL_IGNORE_OUTPUT
result = metrics.evaluate(out.anomaly_map, lesion, brain=brain, intervals=False)
dice = {"pooled": result["pooled_max_dice"], "per image": result["per_lesion_image_max_dice"]}
groups = {name: group for name, group in result["by_size"].items() if group["n"]}
dice |= {f"pooled, {name} only": group["pooled_max_dice"] for name, group in groups.items()}
print(f"the same maps: {dice['pooled']:.2f} pooled, {dice['per image']:.2f} per image")
assert dice["pooled"] > dice["per image"]
plotting.compare_methods(
    {name: {"max Dice of the same maps": value} for name, value in dice.items()}
)

# %% [markdown]
# What would MAD-AD's average *per image* be? The groups tell. THOR's average must be a mixture of its three group values,
# $29.7 = 11.5\,p_s + 39.2\,p_m + 63.6\,p_l$ with shares $p$ that add up to 1. The images are the same for both methods, so the same shares hold for MAD-AD. They are not
# determined, but bounded; the smallest and the largest value is a tiny linear programme. (It assumes that the group values are per-image means for both.)

# %%
thor, mad_ad = np.array([11.5, 39.2, 63.6]), np.array([15.5, 50.1, 64.1])
shares = dict(A_eq=[thor, np.ones(3)], b_eq=[29.7, 1], bounds=[(0, 1)] * 3)
low, high = linprog(mad_ad, **shares).fun, -linprog(-mad_ad, **shares).fun
print(f"MAD-AD's average per image would lie between {low:.1f} and {high:.1f}; THOR's is 29.7")
assert 32 < low < high < 39

# %% [markdown]
# So like for like it is about 32 to 38 against 29.7: still ahead, by 3 to 9 points and not by 22. This is why `madad evaluate` and `madad reproduce` print pooled
# **and** per-image Dice, named.
#
# Two commands repeat the paper's experiments on scans that you have downloaded and prepared (with `madad prepare --spacing 1 --size 256` for the recipes `paper` and `authors`; for S2 also with
# `--patients-in-train`, because there the model trains on the lesion-free slices of patients):
#
# ```bash
# madad reproduce S1 --train data/ixi --test data/atlas --out results/s1 --recipe paper
# madad reproduce S2 --test data/brats_flair data/brats_t1ce data/brats_t2 data/brats_t1 --out results/s2 --recipe paper
# ```
#
# ## 10. The authors' weights, safely
#
# Their checkpoints are Python pickles, and a pickle is a *program*: opening it the plain way runs whatever is in it. Their encoder is even a whole pickled
# module. The package rebuilds only tensors and containers, and gives every class of theirs an inert stand-in. To show it without a download we write such a file ourselves, from an untrained network of their
# layout (size XS: 16,142,149 parameters, as theirs), and import it.

# %%
torch.manual_seed(0)
ours = Denoiser.of_size("XS").eval()
torch.save(
    {"model": denoiser_to_official(ours), "args": Namespace(model="UNet_XS")}, WORK / "unet.pt"
)
print(list(denoiser_to_official(ours))[:3], "...")  # their names
imported = read_official(WORK / "unet.pt")
parameters = sum(p.numel() for p in imported.parameters())
apart = max((v - imported.state_dict()[n]).abs().max().item() for n, v in ours.state_dict().items())
print(f"{parameters:,} parameters; they differ from what was written by at most {apart:g}")
assert apart == 0 and parameters == 16_142_149

# %% [markdown]
# Now an evil twin: a file whose `args` would run a command when it is opened.


# %%
class Evil:
    def __reduce__(self):
        return os.system, (f"touch {WORK / 'i_was_here'}",)


args = Namespace(model="UNet_XS", note=Evil())
torch.save({"model": denoiser_to_official(ours), "args": args}, WORK / "evil.pt")
try:
    import_official(WORK / "evil.pt", WORK / "imported")
except ValueError as refused:
    print(str(refused).replace(str(WORK), ""))
assert not (WORK / "i_was_here").exists() and not (WORK / "imported").exists()

# %% [markdown]
# With the real files it is one command, and then detection as always; `--z-range` limits a first look to some slices, for the paper's sizes are slow on a CPU:
#
# ```bash
# madad import-official unet.pt encoder.pt --out weights/official
# madad detect scan.nii.gz --weights weights/official --out results --z-range 0 10
# ```
#
# ## 11. What we follow, and what is the same
#
# Where the two differ, the default recipe `lite` takes the mask's polarity, the BCE and the squared difference to the scan from the **paper**, $\eta = 0.5$ and the cosine schedule of the learning rate
# from the **code**; its own are, beside sizes and numbers such as the mask loss's weight of 0.1 and the mask threshold of 0.2, the lesion-like regions in training, the weight of the score and the neighbouring slices that decide together (notebook 06). `--recipe paper` and `--recipe authors`
# follow one of the two throughout.
#
# The same is all that we could compare with numbers which the authors' code (commit e76f546) computed on fixed inputs: the schedule, the masked
# forward process, both loss terms, the selective reverse process with 10, 5 and 2 steps, with $\eta = 0$ and $0.5$, the cells it replaces at each step, the anomaly map, four metrics, and the network, whose
# outputs agree within $10^{-6}$ in double precision. The tests that do it are `tests/test_diffusion.py`, `test_scoring.py`, `test_metrics.py` and `test_official.py`. Differences that remain are listed in [docs/recipes.md](../docs/recipes.md).
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/08_paper_and_code](solutions/08_paper_and_code.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): when both are full
#
# From which difference $|d| > 0$ on are the paper's and the code's unsmoothed scores equal? By hand first, then look at the curves of section 5.

# %%
crossing = None  # your answer

# %%
checks.run(checks.check_08_crossing, crossing)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Below 0.25 the scores are $4|d|$ and $5d^2$. Above it one of them is 1.
#
# </details>

# %% [markdown]
# ### Exercise 2 (code): the code's score
#
# Write the code's score, without smoothing.


# %%
def score(healed, decoded, brain):
    """healed, decoded, brain (bool): (N, 1, H, W). Returns a score, 0 outside the brain."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_08_score, score)

# %% [markdown]
# *What you should see*: drawn against the difference, the dashed line of section 5: it climbs to 1 at 0.25 and stays there.
#
# <details><summary>Hint 1</summary>
#
# Section 5 has the equation; `clamp(max=...)` is the minimum.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `((healed - decoded).abs().clamp(max=0.25) / 0.25) * brain`
#
# </details>

# %% [markdown]
# ### Exercise 3 (investigate): the smallest lead
#
# With which shares of small, medium and large images would THOR's and MAD-AD's averages *per image* lie closest together, and how many points of Dice are they apart then? Use `linprog` as in section 9.

# %%
gap = None  # your answer

# %%
checks.run(checks.check_08_gap, gap)

# %% [markdown]
# <details><summary>Hint</summary>
#
# MAD-AD's smallest average is the closest one, since it is always ahead.
#
# </details>
#
# **Next:** [09_own_scan](09_own_scan.ipynb) takes a scan of your own from the file to the map. Or back to the [README](../README.md).
