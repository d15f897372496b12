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
# # 06 · Watch a lesion being found and healed
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/06_mask_visualization.ipynb)
#
# In notebook 05 a network learnt to find noise in the latents of normal brains and to undo it. Now we give it a
# *patient's* latent and add **no noise at all**. What does the network take for noise? And what does it put there? This
# notebook slows the process down so far that you can watch each step.
#
# **What you will learn**
#
# - the selective reverse process: its equation, and the same in a dozen lines of code;
# - how to check that the network does what it should, by noising a patch on purpose;
# - what its knobs do: the threshold of the mask, the randomness $\eta$, the number of steps;
# - where it fails, and why;
# - a second way to ask the same network, which never shows it what it judges.
#
# **What it needs:** this package with its shipped weights; no download. All subjects are **simulated** from the MNI152
# template, with lesions whose place we know exactly. Nothing here says how well the method works on real patients.
#
# **How long it takes:** about a minute on two CPU cores; half a minute on a Colab T4, with more slices about a minute (estimated, not measured).
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
# Nothing is trained here, so a CPU will do. `FULL_SETTINGS = True` measures the knobs of section 7 on every slice with
# lesion of eight patients instead of a few slices of one, which wants a GPU (in Colab: *Runtime → Change runtime type →
# T4*). The authors' own setting of the process, 10 steps with $\eta = 0.5$, is the default everywhere.

# %%
# NBVAL_IGNORE_OUTPUT
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from madad_lite import plotting
from madad_lite.diffusion import make_scheduler, masked_forward, selective_reverse
from madad_lite.evaluation import metrics
from madad_lite.masking import brain_cells
from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import widgets
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject

FULL_SETTINGS = False  # True: more patients and slices in section 7; better with a GPU
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
x_sick, b_sick = (
    torch.from_numpy(a[[k]])[:, None] for a in (patient.image, patient.brain)
)  # (1, 1, H, W)
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
# The block is $4 \times 4$ cells, 32 mm. At $t = 9$ nothing but noise is left in it. Does the network find it? And what does the
# whole reverse process (section 5 explains it) put there?

