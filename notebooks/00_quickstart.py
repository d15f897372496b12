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
# # 00 · Quickstart: a scan in, an anomaly map out
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/00_quickstart.ipynb)
#
# A network has learnt what normal brains look like. You give it the scan of a patient. Whatever it cannot believe, it replaces
# by what a normal brain would have there. The difference between the scan and this *healed* copy is a map of the
# abnormal: a tumour, a stroke, a scar. That is **MAD-AD**, masked diffusion for anomaly detection
# ([Beizaee et al., IPMI 2025](https://arxiv.org/abs/2502.16943)), and this notebook uses it from end to end.
#
# **What you will learn**
#
# - how to get from a NIfTI file to an anomaly map, in three lines;
# - what the pipeline gives back, and what a map means;
# - how to save a map so that it lies exactly over your scan in any viewer;
# - how to do the same with a scan of your own, and from the command line.
#
# **What it needs:** nothing but this package; no download. The patients here are **simulated** from the MNI152
# template, so that we know exactly where each lesion is. No real patient appears in this notebook.
#
# **How long it takes:** one to two minutes on two CPU cores; about a minute on a Colab T4 with the full settings (estimated, not measured).
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
# `FULL_SETTINGS` is the one switch of this notebook. `False` simulates scans with voxels of 2 mm, which is quick. `True`
# simulates them with 1 mm, as a T1 scan from a hospital has them. A GPU makes it faster but is not needed.

# %%
# NBVAL_IGNORE_OUTPUT
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import diffusers
import nibabel as nib
import numpy as np
import torch

from madad_lite import MadAdPipeline, plotting
from madad_lite.cli import main as madad
from madad_lite.plotting import widgets
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject

FULL_SETTINGS = False  # True: scans with voxels of 1 mm
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

diffusers.utils.logging.disable_progress_bar()
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)  # put a folder of yours here to keep the results
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__},", end=" ")
print(f"diffusers {diffusers.__version__}")
print("GPU:", torch.cuda.get_device_name() if DEVICE == "cuda" else "none, the CPU does it all")

# %% [markdown]
# ## 2. A patient
#
# We simulate a patient with an old stroke of 30 mL and write the scan as a NIfTI file, the usual format for brain scans.
# From here on this file is all that the method gets. The second file, the mask of the true lesion, is for us: it tells
# us later whether the answer is right.

# %%
spacing = 1.0 if FULL_SETTINGS else 2.0  # mm
patient = simulate_subject(9101, lesion="stroke", volume_ml=30, spacing=spacing)
scan, true_lesion = WORK / "patient_T1w.nii.gz", WORK / "patient_lesion.nii.gz"
save_nifti(patient.images["t1"], scan)
save_nifti(patient.lesion, true_lesion)
assert nib.load(scan).shape == nib.load(true_lesion).shape
assert abs(patient.info["volume_ml"] - 30) < 3

# %% [markdown]
# The scan in three planes. In a T1 scan white matter is bright, grey matter is darker, and fluid is nearly black. An old
# stroke has turned into fluid, so it is dark too. Can you see it? (`point` is where the three planes meet, in
# millimetres. We cheat and take the middle of the true lesion.)

# %%
voxels = np.argwhere(np.asarray(patient.lesion.dataobj) > 0)
middle = nib.affines.apply_affine(patient.lesion.affine, voxels.mean(0))  # voxel -> mm
plotting.volume_view(scan, point=middle, title="A simulated patient, T1")

# %% [markdown]
# ## 3. The whole method in three lines
#
# `from_pretrained("t1")` loads the weights that come with this package, for T1 scans. Calling the pipeline on the file does
# the rest: it brings the scan to standard space (that of MNI152, an average head), cuts it into slices, heals them and compares. The `generator`
# fixes the random numbers, so that you get the same map each time. On a CPU this takes some ten seconds.

# %%
pipe = MadAdPipeline.from_pretrained("t1").to(DEVICE)
out = pipe(scan, generator=torch.Generator().manual_seed(0), progress=False)
out.anomaly_map.shape

