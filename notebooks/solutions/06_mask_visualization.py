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
# # Solutions of 06 · Watch a lesion being found and healed

# %%
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "..")  # the checks lie beside the lessons
import checks
from madad_lite.diffusion import make_scheduler, masked_forward
from madad_lite.masking import brain_cells
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject

scheduler = make_scheduler()
abar = scheduler.alphas_cumprod

# %% [markdown]
# **Exercise 1.** $\hat\varepsilon \approx z_9 / \sqrt{1 - \bar\alpha_9}$, and its factor in $\tilde z_8$ is $\sqrt{1 - \bar\alpha_8}$: nearly all of the lesion is still there.

# %%
share_left = ((1 - abar[8]) / (1 - abar[9])).sqrt().item()
checks.run(checks.check_06_share_left, share_left)


# %% [markdown]
# **Exercise 2.**


# %%
def my_step(z, z0_hat, M_hat, t, abar, threshold):
    before = abar[t - 1] if t > 0 else torch.tensor(1.0)
    eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
    step = before.sqrt() * z0_hat + (1 - before).sqrt() * eps_hat
    return torch.where(M_hat > threshold, step, z)


checks.run(checks.check_06_reverse_step, my_step)


# %% [markdown]
# **Exercise 3.**


# %%
def my_score(healed, scan, weight, brain, gamma):
    return weight * ((healed - scan) ** 2).clamp(max=gamma) / gamma * brain


checks.run(checks.check_06_score, my_score)

# %% [markdown]
# **Exercise 4.** Even the faintest noise in a single cell is marked most of the time, while a faint disc (section 8) goes unnoticed: it is not size or strength alone that counts, but the kind of damage that the network was taught.

# %%
pipe = MadAdPipeline.from_pretrained("t1")
with tempfile.TemporaryDirectory() as folder:
    healthy = simulate_subject(9002)
    for part, image in {"t1": healthy.images["t1"], "brain": healthy.brain}.items():
        save_nifti(image, Path(folder) / f"{part}.nii.gz")
    scan = pipe.prepare(Path(folder) / "t1.nii.gz", brain=Path(folder) / "brain.nii.gz")
k = len(scan.image) // 2
image, brain = (torch.from_numpy(a[[k]])[:, None] for a in (scan.image, scan.brain))
z = pipe.encode(image)
h, w = z.shape[-2:]
inside = brain_cells(brain, (h, w), 0.5)
smallest = {}
for side in (1, 2, 4):
    M = torch.zeros(1, 1, h, w)
    M[..., h // 2 - side // 2 : h // 2 - side // 2 + side, w // 4 : w // 4 + side] = 1
    assert inside[M.bool()].all()
    marked = []
    for seed in range(20):
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            noised = masked_forward(z, eps, M, torch.tensor([0]), scheduler)
            marked.append((pipe.denoiser(noised, torch.tensor([0]))[1].sigmoid() > 0.5)[M.bool()])
    smallest[side] = torch.cat(marked).float().mean().item()
print({side: round(share, 2) for side, share in smallest.items()})
checks.run(checks.check_06_smallest, smallest)