# %%
cells_well = brain_cells(b_well, (h, w), 0.5)  # (1, 1, h, w)
M = torch.zeros(1, 1, h, w)
M[..., h // 2 - 2 : h // 2 + 2, w // 4 : w // 4 + 4] = 1
block = M.bool().expand_as(z_well)
eps = torch.randn(z_well.shape, generator=torch.Generator().manual_seed(0))
z_noised = masked_forward(z_well, eps, M, torch.tensor([9]), scheduler)
found = (ask(z_noised, 9)[1] > 0.5).float()
overlap = (2 * (found * M).sum() / (found + M).sum()).item()
result = selective_reverse(pipe.denoiser, z_noised.to(DEVICE), scheduler, eta=0.0, threshold=0.5)
z_healed = result.latent.cpu()
damage, left = ((z - z_well)[block].square().mean() for z in (z_noised, z_healed))
print("found and noised cells agree, Dice above 0.9:", overlap > 0.9)
print("less than a third of the damage is left:", bool(left < damage / 3))
assert cells_well[M.bool()].all() and overlap > 0.8 and left < damage / 2
pictures, nothing = (
    pipe.decode(torch.cat([z_well, z_noised, z_noised, z_healed]))[:, 0],
    torch.zeros_like(M),
)
titles = ["healthy, decoded", "M: noised", "M-hat: found", "healed"]
plotting.mask_examples(torch.cat([nothing, M, found, nothing]), images=pictures, titles=titles)

# %% [markdown]
# The network finds the block and fills it with plausible tissue: not a copy of what was there (that is gone), but what it
# expects at this place of a normal brain, given the rest of the slice. **On its own task the network is very good.**
#
# ## 4. What does it say about a stroke?
#
# Now the patient. We noise *nothing* and ask for the probability of "noised" in three kinds of cells: the block above, which
# really was noised; cells of the stroke; all other cells of the patient's brain. Mind the logarithmic axis.

# %%
f = x_sick.shape[2] // h  # pixels along a cell


def cells_of(brain, lesion):
    """Cells that are lesion (half of the pixels or more), and cells of brain without lesion; (N, h, w) each."""
    share = F.avg_pool2d(lesion.float(), f)[:, 0]
    return share >= 0.5, brain_cells(brain, (h, w), 0.5)[:, 0] & (share == 0)


z_sick = pipe.encode(x_sick)
stroke, other = cells_of(b_sick, truth[None, None])
p_sick, p_noised = ask(z_sick, 9)[1][:, 0], ask(z_noised, 9)[1]
groups = {
    "noised block": p_noised[M.bool()],
    "stroke": p_sick[stroke],
    "other brain": p_sick[other],
}
mean_p = {name: p.mean().item() for name, p in groups.items()}
assert mean_p["noised block"] > 0.5 and mean_p["stroke"] > 5 * mean_p["other brain"]

# %% [markdown]
# The orange line is the limit of one half, above which the authors replace a cell. The green line is the limit of the
# shipped model.

# %%
tau = pipe.config.mask_threshold
fig, ax = plt.subplots(figsize=(6, 2), layout="constrained")
ax.barh(list(mean_p), list(mean_p.values()), color="#0072B2")
ax.axvline(0.5, color="#E69F00", label="0.5, the authors' threshold")
ax.axvline(tau, color="#009E73", ls="--", label=f"{tau:g}, this model's")
ax.set(xscale="log", xlim=(1e-3, 1), xlabel="mean probability of 'noised', t = 9")
ax.invert_yaxis()
fig.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
plt.close(fig)
print(
    "the stroke is more than twice as suspicious as the rest:",
    mean_p["stroke"] > 2 * mean_p["other brain"],
)
print("the network would bet on it (above one half):", mean_p["stroke"] > 0.5)
fig

# %% [markdown]
# **This is the heart of the matter.** A stroke is tissue, after all; it is not white noise. Why does the network take it for something
# that was put there? In the paper it learns from noise alone. We trained a small network that way too, and something instructive
# happened: the better it knew Gaussian noise, the *less* it took a lesion for noise, until next to nothing was above one half
# (the [model card](../madad_lite/weights/t1/README.md) has the numbers). So the shipped network has seen more than noise in training: in half of the slices, some regions were replaced by foreign
# tissue before encoding, of any grey level, another contrast, or another slice (`extensions/lesion_like.py`). No disease is imitated; it learns that *what does not belong here* is
# to be marked. That is this repository's extension of the method. Everything below is the paper's process, unchanged.
#
# The threshold $\tau$ was chosen on validation subjects and is stored with the weights (`pipe.config.mask_threshold`). Section 7 shows what it trades.
#
# ## 5. The selective reverse process
#
# Start from the scan's own latent, $z_T := z_0$. **No noise is added.** For $t = T-1, \dots, 0$:
#
# 1. ask the network: $(\hat z_0, \hat M) = f_\theta(z_t, t)$;
# 2. compute the usual DDIM step from $z_t$ to $z_{t-1}$, as if the *whole* latent were noise of level $t$ (with
#    $\bar\alpha_{-1} = 1$):
#
# $$ \hat\varepsilon = \frac{z_t - \sqrt{\bar\alpha_t}\, \hat z_0}{\sqrt{1 - \bar\alpha_t}}, \qquad
#    \sigma_t = \eta \sqrt{\frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \Big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\Big)}, $$
# $$ \tilde z_{t-1} = \sqrt{\bar\alpha_{t-1}}\, \hat z_0 + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\ \hat\varepsilon + \sigma_t \varepsilon; $$
#
# 3. take it **only where the network says "noised"**, and leave everything else alone:
#
# $$ z_{t-1} = \mathbb 1[\hat M > \tau] \odot \tilde z_{t-1} + \mathbb 1[\hat M \le \tau] \odot z_t . $$
#
# Here it is without any library, with $\eta = 0.5$ as the authors take it.

# %%
abar, eta = scheduler.alphas_cumprod, 0.5
seed = int(
    torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(0))
)  # the pipeline gives each slice its own
draw = torch.Generator().manual_seed(seed)
z = z_sick  # (1, C, h, w): the scan's own latent, no noise
for t in range(9, -1, -1):
    z0_hat, M_hat = ask(z, t)  # 1.
    before = abar[t - 1] if t > 0 else torch.tensor(1.0)  # abar of the step to come
    sigma = eta * ((1 - before) / (1 - abar[t]) * (1 - abar[t] / before)).sqrt()  # 2.
    eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
    z_tilde = (
        before.sqrt() * z0_hat
        + (1 - before - sigma**2).sqrt() * eps_hat
        + sigma * torch.randn(z.shape, generator=draw)
    )
    z = torch.where(M_hat > tau, z_tilde, z)  # 3.
