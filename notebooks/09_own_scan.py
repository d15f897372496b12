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
# # 09 · A scan of your own
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/09_own_scan.ipynb)
#
# The scans of the other notebooks were ready to use. Yours comes from a hospital's archive: a folder of DICOM files with several
# series, or a NIfTI file; a whole head with skull and scalp, in the scanner's own position. This notebook goes from there to a table
# of what was found, and stops wherever something can go wrong without an error message.
#
# **What you will learn**
#
# - how to get from DICOM files to one NIfTI file, and how to see that it is the right series;
# - how to check the brain mask, the step that decides about everything behind it;
# - how to read the table of found parts, and what it becomes at other thresholds;
# - what such a result does *not* say.
#
# **What it needs:** this package; no download. By default it works on a **simulated head** that it makes itself: a subject of the
# embedded cohort with a stroke, and a skull and a scalp drawn around it. No real patient appears in this notebook, and no scan of
# yours leaves the machine that it runs on (in Colab that is a machine of Google's: upload nothing that you may not share).
#
# **How long it takes:** under a minute on one CPU core.
#
# **Symbols** are those of [the notation page](../docs/notation.md), which also has a glossary.
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
# `SCAN` is the one thing to change: the path of a NIfTI file or of a DICOM folder of yours, or `"upload"` to choose files in Colab
# (DICOM as one `.zip`). `None` takes the simulated head. `CONTRAST` is the contrast of your scan: there are weights for `"t1"`, `"t1ce"` (with contrast agent), `"t2"` and `"flair"`.

# %%
# NBVAL_IGNORE_OUTPUT
import csv
import tempfile
import zipfile
from pathlib import Path

import diffusers
import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from madad_lite import MadAdPipeline, plotting
from madad_lite.detection.finding import find_parts
from madad_lite.scans.contrast import LIKE, contrast_seen
from madad_lite.scans.dicom import dicom_to_nifti, holds_dicom
from madad_lite.scans.nifti import brain_image, save_nifti
from madad_lite.simulation.cohort import simulate_subject

SCAN = None  # "my/scan.nii.gz", "my/dicom/folder", or "upload" in Colab
CONTRAST = "t1"
BRAIN = "auto"  # or a mask file of yours; "template": without deepbet, for T1 heads only

diffusers.utils.logging.disable_progress_bar()
folder = tempfile.TemporaryDirectory()  # removed when the kernel stops
WORK = Path(folder.name)  # put a folder of yours here to keep the results
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
print(f"madad_lite {madad_lite.__version__}, torch {torch.__version__}, on {DEVICE}")

# %% [markdown]
# ## 2. The simulated head
#
# The cohort's scans have no skull. We draw one: outwards from the brain a thin layer of fluid, 6 mm of bone, which is dark in every
# contrast, then 7 mm of scalp, whose fat is brighter than the brain in T1; a neck below; and the noise of a scanner everywhere, in the air too.
# Then we put the head where a scanner would have it, not in the middle of standard space. `distance` is how far each voxel is from the brain, in mm.


# %%
def simulated_head(seed, volume_ml=40.0):
    """A whole T1 head, its brain and its stroke: NIfTI images of 2 mm. Simulated."""
    subject = simulate_subject(seed, lesion="stroke", volume_ml=volume_ml)
    affine = subject.brain.affine
    room = 14  # voxels more on each side: the head is larger than the brain
    brain, lesion, t1 = (
        np.pad(np.asarray(image.dataobj), room).astype(np.float32)
        for image in (subject.brain, subject.lesion, subject.images["t1"])
    )
    affine = affine @ nib.affines.from_matvec(np.eye(3), [-room] * 3)
    distance = ndimage.distance_transform_edt(brain == 0) * 2
    x, y, z = np.moveaxis(
        nib.affines.apply_affine(affine, np.moveaxis(np.indices(t1.shape), 0, -1)), -1, 0
    )
    white = np.percentile(t1[brain > 0], 90)
    head = np.where((distance > 2) & (distance <= 8), 0.08 * white, 0)
    head[(distance > 8) & (distance <= 15) & (z > -70)] = 1.2 * white
    head[(x**2 + (y + 25) ** 2 < 50**2) & (z < -40) & (distance > 6)] = 0.6 * white
    head = ndimage.gaussian_filter(np.where(brain > 0, t1, head), 0.4)
    noise = np.random.default_rng(seed).normal(0, 0.02 * white, (2, *head.shape))
    head = np.hypot(head + noise[0], noise[1]).astype(np.float32)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, -0.08, 0.06), [4, 30, -12])
    return [nib.Nifti1Image(a, turn @ affine) for a in (head, brain, lesion)]


