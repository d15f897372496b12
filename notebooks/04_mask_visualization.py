# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Watch a lesion being found and healed
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/04_mask_visualization.ipynb)
#
# In notebook 03 a network learnt to find noise in the latents of normal brains and to undo it. Now we give it a
# *patient's* latent and add **no noise at all**. What does the network take for noise? And what does it put there? This
# notebook slows the process down so far that you can watch each step.
#
# **What you will learn**
#
# - the selective reverse process: its equation, and the same in a dozen lines of code;
# - how to check that the network does what it should, by noising a patch on purpose;
# - what its knobs do: the number of steps, the randomness $\eta$, the threshold of the mask;
# - where it fails, and why: what does *not* look like noise is not found.
#
# **What it needs:** this package with its shipped weights; no download. All subjects are **simulated** from the MNI152
# template, with lesions whose place we know exactly. Nothing here says how well the method works on real patients.
#
# **How long it takes:** about a minute and a half on two CPU cores; half a minute on a Colab T4, with more slices about a minute.
#
# ## 1. Set-up
#
# The first cell installs the package where it is missing (in Colab); elsewhere it does nothing. It leaves the
# installed versions of PyTorch and NumPy alone.

# %%
try:
    import madad_lite
except ImportError:
    # %pip install -q "madad-lite[notebooks,prep] @ git+https://github.com/madad-lite/madad-lite"
    import madad_lite

# %% [markdown]
# Nothing is trained here, so a CPU will do. `FULL_SETTINGS = True` measures the knobs of section 6 on every slice with
# lesion of eight patients instead of a few slices of one, which wants a GPU (in Colab: *Runtime → Change runtime type →
# T4*). The paper's own setting of the process, 10 steps with $\eta = 0.5$, is the default everywhere.

# %%
# NBVAL_IGNORE_OUTPUT
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from madad_lite import plotting, widgets
from madad_lite.diffusion import make_scheduler, masked_forward, selective_reverse
from madad_lite.masking import brain_cells
from madad_lite.phantom import simulate_subject
from madad_lite.pipeline import MadAdPipeline
from madad_lite.volumes import save_nifti

FULL_SETTINGS = False  # True: more patients and slices in section 6; better with a GPU
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
folder = tempfile.TemporaryDirectory()  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}")
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")

# %% [markdown]
# ## 2. A patient and a healthy person
#
# We simulate one subject with a stroke (in a T1 scan an old stroke is dark) and one without any lesion, and cut both into slices.
# The model was trained on neither.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)


def subject(name, seed, **options):
    """Simulate, write as NIfTI, prepare: slices (n, H, W) in [-1, 1] with brain and lesion masks."""
    simulated = simulate_subject(seed, **options)
    parts = {"t1": simulated.images["t1"], "brain": simulated.brain, "lesion": simulated.lesion}
    files = {part: WORK / f"{name}_{part}.nii.gz" for part in parts}
    for part, image in parts.items():
        save_nifti(image, files[part])
    return pipe.prepare(files["t1"], brain=files["brain"], lesion=files["lesion"])


patient = subject("patient", 9001, lesion="stroke", volume_ml=25)
healthy = subject("healthy", 9002)
assert patient.lesion.any() and not healthy.lesion.any()

# %% [markdown]
# We pick the patient's slice with the largest lesion and the healthy person's slice at the same height.

# %%
k = int(patient.lesion.sum((1, 2)).argmax())
height = patient.geometry.slice_index[k]
k_healthy = healthy.geometry.slice_index.index(height)
x_sick, b_sick = (torch.from_numpy(a[[k]])[:, None] for a in (patient.image, patient.brain))  # (1, 1, H, W)
x_well, b_well = (torch.from_numpy(a[[k_healthy]])[:, None] for a in (healthy.image, healthy.brain))
truth = torch.from_numpy(patient.lesion[k])  # (H, W), where the stroke really is
slices = torch.cat([x_sick, x_well])
plotting.slice_grid(slices, titles=["patient", "healthy"], truth=torch.stack([truth, 0 * truth]))