by_hand = z

# %% [markdown]
# The pipeline does the same (in `diffusion.selective_reverse`), keeps every intermediate step, decodes, and scores the
# difference. From the same seed it draws the same noise.

# %%
out = pipe(x_sick, brain=b_sick, generator=torch.Generator().manual_seed(0), progress=False)
assert torch.allclose(out.trajectory[-1], by_hand, atol=1e-2)  # what we computed by hand
assert torch.equal(out.trajectory[0], z_sick)  # it starts from the scan itself: nothing was noised
assert out.timesteps.tolist() == list(range(9, -1, -1))
inside, elsewhere = (
    out.anomaly_map[0, 0][where].mean() for where in (truth, b_sick[0, 0] & ~truth)
)
print(
    "the score is more than twice as high in the stroke as elsewhere:", bool(inside > 2 * elsewhere)
)
assert inside > 1.5 * elsewhere
plotting.detection_figure(out, 0, truth)

# %% [markdown]
# From left to right: the scan, its reconstruction by the autoencoder, the healed slice, the anomaly map
#
# $$ a = G_\sigma * \left( w \cdot \frac{\min\big((\hat x_0 - x_0)^2,\ \gamma\big)}{\gamma} \right), \qquad \gamma = 0.2,\ \sigma = 0.7 \text{ pixels}, $$
#
# and the map over the scan, with the true lesion outlined. ($w$, the highest $\hat M$ of the ten steps, enlarged to pixels, keeps out what only the decoder has lost; the paper has $w = 1$.)
#
# ## 6. Step by step
#
# One column a step. First row: the latent at this step, decoded. Second: how far the slice has moved from where it began.
# Third: what the network says, the probability of "noised" for each cell. Fourth: the cells that are replaced in this step.

# %%
decoded = pipe.decode(out.trajectory[:, 0])  # (S + 1, 1, H, W)
assert len(decoded) == len(out.timesteps) + 1
plotting.trajectory(out, 0, decoded)

# %% [markdown]
# What to look for:
#
# - In the **first step** the third row shows what the network makes of the untouched scan: the stroke lights up at once.
# - Marked cells get fresh noise ($\eta > 0$), and from the second step on they *are* noise. So they stay marked and will be denoised to the
#   end. Being marked once is a little like stepping on a slide.
# - The marked region **grows** a little: noise next door makes a healthy cell suspicious too.
# - Some healthy cells are marked as well. What the network puts there is close to what was there, where it knows this piece of anatomy.
#   So **replaced does not mean anomalous**: the score is *how much* changed (second row).
#
# A cell that is never marked is not touched. That is an exact statement, so we check it exactly:

# %%
never = ~out.replaced[:, 0, 0].any(0)  # (h, w)
same = torch.equal(out.trajectory[-1][0][:, never], z_sick[0][:, never])
print("cells never marked are the same to the last bit:", same)
assert same and never.any()
plotting.reverse_step(out, 0, 0, decoded)

