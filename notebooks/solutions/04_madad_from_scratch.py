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
# # 04 · MAD-AD from scratch: solutions
#
# Of the exercises that have a check in [04_madad_from_scratch](../04_madad_from_scratch.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **04_sure.** A cell that is never taken for noise is never touched.

# %%
answer = "z0"

# %%
checks.run(checks.check_04_sure, answer)

# %% [markdown]
# **04_authors_map.** One line differs from `anomaly_map`.

# %%
from madad_from_scratch import smooth


def authors_map(healed, decoded, brain, sigma=2.0):
    difference = (healed - decoded).abs().clamp(max=0.25) / 0.25
    return smooth(difference, sigma) * brain


# %%
checks.run(checks.check_04_authors_map, authors_map)

# %% [markdown]
# **04_ddim_step.** The same noise at a lower level: nothing is drawn.

# %%
from madad_from_scratch import cosine_schedule

abar = cosine_schedule()


def ddim_step(z, z0_hat, t):
    eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
    return abar[t - 1].sqrt() * z0_hat + (1 - abar[t - 1]).sqrt() * eps_hat


# %%
checks.run(checks.check_04_ddim_step, ddim_step)
