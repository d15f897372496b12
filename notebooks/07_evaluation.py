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
# # 07 · Evaluation: how good is it, and how do we know?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/07_evaluation.ipynb)
#
# A good picture of one patient proves nothing; there is always one. This notebook measures the two networks that you trained in notebook 05 and the shipped one on patients with known
# lesions, beside much simpler methods, and it shows the failures as openly as the successes. Measuring well is harder than it looks: the
# same maps can be given a good or a bad number, depending on choices that papers often do not spell out. You will make each choice yourself.
#
# **What you will learn**
#
# - the Dice coefficient, pooled and per image, and why the two must never be compared;
# - where a threshold may come from, and where not;
# - average precision, AUROC, results by lesion size, and error bars over *subjects*;
# - to repeat the ablations of the [paper](https://arxiv.org/abs/2502.16943) in small: which score, how many steps, which $\gamma$;
# - to look for failures, and to say what one may conclude.
#
# **What it needs:** this package with its shipped weights; no download. All subjects are **simulated** from the MNI152 template, with
# lesions whose place we know exactly. Numbers on simulated patients compare *methods with each other*; they do not say how well
# any of them works on real patients.
#
# **Symbols** are those of [the notation page](../docs/notation.md), which also has a glossary. The threshold on the map is $c$; $\tau$ stays the one on $\hat M$.
#
# **How long it takes:** about two minutes on two CPU cores; about five minutes on a Colab T4 with the full settings, most of it simulating (estimated, not measured).
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
# By default we simulate 12 patients and 4 healthy subjects and look at every fifth slice (10 mm apart). `FULL_SETTINGS = True`
# takes 36 patients, 12 healthy subjects and every slice, which wants a GPU (in Colab: *Runtime → Change runtime type → T4*).

# %%
# NBVAL_IGNORE_OUTPUT
import csv
import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from IPython.display import Markdown

from madad_lite import plotting, scoring
from madad_lite.denoiser import Denoiser
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import evaluate_methods, load_split
from madad_lite.family import BASELINES
from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import widgets
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.folder import prepare_folder

FULL_SETTINGS = False  # True: three times the subjects and every slice; better with a GPU
EVERY = 1 if FULL_SETTINGS else 5  # take each so many-th slice
NORMAL, PATIENTS = (12, 36) if FULL_SETTINGS else (4, 12)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}, numpy {np.__version__}")
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")

# %% [markdown]
# ## 2. Two groups of patients
#
# Nothing is trained here, so nobody goes to training. Half of the subjects are for **validation**: with them we may try things out and choose.
# The other half is for the **test**: we look at it once, with everything chosen. Who goes where we write down by name, so that both
# groups get every kind of lesion: strokes, gliomas, and white-matter lesions (`wml`, many small spots).