# %% [markdown]
# Drag the slider through the steps. (It needs a running kernel; the picture above is its first step.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.step_slider(out, 0, decoded)

# %% [markdown]
# ### Why the randomness helps
#
# Compare $\eta = 0.5$ with $\eta = 0$, where no noise ever enters. The curves are the mean probability of "noised" in the stroke and
# in the other brain cells, step by step.

# %%
calm = pipe(x_sick, brain=b_sick, eta=0.0, progress=False)
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained", sharey=True)
for ax, o, name in zip(axes, (out, calm), ("0.5", "0")):
    p = o.mask_probability[:, 0, 0]  # (S, h, w)
    ax.plot(o.timesteps, p[:, stroke[0]].mean(1), "o-", label="stroke")
    ax.plot(o.timesteps, p[:, other[0]].mean(1), "s--", label="other brain")
    ax.set(
        title=rf"$\eta$ = {name}",
        xlabel="t, from left to right",
        xticks=range(10),
        ylim=(-0.02, 1.02),
    )
    ax.invert_xaxis()
axes[0].set_ylabel("mean probability of 'noised'")
axes[0].legend(frameon=False)
plt.close(fig)
peak, peak_calm = (o.mask_probability[:, 0, 0][:, stroke[0]].mean(1).max() for o in (out, calm))
assert peak > peak_calm
fig

# %% [markdown]
# Without randomness the lesion only fades, and the fainter it gets, the less the network objects: it stops to mark cells that are half
# healed, and they stay so. Fresh noise wipes the trace out, and the network has to invent what belongs there.
#
# ### And the healthy person?
#
# The same process on the healthy slice. Ideally the map is empty.

# %%
well = pipe(x_well, brain=b_well, generator=torch.Generator().manual_seed(0), progress=False)
score_well = well.anomaly_map[well.brain].mean()
print("the stroke scores higher than the healthy slice:", bool(inside > score_well))
assert inside > 1.5 * score_well
plotting.detection_figure(well, 0)

# %% [markdown]
# Almost nothing. On other healthy slices there are false alarms, above all where folds differ between people, which a small network
# cannot guess. A second threshold, on the anomaly map, decides which of them remain (notebook 07).
#
# ## 7. The knobs
#
# We measure with the Dice coefficient of the anomaly map at its best threshold, on slices with lesion. For a **single
# patient**, as here by default, such numbers show how a knob works, not which setting is best.

# %%
seeds = range(9001, 9009) if FULL_SETTINGS else [9001]
group = [patient] + [subject(f"patient{s}", s, lesion="stroke", volume_ml=25) for s in seeds[1:]]
rows = [(s, i) for s in group for i in s.lesion.sum((1, 2)).nonzero()[0]]
rows.sort(key=lambda row: -row[0].lesion[row[1]].sum())  # largest lesion first
rows = rows if FULL_SETTINGS else rows[:6]
arrays = ([getattr(s, name)[i] for s, i in rows] for name in ("image", "brain", "lesion"))
x, brain, lesion = (torch.from_numpy(np.stack(a))[:, None] for a in arrays)  # (N, 1, H, W)


def heal(**options):
    """The pipeline on these slices, always with the same random numbers."""
    return pipe(
        x, brain=brain, generator=torch.Generator().manual_seed(0), progress=False, **options
    )


def best_dice(o):
    """The highest Dice coefficient of all thresholds on the anomaly map."""
    found = [o.anomaly_map > c for c in torch.linspace(0, 1, 101)]
    return max((2 * (a & lesion).sum() / (a.sum() + lesion.sum())).item() for a in found)


# %% [markdown]
# **The threshold $\tau$ of the mask.** A lower threshold replaces more: more of the lesion, and more of the healthy tissue.
# We count the cells that were replaced at least once.