# %% [markdown]
# ## 3. First a test with a known answer
#
# Before we trust the network with a lesion, we ask it something to which we know the answer. We take the *healthy* slice, replace one
# block of its latent by noise, as in training, and see whether the network finds **exactly that block**. First a small
# function that asks the network.

# %%
@torch.no_grad()
def ask(z, t):
    """What the network says about z (1, C, h, w) at step t: z0_hat (1, C, h, w) and M_hat (1, 1, h, w)."""
    z0_hat, logits = pipe.denoiser(z.to(DEVICE), torch.tensor([t], device=DEVICE))
    return z0_hat.cpu(), logits.sigmoid().cpu()


scheduler = make_scheduler()
z_well = pipe.encode(x_well)  # (1, C, h, w)
h, w = z_well.shape[2:]
assert ask(z_well, 9)[0].shape == z_well.shape and ask(z_well, 9)[1].shape == (1, 1, h, w)

# %% [markdown]
# The block is $4 \times 4$ cells, 32 mm. At $t = 9$ nothing but noise is left in it.

# %%
cells_well = brain_cells(b_well, (h, w), 0.5)  # (1, 1, h, w)
M = torch.zeros(1, 1, h, w)
M[..., h // 2 - 2 : h // 2 + 2, w // 4 : w // 4 + 4] = 1
assert cells_well[M.bool()].all()  # all of it on brain
eps = torch.randn(z_well.shape, generator=torch.Generator().manual_seed(0))
z_noised = masked_forward(z_well, eps, M, torch.tensor([9]), scheduler)
found = (ask(z_noised, 9)[1] > 0.5).float()
overlap = (2 * (found * M).sum() / (found + M).sum()).item()
print("found and noised cells agree, Dice above 0.9:", overlap > 0.9)
assert overlap > 0.8

# %% [markdown]
# And what does it put there? The whole reverse process, on this noised latent:

# %%
result = selective_reverse(pipe.denoiser, z_noised.to(DEVICE), scheduler, eta=0.0)
z_healed = result.latent.cpu()
pictures = pipe.decode(torch.cat([z_well, z_noised, z_noised, z_healed]))[:, 0]
inside = F.interpolate(M, scale_factor=x_well.shape[2] / h)[0, 0] > 0  # the block in pixels
damage = (pictures[1] - pictures[0])[inside].square().mean()
left = (pictures[3] - pictures[0])[inside].square().mean()
print("less than a third of the damage is left:", bool(left < damage / 3))
assert left < damage
nothing = torch.zeros_like(M)
plotting.mask_examples(torch.cat([nothing, M, found, nothing]), images=pictures,
                       titles=["healthy, decoded", "M: noised", "M-hat: found", "healed"])  # fmt: skip

# %% [markdown]
# The network finds the block and fills it with plausible tissue: not a copy of what was there (that is gone), but what
# it expects at this place of a normal brain, given the rest of the slice.
#
# ## 4. The selective reverse process
#
# Now for the patient. Start from the scan's own latent, $z_T := z_0$. **No noise is added.** For $t = T-1, \dots, 0$:
#
# 1. ask the network: $(\hat z_0, \hat M) = f_\theta(z_t, t)$;
# 2. compute the usual DDIM step from $z_t$ to $z_{t-1}$, as if the *whole* latent were noise of level $t$:
#
# $$ \hat\varepsilon = \frac{z_t - \sqrt{\bar\alpha_t}\, \hat z_0}{\sqrt{1 - \bar\alpha_t}}, \qquad
#    \sigma_t = \eta \sqrt{\frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \Big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\Big)}, $$
# $$ \tilde z_{t-1} = \sqrt{\bar\alpha_{t-1}}\, \hat z_0 + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\ \hat\varepsilon + \sigma_t \varepsilon; $$
#
# 3. take it **only where the network says "noised"**, and leave everything else alone:
#
# $$ z_{t-1} = \mathbb 1[\hat M > \tfrac12] \odot \tilde z_{t-1} + \mathbb 1[\hat M \le \tfrac12] \odot z_t . $$
#
# Here it is without any library. With $\eta = 0$ the last term of step 2 vanishes and nothing is random.

# %%
abar = scheduler.alphas_cumprod  # (T,)
z = z_sick = pipe.encode(x_sick)  # (1, C, h, w): the scan's own latent, no noise
for t in range(9, -1, -1):
    z0_hat, M_hat = ask(z, t)  # 1.
    abar_before = abar[t - 1] if t > 0 else torch.tensor(1.0)
    eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
    step = abar_before.sqrt() * z0_hat + (1 - abar_before).sqrt() * eps_hat  # 2. with eta = 0
    z = torch.where(M_hat > 0.5, step, z)  # 3.
by_hand = z

# %% [markdown]
# The pipeline does the same (`diffusion.selective_reverse`), keeps every intermediate step, decodes, and scores the
# difference.

# %%
out = pipe(x_sick, brain=b_sick, eta=0.0, progress=False)
assert torch.allclose(out.trajectory[-1], by_hand, atol=1e-3)  # what we computed by hand
assert torch.equal(out.trajectory[0], z_sick)  # it starts from the scan itself: nothing was noised
assert out.timesteps.tolist() == list(range(9, -1, -1))
plotting.detection_figure(out, 0, truth)

# %% [markdown]
# From left to right: the scan, its reconstruction by the autoencoder, the healed slice, the anomaly map
#
# $$ a = G_\sigma * \frac{\min\big((\hat x_0 - x_{\text{rec}})^2,\ \gamma\big)}{\gamma}, \qquad \gamma = 0.2,\ \sigma = 2 \text{ pixels}, $$
#
# and the map over the scan, with the true lesion outlined.
#
# ## 5. Step by step
#
# One column a step. First row: the latent at this step, decoded. Second: how far the slice has moved from where it began.
# Third: what the network says, the probability of "noised" for each cell. Fourth: the cells that are replaced in this
# step.

# %%
decoded = pipe.decode(out.trajectory[:, 0])  # (S + 1, 1, H, W)
changed_cells = out.replaced[:, 0, 0].any(0)  # (h, w): replaced at least once
print("share of the latent that was ever replaced is below a half:", bool(changed_cells.float().mean() < 0.5))
assert len(decoded) == len(out.timesteps) + 1
plotting.trajectory(out, 0, decoded)

# %% [markdown]
# What to look for:
#
# - In the **first step** ($t = 9$) the network expects strong noise. What it marks now is what looks least like a brain.
# - The replaced tissue is first a rough guess, then refined: every step looks again at the *whole* slice, with the guess in it.
# - In the **last steps** the network looks for faint noise. It may mark single cells at edges; replacing those changes little.
#
# A cell that is never marked is not touched. That is an exact statement, so we check it exactly:

# %%
never = ~changed_cells
same = torch.equal(out.trajectory[-1][0][:, never], z_sick[0][:, never])
print("cells never marked are the same to the last bit:", same)
assert same
plotting.reverse_step(out, 0, 0, decoded)

# %% [markdown]
# Drag the slider through the steps. (It needs a running kernel; the picture above is its first step.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.step_slider(out, 0, decoded)

# %% [markdown]
# ### Did it find the lesion?
#
# We bring the true lesion to the grid of the latent (a cell counts as lesion from half of its pixels on) and compare: is the
# probability of "noised" in the first steps higher in the lesion than in the rest of the brain?

# %%
f = x_sick.shape[2] // h
lesion_cells = F.avg_pool2d(truth[None, None].float(), f)[0, 0] >= 0.5  # (h, w)
touched = F.max_pool2d(truth[None, None].float(), f)[0, 0] > 0
other_cells = brain_cells(b_sick, (h, w), 0.5)[0, 0] & ~touched
p = out.mask_probability[:, 0, 0]  # (S, h, w)
in_lesion, elsewhere = p[:, lesion_cells].mean(1), p[:, other_cells].mean(1)
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
ax.plot(out.timesteps, in_lesion, "o-", label="in the lesion")
ax.plot(out.timesteps, elsewhere, "s--", label="elsewhere in the brain")
ax.set(xlabel="step t (from left to right)", ylabel="mean probability of 'noised'", ylim=(-0.02, 1.02))
ax.invert_xaxis()
ax.legend(frameon=False)
plt.close(fig)
assert in_lesion.max() > elsewhere.max()
fig

# %% [markdown]
# In the lesion the probability is high at first and falls when the tissue has been replaced: the network no longer sees anything
# wrong there. That is the healing.
#
# ### And the healthy person?
#
# The same process on the healthy slice. Ideally nothing happens.

# %%
calm = pipe(x_well, brain=b_well, eta=0.0, progress=False)
score_sick, score_well = (o.anomaly_map[o.brain].mean() for o in (out, calm))
peak_sick, peak_well = (o.anomaly_map.max() for o in (out, calm))
print("the healthy slice scores lower than the patient's, on average:", bool(score_well < score_sick))
assert score_well < score_sick
plotting.detection_figure(calm, 0)

# %% [markdown]
# Some cells may be marked here too: false alarms. They matter in practice. A threshold on the anomaly map, chosen on
# validation subjects, decides which of them remain (notebook 05).
#
# ## 6. The knobs
#
# We measure with the Dice coefficient of the anomaly map at its best threshold, on slices with lesion. For a **single
# patient**, as here by default, such numbers show how a knob works, not which setting is best.

# %%
seeds = range(9001, 9009) if FULL_SETTINGS else [9001]
group = [patient] + [subject(f"patient{s}", s, lesion="stroke", volume_ml=25) for s in seeds[1:]]
rows = [(s, i) for s in group for i in s.lesion.sum((1, 2)).nonzero()[0]]
rows = rows if FULL_SETTINGS else sorted(rows, key=lambda r: -r[0].lesion[r[1]].sum())[:6]  # the six largest
x, brain, lesion = (
    torch.from_numpy(np.stack([getattr(s, name)[i] for s, i in rows]))[:, None] for name in ("image", "brain", "lesion")
)


def heal(**options):
    """The pipeline on these slices, always with the same random numbers."""
    return pipe(x, brain=brain, generator=torch.Generator().manual_seed(0), progress=False, **options)


def best_dice(output):
    score, cuts = output.anomaly_map, torch.linspace(0, 1, 101)
    return max(float(2 * ((score > c) & lesion).sum() / ((score > c).sum() + lesion.sum())) for c in cuts)


# %% [markdown]
# **The number of steps.** Ten steps visit $t = 9, 8, \dots, 0$; five visit every second; two only $t = 5$ and $t = 0$. The
# fewer, the faster and the rougher. The paper loses only about one point of Dice from 10 to 2 steps.

# %%
by_steps = {n: heal(num_inference_steps=n) for n in (10, 5, 2)}
print({n: o.timesteps.tolist() for n, o in by_steps.items()})
middle = 0  # the slice with the largest lesion comes first
assert all(len(o.trajectory) == n + 1 for n, o in by_steps.items())
plotting.slice_grid(
    torch.cat([x[[middle]], *[o.healed[[middle]] for o in by_steps.values()]]),
    titles=["scan", *[f"{n} steps" for n in by_steps]], truth=torch.cat([lesion[[middle]]] * 4), columns=4,
)  # fmt: skip

# %% [markdown]
# **The randomness $\eta$.** With $\eta > 0$ fresh noise enters in every step, but only in the cells that are replaced. With
# $\eta = 0$ the result is always the same; with $\eta = 0.5$ (the authors' choice) different random numbers give slightly
# different healed slices. Where they differ, the network is unsure *what* belongs there.

# %%
def spread(eta, seeds=4):
    """Standard deviation over several runs on the slice with the largest lesion, (H, W)."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    runs = [pipe(x[[0]], brain=brain[[0]], eta=eta, generator=g, progress=False).healed for g in draws]
    return torch.cat(runs).std(0)[0]


maps = [spread(eta) for eta in (0.0, 0.5, 1.0)]
assert maps[0].max() < 1e-6  # eta = 0: no randomness at all
assert maps[1].max() > 1e-3
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), layout="constrained")
for ax, image, eta in zip(axes, maps, (0.0, 0.5, 1.0)):
    drawn = ax.imshow(image, cmap="magma", vmin=0, vmax=0.3)
    ax.set_title(rf"$\eta$ = {eta}", fontsize=10)
    ax.axis("off")
fig.colorbar(drawn, ax=axes, label="spread of the healed slice")
plt.close(fig)
fig

# %% [markdown]
# **The threshold of the mask.** A cell is replaced where $\hat M > 0.5$. A lower threshold replaces more: more of the lesion, and
# more of the healthy tissue around it. We count cells that were replaced at least once.

# %%
thresholds = [0.1, 0.3, 0.5, 0.7, 0.9]
outputs = [heal(mask_threshold=c, eta=0.0) for c in thresholds]
inside = F.avg_pool2d(lesion.float(), f)[:, 0] >= 0.5  # (N, h, w) cells of the lesion
outside = (F.max_pool2d(lesion.float(), f)[:, 0] == 0) & brain_cells(brain, (h, w), 0.5)[:, 0]
ever = [o.replaced[:, :, 0].any(0) for o in outputs]  # (N, h, w) each
share = [[cells[where].float().mean().item() for cells in ever] for where in (inside, outside)]
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
ax.plot(thresholds, share[0], "o-", label="lesion")
ax.plot(thresholds, share[1], "s--", label="healthy brain")
ax.set(xlabel="threshold of the mask", ylabel="share of cells replaced", ylim=(-0.02, 1.02))
ax.legend(frameon=False)
plt.close(fig)
assert share[1][0] >= share[1][-1] and share[0][2] > share[1][2]  # at 0.5, more of the lesion than of the rest
fig

# %% [markdown]
# Does it pay? The Dice coefficient of the anomaly map for each setting. Read it as a picture of the trade-off, on this
# patient alone.

# %%
settings = {"10 steps": by_steps[10], "5 steps": by_steps[5], "2 steps": by_steps[2]}
settings |= {f"threshold {c}": o for c, o in zip(thresholds, outputs)}
dice = {name: {"Dice": best_dice(o)} for name, o in settings.items()}
assert dice["10 steps"]["Dice"] > 0.1
plotting.compare_methods(dice)

# %% [markdown]
# ## 7. Where it fails: what does not look like noise
#
# The network was trained on one kind of damage: noise, with its sharp borders between damaged and intact cells. A lesion
# is found when it looks like that *to the network*. So what about a lesion that is **smooth** and **faint**? We paint dark
# discs of equal size onto the healthy slice, with a sharp border and with a very soft one, from faint to strong.

# %%
i, j = torch.meshgrid(*map(torch.arange, x_well.shape[2:]), indexing="ij")
distance = torch.hypot(i - x_well.shape[2] / 2, j - x_well.shape[3] / 3)  # (H, W), pixels from the centre
shapes = {"sharp": (distance < 8).float(), "smooth": torch.exp(-0.5 * (distance / 8) ** 2)}
strengths = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8]).view(-1, 1, 1, 1)
discs = {name: (x_well - strengths * shape * b_well).clamp(-1, 1) for name, shape in shapes.items()}  # (5, 1, H, W)
answers = {name: pipe(d, brain=b_well.expand_as(d), eta=0.0, progress=False) for name, d in discs.items()}
core = F.avg_pool2d((distance < 8)[None, None].float(), f)[0, 0] >= 0.5  # (h, w)
seen = {name: o.replaced[:, :, 0].any(0)[:, core].float().mean(1) for name, o in answers.items()}
assert seen["sharp"][-1] >= seen["smooth"][0]  # strong and sharp is found at least as well as faint and smooth
plotting.slice_grid(torch.cat([d[[0, 2, 4]] for d in discs.values()]), columns=6,
                    titles=[f"{name}, {s}" for name in discs for s in (0.1, 0.4, 0.8)])  # fmt: skip

# %% [markdown]
# How much of the disc does the network replace?

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, values), style in zip(seen.items(), ("o-", "s--")):
    ax.plot(strengths.flatten(), values, style, label=name)
ax.set(xlabel="how much darker", ylabel="share of the disc's cells replaced", ylim=(-0.02, 1.02))
ax.legend(frameon=False)
plt.close(fig)
fig

# %% [markdown]
# This is the blind spot of the method, and it follows from the way it is trained. Damage that is as smooth as normal anatomy does
# not look like noise, and nothing else is asked of the mask head. The remedies that people try change the *training noise* (smoother
# noise, blurred patches, pieces of other brains), not the network.
#
# ## 8. What to take with you
#
# - At inference nothing is noised. The network itself decides what is noise; the rest stays the same to the last bit.
# - Healing means: replaced by what a normal brain would have there, in steps, each looking at the whole slice again.
# - A patch that you noise yourself is the best test of a trained model: it must be found, exactly.
# - Found is what looks like noise. Faint and smooth lesions do not.
#
# **Next:** [05_evaluation](05_evaluation.ipynb) turns this into numbers, over many subjects, beside simpler methods.
#
# ## Exercises
#
# Each has a cell for your answer and a cell that checks it. Untouched, the check says that the exercise is not done.
#
# ### Exercise 1: replace everything
#
# What if step 3 of section 4 is left out, so that *every* cell takes the DDIM step? It is one argument of the pipeline: call it on
# `x_sick` (with `brain=b_sick, eta=0.0, progress=False`) so that every cell is replaced in every step. Look at the healed slice:
# is it still the same person?

# %%
everything = None  # your answer, the output of the pipeline

# %%
if everything is None:
    print("Exercise 1: not done yet")
else:
    assert everything.replaced.all(), "some cells were left alone"
    print("Exercise 1: right. The lesion is gone, and so is much of what was this person's own anatomy.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# Every probability is above a threshold below zero:
# `everything = pipe(x_sick, brain=b_sick, eta=0.0, mask_threshold=-1.0, progress=False)`, then
# `plotting.detection_figure(everything, 0, truth)`.
#
# </details>

# %% [markdown]
# ### Exercise 2: how small can the noise be?
#
# Repeat the test of section 3 with a single noised cell. Make a mask `M_one` of shape `(1, 1, h, w)` with exactly one cell, on brain, set to 1.
# The check noises it and reports whether the network finds it.

# %%
M_one = None  # your answer

# %%
if M_one is None:
    print("Exercise 2: not done yet")
else:
    assert M_one.shape == (1, 1, h, w) and M_one.sum() == 1 and cells_well[M_one.bool()].all(), "one cell, on brain"
    z_one = masked_forward(z_well, eps, M_one, torch.tensor([9]), scheduler)
    print("Exercise 2: right. Found:", bool(ask(z_one, 9)[1][M_one.bool()] > 0.5))

# %% [markdown]
# <details><summary>Solution</summary>
#
# `M_one = torch.zeros(1, 1, h, w)`, then `M_one[0, 0, h // 2, w // 3] = 1`. One cell is one patch of 8 mm. Training draws patches
# of 1 x 1 cells too, so the network has seen damage this small.
#
# </details>