# %% [markdown]
# Done. The rest of this notebook looks at what happened.
#
# ## 4. What came out
#
# `out` holds everything that was computed, as tensors of $N$ axial slices of $H \times W$ pixels:
#
# | name | symbol | shape | what it is |
# |---|---|---|---|
# | `out.image` | $x_0$ | $N \times 1 \times H \times W$ | the scan's slices, in $[-1, 1]$ |
# | `out.reconstruction` | $x_\text{rec}$ | $N \times 1 \times H \times W$ | encoded and decoded, not healed |
# | `out.healed` | $\hat x_0$ | $N \times 1 \times H \times W$ | the normal counterpart |
# | `out.anomaly_map` | $a$ | $N \times 1 \times H \times W$ | how abnormal each pixel is, in $[0, 1]$ |
# | `out.mask_probability` | $\hat M$ | $S \times N \times 1 \times h \times w$ | what the network took for noise, in $S$ steps |
# | `out.brain` | | $N \times 1 \times H \times W$ | which pixels are brain |
#
# The small sizes $h \times w$ are those of the *latent*, a compressed slice: one latent cell stands for a patch of
# 4 x 4 pixels, that is 8 x 8 mm.

# %%
N, _, H, W = out.anomaly_map.shape
S, _, _, h, w = out.mask_probability.shape
print(f"{N} slices of {H} x {W} pixels; {S} steps on latents of {h} x {w} cells")
assert out.image.shape == out.healed.shape == out.reconstruction.shape == (N, 1, H, W)
assert (H / h, W / w) == (4, 4)
assert 0 <= out.anomaly_map.min() and out.anomaly_map.max() <= 1
assert not out.anomaly_map[~out.brain].any()  # nothing outside the brain
assert (out.healed[~out.brain] == -1).all()  # the background is -1

# %% [markdown]
# ## 5. Look at it
#
# We take the slice with the largest lesion, and outline the true lesion in cyan. To bring the lesion mask
# onto the slices we prepare the scan once more, now with the mask beside it.

# %%
truth = pipe.prepare(scan, lesion=true_lesion).lesion  # (N, H, W)
k = int(truth.sum((1, 2)).argmax())
assert truth.shape == (N, H, W) and truth[k].any()
plotting.detection_figure(out, k, truth[k])

# %% [markdown]
# From left to right:
#
# 1. the **scan**;
# 2. its **reconstruction**: compressed into a latent and decoded again, nothing else. It is slightly smoother than the scan;
# 3. the **healed** slice: the same latent, after the network has replaced what it took for noise;
# 4. the **anomaly map**: where the healed slice differs from the scan, and the network doubted the scan;
# 5. the map over the scan.
#
# A picture of one slice convinces quickly; a number over all slices is fairer. Is the score inside the true lesion higher
# than in the rest of this brain?

# %%
# NBVAL_IGNORE_OUTPUT
score, inside = out.anomaly_map[:, 0].numpy(), out.brain[:, 0].numpy()
in_lesion, elsewhere = score[truth].mean(), score[inside & ~truth].mean()
print(f"mean score: {in_lesion:.2f} in the lesion, {elsewhere:.3f} in the rest of the brain")
assert in_lesion > elsewhere

# %% [markdown]
# What do the numbers of the map mean? The difference between the healed slice $\hat x_0$ and the scan $x_0$ is squared, clipped at $\gamma = 0.2$ and divided
# by it, so that it ends at 1. It counts as much as the network took the place for noise, between 0 and 1, and is smoothed a little. (The weight is this
# package's addition to the paper; [notebook 06](06_mask_visualization.ipynb) shows the healing step by step, [notebook 08](08_paper_and_code.ipynb) compares scores.)
#
# And why does a network that knows normal brains mark a stroke? It was trained to find noise hidden in the latents of normal brains, and in half of
# its training slices also regions of foreign tissue. No disease was imitated; it learnt to doubt what does not belong. [Notebook 05](05_training.ipynb) tells that story.
#
# ## 6. From the map to a mask
#
# The map says *how abnormal*. To say *lesion or not* we need a threshold. It must come from other patients, not from this
# one: choosing it here, with the truth on the table, would be looking up the answer. The weights carry a threshold that was
# chosen on validation subjects; notebook 07 shows how that is done. (Weights of your own may have none yet; then 0.5 is a start.)

# %%
threshold = pipe.config.decision_threshold or 0.5
plotting.threshold_figure(out.image[k], out.anomaly_map[k], threshold, truth[k])

# %% [markdown]
# White is hit, orange is a false alarm, blue was missed. The *Dice coefficient* above the right picture is the overlap of what was
# found, $F$, and the lesion, $L$: $\mathrm{Dice} = 2\,|F \cap L| \,/\, (|F| + |L|)$. It is 1 for a perfect answer and 0 for none.
#
# ## 7. Back to the scan's own space
#
# The slices lie on a grid of their own, in standard space. For a doctor or a viewer the map must lie exactly over the
# scan: same number of voxels, same position. `to_nifti` takes it back, and we save it.