# %%
truth = None
if SCAN is None:
    head, true_brain, truth = simulated_head(9101)
    save_nifti(head, WORK / "simulated_head_T1w.nii.gz")
    print("head of", head.shape, "voxels;", "simulated")
    assert (np.asarray(head.dataobj)[0] > 0).mean() > 0.9  # air is noise, not zero

# %% [markdown]
# ## 3. Your files
#
# One cell for all three ways. In Colab `files.upload()` shows a button. A DICOM folder goes through `dicom_to_nifti`: it converts
# the examination with dcm2niix and takes **one** series, the one whose description names the contrast. It says which, and why it left the
# others; read that line. Localisers, short series and series with missing slices are never taken.

# %%
# NBVAL_IGNORE_OUTPUT
if SCAN == "upload":
    from google.colab import files

    (name,) = files.upload()
    SCAN = WORK / name
    if name.endswith(".zip"):
        SCAN = WORK / "dicom"
        zipfile.ZipFile(name).extractall(SCAN)
    else:
        Path(name).rename(SCAN)

scan = Path(SCAN or WORK / "simulated_head_T1w.nii.gz")
if scan.is_dir() and holds_dicom(scan):
    # in Colab, once: !pip install -q dcm2niix
    _, said = dicom_to_nifti(
        scan, WORK / "own_scan.nii.gz", [CONTRAST]
    )  # series="4" takes another one
    scan = WORK / "own_scan.nii.gz"
    print(said)
print("the scan:", scan.name)

# %% [markdown]
# Before anything else, **look at it**. Is it a brain? Is the nose in front and the top of the head at the top? Is all of the brain there? What
# looks wrong here will be wrong in everything below. (The letters L and R tell the patient's left and right.)

# %%
image = nib.load(scan)
voxel = np.linalg.norm(image.affine[:3, :3], axis=0)
print(
    "shape", image.shape, " voxels of", voxel.round(2), "mm", " axes", nib.aff2axcodes(image.affine)
)
assert len(image.shape) == 3, "several volumes in one file: choose one"
plotting.volume_view(image, title="The scan as it came" + " (simulated head)" * (truth is not None))

# %% [markdown]
# ## 4. The brain, and nothing but the brain
#
# The weights have seen brains only. An eye or a piece of scalp that is left in looks to them like the largest lesion ever, so the mask decides.
# `pipe.prepare` finds the brain (with the network of deepbet where the scan has a skull), registers it to standard space and cuts slices. It refuses a brain of an impossible
# size, between 0.8 and 2.1 litres being possible, but not every bad mask has an impossible size.

# %%
# NBVAL_IGNORE_OUTPUT
pipe = MadAdPipeline.from_pretrained(CONTRAST).to(DEVICE)
prepared = pipe.prepare(scan, brain=BRAIN)
mask = brain_image(prepared)
print(f"brain found by: {prepared.brain_source}; {prepared.brain_ml / 1000:.2f} litres")
assert 800 < prepared.brain_ml < 2100
if not 1000 < prepared.brain_ml < 1900:
    print("CAREFUL: few adults have such a brain; look twice at the next picture")

# %% [markdown]
# The mask in three planes, in colour over the scan. Check: **eyes**, **scalp** and **neck** are outside; the **cerebellum** and the **top** are inside; and the
# **lesion** is inside, too. (Some tools take a dark stroke at the surface for background. What lies outside the mask cannot be found.)

# %%
plotting.volume_view(image, mask, title="What is taken for brain", vmax=1.5)

