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
# # Solutions of 05 · Training
#
# Run in this folder or in any other; nothing is trained here.

# %%
import sys

import torch

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **Exercise 1.** 730 steps before the power went. The last checkpoint is that of step 600, so 601 .. 1000 follow: 730 + 400.

# %%
steps_in_total = 730 + (1000 - 600)
checks.run(checks.check_05_steps_in_total, steps_in_total)


# %% [markdown]
# **Exercise 2.**


# %%
def my_forward(z0, eps, M, abar_t):
    a = abar_t.view(-1, 1, 1, 1)  # (N, 1, 1, 1)
    noised = a.sqrt() * z0 + (1 - a).sqrt() * eps  # (N, C, h, w)
    return torch.where(M.bool(), noised, z0)


checks.run(checks.check_05_forward, my_forward)


# %% [markdown]
# **Exercise 3.** A region that is put in without being marked would teach the network that foreign tissue is *not* noise.


# %%
def with_region(z_t, M, foreign, changed):
    return torch.where(changed, foreign, z_t), torch.where(changed, 1.0, M)


checks.run(checks.check_05_with_region, with_region)

# %% [markdown]
# **Exercise 4.** In the notebook: `doubt = [row["m_hat_lesion"] / row["m_hat_healthy"] for row in alone]`. Both means fall, that of the healthy cells faster, so the ratio
# rises. But a cell is replaced when its own $\hat M$ is above a *fixed* limit: there the falling value decides, not the ratio. Three made-up rows:

# %%
alone = [
    {"m_hat_lesion": 0.5, "m_hat_healthy": 0.5},
    {"m_hat_lesion": 0.4, "m_hat_healthy": 0.2},
    {"m_hat_lesion": 0.3, "m_hat_healthy": 0.1},
]
doubt = [row["m_hat_lesion"] / row["m_hat_healthy"] for row in alone]
checks.run(checks.check_05_doubt, doubt, alone)
