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
# # 02 · Data preparation: from scans to slices
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/madad-lite/madad-lite/blob/main/notebooks/02_data_preparation.ipynb)
#
# Two scanners, two hospitals, two people: their scans differ in size, in position, in brightness, even in the order in which
# the voxels are stored. A network that is to learn what a *normal brain* looks like must not waste its strength on any of that.
# So every scan is brought to one standard form first. Most failures of a finished system begin here, and most of them can be
# seen by eye, if you look.
#
# **What you will learn**
#
# - what a NIfTI file holds, and how voxels become millimetres;
# - orientation, registration, brain masks and normalisation, each with a check that it worked;
# - how to split data by subject, and why splitting by slice is cheating;
# - quality control by eye and by number;
# - how to bring a result back to the scan, exactly.
#
# **What it needs:** this package with its extra `prep` (SimpleITK, for the registration); no download. All subjects are
# **simulated** from the MNI152 template. No real patient appears in this notebook.
#
# **How long it takes:** about a minute on two CPU cores; the same on a Colab T4, for nothing here uses a GPU. With the full settings
# about five minutes (estimated, not measured).
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
# `FULL_SETTINGS = True` simulates voxels of 1 mm instead of 2 mm and more subjects, and uses all cores.

# %%
# NBVAL_IGNORE_OUTPUT
import csv
import json
import shutil
import tempfile
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from torch.utils.data import DataLoader

from madad_lite import plotting
from madad_lite.plotting import widgets
from madad_lite.scans.find import find_scans
from madad_lite.scans.grid import Geometry, Grid
from madad_lite.scans.nifti import load_volume, return_to_scan, save_nifti
from madad_lite.scans.prepare import mask_overlap, prepare_volume, register_to_mni
from madad_lite.scans.registration import template
from madad_lite.simulation.cohort import simulate_subject, write_cohort
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import prepare_folder

FULL_SETTINGS = False  # True: finer voxels, more subjects, all cores
WORKERS = None if FULL_SETTINGS else 1
folder = (
    tempfile.TemporaryDirectory()
)  # everything this notebook writes; removed when the kernel stops
WORK = Path(folder.name)
print(f"madad_lite {madad_lite.__version__}, nibabel {nib.__version__}, numpy {np.__version__}")

# %% [markdown]
# ## 2. What a NIfTI file holds
#
# NIfTI (`.nii`, or `.nii.gz` when compressed) is the usual format for brain scans in research. It holds three things: an **array** of
# voxels, a matrix called the **affine** that says where the voxels are, and a **header** with the rest (data type, units, scaling).
# The affine $A$ turns voxel indices $(i, j, k)$ into a position $(x, y, z)$ in millimetres:
#
# $$ \begin{pmatrix} x \\ y \\ z \\ 1 \end{pmatrix} = A \begin{pmatrix} i \\ j \\ k \\ 1 \end{pmatrix}. $$
#
# In NIfTI, $x$ grows to the patient's **right**, $y$ to the front (**anterior**), $z$ to the top (**superior**): in short RAS+. The
# lengths of the first three columns of $A$ are the sides of a voxel. We simulate one subject and look. (Many headers leave the unit open, `unknown`; millimetres are
# meant then.)

# %%
subject = simulate_subject(9202, spacing=2.0)
scan = WORK / "subject_T1w.nii.gz"
save_nifti(subject.images["t1"], scan)
image = nib.load(scan)  # reads the header; the voxels come when they are asked for
data, A = np.asarray(image.dataobj), image.affine
print(
    "array:",
    data.shape,
    " stored as",
    image.get_data_dtype(),
    " unit:",
    image.header.get_xyzt_units()[0],
)

ijk = np.array([10, 20, 30])
xyz = (A @ [*ijk, 1])[:3]  # by hand
assert np.allclose(xyz, apply_affine(A, ijk))  # and with nibabel
sides = np.linalg.norm(A[:3, :3], axis=0)
assert np.allclose(sides, 2.0) and np.allclose(sides, image.header.get_zooms())
print("voxel", ijk.tolist(), "lies at", xyz.tolist(), "mm; a voxel is", sides.tolist(), "mm")
plotting.volume_view(scan, point=(0, -18, 14), title="A simulated subject, T1")

# %% [markdown]
# Three planes through one point, given in millimetres. Drag them through the brain. (It needs a running kernel; the picture above
# is the one that it starts with.)