# %% [markdown]
# For the simulated head we know the brain, so we can also count. The overlap of the mask that was found, $F$, and the true one, $L$, is measured by their Dice coefficient, $2\,|F \cap L| / (|F| + |L|)$.

# %%
# NBVAL_IGNORE_OUTPUT
if truth is not None:
    a, b = (np.asarray(m.dataobj) > 0 for m in (mask, true_brain))
    stroke = np.asarray(truth.dataobj) > 0
    dice, kept = 2 * (a & b).sum() / (a.sum() + b.sum()), (a & stroke).sum() / stroke.sum()
    print(f"overlap with the true brain (Dice): {dice:.3f}; {kept:.0%} of the stroke are inside")
    assert dice > 0.9 and kept > 0.9

# %% [markdown]
# ### Does the contrast fit?
#
# Weights for T1 make a convincing map of a FLAIR scan, and it means nothing. The order of the tissues' brightness tells: in T1 white matter is
# brighter than grey, in FLAIR it is not, in T2 fluid is brightest. `madad detect` refuses a scan that does not fit its weights. T1 with and without contrast agent
# have the same order: which it is, you must know.

# %%
seen = contrast_seen(prepared)
print(f"the scan looks like: {seen}; the weights are for: {pipe.config.contrast}")
assert seen in (None, LIKE[CONTRAST]), "choose other weights, or another series"

# %% [markdown]
# ### Is it where the template is?
#
# Slices after registration. In all scans the ventricles lie in the same slices, and the brain stands upright.