# %%
taus = [0.9, 0.5, 0.2, 0.1, 0.03, 0.01]
by_tau = [heal(mask_threshold=value) for value in taus]
ever = [o.replaced[:, :, 0].any(0) for o in by_tau]  # (N, h, w) each
fig, ax = plt.subplots(figsize=(6, 2.9), layout="constrained")
for name, where, style in zip(("stroke", "other brain"), cells_of(brain, lesion), ("o-", "s-")):
    share = [cells[where].float().mean().item() for cells in ever]
    assert sorted(share) == share  # the lower the threshold, the more is replaced
    ax.plot(taus, share, style, label=f"{name}: share of cells replaced")
ax.plot(taus, [best_dice(o) for o in by_tau], "^--", color="0.3", label="Dice of the anomaly map")
ax.set(xscale="log", xlabel=r"threshold $\tau$ of the mask", ylim=(-0.02, 1.02))
ax.invert_xaxis()
ax.legend(frameon=False, fontsize=8)
plt.close(fig)
fig

# %% [markdown]
# Over a wide range the stroke is replaced whole: the network is sure. Lower thresholds replace ever more healthy tissue, and when
# everything is replaced, only the quality of the guess is left to tell lesion from anatomy. Where the best value lies depends on network and patients, so it is chosen on
# validation data, never on the test subjects.
#
# **The randomness $\eta$.** Different random numbers give different healed slices. Where they differ, the network is unsure *what*
# belongs there.


