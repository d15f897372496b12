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
# In notebook 05 a network learnt to find damage in the latents of normal brains and to undo it; and you saw that it marks what it was taught to doubt. Here is the
# one that was taught longest, the shipped one. We give it a *patient's* latent and add **no noise at all**. What does the network take for noise? And what does it put there? This
# notebook slows the process down so far that you can watch each step.
#
# **What you will learn**
#
# - the selective reverse process: its equation, and the same in a dozen lines of code;
# - how to check that the network does what it should, by noising a patch on purpose;
# - what its knobs do: the threshold of the mask, the randomness $\eta$, the number of steps;
# - where it fails, and why;
# - what neighbouring slices add when they decide together.
#
# **What it needs:** this package with its shipped weights; no download. All subjects are **simulated** from the MNI152
# template, with lesions whose place we know exactly. Nothing here says how well the method works on real patients.
#
# **How long it takes:** about two minutes on two CPU cores; half a minute on a Colab T4, with more slices about a minute (estimated, not measured).
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
# Nothing is trained here, so a CPU will do. `FULL_SETTINGS = True` measures the knobs of section 7 on twice as many patients and slices,
# which wants a GPU (in Colab: *Runtime → Change runtime type → T4*). The authors' own setting of the process, 10 steps with $\eta = 0.5$, is the default everywhere.

# %%
# NBVAL_IGNORE_OUTPUT
import base64
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, Markdown

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
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__},", end=" ")
print(f"diffusers {diffusers.__version__}")
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")
plotting.method("reverse")

# %% [markdown]
# ## 2. A patient and a healthy person
#
# We simulate one subject with a stroke (in a T1 scan an old stroke is dark) and one without any lesion, and cut both into slices.
# The model was trained on neither.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)


def subject(name, seed, **options):
    """Simulate, write, prepare: slices (n, H, W) in [-1, 1] with brain and lesion masks."""
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
    """z0_hat (1, C, h, w) and M_hat (1, 1, h, w): what the network says about z at level t."""
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
print(f"Dice of the found and the noised cells: {overlap:.2f}")
print(f"squared error of the block's latent: {damage:.2f} when noised, {left:.2f} when healed")
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
# really was noised; cells of the stroke; all other cells of the patient's brain.

# %%
f = x_sick.shape[2] // h  # pixels along a cell


def cells_of(brain, lesion):
    """(N, h, w) each: cells that are half lesion or more, and cells of brain without lesion."""
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
bars = ax.barh(list(mean_p), list(mean_p.values()), color="#0072B2")
ax.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
ax.axvline(0.5, color="#E69F00", label="0.5, the authors' threshold")
ax.axvline(tau, color="#009E73", ls="--", label=f"{tau:g}, this model's")
ax.set(xlim=(0, 1.1), xlabel="mean probability of 'noised', t = 9", ylabel="cells of the")
ax.invert_yaxis()
fig.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
plt.close(fig)
print(
    f"the stroke is {mean_p['stroke'] / mean_p['other brain']:.0f} times as suspicious as the rest"
)
fig

# %% [markdown]
# **This is the heart of the matter.** A stroke is tissue, after all; it is not white noise. Why does the network take it for something
# that was put there? Taught briefly with noise alone it doubts much of the healthy brain too (mean $\hat M$ 0.30, in the strokes 0.49), as you saw in notebook 05, section 11; taught longer so, it doubts less and less of both. The shipped network has seen more than noise in training: in half of the slices, some regions were replaced by foreign
# tissue before encoding, of any grey level, another contrast, or another slice (`extensions/lesion_like.py`). No disease is imitated; it learns that *what does not belong here* is
# to be marked. That is this repository's extension of the method. The process below is the paper's equation, with the authors' $\eta = 0.5$ (the paper's text has no randomness, $\eta = 0$) and with this repository's threshold: 0.2 in place of one half.
#
# The threshold $\tau$ was chosen on validation subjects and is stored with the weights (`pipe.config.mask_threshold`). Section 7 shows what it trades.
#
# ## 5. The selective reverse process
#
# Start from the scan's own latent, $z_{T-1} := z_0$. **No noise is added.** For $t = T-1, \dots, 0$:
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
# The step from $t = 0$ gives $z_{-1}$, the healed latent. Here it is without any library, with $\eta = 0.5$ as the authors take it.

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
print(f"mean score: {inside:.3f} in the stroke, {elsewhere:.4f} elsewhere in the brain")
assert inside > 1.5 * elsewhere
plotting.detection_figure(out, 0, truth)

