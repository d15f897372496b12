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
# # Solutions of 07 · Evaluation

# %%
import sys

import numpy as np

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks
from madad_lite.evaluation import metrics

# %% [markdown]
# **Exercise 1.** 132 hits, 132 + 10 found pixels, 144 + 9 lesion pixels. (Per image nothing would change if healthy slices do not count, and much if they do.)

# %%
pooled_now = 2 * 132 / (132 + 10 + 144 + 9)
checks.run(checks.check_07_pooled, pooled_now)


# %% [markdown]
# **Exercise 2.**


# %%
def my_dice(found, lesion):
    total = found.sum() + lesion.sum()
    return 2 * (found & lesion).sum() / total if total else 1.0


checks.run(checks.check_07_dice, my_dice)


# %% [markdown]
# **Exercise 3.** Compare it with `c` in the notebook: a threshold for the best Dice accepts more false alarms.


# %%
def strict(healthy_scores, limit):
    return float(np.quantile(healthy_scores, 1 - limit))


checks.run(checks.check_07_strict, strict)


# %% [markdown]
# **Exercise 4.**


# %%
def draw(subjects, rng):
    names = np.unique(subjects)
    chosen = rng.choice(names, len(names))
    return np.concatenate([np.flatnonzero(subjects == name) for name in chosen])


checks.run(checks.check_07_draw, draw)

# %% [markdown]
# **Exercise 5.** The AUROC stays where it is, the AP falls. For a screening test, where lesions are rare, the AP tells what a user will meet.

# %%
rarity = {}
for n in (1, 10, 100):
    scores, truth = checks.rare(n)
    rarity[n] = metrics.auroc(scores, truth), metrics.average_precision(scores, truth)
    print(f"{n:3} healthy pixels for each lesion pixel: AUROC {rarity[n][0]:.3f},", end=" ")
    print(f"AP {rarity[n][1]:.3f}")
checks.run(checks.check_07_rare, rarity)