# %%
cohort = write_cohort(WORK / "cohort", normal=NORMAL, patients=PATIENTS, seed=77, progress=False)
people = list(
    csv.DictReader((cohort / "participants.tsv").read_text().splitlines(), delimiter="\t")
)
names = [p["participant_id"] for p in people]
normal, patients = names[:NORMAL], names[NORMAL:]
splits = {
    "train": [],
    "val": normal[: NORMAL // 2] + patients[: PATIENTS // 2],
    "test": normal[NORMAL // 2 :] + patients[PATIENTS // 2 :],
}
workers = None if FULL_SETTINGS else 1
prepare_folder(
    cohort, WORK / "prepared", contrast="t1", splits=splits, workers=workers, progress=False
)
for split in ("val", "test"):
    sick = [p for p in people if p["participant_id"] in splits[split] and p["group"] == "patient"]
    print(f"{split:5}", ", ".join(f"{p['lesion']} {float(p['volume_ml']):.1f} mL" for p in sick))
assert not set(splits["val"]) & set(splits["test"])

# %% [markdown]
# Now the slices, and the anomaly map of each. This is the slow cell. We keep the pipeline's whole output, because the ablations
# below can then compute other scores from the same healed slices.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)


def heal(slices, steps=10):
    """The pipeline's output for these slices, always with the same random numbers."""
    options = dict(
        num_inference_steps=steps, generator=torch.Generator().manual_seed(0), progress=False
    )
    volumes = (
        slices.scans if EVERY == 1 else None
    )  # with every slice there, neighbours decide together (notebook 06)
    return pipe(slices.image, brain=slices.brain, volumes=volumes, **options)


def load(split):
    """Each EVERY-th slice of a split: image, brain, lesion (N, 1, H, W), subjects, scans (N,)."""
    slices = load_split(WORK / "prepared", split)
    return slices.take(range(0, len(slices.image), EVERY))


val, test = load("val"), load("test")
out_val, out_test = heal(val), heal(test)
assert out_test.anomaly_map.shape == test.lesion.shape and val.lesion.any() and test.lesion.any()
print(
    "subjects:", len(set(val.subjects)), "for validation,", len(set(test.subjects)), "for the test"
)

# %% [markdown]
# ## 3. The Dice coefficient
#
# A threshold $c$ turns the map $a$ into a set of found pixels, $F = \{a \ge c\}$. Its overlap with the lesion $L$ is measured by
#
# $$ \mathrm{Dice}(F, L) = \frac{2\,|F \cap L|}{|F| + |L|} . $$
#
# 1 means the same pixels, 0 none in common. Missed pixels and false alarms both lower it; the many pixels that are rightly left
# alone do not count, for otherwise an empty map would look splendid. Here is one slice of a *validation* patient, the one with the largest lesion.

# %%
area = val.lesion.flatten(1).sum(1)
k = int(area.argmax())
a, L = out_val.anomaly_map[k, 0], val.lesion[k, 0]
c = 0.5
F = a >= c
dice = float(2 * (F & L).sum() / (F.sum() + L.sum()))
assert (
    abs(dice - metrics.dice_at(a[None], L[None], c)["pooled"]) < 1e-6
)  # the package computes the same
plotting.threshold_figure(val.image[k], a, c, L)

# %% [markdown]
# Low thresholds find more of the lesion and raise more false alarms, high ones the other way round. Try it. (The slider needs a
# running kernel; it starts with the picture above.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.threshold_slider(val.image[k], a, L, threshold=c)

# %% [markdown]
# ## 4. The threshold comes from validation
#
# In a hospital nobody knows the lesion beforehand. A threshold that was tuned on the very patients it is measured on is not a result
# but a wish. So: choose $c$ where the Dice of all *validation* pixels together is best, then apply it to the test, unchanged.

# %%
c = metrics.pooled_max_dice(out_val.anomaly_map, val.lesion, val.brain)[1]  # chosen on validation
at_c = metrics.dice_at(out_test.anomaly_map, test.lesion, c, test.brain)
best, _ = metrics.pooled_max_dice(
    out_test.anomaly_map, test.lesion, test.brain
)  # needs to know the answer
assert 0 < at_c["pooled"] <= best + 1e-6
plotting.dice_curve(out_test.anomaly_map, test.lesion, test.brain, threshold=c)

# %% [markdown]
# The dark dot, the best threshold for the *test* patients, is what papers call **max Dice**. It needs to know the answer, so it is an upper bound. It is still useful,
# for it compares maps without asking how good the threshold was; just never confuse it with the orange line, which is what a user would get.
#
# ## 5. Pooled or per image?
#
# "The Dice is 0.6" can mean two things. **Pooled**: count the pixels of all slices together, then compute one Dice. **Per image**: compute the Dice
# of each slice, then average. Take two slices, one with a large lesion that is found well, one with a small lesion that is missed:

# %%
toy_truth, toy_found = np.zeros((2, 20, 20)), np.zeros((2, 20, 20))
toy_truth[0, 2:14, 2:14] = 1  # 144 pixels ...
toy_found[0, 2:14, 3:14] = 1  # ... of which 132 are found
toy_truth[1, 9:12, 9:12] = 1  # 9 pixels, none found
toy = metrics.dice_at(toy_found, toy_truth, 0.5)
print(f"pooled {toy['pooled']:.2f}, per image {toy['per_image']:.2f}")
assert round(toy["pooled"], 2) == 0.93 and round(toy["per_image"], 2) == 0.48

# %% [markdown]
# The same answer, 0.93 or 0.48! Pooled, large lesions drown the small ones. Per image, each slice weighs the same. And what about slices *without* any lesion?
# The authors' code counts them as 1 when nothing is found, else 0: with many healthy slices an empty map scores high. All of these are in use. In the paper's table
# for stroke (S1) the average of THOR, another diffusion method, seems to be per image and the one of MAD-AD pooled (notebook 08 shows why), so that 29.7 and 51.6 would be *not like for like*. So name what you
# print, and print both. Here are our test maps, five times:

# %%
about = dict(brain=test.brain, subjects=test.subjects, threshold=c)
result = metrics.evaluate(out_test.anomaly_map, test.lesion, **about)
kinds = {
    "pooled, validation threshold": result["dice_at_validation_threshold"]["pooled"],
    "per lesion slice, validation threshold": result["dice_at_validation_threshold"]["per_image"],
    "pooled max": result["pooled_max_dice"],
    "per lesion slice, max": result["per_lesion_image_max_dice"],
    "per slice, healthy ones too, max": result["per_image_max_dice"],
}
assert kinds["pooled, validation threshold"] <= kinds["pooled max"] + 1e-6
assert kinds["per lesion slice, validation threshold"] <= kinds["per lesion slice, max"] + 0.01
assert kinds["per slice, healthy ones too, max"] > kinds["per lesion slice, max"]
plotting.compare_methods(
    {name: {"Dice, all of the same maps": value} for name, value in kinds.items()}
)

# %% [markdown]
# ## 6. Without any threshold: AP and AUROC
#
# Lower the threshold step by step and write down, each time, the **recall** (share of the lesion that is found) and the **precision** (share of the
# found that is lesion). The area under that curve is the **average precision** (AP). A map that knows nothing gets the share of lesion pixels in the
# brain. The **AUROC** asks another question: is a random lesion pixel higher in the map than a random healthy pixel? There a map that knows nothing gets 0.5.

# %%
# NBVAL_IGNORE_OUTPUT
score, truth = (np.asarray(x)[np.asarray(test.brain)] for x in (out_test.anomaly_map, test.lesion))
low = np.quantile(score[truth], 0.2)  # at this threshold 80 % of the lesion is found
false_rate = (score[~truth] >= low).mean()  # of the healthy pixels
false_per_true = (score[~truth] >= low).sum() / (score[truth] >= low).sum()
assert (
    result["ap"] > result["lesion_share"] and result["auroc"] > 0.5
)  # better than knowing nothing
print(f"lesion share {result['lesion_share']:.3f}   AP {result['ap']:.2f}", end="   ")
print(f"AUROC {result['auroc']:.2f}")
print(f"where 80 % of the lesion are found, so are {false_rate:.1%} of the healthy pixels:")
print(f"{false_per_true:.1f} false pixels for each true one")
plotting.precision_recall(out_test.anomaly_map, test.lesion, test.brain, label="MAD-AD")

# %% [markdown]
# See how a false-positive *rate* that sounds bearable, beside an AUROC that looks good, can mean many more false than true pixels: lesions are rare, healthy
# pixels are many. **For rare things look at the AP.**
#
# ## 7. By lesion size
#
# Slices are sorted by the lesion's share of the brain: below 1 % is small, up to 5 % medium, above large. The same threshold for all of them.

# %%
sizes = {}
for name, r in result["by_size"].items():
    if r["n"]:
        low, high = r.get("per_image_dice_interval", [r["per_image_dice"]] * 2)
        sizes[name] = {"dice": r["per_image_dice"], "low": low, "high": high, "n": r["n"]}
found_sizes = metrics.lesion_size(test.lesion, test.brain)
assert sum(r["n"] for r in sizes.values()) == (found_sizes != "").sum() == result["lesion_slices"]
plotting.dice_by_size(sizes, ylabel="Dice per lesion slice, at the validation threshold")

# %% [markdown]
# Small lesions are hard for every method of this kind. In the paper (S1, stroke) the Dice is 15.5 % for small, 50.1 % for medium and 64.1 % for large lesions. An
# average over *all* sizes mostly tells how large the lesions of the data set are. (The whiskers are the 95 % intervals of the next section. Look at $n$ first: three
# slices of one patient give a tiny interval that means nothing.)
#
# ## 8. How sure are we?
#
# A handful of patients is little. With others the number would be another. The **bootstrap** imitates that: draw *subjects* with replacement, as many as there are, compute the
# number again, 500 times; the middle 95 % of these numbers are the interval. Draw subjects, not slices: the slices of one subject resemble each other, and resampling them pretends to have seen more people than one has.


# %%
def interval(units):
    """Of the pooled max Dice, when these units are drawn again and again."""
    maps_and_truth = out_test.anomaly_map, test.lesion
    return metrics.bootstrap_interval("pooled_max_dice", *maps_and_truth, units, brain=test.brain)


value = result["pooled_max_dice"]
by_subject = interval(test.subjects)
by_slice = interval(np.arange(len(test.subjects)))  # wrong: as if each slice were a person
assert by_subject[0] <= value <= by_subject[1]
plotting.compare_methods(
    {
        "over subjects": {"pooled max Dice": (value, *by_subject)},
        "over slices (wrong)": {"pooled max Dice": (value, *by_slice)},
    }
)

# %% [markdown]
# ## 9. Beside simpler methods
#
# A method is only as good as what it beats. Two that cost almost nothing:
#
# - **intensity**: in T1 a lesion is dark, so the darkness itself is the score. On FLAIR, where lesions are bright, this beats many learnt methods;
# - **reconstruction**: the autoencoder's own error $(x_\text{rec} - x_0)^2$, where $x_\text{rec}$ is the slice encoded and decoded; clipped and smoothed like ours, without the weight $\omega$ and without any diffusion.
#
# And your own two networks of notebook 05: *noise alone*, as in the paper, and *with regions*. They are read from where that notebook keeps them; where it was not run yet, this one goes on without them and says so.
#
# The same slices, the same metrics, and each method with *its own* threshold from validation.

# %%
# NBVAL_IGNORE_OUTPUT
DRIVE = Path("/content/drive/MyDrive")
STUDENT = (DRIVE / "madad_lite" if DRIVE.is_dir() else Path("runs")) / "student"
own = {k: pipe.config[k] for k in ("grid", "mask_threshold", "sigma", "reference", "weighted")}
yours = {}
for name in ("noise_alone", "with_regions"):
    if not (STUDENT / "about.json").exists():
        print(f"{name}: no network in {STUDENT}; run notebook 05 and come back")
        continue
    denoiser = Denoiser.from_pretrained(STUDENT / name).to(DEVICE).eval()
    student = MadAdPipeline(pipe.autoencoder, denoiser, pipe.scheduler, **own)
    yours[f"yours, {name.replace('_', ' ')}"] = {
        split: student(
            slices.image,
            brain=slices.brain,
            generator=torch.Generator().manual_seed(0),
            progress=False,
        )
        for split, slices in (("val", val), ("test", test))
    }
print("your networks:", ", ".join(yours) or "none")

# %%
# NBVAL_IGNORE_OUTPUT
scores = {"MAD-AD": {"val": out_val.anomaly_map, "test": out_test.anomaly_map}}
for name, method in BASELINES.items():
    scores[name] = {
        "val": method(pipe, val.image, val.brain),
        "test": method(pipe, test.image, test.brain),
    }
for name, outs in yours.items():
    scores[name] = {split: o.anomaly_map for split, o in outs.items()}
results = evaluate_methods(scores, {"val": val, "test": test})
rows = {name: r["test"] for name, r in results.items()}
assert abs(rows["MAD-AD"]["pooled_max_dice"] - result["pooled_max_dice"]) < 1e-6
bars = {}
for name, r in rows.items():
    bars[name] = {
        "pooled max Dice": (r["pooled_max_dice"], *r["pooled_max_dice_interval"]),
        "AP": (r["ap"], *r["ap_interval"]),
    }
plotting.compare_methods(bars)

# %% [markdown]
# Intervals of two methods may overlap and the difference be clear all the same, because all methods see the *same* patients: some are hard for
# all. So we bootstrap the **difference** of the AP too. Where its interval does not contain 0, the two differ. Here is the whole table:

# %%
# NBVAL_IGNORE_OUTPUT
for name in [*BASELINES, *yours]:
    both = scores["MAD-AD"]["test"], scores[name]["test"]
    low, high = metrics.difference_interval(
        "ap", *both, test.lesion, test.subjects, brain=test.brain
    )
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    gap = rows["MAD-AD"]["ap"] - rows[name]["ap"]
    print(f"AP of MAD-AD minus {name}: {gap:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict}")
with open(WORK / "results.json", "w") as file:
    json.dump(results, file, indent=1)  # everything, to keep
Markdown(metrics.table(rows))

# %% [markdown]
# ## 10. Ablations: which part does the work?
#
# An *ablation* changes one thing and leaves the rest. We repeat three of the paper's, on the **validation** patients, for they are there to choose with. First: where does the
# score come from? All three maps can be had from the same healing:
#
# - **image**: the clipped squared difference of the decoded slices, as until now;
# - **latent**: the squared difference of the latents, $\lVert z_{-1} - z_0 \rVert^2$ with the healed latent $z_{-1}$, enlarged to the slice;
# - **mask**: what the network says itself, its mask $\hat M$ averaged over the steps.

# %%
k = int(area.argmax())  # the slice with the largest lesion
brain, sigma, size = val.brain, pipe.config.sigma, val.image.shape[-2:]
z0, z_healed = out_val.trajectory[0], out_val.trajectory[-1]  # the latents before and after healing
maps = {
    "score: image": out_val.anomaly_map,  # the default
    "score: latent": scoring.latent_difference(z_healed, z0, size=size, sigma=sigma, brain=brain),
    "score: mask": scoring.mean_predicted_mask(
        out_val.mask_probability, size=size, sigma=sigma, brain=brain
    ),
}
assert len(out_val.trajectory) == 11  # the latent before each step, and the last one
plotting.slice_grid(
    val.image[[k] * 3],
    columns=3,
    titles=list(maps),
    truth=val.lesion[[k] * 3],
    overlay=torch.cat([m[[k]] for m in maps.values()]),
)

# %% [markdown]
# Second: **how many steps**? Ten visit $t = 9, 8, \dots, 0$; five every second; two only $t = 5$ and $t = 0$.

# %%
quick = {steps: heal(val, steps) for steps in (5, 2)}
assert {n: o.timesteps.tolist() for n, o in quick.items()} == {5: [8, 6, 4, 2, 0], 2: [5, 0]}
maps |= {f"{n} steps": o.anomaly_map for n, o in quick.items()}
healed = torch.cat([val.image[[k]], out_val.healed[[k]], *[o.healed[[k]] for o in quick.values()]])
plotting.slice_grid(healed, columns=4, titles=["scan", "healed, 10 steps", "5 steps", "2 steps"])

# %% [markdown]
# Third: **where to clip**, $\gamma = 0.2$, $0.4$ or not at all? That changes only the last line of the method,
# $a = G_\sigma * \big(\omega \cdot \min((\hat x_0 - x_0)^2, \gamma) / \gamma\big)$, so no slice needs to be healed again. ($\omega$, the highest $\hat M$ of the steps, is this repository's
# addition: what only the decoder has lost should not count. `no weight` is the paper's $\omega = 1$, where the healed slice is compared with the scan as it is.)

# %%
pair = out_val.healed, out_val.image
weight = out_val.mask_probability.amax(0)  # (N, 1, h, w)
for name, gamma in {"gamma = 0.2": 0.2, "gamma = 0.4": 0.4, "no clipping": None}.items():
    maps[name] = scoring.image_difference(
        *pair, gamma=gamma, squared=True, sigma=sigma, weight=weight, brain=brain
    )
maps["no weight"] = scoring.image_difference(
    *pair, gamma=0.2, squared=True, sigma=sigma, brain=brain
)
d = (out_val.healed - out_val.image)[val.brain] ** 2
print(f"{(d > 0.2).float().mean():.1%} of the brain's differences are clipped at gamma = 0.2")
assert 0 < (d > 0.2).float().mean() < 0.5
assert (maps["gamma = 0.2"] >= maps["gamma = 0.4"] - 1e-6).all()  # clipped earlier, scaled up more

# %% [markdown]
# Now all of it beside the paper's numbers: BraTS'21, the mean over four contrasts, max Dice in per cent; ours is pooled. (Other data, other lesions, and a network
# that is some hundred times as large: compare the *order*, not the numbers.)

# %%
paper = {
    "score: image": 70.3,
    "score: latent": 68.6,
    "score: mask": 63.6,
    "5 steps": 69.4,
    "2 steps": 69.0,
    "gamma = 0.2": 70.3,
    "gamma = 0.4": 70.3,
    "no clipping": 69.3,
    "no weight": 70.3,
}
here = {name: 100 * metrics.pooled_max_dice(m, val.lesion, brain)[0] for name, m in maps.items()}
assert set(here) == set(paper) and all(0 < dice < 100 for dice in here.values())
both = {name: {"paper, BraTS'21": paper[name], "here, simulated T1": here[name]} for name in paper}
plotting.compare_methods(both, highlight="score: image")

# %% [markdown]
# And the same as a table. Its last column is the difference from the default (image, 10 steps, $\gamma = 0.2$), with its bootstrap interval over our subjects.

# %%
# NBVAL_IGNORE_OUTPUT
lines = ["| setting | paper | here | difference from the default |", "|---|---|---|---|"]
for name, m in maps.items():
    pair = m, maps["score: image"]
    interval = metrics.difference_interval(
        "pooled_max_dice", *pair, val.lesion, val.subjects, brain=brain
    )
    low, high = (100 * v for v in interval)
    gap = f"{here[name] - here['score: image']:+.1f} [{low:+.1f}, {high:+.1f}]"
    lines.append(f"| {name} | {paper[name]} | {here[name]:.1f} | {gap} |")
Markdown("\n".join(lines))

# %% [markdown]
# How to read such a table: an interval that contains 0 says that **these patients cannot tell** the two settings apart, however tempting the difference looks. The paper's own differences
# are 1.3 points between 2 and 10 steps and none between $\gamma = 0.2$ and $0.4$; a handful of patients cannot show those. Read the order of the three scores with the same care: believe it only where the interval leaves 0 out.
#
# ## 11. Failures
#
# Averages hide them, so we look. The upper row shows the test slices with a lesion of at least 1 % of the brain where the method did **worst** at the validation threshold, the lower row those
# where it did **best**, as many of each. Cyan is the true lesion.

# %%
each = {}
for i in np.flatnonzero(np.isin(found_sizes, ("medium", "large"))):
    one = out_test.anomaly_map[[i]], test.lesion[[i]], c, test.brain[[i]]
    each[i] = metrics.dice_at(*one)["pooled"]
ranked = sorted(each, key=each.get)
n = min(6, len(ranked) // 2)
cases = ranked[:n] + ranked[-n:]
assert n >= 2 and each[cases[0]] <= each[cases[-1]]
titles = [f"Dice {each[i]:.2f}" for i in cases]
pictures = dict(overlay=out_test.anomaly_map[cases], truth=test.lesion[cases])
plotting.slice_grid(test.image[cases], titles, n, **pictures)

# %% [markdown]
# Ask of each failure: was the lesion *seen* but below the threshold? Not seen at all, because it is faint, or too fine for the encoder (notebook 06, section 8)? Or is the map bright at other places?
# The network itself can be asked. For each kind of lesion, the test slice with most of it: the scan, $\hat M$ (the highest of the ten steps, for each cell), and the map. Where $\hat M$ is dark inside the outline the lesion was **not seen**, and no threshold on the map will bring it back; where it is bright and the map is dark, it was seen, and what was put there
# resembles it too much.

# %%
kind_of = {p["participant_id"]: p["lesion"] for p in people}
kinds_here = np.array([kind_of[subject] for subject in test.subjects])
test_area = test.lesion.flatten(1).sum(1).numpy()
seen, shown_rows, shown_titles = out_test.mask_probability.amax(0), [], []  # (N, 1, h, w)
for kind in ("stroke", "glioma", "wml"):
    i = int(np.where(kinds_here == kind, test_area, 0).argmax())
    cells = (
        torch.nn.functional.adaptive_avg_pool2d(test.lesion[[i]].float(), seen.shape[-2:]) >= 0.5
    )
    strength = seen[[i]][cells].mean().item() if cells.any() else float("nan")
    found = metrics.dice_at(out_test.anomaly_map[[i]], test.lesion[[i]], c, test.brain[[i]])
    shown_rows.append(i)
    shown_titles += [kind, f"mean M-hat in it: {strength:.2f}", f"map, Dice {found['pooled']:.2f}"]
enlarged = torch.nn.functional.interpolate(seen[shown_rows], test.image.shape[-2:])
layers = torch.stack([enlarged * 0, enlarged, out_test.anomaly_map[shown_rows]], 1).flatten(0, 1)
repeated = (t[shown_rows].repeat_interleave(3, 0) for t in (test.image, test.lesion))
picture, outline = repeated
assert len(shown_titles) == len(layers) == 9
bar = dict(label=r"$\hat M$ in the middle, anomaly score at the right")
plotting.slice_grid(picture, shown_titles, 3, overlay=layers, truth=outline, **bar)

# %% [markdown]
# An old stroke is as dark as fluid; a glioma in T1 is only a shade darker than the white matter around it; a white-matter lesion may be smaller than a cell.
#
# The other kind of failure is to find something in **healthy** people. Everything above the threshold is wrong there.

# %%
alarm = result["false_positives"]
healthy = np.isin(test.subjects, normal)
height = out_test.anomaly_map[healthy].flatten(1).sum(1)
worst = np.flatnonzero(healthy)[np.argsort(-height.numpy())[:6]]
assert alarm["subjects"] == NORMAL - NORMAL // 2 and not test.lesion[healthy].any()
assert alarm["brain_share"] < 0.5
highest = out_test.anomaly_map[worst].flatten(1).amax(1)
titles = [f"healthy, at most {value:.2f}" for value in highest]
plotting.slice_grid(test.image[worst], titles, 6, overlay=out_test.anomaly_map[worst])

# %% [markdown]
# These are the healthy slices with the *highest* scores, and there is next to nothing: simulated healthy brains hold few surprises for a network that was trained on their like. Real ones do, and
# for a screening tool that would decide everything: hundreds of healthy people come for each one with a tumour.
#
# ## 12. The benchmark: scans that nobody tuned for
#
# Everything above was small, so that it runs in minutes. The repository's benchmark does the same on more: simulated patients of another seed, unseen real heads (IXI) with simulated strokes implanted, real tumours and real multiple
# sclerosis, beside trained networks of other kinds: a denoising autoencoder, diffusion without masks, and two of its relatives. Thresholds and settings of *every* method come from validation subjects. Its tables, the commands that print them, what one may read from them, and pictures of
# successes and failures are on [a page of their own](../docs/results.md).
#
# ## 13. What one may conclude
#
# - **Yes**: whether one method beats another *on these patients*, if the interval of the difference does not contain 0.
# - **Yes**: which lesions are found and which are missed. Large and strong ones are found first.
# - **No**: how well it works on real patients. Simulated lesions are cleaner than real ones, and healthy brains more alike.
# - **No**: that one setting is better than another by a point or two. There are far too few patients.
# - **No**: anything about diagnosis. A map is a hint where to look, no more.
#
# The command line does sections 4 to 9 for any prepared folder with lesion masks, without your own two networks and without the interval of a difference:
#
#     madad evaluate --data data/prepared --weights t1 --out results.json
#
# **Next:** [08_paper_and_code](08_paper_and_code.ipynb) lays the paper and its authors' code beside each other.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/07_evaluation](solutions/07_evaluation.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): one more healthy slice
#
# Take the two slices of section 5 (144 lesion pixels of which 132 are found, and 9 of which none is found) and add a healthy slice with 10 false pixels. What is the *pooled* Dice now?

# %%
pooled_now = None  # your answer, a number

# %%
checks.run(checks.check_07_pooled, pooled_now)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three sums over all slices: hits, found pixels, lesion pixels.
#
# </details>
#
# ### Exercise 2 (code): Dice
#
# For two boolean arrays. When both are empty there was nothing to find and nothing was found: give 1.


# %%
def my_dice(found, lesion):
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_07_dice, my_dice)

# %% [markdown]
# *What you should see*: `my_dice(toy_found > 0, toy_truth > 0)` is 0.93, the pooled number of section 5; for the second slice alone it is 0.
#
# <details><summary>Hint 1</summary>
#
# `(found & lesion).sum()` are the hits.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `2 * hits / (found.sum() + lesion.sum())`. When is that 0 / 0?
#
# </details>
#
# ### Exercise 3 (code): a limit on false alarms
#
# A hospital says: in healthy people at most a share `limit` of the brain pixels may be marked. Give the lowest threshold that keeps it, from scores of healthy pixels.


# %%
def strict(healthy_scores, limit):
    """healthy_scores: (n,). limit: 0 .. 1. Returns the threshold c; marked is what is >= c."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_07_strict, strict)

# %% [markdown]
# *What you should see*: of scores that are spread evenly from 0 to 1, `strict(scores, 0.001)` is 0.999. A smaller `limit` gives a higher threshold.
#
# <details><summary>Hint 1</summary>
#
# A quantile: `np.quantile(healthy_scores, ...)`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Which one, if one in a thousand may be marked? Then apply it to the healthy *validation* subjects and see which share of the test patients' lesions is still found.
#
# </details>
#
# ### Exercise 4 (code): one draw of the bootstrap
#
# Give the rows (slices) of one resample: as many subjects as there are, drawn with replacement, each with *all* of its slices, as often as it was drawn.


# %%
def draw(subjects, rng):
    """subjects: (N,), the subject of each slice. rng: numpy's Generator. Returns row numbers."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_07_draw, draw)

# %% [markdown]
# *What you should see*: for the subjects `["a", "a", "b"]` one of `[0, 1, 2]`, `[2, 0, 1]`, `[0, 1, 0, 1]` and `[2, 2]`: between two and four rows, and row 0 never without row 1.
#
# <details><summary>Hint 1</summary>
#
# First draw the subjects: `names = np.unique(subjects)`, then `rng.choice(names, len(names))`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Then the rows of each, `np.flatnonzero(subjects == name)`, joined by `np.concatenate`.
#
# </details>
#
# ### Exercise 5 (investigate): how rare is rare?
#
# `checks.rare(n)` gives scores and truth of a made-up detector, with `n` healthy pixels for each lesion pixel; how well it separates them is always the same. Measure AUROC and AP for n = 1, 10, 100 and answer with `{1: (auroc, ap), 10: ..., 100: ...}`. Which of the two would you print for a screening test?

# %%
rarity = None  # your answer

# %%
checks.run(checks.check_07_rare, rarity)

# %% [markdown]
# ### Capstone: beat the denoising autoencoder
#
# Of the trained methods in [Results](../docs/results.md) the denoising autoencoder (DAE) is mostly the hardest to beat: coarse noise is added to normal slices, a U-Net takes it out again, and what it changes in a
# patient's slice is the anomaly. Train one on the normal subjects of notebook 05 (some minutes on a CPU), with the median filter that its authors put behind it:
#
# ```python
# from madad_lite.family import method_class
# from madad_lite.family.frame import load
# from madad_lite.family.postprocess import Postprocessing
#
# DAE = method_class("dae")
# data = STUDENT.parent / "05_200_steps" / "prepared"  # notebook 05 made it
# DAE.train(data, STUDENT.parent / "dae", DAE.Config(steps=600, batch_size=16), resume=True)
# dae_maps = load(STUDENT.parent / "dae")(test.image, test.brain)
# dae_maps = Postprocessing(median=5)(dae_maps, test.image, test.brain)
# ```
#
# Then beat it, with *the same training subjects*: longer training, other regions, another score, whatever you like, as long as you choose it on `val`. Compute `my_maps` (N, 1, H, W) in [0, 1] for `test` once. The rules are those of this notebook:
# the split of section 2, every fifth slice, no look at the test set before everything is chosen. You have won when the whole interval of the difference of the AP is above 0.

# %%
dae_maps, my_maps = None, None  # your answer

# %%
checks.run(checks.check_07_capstone, my_maps, dae_maps, test)
