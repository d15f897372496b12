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
# # 03 · The latent encoder: solutions
#
# Of the exercises that have a check in [03_latent_encoder](../03_latent_encoder.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **03_pairs.** Four times as many cells, so sixteen times as many pairs.

# %%
times = 16

# %%
checks.run(checks.check_03_pairs, times)

# %% [markdown]
# **03_scale.** Multiplied by it, the latents have a spread of 1.

# %%
scale = 1 / 2.5

# %%
checks.run(checks.check_03_scale, scale)

# %% [markdown]
# **03_kl.** It is 0 where the posterior says nothing, and grows with every departure from that.


# %%
def kl(mu, sigma):
    return 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log())


# %%
checks.run(checks.check_03_kl, kl)
