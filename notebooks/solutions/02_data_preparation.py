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
# # 02 · Data preparation: solutions
#
# Of the exercises that have a check in [02_data_preparation](../02_data_preparation.ipynb). Try them there first.

# %%
import sys

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks

# %% [markdown]
# **02_split.** That all ten slices of a subject end on one side has a chance of about one in five hundred.

# %%
in_both = 10

# %%
checks.run(checks.check_02_split, in_both)

# %% [markdown]
# **02_voxel_of.** Back through the affine, then to the nearest whole number.

# %%
import numpy as np
from nibabel.affines import apply_affine


def voxel_of(affine, xyz):
    return np.rint(apply_affine(np.linalg.inv(affine), xyz)).astype(int)


# %%
checks.run(checks.check_02_voxel_of, voxel_of)

# %% [markdown]
# **02_normalised.** The median of the brain goes to 0, twice the median and more to 1.


# %%
def normalised(values, brain):
    return np.clip(values / np.median(values[brain]) - 1, -1, 1)


# %%
checks.run(checks.check_02_normalised, normalised)