# %% [markdown]
# From left to right: the scan, its reconstruction by the autoencoder, the healed slice, the anomaly map
#
# $$ a = G_\sigma * \left( \omega \cdot \frac{\min\big((\hat x_0 - x_0)^2,\ \gamma\big)}{\gamma} \right), \qquad \gamma = 0.2,\ \sigma = 0.7 \text{ pixels}, $$
#
# and the map over the scan, with the true lesion outlined. ($\omega$, the highest $\hat M$ of the ten steps, enlarged to pixels, keeps out what only the decoder has lost; the paper has $\omega = 1$.)
#
# ## 6. Step by step
#
# First as a film: left the latent of each step, decoded, right what the network says about it.

# %%
decoded = pipe.decode(out.trajectory[:, 0])  # (S + 1, 1, H, W)
film = plotting.healing_film(out, 0, decoded)
assert film[:3] == b"GIF" and len(film) < 1_000_000
words = "Film: the stroke is replaced step by step; beside it the probability of noise in each cell"
HTML(f'<img alt="{words}" src="data:image/gif;base64,{base64.b64encode(film).decode()}">')

# %% [markdown]
# Then a few of the steps, standing still. First row: the latent before the step, decoded. Second: the change since the start, blue where it has become darker, red where brighter.
# Third: what the network says, the probability of "noised" for each cell. Fourth: the cells that are replaced in this step.

# %%
assert len(decoded) == len(out.timesteps) + 1
plotting.trajectory(out, 0, decoded)

# %% [markdown]
# What to look for:
#
# - In the **first step** the third row shows what the network makes of the untouched scan: the stroke lights up at once.
# - Marked cells get some fresh noise in each step ($\eta > 0$), and noise is what the network finds best. So they mostly stay marked and will be denoised to the
#   end. Being marked once is a little like stepping on a slide.
# - The marked region **grows** a little: noise next door makes a healthy cell suspicious too.
# - Some healthy cells are marked as well. What the network puts there is close to what was there, where it knows this piece of anatomy.
#   So **replaced does not mean anomalous**: the score is *how much* changed (second row).
#
# A cell that is never marked is not touched. That is an exact statement, so we check it exactly:

# %%
never = ~out.replaced[:, 0, 0].any(0)  # (h, w)
same = torch.equal(out.trajectory[-1][0][:, never], z_sick[0][:, never])
print(f"{int(never.sum())} of {never.numel()} cells were never marked;", end=" ")
print("they are the same to the last bit")
assert same and never.any()
plotting.reverse_step(out, 0, 0, decoded)

# %% [markdown]
# Drag the slider through the steps. (It needs a running kernel; the picture above is its first step.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.step_slider(out, 0, decoded)

# %% [markdown]
# ### At $t = 9$ the lesion itself plays the noise
#
# Look at the second line of step 2 in section 5 for $t = 9$. There $\bar\alpha_9$ is almost 0, so
#
# $$ \hat\varepsilon = \frac{z_9 - \sqrt{\bar\alpha_9}\,\hat z_0}{\sqrt{1 - \bar\alpha_9}} \approx z_9 . $$
#
# DDIM believes that it was given pure noise, and takes what it was given for that noise. But $z_9$ *is the scan's own latent*: the "noise" is the lesion. And a deterministic step keeps the noise and only turns it down. How much of it is
# left after each step, in a cell that is replaced every time? Its factor is multiplied by $\sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2} / \sqrt{1 - \bar\alpha_t}$.