# %%
# NBVAL_IGNORE_OUTPUT
anomaly = out.to_nifti("anomaly_map")  # a nibabel image
save_nifti(anomaly, WORK / "patient_anomaly.nii.gz")
save_nifti(out.to_nifti("healed"), WORK / "patient_healed.nii.gz")
original = nib.load(scan)
assert anomaly.shape == original.shape
assert np.array_equal(anomaly.affine, original.affine)  # exactly, not almost

voxel_ml = abs(np.linalg.det(original.affine[:3, :3])) / 1000  # 2 x 2 x 2 mm = 0.008 mL
found_ml = (anomaly.get_fdata() >= threshold).sum() * voxel_ml
true_ml = (np.asarray(patient.lesion.dataobj) > 0).sum() * voxel_ml
print(f"above the threshold: {found_ml:.0f} mL; the lesion: {true_ml:.0f} mL")
assert found_ml > 0
plotting.volume_view(scan, anomaly, title="The anomaly map, over the scan in its own space")

# %% [markdown]
# The cross is where the map is highest. You can open `patient_T1w.nii.gz` and `patient_anomaly.nii.gz` together in any viewer
# (FSLeyes, ITK-SNAP, 3D Slicer, MRIcroGL) and they will fit. In scan space one can also measure, in millilitres. And no file is ever
# overwritten by accident: saving under the same name again is refused, unless you say `force=True`.
#
# ## 8. One page about the scan
#
# `scan_report` puts the most suspicious slices, the score along the brain and the whole volume on one page.

# %%
plotting.scan_report(out, "patient_T1w", truth=truth)

# %% [markdown]
# ## 9. And somebody healthy?
#
# A method that finds something in everybody finds nothing. So here is a healthy subject, through the same three
# lines.

# %%
# NBVAL_IGNORE_OUTPUT
healthy = simulate_subject(9102, spacing=spacing)
save_nifti(healthy.images["t1"], WORK / "healthy_T1w.nii.gz")
calm = pipe(WORK / "healthy_T1w.nii.gz", generator=torch.Generator().manual_seed(0), progress=False)
level = {
    name: o.anomaly_map[o.brain].mean().item() for name, o in (("patient", out), ("healthy", calm))
}
print(f"mean score: patient {level['patient']:.4f}, healthy subject {level['healthy']:.4f}")
assert level["healthy"] < level["patient"]
plotting.detection_figure(calm, int(calm.anomaly_map.sum((1, 2, 3)).argmax()))

# %% [markdown]
# This is the *worst* slice of the healthy brain, and there is hardly anything. Where a map glows although there is no lesion, as beside the patient's stroke above, it is a
# **false alarm**. On real scans there are more, most often at the surface of the brain and around fluid, where people differ most.
# One patient and one healthy subject prove nothing; notebook 07 counts over many.
#
# Both in one widget: choose a subject with one click, then a slice and a threshold. Dice, false alarms and the point on the precision-recall curve (which share of what is found is lesion, and which share of the lesion is found) belong to the whole volume and move together. (It
# needs a running kernel; what you see without one is a picture of it.)

# %%
# NBVAL_IGNORE_OUTPUT
subjects = {"patient": (out, truth), "healthy": (calm, np.zeros(calm.image.shape[:1] + (H, W)))}
widgets.patient_explorer(subjects, threshold)

# %% [markdown]
# ## 10. Your own scan
#
# [Notebook 09](09_own_scan.ipynb) does this with care, from DICOM on. In short: put the path of your scan here, `.nii` or `.nii.gz`. (In Colab: the folder symbol on the left, then *Upload*.) As long as it is
# `None`, the simulated patient stands in.

# %%
MY_SCAN = None  # such as "/content/my_T1.nii.gz"

mine = pipe(MY_SCAN, generator=torch.Generator().manual_seed(0), progress=False) if MY_SCAN else out
save_nifti(mine.to_nifti("anomaly_map"), WORK / "mine_anomaly.nii.gz", force=True)
every = slice(None, None, 6)  # each sixth slice
heights = plotting.slice_names(mine)[every]
plotting.slice_grid(mine.image[every], overlay=mine.anomaly_map[every], titles=heights, columns=6)