# %%
every = slice(4, None, max(1, len(prepared.image) // 11))
names = [f"z = {-62 + 2 * k:+d} mm" for k in prepared.geometry.slice_index]
plotting.slice_grid(prepared.image[every], titles=names[every], columns=6)

# %% [markdown]
# ## 5. Detect
#
# As in notebook 00: heal, compare. The seed is fixed, so that the map is the same each time.

# %%
out = pipe(prepared, generator=torch.Generator().manual_seed(0), progress=False)
anomaly = out.to_nifti("anomaly_map")
assert anomaly.shape == image.shape and np.array_equal(anomaly.affine, image.affine)
plotting.volume_view(image, anomaly, title="The anomaly map, over the scan in its own space")

# %% [markdown]
# ## 6. What was found
#
# `find_parts` takes what lies at or above the weights' **decision threshold**, which was chosen on validation subjects, and lists its connected parts: volume, place and
# highest score. Parts of less than 0.1 mL are counted, not listed. The place is in standard space: $x$ to the patient's right, $y$ to the front, $z$ up, in mm from MNI152's origin
# (the anterior commissure, deep in the brain); so it can be looked up in an atlas.

# %%
# NBVAL_IGNORE_OUTPUT
threshold = pipe.config.decision_threshold
found = find_parts(anomaly, prepared.geometry.to_mni, threshold)
print(found.sentence)
assert found.volume_ml > 1 or truth is None
found.write_csv(WORK / "lesions.csv")
for row in csv.reader((WORK / "lesions.csv").open()):
    print("  ".join(f"{value:>9}" for value in row))

# %% [markdown]
# For the simulated head: is the largest part the stroke?

# %%
# NBVAL_IGNORE_OUTPUT
if truth is not None:
    where = prepared.geometry.to_mni @ truth.affine
    centre = nib.affines.apply_affine(where, np.argwhere(stroke).mean(0))
    apart = np.linalg.norm(centre - found.parts[0].centre)
    marked = np.asarray(found.mask.dataobj) > 0
    print(f"the largest part's centre lies {apart:.1f} mm from the stroke's;", end=" ")
    print(f"{stroke[marked].mean():.0%} of what was found is stroke,", end=" ")
    print(f"and {marked[stroke].mean():.0%} of the stroke was found")
    assert apart < 15 and stroke[marked].mean() > 0.5

# %% [markdown]
# ## 7. Leaf through it
#
# [ipyniivue](https://github.com/niivue/ipyniivue) is a viewer inside the notebook: turn the wheel to leaf, drag the right mouse button to change brightness. It needs
# WebGL and a running kernel, and is not installed with this package (`pip install ipyniivue`). Without it you get the planes through the largest part, and
# the files below open in any viewer (FSLeyes, ITK-SNAP, 3D Slicer, MRIcroGL).

# %%
# NBVAL_IGNORE_OUTPUT
save_nifti(anomaly, WORK / "own_scan_anomaly.nii.gz")
save_nifti(found.mask, WORK / "own_scan_mask.nii.gz")
try:
    from ipyniivue import NiiVue

    viewer = NiiVue()
    layers = [scan, WORK / "own_scan_anomaly.nii.gz"]
    looks = [
        {"colormap": "gray"},
        {"colormap": "inferno", "opacity": 0.6, "cal_min": 0.1, "cal_max": 1},
    ]
    viewer.load_volumes([{"path": str(p)} | look for p, look in zip(layers, looks)])
except ImportError:
    middle = found.parts[0].centre if found.parts else (0, -18, 14)  # MNI mm
    point = nib.affines.apply_affine(np.linalg.inv(prepared.geometry.to_mni), middle)
    viewer = plotting.volume_view(image, found.mask, point=point, title="The largest part")
viewer

# %% [markdown]
# ## 8. Other thresholds
#
# The threshold is a choice. A lower one finds more, of lesion and of everything else. So look at how the answer changes before you believe it: a finding that is there at every threshold is
# sturdier than one that comes and goes.

# %%
# NBVAL_IGNORE_OUTPUT
table = {}
for t in sorted({0.2, 0.3, threshold, 0.6, 0.8}):
    at = find_parts(anomaly, prepared.geometry.to_mni, t)
    table[t] = at.volume_ml
    print(at.sentence + " <- decides" * (t == threshold))

# %%
volumes = list(table.values())
assert volumes == sorted(volumes, reverse=True)  # a higher threshold never finds more
k = int(out.anomaly_map.sum((1, 2, 3)).argmax())
plotting.threshold_figure(out.image[k], out.anomaly_map[k], threshold)

# %%
plotting.threshold_figure(out.image[k], out.anomaly_map[k], 0.2)

# %% [markdown]
# ## 9. What this does not say
#
# - **Not what it is.** The map says *unlike the brains of the training*: a stroke, a tumour, an old scar, a large ventricle, a variant, a movement of the head, a bad mask.
# - **Nothing found does not mean healthy.** Small and faint lesions are missed often: [the page of results](../docs/results.md) has the tables. What lies outside the brain mask was never looked at.
# - **Not how likely it is.** A score of 0.8 is no probability.
# - **Not the true volume.** A map is smoothed and thresholded; half of a stroke may lie below.
# - **Nothing for other scanners, ages and contrasts by itself.** The only real scans that any weights were trained on are T1 scans of healthy adults, of one hospital and its one scanner (a part of IXI). `flair`, `t2` and `t1ce` saw no real scan of their contrast, only these, recoloured, and simulated ones.
#   On another scanner's T1, up to 6.3 % of the brain outside lesions was marked ([other scanners](../docs/data.md#other-scanners)). Try scans of healthy people from *your* scanner first: what is found in them is what a false
#   alarm looks like.
# - **No diagnosis.** This is teaching and research software.
#
# ## 10. The same from the command line
#
#     madad detect my_scan.nii.gz --out results --weights auto --mask --keep-brain
#     madad detect my/dicom/folder --out results --weights t1
#
# `results` then holds a report, the map, the healed scan, the table, and with these options the masks of the parts and of the brain. `--series` chooses among the series of a DICOM folder, `--brain` takes a mask of yours.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. The solutions are below each exercise.

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): a mask that is too large
#
# Give the brain a border: everything within 6 mm of it counts as brain, so that fluid and bone are in. What happens to the volume that is found: `"less"`, `"the same"` (within 10 %), or `"more"`?

# %%
guess = None  # your answer: "less", "the same" or "more"

# %%
with_border_ml = None
if guess is not None:
    steps = int(np.ceil(6 / voxel).min())
    wide = ndimage.binary_dilation(np.asarray(mask.dataobj) > 0, iterations=steps)
    border = nib.Nifti1Image(wide.astype(np.uint8), image.affine)
    save_nifti(border, WORK / "wide.nii.gz", force=True)
    draw = torch.Generator().manual_seed(0)
    worse = pipe(scan, brain=str(WORK / "wide.nii.gz"), generator=draw, progress=False)
    more = find_parts(worse.to_nifti("anomaly_map"), worse.prepared.geometry.to_mni, threshold)
    with_border_ml = more.volume_ml
    print(f"with the border: {with_border_ml:.1f} mL, without: {found.volume_ml:.1f} mL")
checks.run(checks.check_09_border, guess, with_border_ml, found.volume_ml)

# %% [markdown]
# <details><summary>Hint</summary>
#
# What does the network make of fluid and bone, which it never saw as brain? And what happens to the median of the brain when dark bone is counted in?
#
# </details>
# <details><summary>Solution</summary>
#
# Run the check with any answer: it prints both volumes. Two things pull in opposite directions. Fluid and bone that are counted as brain are unlike anything in the training, and
# some of that is "found"; and the median of the brain, by which the scan's brightness is scaled, moves, and with it everything inside.
#
# </details>

# %% [markdown]
# ### Exercise 2 (code): the side of a finding
#
# Doctors ask first: left or right? Write `side(part)`, which gives `"left"`, `"right"` or `"middle"` (within 5 mm of it) for a part of `found.parts`.


# %%
def side(part):
    """part: one of found.parts; part.centre: its (x, y, z) in MNI152's mm. Returns a word."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_09_side, side)

# %% [markdown]
# *What you should see*: the stroke of the simulated head, `side(found.parts[0])`, is on the `"right"`; in the pictures above it lies on the side with the R.
#
# <details><summary>Hint 1</summary>
#
# `part.centre[0]` is $x$, and section 6 says where it grows to.
#
# </details>
# <details><summary>Hint 2</summary>
#
# First the middle: `abs(x) <= 5`. Then the sign of $x$.
#
# </details>
# <details><summary>Solution</summary>
#
#     def side(part):
#         x = part.centre[0]  # MNI152: to the patient's right
#         return "middle" if abs(x) <= 5 else "right" if x > 0 else "left"
#
# </details>

# %% [markdown]
# ### Exercise 3 (investigate): thick slices
#
# A scan in a hospital often has slices of 6 mm. Make one of ours: average every three slices of the scan (2 mm each) and write the result with a fitting affine to `WORK / "thick.nii.gz"`. How many mL are
# found in it, at the same threshold? Give the number, and look at the map: is the same lesion found?

# %%
thick_ml = None  # your answer, from find_parts on the map of thick.nii.gz

# %%
thick, ours_ml = None, None
if thick_ml is not None:
    thick = nib.load(WORK / "thick.nii.gz")
    again = pipe(WORK / "thick.nii.gz", generator=torch.Generator().manual_seed(0), progress=False)
    ours = find_parts(again.to_nifti("anomaly_map"), again.prepared.geometry.to_mni, threshold)
    ours_ml = ours.volume_ml
checks.run(checks.check_09_thick, thick_ml, thick, image, ours_ml)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `data[:, :, :n].reshape(*data.shape[:2], -1, 3).mean(-1)` averages threes. In the affine the third column becomes three times as long, and the origin moves: the first new slice lies where the *second* old one lay.
#
# </details>
# <details><summary>Solution</summary>
#
#     data = image.get_fdata()
#     n = data.shape[2] // 3 * 3
#     thick = data[:, :, :n].reshape(*data.shape[:2], -1, 3).mean(-1).astype(np.float32)
#     # the first new slice lies where the second old one lay
#     affine = image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1.0]])
#     save_nifti(nib.Nifti1Image(thick, affine), WORK / "thick.nii.gz")
#     again = pipe(WORK / "thick.nii.gz", generator=torch.Generator().manual_seed(0), progress=False)
#     parts = find_parts(again.to_nifti("anomaly_map"), again.prepared.geometry.to_mni, threshold)
#     thick_ml = parts.volume_ml
#
# </details>