# %%
z0_hat_9, _ = ask(z_sick, 9)
eps_hat_9 = (z_sick - abar[9].sqrt() * z0_hat_9) / (1 - abar[9]).sqrt()
alike = torch.corrcoef(torch.stack([eps_hat_9.flatten(), z_sick.flatten()]))[0, 1].item()
print(
    f"abar at t = 9: {abar[9]:.1e}; correlation of eps-hat with the scan's own latent: {alike:.4f}"
)
assert alike > 0.99
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for value, style in ((0.0, "o-"), (0.5, "s--"), (1.0, "^:")):
    left_over = [1.0]
    for t in range(9, 0, -1):
        sigma = value * ((1 - abar[t - 1]) / (1 - abar[t]) * (1 - abar[t] / abar[t - 1])).sqrt()
        kept = (1 - abar[t - 1] - sigma**2).sqrt() / (1 - abar[t]).sqrt()
        left_over.append(left_over[-1] * kept.item())
    ax.plot(range(9, -1, -1), left_over, style, ms=4, label=rf"$\eta$ = {value:g}")
ax.set(
    xlabel="noise level t, from left to right",
    ylabel="factor of the scan's latent",
    xticks=range(10),
)
ax.invert_xaxis()
ax.legend(frameon=False, fontsize=8)
plt.close(fig)
fig

# %% [markdown]
# With $\eta = 0$ the lesion is still there, turned down, until the last steps. With $\eta > 0$ a part of it is exchanged for fresh noise at each step, which knows nothing of the lesion.
#
# ### What the randomness does
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
# Without randomness the lesion only fades, and the fainter it gets, the less the network objects: it stops marking cells that are half
# healed, and they stay so. With fresh noise they stay marked to the end, and the network has to invent what belongs there. Whether that makes the *map* better is another question: section 7 measures it.
#
# ### And the healthy person?
#
# The same process on the healthy slice. Ideally the map is empty.

# %%
well = pipe(x_well, brain=b_well, generator=torch.Generator().manual_seed(0), progress=False)
score_well = well.anomaly_map[well.brain].mean()
print(f"mean score in the brain of the healthy slice: {score_well:.4f};", end=" ")
print(f"in the stroke it was {inside:.3f}")
assert inside > 1.5 * score_well
plotting.detection_figure(well, 0)

# %% [markdown]
# Almost nothing. On other healthy slices there are false alarms, above all where folds differ between people, which a small network
# cannot guess. A second threshold, on the anomaly map, decides which of them remain (notebook 07).
#
# ## 7. The knobs
#
# How a knob works can be seen on one patient; which setting is best cannot. So we take eight, four strokes and four gliomas, with slices above, below and through the lesion, and measure the
# pooled Dice coefficient of the map at its best threshold.

# %%
seeds = range(9001, 9017 if FULL_SETTINGS else 9009)
group = []
for s in seeds:
    kind = ("stroke", "glioma")[s % 2]
    group.append(subject(f"patient{s}", s, lesion=kind, volume_ml=20))
rows = []
for number, s in enumerate(group):
    some = s.lesion.any((1, 2)).nonzero()[0]
    last = len(s.image) - 1
    rows += [(number, int(i)) for i in np.linspace(max(0, some[0] - 6), min(last, some[-1] + 6), 5)]
who = np.array([number for number, _ in rows])
arrays = ([getattr(group[n], name)[i] for n, i in rows] for name in ("image", "brain", "lesion"))
x, brain, lesion = (torch.from_numpy(np.stack(a))[:, None] for a in arrays)  # (N, 1, H, W)
largest = int(lesion.flatten(1).sum(1).argmax())


def heal(**options):
    """The pipeline on these slices, always with the same random numbers."""
    return pipe(
        x, brain=brain, generator=torch.Generator().manual_seed(0), progress=False, **options
    )


def best_dice(o):
    """The highest pooled Dice coefficient of all thresholds on the anomaly map."""
    return metrics.pooled_max_dice(o.anomaly_map, lesion, brain)[0]


print(f"{len(group)} patients, {len(x)} slices, {int(lesion.flatten(1).any(1).sum())} with lesion")
assert len(group) >= 8

# %% [markdown]
# **The threshold $\tau$ of the mask.** A lower threshold replaces more: more of the lesion, and more of the healthy tissue.
# We count the cells that were replaced at least once.

