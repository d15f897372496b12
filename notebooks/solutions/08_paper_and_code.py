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
# # 08 · The paper and the code: solutions
#
# Of the exercises that have a check in [08_paper_and_code](../08_paper_and_code.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **08_crossing.** Up to 0.25 the scores are $4|d|$ and $5d^2$, which would meet at 0.8. Above 0.25 the code's is 1, and the paper's gets there at $\sqrt{0.2}$.

# %%
crossing = 0.2**0.5

# %%
checks.run(checks.check_08_crossing, crossing)

# %% [markdown]
# **08_score.** Linear up to where it is full.


# %%
def score(healed, decoded, brain):
    return ((healed - decoded).abs().clamp(max=0.25) / 0.25) * brain


# %%
checks.run(checks.check_08_score, score)

# %% [markdown]
# **08_gap.** Not quite three points; its largest lead is about nine.

# %%
import numpy as np
from scipy.optimize import linprog

thor, mad_ad = np.array([11.5, 39.2, 63.6]), np.array([15.5, 50.1, 64.1])
shares = dict(A_eq=[thor, np.ones(3)], b_eq=[29.7, 1], bounds=[(0, 1)] * 3)
gap = linprog(mad_ad, **shares).fun - 29.7

# %%
checks.run(checks.check_08_gap, gap)
