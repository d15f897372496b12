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
# # 01 · Diffusion: solutions
#
# Of the exercises that have a check in [01_diffusion](../01_diffusion.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import torch

import checks

# %% [markdown]
# **01_abar.** 99 of 200 lies half of the way, and there half of the variance is noise, however many levels there are.

# %%
abar_200_at_99 = 0.5

# %%
checks.run(checks.check_01_abar, abar_200_at_99)

# %% [markdown]
# **01_eps_from_v.** $x_t$ and $v$ are a rotation of $x_0$ and $\varepsilon$; this is the row of the rotation back that gives $\varepsilon$.

# %%
abar = checks.ABAR


def eps_from_v(x_t, v, t):
    return (1 - abar[t]).sqrt() * x_t + abar[t].sqrt() * v


# %%
checks.run(checks.check_01_eps_from_v, eps_from_v)

# %% [markdown]
# **01_forward_step.** Shrink a little, add a little noise: the spread stays at 1. `beta` is made as in section 3: below level 0 lies the clean point, with $\bar\alpha = 1$.


# %%
beta = 1 - abar / torch.cat([torch.ones(1), abar[:-1]])


def forward_step(x, t, eps):
    return (1 - beta[t]).sqrt() * x + beta[t].sqrt() * eps


# %%
checks.run(checks.check_01_forward_step, forward_step)