# %%
taus = [0.9, 0.5, 0.2, 0.1, 0.03]
by_tau = [heal(mask_threshold=value) for value in taus]
ever = [o.replaced[:, :, 0].any(0) for o in by_tau]  # (N, h, w) each
fig, ax = plt.subplots(figsize=(6, 2.9), layout="constrained")
for name, where, style in zip(("lesion", "other brain"), cells_of(brain, lesion), ("o-", "s-")):
    share = [cells[where].float().mean().item() for cells in ever]
    assert sorted(share) == share  # the lower the threshold, the more is replaced
    ax.plot(taus, share, style, label=f"{name}: share of cells replaced")
ax.plot(taus, [best_dice(o) for o in by_tau], "^--", color="0.3", label="Dice of the anomaly map")
ax.set(xscale="log", xlabel=r"threshold $\tau$ of the mask", ylim=(-0.02, 1.02))
ax.set(title="A lower threshold replaces more", ylabel="share of cells; Dice")
ax.set_xticks(taus, [f"{value:g}" for value in taus])
ax.minorticks_off()
ax.invert_xaxis()
ax.legend(frameon=False, fontsize=8)
plt.close(fig)
fig

# %% [markdown]
# Lower thresholds replace more of the lesion, and then ever more healthy tissue, and when
# everything is replaced, only the quality of the guess is left to tell lesion from anatomy. Where the best value lies depends on network and patients, so it is chosen on
# validation data, never on the test subjects.
#
# **The randomness $\eta$.** Different random numbers give different healed slices. Where they differ, the network is unsure *what*
# belongs there.


# %%
def spread(eta, seeds=4):
    """(H, W): standard deviation of several healed copies of the slice with the largest lesion."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    runs = [
        pipe(x[[largest]], brain=brain[[largest]], eta=eta, generator=g, progress=False).healed
        for g in draws
    ]
    return torch.cat(runs).std(0)[0]


etas = (0.0, 0.5, 1.0)
by_eta = {0.0: heal(eta=0.0), 0.5: by_tau[taus.index(tau)], 1.0: heal(eta=1.0)}
spreads, dice = [spread(eta) for eta in etas], [best_dice(o) for o in by_eta.values()]
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
# steps are faster. In the paper's ablation two steps cost 1.3 points of Dice on average.

# %%
by_steps = {10: by_tau[taus.index(tau)], **{n: heal(num_inference_steps=n) for n in (5, 2)}}
print({n: o.timesteps.tolist() for n, o in by_steps.items()})
assert all(len(o.trajectory) == n + 1 for n, o in by_steps.items())
pictures = torch.cat([x[[largest]], *[o.healed[[largest]] for o in by_steps.values()]])
titles = ["scan", *[f"healed in {n} steps" for n in by_steps]]
plotting.slice_grid(pictures, titles, truth=lesion[[largest]].expand_as(pictures), columns=4)

# %% [markdown]
# **Does any of it matter?** The difference of each setting from the default (10 steps, $\eta = 0.5$, $\tau = 0.2$), with its 95 % interval over the patients. An interval that contains 0 says that these patients cannot tell.

# %%
# NBVAL_IGNORE_OUTPUT
settings = {f"tau = {value:g}": o for value, o in zip(taus, by_tau) if value != tau}
settings |= {f"eta = {value:g}": o for value, o in by_eta.items() if value != 0.5}
settings |= {f"{n} steps": o for n, o in by_steps.items() if n != 10}
default = by_steps[10]
lines = ["| setting | pooled max Dice | minus the default | |", "|---|---|---|---|"]
lines.append(f"| default | {best_dice(default):.2f} | | |")
for name, o in settings.items():
    pair = o.anomaly_map, default.anomaly_map
    low, high = metrics.difference_interval("pooled_max_dice", *pair, lesion, who, brain=brain)
    verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    gap = best_dice(o) - best_dice(default)
    lines.append(
        f"| {name} | {best_dice(o):.2f} | {gap:+.2f} [{low:+.2f}, {high:+.2f}] | {verdict} |"
    )
Markdown("\n".join(lines))

# %% [markdown]
# Read the last column. A very low threshold and $\eta = 1$ lose on these patients, and the other settings lie within a few hundredths of the default. Where a row here says that fewer steps are better by 0.02, remember that eight settings were compared: of eight
# 95 % intervals one may well miss 0 by chance. On the other patients of notebook 07, section 10, five steps and ten cannot be told apart. So the default stays; and the picture of a single patient, on which one setting shines, decides nothing.
#
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
for name, values in suspicion.items():
    print(f"{name:7} M-hat {values[1]:.2f} at strength 0.1, {values[-1]:.2f} at 0.8")
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
    """Each slice alone, or, where its volume is named, neighbours deciding together."""
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
z = [patient.geometry.slice_index[window.start + i] for i in shown]
z = [patient.geometry.grid.affine[2, 3] + patient.geometry.grid.step * i for i in z]
titles = [f"{how}, {mm:+.0f} mm" for how in ("alone", "together") for mm in z]
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
# The single blob that no neighbour confirms disappears (-22 mm), and a slice where the stroke is small is carried by the ones beside it (-12 mm). But its very ends are still missed, and a false alarm beside a strong finding can be carried along as well (+14 mm). One patient proves nothing: [the page of results](../docs/results.md) counts over many ("each slice alone").
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
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/06_mask_visualization](solutions/06_mask_visualization.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): what is left of the lesion?
#
# A cell is replaced at $t = 9$, with $\eta = 0$. By which factor is the scan's own latent still in $z_8$? Predict it from `abar` before you look at the figure of section 6.

# %%
share_left = None  # your answer, a number

# %%
checks.run(checks.check_06_share_left, share_left)

# %% [markdown]
# <details><summary>Hint</summary>
#
# $\hat\varepsilon$ is nearly $z_9$. Which factor does $\hat\varepsilon$ get in $\tilde z_8$?
#
# </details>
#
# ### Exercise 2 (code): one step of the selective reverse process
#
# With $\eta = 0$: steps 2 and 3 of section 5, for one $t$.


# %%
def my_step(z, z0_hat, M_hat, t, abar, threshold):
    """z, z0_hat: (N, C, h, w). M_hat: (N, 1, h, w). t: int. abar: (10,). Returns z_{t-1}."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_06_reverse_step, my_step)

