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
# # 00 · Quickstart: solutions
#
# Of the exercises that have a check in [00_quickstart](../00_quickstart.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **00_eta.** With $\eta = 0$ no random number is drawn after the start, and there is none at the start either.

# %%
eta = 0  # no noise is drawn afresh: nothing is left to chance

# %%
checks.run(checks.check_00_eta, eta)

# %% [markdown]
# **00_dice.** Twice what both have in common, divided by the sum of both sizes.


# %%
def dice(found, lesion):
    return 2 * (found & lesion).sum() / (found.sum() + lesion.sum())


# %%
checks.run(checks.check_00_dice, dice)