# %% [markdown]
# What your scan should be like:
#
# - **T1-weighted**, without contrast agent. For T1 with it, T2 and FLAIR take the weights `t1ce`, `t2` and `flair`, which are shipped too;
#   any other contrast needs weights of its own.
# - **3-D**, in any orientation and voxel size. If it does not lie in MNI152 standard space yet, it is registered first (that needs
#   SimpleITK, which the extra `prep` installs, and takes a few seconds).
# - **With or without the skull.** A whole head's brain is found by deepbet, a network that the extra `prep` installs (without it the template's brain is cut
#   out, which is rough). Or give a mask: `pipe(scan, brain="mask.nii.gz")`.
# - The shipped weights are small, and were trained on healthy volunteers of the public IXI collection and on simulated subjects. Expect
#   false alarms. **This is for teaching and research; nothing here is fit for diagnosis.**
#
# ## 11. From the command line
#
# The same without any Python, for one scan or a whole folder:
#
#     madad detect patient_T1w.nii.gz --out results
#
# It writes the map (`patient_T1w_anomaly.nii.gz`), the healed scan (`_healed.nii.gz`), a page with pictures (`_report.png`), a table of what
# lies above the threshold (`_lesions.csv`), and how it was made (`.json`). Here we call the same command
# from Python, and check that it gives the map that we have.

# %%
# NBVAL_IGNORE_OUTPUT
with redirect_stdout(StringIO()) as said:
    status = madad(["detect", str(scan), "--out", str(WORK / "results")])
print(said.getvalue().replace(f"{WORK}/", ""))
assert status == 0
names = sorted(f.name for f in (WORK / "results").iterdir())
assert names == [
    "patient_T1w.json",
    "patient_T1w_anomaly.nii.gz",
    "patient_T1w_healed.nii.gz",
    "patient_T1w_lesions.csv",
    "patient_T1w_report.png",
]
from_cli = nib.load(WORK / "results" / names[1])
assert np.allclose(from_cli.get_fdata(), anomaly.get_fdata(), atol=1e-4)
names

# %% [markdown]
# ## 12. What to take with you
#
# - Three lines: load the pipeline, call it on a file, save `out.to_nifti("anomaly_map")`.
# - The map is the difference between the healed slice and the scan, weighted by the network's doubt.
# - Only what the network takes for noise is replaced; everything else stays as it is.
# - Look at healthy subjects too, before you believe a map.
#
# **Next:** [01_diffusion](01_diffusion.ipynb) builds a diffusion model from nothing; [02_data_preparation](02_data_preparation.ipynb) shows what happens between the file and the slices;
# [06_mask_visualization](06_mask_visualization.ipynb) slows the healing down; [07_evaluation](07_evaluation.ipynb) measures how good it is.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/00_quickstart](solutions/00_quickstart.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): no chance
#
# The healing draws random numbers; $\eta$ (`eta`) says how much of the noise in each step is drawn afresh. With which `eta`, 0, 0.5 or 1, do two runs give the same
# map although no generator is given?

# %%
eta = None  # your answer

# %%
checks.run(checks.check_00_eta, eta)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Then try it: `pipe(out.image[[k]], brain=out.brain[[k]], eta=..., progress=False)`, twice.
#
# </details>

# %% [markdown]
# ### Exercise 2 (code): the Dice coefficient
#
# Write the number that stands over the picture of section 6, $2\,|F \cap L| / (|F| + |L|)$.


# %%
def dice(found, lesion):
    """found, lesion: boolean arrays of one shape. Returns a float in [0, 1]."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_00_dice, dice)

# %% [markdown]
# *What you should see*: `dice((out.anomaly_map[k, 0] >= threshold).numpy(), truth[k])` gives the number over the right picture of section 6, 0.90.
#
# <details><summary>Hint 1</summary>
#
# `found & lesion` is true where both are; `.sum()` counts.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `2 * (found & lesion).sum() / (found.sum() + lesion.sum())`
#
# </details>

# %% [markdown]
# ### Exercise 3 (investigate): a smaller lesion
#
# Simulate the same patient (seed 9101) with strokes of 2, 5 and 10 mL, save each under another name, and run the pipeline. From which size on is the stroke found? Look with
# `plotting.detection_figure`, and count the millilitres above the threshold as in section 7.
#
# <details><summary>What to expect</summary>
#
# Of the 2 mL only 0.3 are marked; of the 5 mL 4.7 and of the 10 mL 9.6, with 1 to 2 mL of false alarms beside. One patient and one place: others are missed at these sizes (notebook 07 counts them). In the paper, too, the Dice is 15.5 % for small lesions and 64.1 % for large ones. [Notebook 06](06_mask_visualization.ipynb) shows why.
#
# </details>