# %% [markdown]
# *What you should see*: called for $t = 9, 8, \ldots, 0$ in a row, from `z_sick`, with what `ask` says and $\tau = 0.2$, it ends at `calm.trajectory[-1]` of section 6, whose decoded slice still has a shadow of the stroke.
#
# <details><summary>Hint 1</summary>
#
# At $t = 0$ there is no `abar[-1]` in the sense of the equation (Python's `abar[-1]` is the last one): $\bar\alpha_{-1} = 1$.
#
# </details>
# <details><summary>Hint 2</summary>
#
# With $\eta = 0$ two terms are left; `torch.where` does the rest.
#
# </details>
#
# ### Exercise 3 (code): the score
#
# The equation of section 5 without the smoothing: squared, clipped, divided, weighted, and 0 outside the brain.


# %%
def my_score(healed, scan, weight, brain, gamma):
    """All (N, 1, H, W): slices in [-1, 1], weight in [0, 1], brain bool. Returns a score."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_06_score, my_score)

# %% [markdown]
# *What you should see*: for `out`, with its highest $\hat M$ enlarged to pixels as the weight, the anomaly map of section 5 before it is smoothed: the same blob with sharper edges.
#
# <details><summary>Hint 1</summary>
#
# `.clamp(max=gamma)`, and what is the largest value then?
#
# </details>
# <details><summary>Hint 2</summary>
#
# `weight * ((healed - scan) ** 2).clamp(max=gamma) / gamma`, and then the brain.
#
# </details>
#
# ### Exercise 4 (investigate): how small and how faint may damage be?
#
# Repeat the test of section 3 with blocks of 1 × 1, 2 × 2 and 4 × 4 cells, at $t = 0$, where the noise is faintest, with several draws of the noise. Which share of the cells of such blocks does the network mark ($\hat M > 0.5$)? Answer with `{1: ..., 2: ..., 4: ...}`. Compare with the faint discs of section 8: is it size and strength alone that decide what is noticed?

# %%
smallest = None  # your answer

# %%
checks.run(checks.check_06_smallest, smallest)