# %%
# NBVAL_IGNORE_OUTPUT
widgets.explorer(
    lambda x, y, z: plotting.volume_view(scan, point=(x, y, z), title="A simulated subject, T1"),
    x=ipywidgets.IntSlider(0, -70, 70, 2, description="x (right)", continuous_update=False),
    y=ipywidgets.IntSlider(-18, -100, 70, 2, description="y (front)", continuous_update=False),
    z=ipywidgets.IntSlider(14, -60, 78, 2, description="z (top)", continuous_update=False),
)

# %% [markdown]
# ### Orientation: the same brain, stored in three ways
#
# Nothing says that the first axis of the array must run from left to right. Scanners differ. Here is our scan stored in
# three orders: the letters say where each axis *runs to* (R: right, A: anterior, S: superior, and L, P, I for their opposites).
# The arrays look quite different. Yet in millimetres they are one and the same brain, as long as array *and* affine are
# read together: `nib.as_closest_canonical` reorders the voxels to RAS, and gives the same array each time.

# %%
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), layout="constrained")
for ax, letters in zip(axes, ("RAS", "LPS", "PIR")):
    wanted = nib.orientations.axcodes2ornt(tuple(letters))
    version = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(A), wanted))
    assert "".join(nib.aff2axcodes(version.affine)) == letters
    ras = nib.as_closest_canonical(version)
    assert np.array_equal(np.asarray(ras.dataobj), data) and np.allclose(ras.affine, A)
    ax.imshow(np.asarray(version.dataobj)[:, :, version.shape[2] // 2], cmap="gray")
    ax.set(title=f"{letters}: {version.shape}", xticks=[], yticks=[])
plt.close(fig)
fig

# %% [markdown]
# **Beware of left and right.** A brain is almost symmetric. If a header lies about left and right, no picture will tell you. Never
# repair affines by guessing, and never flip arrays without flipping the affine.
#
# ## 3. A small cohort from two scanners
#
# We simulate two hospitals: site A scans with voxels of 2 mm, site B with 3 mm. Each has healthy subjects and a few patients.
# The files follow BIDS, a common way to name brain data. A table, `participants.tsv`, says who is who, and `dataset_description.json` says
# that all of this is simulated. The same seed always gives the same bytes, so that you can repeat everything here.

# %%
normal, patients = (12, 6) if FULL_SETTINGS else (4, 2)
spacings = {"A": 1.0 if FULL_SETTINGS else 2.0, "B": 3.0}  # mm
for seed, (site, spacing) in enumerate(spacings.items(), start=41):
    numbers = dict(normal=normal, patients=patients, spacing=spacing, seed=seed)
    write_cohort(WORK / f"site{site}", **numbers, progress=False)

for path in sorted((WORK / "siteA" / f"sub-{normal + patients:04d}").rglob("*.nii.gz")):
    print(path.relative_to(WORK))
people = list(
    csv.DictReader((WORK / "siteA" / "participants.tsv").read_text().splitlines(), delimiter="\t")
)
print(
    [
        f"{person['participant_id']} {person['lesion']}"
        for person in people
        if person["group"] == "patient"
    ]
)
assert len(people) == normal + patients
assert (
    "simulated"
    in json.loads((WORK / "siteA" / "dataset_description.json").read_text())["Name"].lower()
)

# %% [markdown]
# ## 4. Registration: everybody in the same place
#
# In a scanner heads lie as they lie: turned, shifted, tilted. **Registration** finds the transformation $R$ that brings a scan to
# a standard brain, the MNI152 template (an average of 152 people):
#
# $$ p_\text{MNI} = R\, p_\text{scan} = R A\, (i, j, k, 1)^\top . $$
#
# We use an *affine* $R$: shift, rotation, size and shear, 12 numbers. More would be worse: a transformation that can bend
# everything could bend a lesion away. The 12 numbers are found by maximising the *mutual information* of the two images,
# which asks only that equal tissues go with equal tissues; so the contrast may differ.
#
# To have something to find, we lay our subject askew: turned by 15 degrees, nodding by 10, and off by some centimetres. Only the
# affine changes, as if the head had been lying so.

# %%
a, b = np.deg2rad(15), np.deg2rad(10)
turn = np.array(
    [[np.cos(a), -np.sin(a), 0, 20], [np.sin(a), np.cos(a), 0, -30], [0, 0, 1, 25], [0, 0, 0, 1]]
)
nod = np.array(
    [[1, 0, 0, 0], [0, np.cos(b), -np.sin(b), 0], [0, np.sin(b), np.cos(b), 0], [0, 0, 0, 1]]
)
movement = nod @ turn  # mm -> mm
askew = WORK / "askew_T1w.nii.gz"
save_nifti(nib.Nifti1Image(data.astype(np.float32), movement @ A), askew)
save_nifti(template("t1"), WORK / "template.nii.gz")

# %% [markdown]
# `prepare_volume` is the one function that does everything in this notebook to one scan. First without registration, then with it.
# The cyan line is the outline of the template's brain.

# %%
mni = prepare_volume(WORK / "template.nii.gz", register=False)  # the template's own slices
raw = prepare_volume(askew, register=False)  # the affine is trusted
registered = prepare_volume(askew, register=True)


def at_height(prepared, k):
    """The slice at height k of the grid, background where there is none."""
    kept = prepared.geometry.slice_index
    return prepared.image[kept.index(k)] if k in kept else np.full((96, 96), -1.0)


k = 38  # z = +14 mm
outline = mni.brain[mni.geometry.slice_index.index(k)]
plotting.slice_grid(
    np.stack([at_height(p, k) for p in (mni, raw, registered)]),
    truth=np.stack([outline] * 3),
    titles=["template", "not registered", "registered"],
    columns=3,
)

# %% [markdown]
# And by number: the overlap of the scan's brain mask with the template's (Dice coefficient, 1 is perfect), before and after. But
# an outline that fits is not yet a brain that fits. Here we can do a stricter test, because we know the movement: registering the
# subject askew, and registering the same subject lying straight, must bring *every point* to the same place.

# %%
# NBVAL_IGNORE_OUTPUT
mask = data > 0
T_askew, T_straight = registered.geometry.to_mni, register_to_mni(image)
before, after = (mask_overlap(mask, movement @ A, T) for T in (np.eye(4), T_askew))
print(f"overlap with the template: {before:.2f} before, {after:.2f} after")
assert before < 0.7 and after > 0.9

points = apply_affine(A, np.argwhere(mask)[::200])  # some points of the brain, in mm
distance = np.linalg.norm(
    apply_affine(T_askew @ movement, points) - apply_affine(T_straight, points), axis=1
)
print(f"askew and straight end {distance.mean():.1f} mm apart on average,", end=" ")
print(f"{distance.max():.1f} mm at most")
assert distance.mean() < 3

# %% [markdown]
# Registration costs a few seconds a scan. By default (`register="auto"`) it is skipped when the brain mask overlaps the
# template's by 0.9 or more: many public data sets are in MNI space already, and our simulated subjects are, too.
#
# ## 5. Which voxels are brain?
#
# Skull, eyes and skin are neither normal nor abnormal *brain*. There are four ways to a brain mask, tried in this order:
#
# 1. you **give** one (`brain=`): always the best;
# 2. the scan is **stripped** already: its background is constant, usually 0, and the brain is where that ends;
# 3. the scan still has its **skull**: deepbet, a network made for whole heads, finds the brain (`brain="deepbet"`; the extra `prep` installs it);
# 4. without deepbet the scan is registered and the *template's* brain is cut out (`brain="template"`). That is rough.
#
# To see the last two we put our subject into a head: fluid, bone, scalp, and noise in the air. Then we take the found brain masks
# back to the scan (section 10 shows how), compare them with the true one, and draw their outlines.

# %%
# NBVAL_IGNORE_OUTPUT
depth = ndimage.distance_transform_edt(~mask) * 2.0  # mm outside the brain
level = np.median(data[mask])
head = data.astype(np.float32)
for (low, high), brightness in {
    (0, 5): 0.25,
    (5, 9): 0.15,
    (9, 15): 1.3,
}.items():  # fluid, bone, scalp
    head[(depth > low) & (depth <= high)] = brightness * level
noise = 0.03 * level * np.random.default_rng(0).standard_normal((2, *head.shape))
head = np.hypot(head + noise[0], noise[1]).astype(np.float32)  # magnitude images have Rician noise
save_nifti(nib.Nifti1Image(head, A), WORK / "head_T1w.nii.gz")

overlaps, outlines = {}, {}
for way in ("template", "deepbet"):
    in_head = prepare_volume(WORK / "head_T1w.nii.gz", brain=way)
    back = return_to_scan(in_head.brain.astype(np.float32), in_head.geometry, order=0)
    found = back.get_fdata() > 0.5
    overlaps[way] = 2 * (found & mask).sum() / (found.sum() + mask.sum())
    outlines[way] = found
print("overlap with the true brain:", {way: round(float(d), 2) for way, d in overlaps.items()})
assert 0.8 < overlaps["template"] < 0.99 and overlaps["deepbet"] > 0.8
heights = [24, 34, 44, 54, 64]  # axial slices of the scan
picture, *masks = (
    volume.transpose(2, 1, 0)[heights, ::-1] for volume in (head / level - 1, *outlines.values())
)
titles = [f"{way}, {apply_affine(A, (0, 0, h))[2]:+.0f} mm" for way in outlines for h in heights]
plotting.slice_grid(
    np.concatenate([picture] * 2), titles=titles, truth=np.concatenate(masks), columns=5
)

# %% [markdown]
# A simulated head is a poor head, made of shells; on real ones deepbet does better than the template, which does not know where this person's brain ends. Look at
# the outline before you believe a map: a rim of scalp left at the edge looks like a lesion to a network that has never seen scalp, and a rim of brain cut off is never searched.
#
# ## 6. Brightness: one scale for all
#
# The numbers $I$ in an MR scan have no unit. One scanner's white matter is 400, another's 900. We divide by the median $m$ inside the
# brain and bring the result to $[-1, 1]$:
#
# $$ x_0 = \mathrm{clip}\!\left( \frac{I}{m} - 1,\ -1,\ 1 \right). $$
#
# So the middle of the brain is at 0, the background at exactly $-1$, and whatever is twice as bright as the median or more at 1. Why
# the median? Because one bad voxel, or a lesion, must not move the scale. (Exercise 4 tries it.) Below is the formula in Python; then the
# first scan of each site as the package prepares it.

# %%
x = np.clip(data / np.median(data[mask]) - 1, -1, 1)  # the formula
assert abs(np.median(x[mask])) < 1e-6 and x[~mask].max() == -1

files = {site: find_scans(WORK / f"site{site}")[0].image for site in spacings}
raw_a, raw_b = (load_volume(path).get_fdata() for path in files.values())
ratio = np.median(raw_a[raw_a > 0]) / np.median(raw_b[raw_b > 0])
print(f"raw median of site A: {ratio:.2f} times that of site B")
assert abs(ratio - 1) > 0.1
pair = [prepare_volume(path) for path in files.values()]
for p in pair:
    assert abs(np.median(p.image[p.brain])) < 0.05 and p.image.max() <= 1
    assert (p.image[~p.brain] == -1).all()
plotting.intensity_histogram([p.image for p in pair], [p.brain for p in pair], ["site A", "site B"])

# %% [markdown]
# A peak, grey matter, and a shoulder to its right, white matter, at about the same places for both. The rest of the difference stays: people differ, and so do
# voxel sizes.
#
# ## 7. Slices on one grid
#
# Finally the volume is resampled once, straight from the scan's voxels to a fixed grid in MNI space, and cut into axial slices. The
# default grid has voxels of 2 mm and slices of 96 x 96 pixels.

# %%
grid = Grid()
print(
    "voxel",
    grid.spacing,
    "mm; grid",
    grid.shape,
    "; lowest and highest slice at",
    grid.z_range,
    "mm",
)
straight = prepare_volume(scan)
n, height, width = straight.image.shape
assert (
    (height, width) == grid.shape[:2] and n <= grid.shape[2] and straight.image.dtype == np.float32
)
assert (straight.brain.mean((1, 2)) >= 0.05).all()  # slices with less than 5 % brain are left out
heights = [f"{grid.affine[2, 3] + grid.spacing * z:+.0f} mm" for z in straight.geometry.slice_index]
plotting.slice_grid(straight.image[::4], titles=heights[::4], columns=6)

# %% [markdown]
# Seen from above, the nose at the top. The patient's left is on the **left** of the picture ("neurological" order;
# radiologists have it the other way round).
#
# ## 8. A whole folder
#
# `prepare_folder` does this for every scan it finds, and writes the slices and one **manifest** that describes them. Subjects are divided into
# training, validation and test. Patients do not go to training unless you ask for it (`patients_in_train=True`), and then only with their slices without lesion: it is normal brains that the
# network is to learn.

# %%
options = dict(contrast="t1", fractions=(0.5, 0.25, 0.25), workers=WORKERS, progress=False)
manifests = {
    s: prepare_folder(WORK / f"site{s}", WORK / f"prepared{s}", **options) for s in spacings
}
for site, manifest in manifests.items():
    for split in ("train", "val", "test"):
        groups = [s["group"] for s in manifest.scans(split)]
        well, sick = groups.count("normal"), groups.count("patient")
        print(f"site {site} {split:5}: {well} normal, {sick} patients")
    assert not manifest.skipped and all(s["group"] == "normal" for s in manifest.scans("train"))

entry = manifests["A"].scans("test")[-1]
print({key: entry[key] for key in ("scan_id", "subject", "split", "group", "contrast", "lesion")})
array = manifests["A"].array(entry, "image")  # on disk; read when it is indexed
assert array.shape == (entry["n_slices"], 96, 96) and array.dtype == np.float16

# %% [markdown]
# ### Why by subject?
#
# Neighbouring slices of one brain are almost the same picture. If one is in training and its neighbour in the test, the test only asks
# what the network remembers. How alike are neighbours, compared with the same height in *another* brain? So the split is by
# subject, and a check that nobody is in two splits belongs into every project.

# %%
# NBVAL_IGNORE_OUTPUT
one, two = (
    manifests["A"].array(s, "image").astype(float) for s in manifests["A"].scans("train")[:2]
)
middle = range(20, min(len(one), len(two)) - 20, 4)
neighbour = np.mean([np.corrcoef(one[z].ravel(), one[z + 1].ravel())[0, 1] for z in middle])
stranger = np.mean([np.corrcoef(one[z].ravel(), two[z].ravel())[0, 1] for z in middle])
print(f"correlation with the neighbour {neighbour:.2f}, with another brain {stranger:.2f}")
assert neighbour > stranger + 0.02

for manifest in manifests.values():
    sets = [{s["subject"] for s in manifest.scans(split)} for split in ("train", "val", "test")]
    assert sum(map(len, sets)) == len(set.union(*sets))
print("nobody is in two splits")

# %% [markdown]
# ### Called again, it does nothing
#
# Preparing a large data set takes hours, and hours get interrupted. What is finished is kept; a scan's folder appears whole or not at all;
# a second call only does what is missing. We remove one prepared scan and look which ones are written anew.

# %%
kept = {
    s["scan_id"]: WORK / "preparedA" / "scans" / s["scan_id"] / "image.npy"
    for s in manifests["A"].scans()
}
times = {name: path.stat().st_mtime_ns for name, path in kept.items()}
victim = manifests["A"].scans("val")[0]["scan_id"]
shutil.rmtree(kept[victim].parent)
prepare_folder(WORK / "siteA", WORK / "preparedA", **options)
written = [name for name, path in kept.items() if path.stat().st_mtime_ns != times[name]]
assert written == [victim]
print("written again:", len(written), "of", len(kept))

# %% [markdown]
# ### Into PyTorch
#
# Both sites are on one grid, so their slices can be joined in one `SliceDataset`, although the scans had voxels of different sizes. In
# training it leaves out slices with lesion by itself.

# %%
dataset = SliceDataset([WORK / "preparedA", WORK / "preparedB"], split="train")
batch = next(iter(DataLoader(dataset, batch_size=8)))
print(
    "slices:",
    len(dataset),
    " batch:",
    {key: tuple(batch[key].shape) for key in ("image", "brain", "lesion")},
)
assert len(dataset) == sum(s["n_slices"] for m in manifests.values() for s in m.scans("train"))
assert not batch["lesion"].any() and batch["image"].min() == -1

# %% [markdown]
# ## 9. Quality control
#
# Now the part that people skip. We add two spoiled scans: one whose header is wrong, so that the head stands **upside down**, and one that
# stopped too early, so that the **top of the brain is missing**. Both are readable files, and neither raises an error.
#
# **By eye**, with a contact sheet: every scan at the same height. Ten seconds of looking find what no error message tells.

# %%
upside_down, cut_off = data[:, :, ::-1].astype(np.float32), data.astype(np.float32)
cut_off[:, :, data.shape[2] * 7 // 10 :] = 0
checked = {
    f"{site} {s['subject']}": (
        m.array(s, "image"),
        m.array(s, "brain"),
        s["geometry"]["slice_index"],
    )
    for site, m in manifests.items()
    for s in m.scans()
}
for name, array in {"upside down": upside_down, "cut off": cut_off}.items():
    save_nifti(nib.Nifti1Image(np.ascontiguousarray(array), A), WORK / f"{name}.nii.gz")
    p = prepare_volume(WORK / f"{name}.nii.gz")
    checked[name] = (p.image, p.brain, list(p.geometry.slice_index))

sheet = [
    im[index.index(k)] if k in index else np.full((96, 96), -1.0)
    for im, _, index in checked.values()
]
plotting.slice_grid(np.stack(sheet).astype(np.float32), titles=list(checked), columns=7)

# %% [markdown]
# Did you see it? The cut-off scan looks like all others: at this height nothing is missing. From above, one slice cannot tell how a head stands. From the **side** it can: the plane through the
# middle of each brain, its front at the left, with the outline of the template's brain.


# %%
def from_the_side(pixels, index):
    """The sagittal plane x = 0, top of the head at the top: (height of the grid, 96)."""
    plane = np.full((grid.shape[2], 96), -1.0)
    plane[list(index)] = np.asarray(pixels)[
        :, :, 48
    ]  # rows of a slice run from the front to the back
    return plane[::-1]


outline = from_the_side(2.0 * mni.brain - 1, mni.geometry.slice_index) > 0
side = np.stack([from_the_side(im, index) for im, _, index in checked.values()])
assert side[list(checked).index("cut off"), :15].max() == -1  # 30 mm of its top are missing
plotting.slice_grid(side, titles=list(checked), truth=np.stack([outline] * len(side)), columns=7)

# %% [markdown]
# Now both stand out at once. **By number**, for when there are five hundred: how well does each scan agree with the template (the correlation over all slices), and how
# large is its brain? We do not ask for a certain value but look for scans that **differ from the others**: by more than five times
# the usual spread (the median distance from the median, which a few bad scans do not move).


# %%
def quality(pixels, brain, index):
    """Correlation with the template's slices (a missing one is background); brain volume in mL."""
    volume = np.full(mni.image.shape, -1.0)
    for place, z in enumerate(mni.geometry.slice_index):
        if z in index:
            volume[place] = pixels[index.index(z)]
    return np.corrcoef(volume[mni.brain], mni.image[mni.brain])[
        0, 1
    ], brain.sum() * grid.spacing**3 / 1000


values = np.array([quality(*c) for c in checked.values()])
centre = np.median(values, axis=0)
spread = (
    1.4826 * np.median(np.abs(values - centre), axis=0) + 0.02 * centre
)  # with a floor, for small groups
flagged = [name for name, row in zip(checked, values) if (np.abs(row - centre) > 5 * spread).any()]
print("flagged:", flagged)
assert flagged == ["upside down", "cut off"]
plotting.compare_methods(
    {
        n: {"correlation with the template": a, "brain volume, L": v / 1000}
        for n, (a, v) in zip(checked, values)
    },
    highlight="none",
)

# %% [markdown]
# ## 10. The way back, exactly
#
# A map on our grid is of no use to a doctor; it must return to the scan. Everything that was done is kept as matrices in
# the `Geometry`: scan affine $A$, registration $R$, grid affine $A_\text{grid}$. The voxel $(i, j, k)$ of the scan lies in the grid at
#
# $$ (i, j, k, 1)_\text{grid}^\top = A_\text{grid}^{-1}\, R\, A\, (i, j, k, 1)^\top , $$
#
# so the map is read there, with one interpolation. The affine of the result is the scan's own, number by number. We test it with the hardest
# thing at hand, the lesion of a patient, on a scan that was registered: does the lesion come back to where it was? (Its shape is smoothed a
# little, for there and back are two interpolations.) And by hand: does the lesion's deepest voxel land on a lesion pixel of the slices?

# %%
# NBVAL_IGNORE_OUTPUT
patient = next(s for s in find_scans(WORK / "siteA") if s.group == "patient")
prepared = prepare_volume(patient.image, brain=patient.brain, lesion=patient.lesion, register=True)
back = return_to_scan(prepared.lesion.astype(np.float32), prepared.geometry)
original, lesion = nib.load(patient.image), nib.load(patient.lesion).get_fdata() > 0
assert back.shape == original.shape and np.array_equal(back.affine, original.affine)
returned = back.get_fdata() > 0.5
overlap = 2 * (returned & lesion).sum() / (returned.sum() + lesion.sum())
print(f"there and back the lesion overlaps itself by {overlap:.2f} (Dice)")
assert overlap > 0.8

g = Geometry.from_dict(
    json.loads(json.dumps(prepared.geometry.to_dict()))
)  # stored as text, without loss
v = np.unravel_index(ndimage.distance_transform_edt(lesion).argmax(), lesion.shape)  # deep in it
column, row, z = np.rint(
    apply_affine(np.linalg.inv(g.grid.affine) @ g.to_mni @ g.scan_affine, v)
).astype(int)
assert prepared.lesion[
    g.slice_index.index(z), 95 - row, column
]  # rows run from the front to the back
outlines = np.stack([lesion[..., v[2]], returned[..., v[2]]]).transpose(0, 2, 1)[:, ::-1]
values = original.get_fdata()
picture = np.clip(values[..., v[2]].T[::-1] / np.median(values[values > 0]) - 1, -1, 1)
plotting.slice_grid(
    np.stack([picture] * 2), truth=outlines, titles=["true lesion", "there and back"]
)

# %% [markdown]
# ## 11. When something is wrong with a file
#
# Each bad file gives one line that begins with its name and says what is wrong. In a folder a bad scan does not stop the others: it is left out,
# and the manifest's `skipped` says why. Here is a small collection of what one meets, with one good scan among them. (The boxes `constant` and `with_nan` fail already because they are only 20 mm wide.)

# %%
# NBVAL_IGNORE_OUTPUT
box, bad = np.zeros((20, 20, 20), np.float32), WORK / "bad"
bad.mkdir()
broken = {
    "constant": box,
    "with_nan": box + np.nan,
    "two_d": box[:, :, 0],
    "four_d": np.stack([box] * 3, -1),
}
for name, array in broken.items():
    nib.save(nib.Nifti1Image(array, np.eye(4)), bad / f"{name}.nii.gz")
(bad / "text.nii.gz").write_text("not a scan")
(bad / "empty.nii.gz").write_bytes(b"")
(bad / "truncated.nii.gz").write_bytes(scan.read_bytes()[:5000])
shutil.copy(scan, bad / "good_T1w.nii.gz")

mixed = prepare_folder(bad, WORK / "mixed", layout="plain", workers=1, progress=False)
for _, reason in mixed.skipped:
    print(reason.replace(f"{bad.resolve()}/", ""))
assert [s["scan_id"] for s in mixed.scans()] == ["good_T1w"] and len(mixed.skipped) == 7
assert all(Path(file).name in reason for file, reason in mixed.skipped)

# %% [markdown]
# ## 12. Real data
#
# Public data sets have their own ways of naming files. These are understood, and recognised by themselves:
#
# | layout | data set | where from |
# |---|---|---|
# | `ixi` | IXI, 581 healthy people | `./data_download.sh ixi-t1` (or `ixi-t2`) |
# | `msd` | Medical Segmentation Decathlon, Task01: glioma, 4-D files | `./data_download.sh msd-brain` |
# | `atlas` | ATLAS 2.0: stroke, T1 | registration; `./data_download.sh atlas` tells how, and checks |
# | `brats` | BraTS'21: glioma, four contrasts | registration; `./data_download.sh brats` tells how, and checks |
# | `cohort` | the simulated subjects, and other BIDS folders | `madad phantom` |
# | `plain` | any folder of NIfTI files; lesions in `NAME_seg.nii.gz` or `NAME_lesion.nii.gz` | your own |
#
# `data_download.sh` lies in the repository: it continues broken downloads, looks for free space, checks sums, and
# unpacks. Finding scans opens no image, so we can try it with empty files:

# %%
names = {
    "ixi": ["IXI002-Guys-0828-T1.nii.gz"],
    "brats": [
        f"BraTS2021_00000/BraTS2021_00000_{part}.nii.gz"
        for part in ("t1", "t1ce", "t2", "flair", "seg")
    ],
    "plain": ["anna_t1.nii.gz", "anna_t1_lesion.nii.gz"],
}
for layout, files in names.items():
    for file in files:
        path = WORK / "layouts" / layout / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (found_scan,) = find_scans(WORK / "layouts" / layout, contrast="t1")
    lesion_file = "with a lesion mask" if found_scan.lesion else "no lesion mask"
    print(f"{layout}: subject {found_scan.subject}, {found_scan.group}, {lesion_file}")
assert found_scan.subject == "anna" and found_scan.lesion.name == "anna_t1_lesion.nii.gz"

# %% [markdown]
# ### From the command line
#
# Everything in this notebook, in two lines:
#
#     madad phantom --out data/cohort --normal 20 --patients 10
#     madad prepare data/cohort --out data/prepared --contrast t1
#
# `madad prepare` ends with the list of what was skipped, and `--png FOLDER` also writes the slices as PNG files, as the authors' own
# code reads them.
#
# ## 13. What to take with you
#
# - An array without its affine is not a scan. Think in millimetres.
# - One standard space, one grid, one brightness scale; one interpolation on the way there, one on the way back.
# - Split by subject. Patients stay out of training.
# - Look at a contact sheet of everything. Then let numbers look for what differs.
#
# **Next:** [03_latent_encoder](03_latent_encoder.ipynb) compresses these slices into latents.
#
# ## Exercises
#
# Three kinds: *predict* before you run, write *code*, *investigate*. Replace `None` or the line with `NotImplementedError` by your answer. A check says
# "not done yet" until then, and tells what is wrong with a wrong answer. Solutions: [solutions/02_data_preparation](solutions/02_data_preparation.ipynb).

# %%
import checks  # the file beside this notebook

# %% [markdown]
# ### Exercise 1 (predict): dealt like cards
#
# Ten subjects have ten slices each. The hundred slices are dealt at random, half to training, half to the test. Of how many *subjects* would you bet that they have slices on both sides?

# %%
in_both = None  # your answer

# %%
checks.run(checks.check_02_split, in_both)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A subject is on one side only if all of its ten slices are: about twice $0.5^{10}$.
#
# </details>

# %% [markdown]
# ### Exercise 2 (code): from millimetres to voxels
#
# Which voxel lies nearest to a point? The affine leads from voxels to millimetres; you need the way back.


# %%
def voxel_of(affine, xyz):
    """affine: (4, 4), voxel -> mm. xyz: a point in mm. Returns three whole numbers."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_02_voxel_of, voxel_of)

# %% [markdown]
# *What you should see*: section 2 printed where voxel (10, 20, 30) lies; `voxel_of(A, (-61, -77, -20))` leads back to it.
#
# <details><summary>Hint 1</summary>
#
# `np.linalg.inv(affine)` leads from millimetres to voxels; `apply_affine` applies it.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `np.rint(apply_affine(np.linalg.inv(affine), xyz)).astype(int)`
#
# </details>

# %% [markdown]
# ### Exercise 3 (code): one scale for all
#
# Write the equation of section 6.


# %%
def normalised(values, brain):
    """values: a scan. brain: bool, its shape. Returns values in [-1, 1], the median at 0."""
    raise NotImplementedError  # your lines


# %%
checks.run(checks.check_02_normalised, normalised)

# %% [markdown]
# *What you should see*: `plotting.intensity_histogram([normalised(data, mask)], [mask])` has the shape of section 6's, with the dashed line of the median at 0.
#
# <details><summary>Hint 1</summary>
#
# `np.median(values[brain])` is $m$.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `np.clip(values / m - 1, -1, 1)`
#
# </details>

# %% [markdown]
# ### Exercise 4 (investigate): what a stroke does to the scale
#
# Put strokes of 10, 60 and 150 mL into our subject with `madad_lite.simulation.cohort.implant_lesion(image, subject.brain, seed=1, volume_ml=60)` (it gives the new image and the mask). By what share do the **mean** and the
# **median** inside the brain change? And the 99th percentile, which others divide by?
#
# <details><summary>What to expect</summary>
#
# Mean and median fall, the median by less, and both more with the size of the stroke; an upper percentile hardly moves for dark strokes, but would for bright ones. No scale is blind to lesions; the median is hard to move.
#
# </details>