# %%
def spread(eta, seeds=4):
    """Standard deviation of the healed slice over several runs, where the lesion is largest; (H, W)."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    runs = [
        pipe(x[[0]], brain=brain[[0]], eta=eta, generator=g, progress=False).healed for g in draws
    ]
    return torch.cat(runs).std(0)[0]


etas = (0.0, 0.5, 1.0)
spreads, dice = [spread(eta) for eta in etas], [best_dice(heal(eta=eta)) for eta in etas]
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.6), layout="constrained")
for ax, image, eta, value in zip(axes, spreads, etas, dice):
    drawn = ax.imshow(image, cmap="magma", vmin=0, vmax=0.4)
    ax.set_title(rf"$\eta$ = {eta}, Dice {value:.2f}", fontsize=10)
    ax.axis("off")
fig.colorbar(drawn, ax=axes, label="spread of the healed slice")
plt.close(fig)
assert spreads[0].max() < 1e-5 and spreads[1].max() > 0.01  # without eta, every run gives the same
fig

# %% [markdown]
# **The number of steps.** Ten steps visit $t = 9, 8, \dots, 0$; five visit every second; two only $t = 5$ and $t = 0$. Fewer
# steps are faster. In the paper's ablation two steps cost 1.3 points of Dice on average; here, on one patient and with a small
# network, see for yourself.

# %%
by_steps = {n: heal(num_inference_steps=n) for n in (10, 5, 2)}
print({n: o.timesteps.tolist() for n, o in by_steps.items()})
assert all(len(o.trajectory) == n + 1 for n, o in by_steps.items())
pictures = torch.cat([x[[0]], *[o.healed[[0]] for o in by_steps.values()]])
titles = ["scan", *[f"{n} steps, Dice {best_dice(o):.2f}" for n, o in by_steps.items()]]
plotting.slice_grid(pictures, titles=titles, truth=lesion[[0]].expand_as(pictures), columns=4)

# %% [markdown]
# ## 8. Where it fails: what is faint, and what the encoder loses
#
# How strong must a lesion be? We paint discs onto the healthy slice at one place: a dark one with a sharp border, a dark one that fades out
# softly, and one filled with fine grain; each from invisible to strong.

# %%
i, j = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
distance = torch.hypot(i - 44, j - 64)  # (H, W), pixels from the centre of the disc
disc = (distance < 8).float()
grain = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
shapes = {"sharp": disc, "smooth": torch.exp(-0.5 * (distance / 8) ** 2), "grain": disc * grain}
strengths = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.6, 0.8]).view(-1, 1, 1, 1)
painted = {
    name: (x_well - strengths * shape * b_well).clamp(-1, 1) for name, shape in shapes.items()
}
titles = [f"{name}, {strength}" for name in painted for strength in (0.2, 0.6)]
plotting.slice_grid(
    torch.cat([images[[2, 4]] for images in painted.values()]), titles=titles, columns=6
)

# %% [markdown]
# What does the network say about the middle of each disc, in the first step?

# %%
core = F.avg_pool2d(disc[None, None], f)[0, 0] >= 0.5  # (h, w)
suspicion = {}
for name, images in painted.items():
    p = torch.cat([ask(z, 9)[1] for z in pipe.encode(images).split(1)])[:, 0, core].mean(1)  # (6,)
    suspicion[name] = p
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, values), style in zip(suspicion.items(), ("o-", "s--", "^:")):
    ax.plot(strengths.flatten(), values, style, label=name)
ax.axhline(tau, color="0.6", lw=1, label=rf"$\tau$ = {tau:g}")
ax.set(xlabel="strength of the disc", ylabel="probability of 'noised'", ylim=(-0.02, 1.02))
ax.legend(frameon=False)
plt.close(fig)
print(
    "the strong dark discs are found, sharp or smooth:",
    all(suspicion[n][-1] > 0.5 for n in ("sharp", "smooth")),
)
print("the faint ones are not:", all(suspicion[n][1] < tau for n in ("sharp", "smooth")))
assert all(suspicion[n][-1] > 5 * suspicion[n][1] for n in ("sharp", "smooth"))
fig

# %% [markdown]
# Two blind spots. A **faint** disc lies within what healthy people vary by, and should perhaps not be marked. The **grain** hardly shows because most of it is gone before
# the network sees it: the encoder keeps what is larger than a cell or so, and smooths the rest away (notebook 03). The same holds for lesions of a pixel or two: this is why *small* lesions are the weak
# side of the method, in the paper as here.
#
# ## 9. Ask the neighbours
#
# So far each slice was judged alone, as in the paper. But slices are neighbours: a lesion goes on in the next one, a false alarm seldom does. So for whole scans the shipped weights let neighbouring
# slices *decide together*: at every step the mask's logits are averaged over them, with Gaussian weights, before they are compared with $\tau$. Nothing is trained for it; the network still sees single slices. (`extensions/neighbouring_slices.py`;
# again this repository's extension.) We take the patient's slices from just below the stroke to just above it:

# %%
with_stroke = patient.lesion.any((1, 2)).nonzero()[0]
window = slice(max(0, with_stroke[0] - 4), with_stroke[-1] + 5)
x_volume, b_volume, l_volume = (
    torch.from_numpy(a[window])[:, None] for a in (patient.image, patient.brain, patient.lesion)
)


def heal_volume(volumes=None):
    """Each slice alone, or with the volume that each belongs to: then neighbours decide together."""
    return pipe(
        x_volume,
        brain=b_volume,
        volumes=volumes,
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )


alone, together = heal_volume(), heal_volume(volumes=["patient"] * len(x_volume))
shown = np.linspace(0, len(x_volume) - 1, 8).round().astype(int)
maps = torch.cat([o.anomaly_map[shown] for o in (alone, together)])
titles = [f"{how}, {i}" for how in ("alone", "together") for i in shown]
pictures, outlines = (torch.cat([a[shown]] * 2) for a in (x_volume, l_volume))
plotting.slice_grid(pictures, titles=titles, columns=8, overlay=maps, truth=outlines)

# %%
scores = {
    how: metrics.average_precision(o.anomaly_map, l_volume, b_volume)
    for how, o in (("alone", alone), ("together", together))
}
print(
    "average precision over these slices:", {how: round(value, 2) for how, value in scores.items()}
)
moved = together.replaced.any(0) != alone.replaced.any(0)
assert moved.any()

# %% [markdown]
# Single blobs that no neighbour confirms disappear, and the stroke's first and last slices, where it is small, are carried by the ones beside them. One patient proves nothing: notebook 07 counts over many.
#
# ## 10. Paint a lesion, press heal
#
# Now it is your turn. First a dab by code, on the healthy slice: a dark disc with a soft edge. You see what the network took for noise, the healed slice and the map, with
# what was painted outlined.

# %%
# NBVAL_IGNORE_OUTPUT
painted, marks = widgets.dab(x_well, b_well, 44, 36, radius=7, grey=-0.8, softness=0.3)
healed = widgets.painter(pipe, b_well)(torch.from_numpy(painted)[None, None])
threshold = pipe.config.decision_threshold
dice = metrics.dice_at(healed.anomaly_map, marks[None, None], threshold)["pooled"]
print(f"{marks.sum()} pixels painted; Dice {dice:.2f} at the threshold {threshold:g}")
assert dice > 0.5
plotting.healing_figure(healed, 0, marks, threshold)

# %% [markdown]
# And with the mouse or a finger: choose a brush, paint, press *Heal*. The Dice coefficient compares what is found with what you painted, and follows the threshold as you drag it. Things to try: the
# same disc in grey matter's grey; a soft edge; texture; a very small dab; a dab in a ventricle, which is dark anyway. (It needs a running kernel. Without the package `anywidget` you get sliders.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.paint_and_heal(pipe, x_well, b_well)

# %% [markdown]
# What is darker or brighter than anything healthy at its place is found at once, soft or sharp. What could be tissue is left alone, and a dab smaller than a cell is often lost by the encoder.
#
# ## 11. What to take with you
#
# - At inference nothing is noised. The network itself decides what is noise; the rest stays the same to the last bit.
# - Healing means: replaced by what a normal brain would have there, in steps, each looking at the whole slice again.
# - A patch that you noise yourself is the best test of a trained model: it must be found, exactly.
# - What a network marks depends on what it was trained to mark. Noise alone makes it an expert of noise; foreign tissue made this one
#   an expert of what does not belong.
# - Neighbouring slices know more than one slice.
# - Replaced is not anomalous; how much changed is. What is faint or smaller than the encoder's cells goes unnoticed.
#
# **Next:** [07_evaluation](07_evaluation.ipynb) turns this into numbers, over many subjects, beside simpler methods.
#
# ## Exercises
#
# Each has a cell for your answer and a cell that checks it. Untouched, the check says that the exercise is not done.
#
# ### Exercise 1: replace everything
#
# What if step 3 of section 5 is left out, so that *every* cell takes the DDIM step? It is one argument of the pipeline: call it on
# `x_sick` (with `brain=b_sick, eta=0.0, progress=False`) so that every cell is replaced in every step. Look at the healed slice:
# is it still the same person?

# %%
everything = None  # your answer, the output of the pipeline

# %%
if everything is None:
    print("Exercise 1: not done yet")
else:
    assert everything.replaced.all(), "some cells were left alone"
    print(
        "Exercise 1: right. The lesion is gone, and so is much of what was this person's own anatomy."
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# Every probability is above a threshold below zero:
# `everything = pipe(x_sick, brain=b_sick, eta=0.0, mask_threshold=0.0, progress=False)`, then
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
    assert M_one.shape == (1, 1, h, w) and M_one.sum() == 1 and cells_well[M_one.bool()].all(), (
        "one cell, on brain"
    )
    z_one = masked_forward(z_well, eps, M_one, torch.tensor([9]), scheduler)
    print("Exercise 2: right. Found:", bool(ask(z_one, 9)[1][M_one.bool()] > 0.5))

# %% [markdown]
# <details><summary>Solution</summary>
#
# `M_one = torch.zeros(1, 1, h, w)`, then `M_one[0, 0, h // 2, w // 3] = 1`. One cell is one patch of 8 mm. Training draws patches
# of 1 x 1 cells too, so the network has seen damage this small.
#
# </details>
