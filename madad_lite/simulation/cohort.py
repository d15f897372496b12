"""The embedded cohort: simulated subjects made from the MNI152 2009a template and its tissue maps, which
nilearn ships.

No real patient is in it. A subject is the template, deformed by a smooth random field at two scales and
resized, with ventricles of its own size; each contrast is painted from tissue levels with variation by
subject, the template's own fine structure, texture, a bias field and Rician noise. Patients get one kind of
lesion with an exact mask (see lesions.py).
"""

from __future__ import annotations

import gzip
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from madad_lite.errors import ScanError
from madad_lite.files import replace_file, write_json
from madad_lite.scans.find import SIMULATED, is_simulated
from madad_lite.scans.registration import template
from madad_lite.simulation import lesions

# Mean intensity of CSF, grey matter, white matter; and how much of the template's own fine T1 structure shows
CONTRASTS = {
    "t1": ((0.28, 0.66, 1.0), 0.9),
    "t1ce": ((0.28, 0.70, 1.0), 0.8),
    "t2": ((1.7, 0.95, 0.68), -0.45),
    "flair": ((0.22, 1.0, 0.84), -0.25),
}
FILES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "t1ce": "ce-gadolinium_T1w"}
# Lesion intensity relative to white matter: stroke, oedema, tumour, necrotic core, enhancing ring,
# white-matter lesion
LESIONS = {
    "t1": dict(stroke=0.34, oedema=0.78, tumour=0.68, core=0.45, ring=0.75, wml=0.72),
    "t1ce": dict(stroke=0.34, oedema=0.78, tumour=0.75, core=0.45, ring=1.6, wml=0.72),
    "t2": dict(stroke=2.2, oedema=1.9, tumour=1.8, core=2.2, ring=1.6, wml=1.7),
    "flair": dict(stroke=0.75, oedema=1.75, tumour=1.6, core=1.15, ring=1.55, wml=1.6),
}
MAX_VOLUME_ML = 150  # more does not fit the shapes that the lesions are made from
VENTRICLES = np.array(
    [[-14.0, -12.0, 18.0], [14.0, -12.0, 18.0]]
)  # rough centres of the lateral ventricles, MNI mm


@dataclass
class Subject:
    images: dict[str, nib.Nifti1Image]  # by contrast, uint16, 0 outside the brain
    brain: nib.Nifti1Image  # uint8
    lesion: nib.Nifti1Image  # uint8, empty for a normal subject
    info: dict = field(default_factory=dict)


def _displacement(shape, spacing: float, world: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3, X, Y, Z) mm: two scales of smooth noise, and each lateral ventricle's own size."""
    field = np.stack(
        [
            2.5 * lesions.smooth_noise(shape, 45 / spacing, rng)
            + 1.2 * lesions.smooth_noise(shape, 16 / spacing, rng)
            for _ in range(3)
        ]
    )
    common = rng.uniform(-0.25, 0.45)
    for centre in VENTRICLES:
        offset = world - centre[:, None, None, None]
        near = np.exp(-(offset**2).sum(0) / (2 * 16.0**2))
        field -= (
            (common + rng.uniform(-0.06, 0.06)) * offset * near
        )  # looking nearer the centre makes it larger
    return field


def _push(centre_mm, radius: float, world: np.ndarray, strength: float) -> np.ndarray:
    """Mass effect, (3, X, Y, Z) mm: tissue is displaced away from the centre, most at the tumour's rim."""
    offset = world - np.asarray(centre_mm)[:, None, None, None]
    distance = np.sqrt((offset**2).sum(0)) + 1e-3
    return -offset / distance * strength * radius * np.exp(-(((distance - radius) / (1.2 * radius + 6)) ** 2))


def _template_maps(coordinates: np.ndarray) -> tuple[np.ndarray, ...]:
    """T1 (0..1), grey and white shares of the template at MNI coordinates (3, X, Y, Z)."""
    affine = template("t1").affine
    voxels = coordinates - affine[:3, 3][:, None, None, None]  # 1 mm, axes along the world's
    return tuple(
        ndimage.map_coordinates(_template_array(kind), voxels, order=1, output=np.float32)
        for kind in ("t1", "gm", "wm")
    )


def _template_array(kind: str) -> np.ndarray:
    return np.asarray(template(kind).dataobj, dtype=np.float32) / 255


def _check(contrasts, spacing: float) -> None:
    if not contrasts or set(contrasts) - set(CONTRASTS):
        wrong = sorted(set(contrasts) - set(CONTRASTS))
        raise ValueError(
            f"no contrast {wrong[0] if wrong else contrasts!r}: choose from {', '.join(CONTRASTS)}"
        )
    if not 0.25 <= spacing <= 10:
        raise ValueError(f"spacing is {spacing}: choose a voxel size from 0.25 to 10 mm")


def _check_volume(volume_ml: float | None) -> None:
    if volume_ml is not None and not (math.isfinite(volume_ml) and 0 < volume_ml <= MAX_VOLUME_ML):
        raise ValueError(f"volume_ml is {volume_ml}: choose a volume above 0 and up to {MAX_VOLUME_ML} mL")


def simulate_subject(
    seed: int,
    *,
    contrasts: tuple[str, ...] = ("t1",),
    lesion: str | None = None,
    spacing: float = 2.0,
    volume_ml: float | None = None,
) -> Subject:
    """One subject. lesion: None, "stroke", "glioma", "wml" or "random". spacing: voxel size in mm. volume_ml:
    of the lesion, by default log-uniform. The same arguments always give the same subject. ValueError for
    arguments that make no sense.
    """
    _check(contrasts, spacing)
    if lesion not in (None, "random", *lesions.KINDS):
        raise ValueError(f"no lesion kind {lesion!r}: choose from {', '.join(lesions.KINDS)}, random")
    _check_volume(volume_ml)
    rng = np.random.default_rng(seed)
    shape = tuple(int(np.ceil(n / spacing)) for n in (164, 200, 164))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -81, -117, -80
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    world = index * spacing + affine[:3, 3][:, None, None, None]
    size = rng.uniform(0.94, 1.05, 3)[:, None, None, None]
    coordinates = world / size + _displacement(shape, spacing, world, rng)
    t1, grey, white = _template_maps(coordinates)

    kind = rng.choice(lesions.KINDS) if lesion == "random" else lesion
    info = {"seed": seed, "spacing": spacing, "lesion": kind, "volume_ml": 0.0}
    parts: dict[str, np.ndarray] = {}
    if kind is not None:
        wanted = lesions.draw_volume(kind, rng) if volume_ml is None else volume_ml
        brain, ventricle = _brain(t1), _ventricle(t1, grey, white)
        if kind == "stroke":
            parts["stroke"] = lesions.stroke_mask(brain, ventricle, spacing, wanted, rng)
        elif kind == "wml":
            parts["wml"] = lesions.wml_mask(brain, white, ventricle, spacing, wanted, rng)
        else:
            whole, tumour, core, centre, radius = lesions.glioma_masks(
                brain, white, ventricle, spacing, wanted, rng
            )
            push = _push(centre * spacing + affine[:3, 3], radius, world, rng.uniform(0.15, 0.35))
            t1, grey, white = _template_maps(coordinates + push)
            ring = _ring(tumour, core, spacing)
            parts = {"oedema": whole, "tumour": tumour, "core": core, "ring": ring}
    brain = _brain(t1)
    mask = np.zeros(shape, bool)
    for name in parts:
        parts[name] = parts[name] & brain
        mask |= parts[name]
    info["volume_ml"] = round(float(mask.sum()) * spacing**3 / 1000, 3)
    texture = lesions.smooth_noise(shape, max(1.5, 3 / spacing), rng)
    images = {
        c: nib.Nifti1Image(_paint(c, t1, grey, white, brain, parts, texture, spacing, rng), affine)
        for c in sorted(contrasts)
    }
    masks = [nib.Nifti1Image(m.astype(np.uint8), affine) for m in (brain, mask)]
    for image in (*images.values(), *masks):
        image.set_sform(affine, 4)  # MNI152 space, roughly
        image.set_qform(affine, 4)
    return Subject(images, masks[0], masks[1], info)


def _ring(tumour: np.ndarray, core: np.ndarray, spacing: float) -> np.ndarray:
    """What takes up contrast agent: the rim of the tumour, and that of its dead core."""
    rim = tumour & ~ndimage.binary_erosion(tumour, iterations=max(1, round(2 / spacing)))
    return rim | (tumour & ~core & ndimage.binary_dilation(core))


def _brain(t1: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(t1 > 0.05)


def _ventricle(t1, grey, white) -> np.ndarray:
    """Deep CSF."""
    depth = ndimage.distance_transform_edt(_brain(t1))
    return (t1 > 0.02) & (grey + white < 0.5) & (depth > 0.35 * depth.max())


def _paint(contrast, t1, grey, white, brain, parts, texture, spacing, rng) -> np.ndarray:
    """One contrast as uint16, 0 outside the brain."""
    (csf_level, grey_level, white_level), detail = CONTRASTS[contrast]
    csf_level, grey_level, white_level = (
        v * rng.uniform(1 - s, 1 + s) for v, s in ((csf_level, 0.15), (grey_level, 0.06), (white_level, 0.04))
    )
    total = np.maximum(grey + white, 1e-3)
    tissue = np.clip(grey + white, 0, 1)
    ideal = tissue * (grey * grey_level + white * white_level) / total + (1 - tissue) * csf_level
    # the template's own structure within tissue: nuclei, folds, tracts
    smooth = ndimage.gaussian_filter(t1, 6 / spacing)
    own = tissue * (t1 - (0.62 * grey + 0.86 * white + 0.25 * np.clip(1 - grey - white, 0, 1)))
    image = ideal + detail * own + 0.1 * detail * tissue * (t1 - smooth)
    levels = LESIONS[contrast]
    for name, mask in parts.items():
        if not mask.any():
            continue
        soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.5 if name == "stroke" else 0.8)
        inner = (
            np.clip(soft * mask * 1.6, 0, 1)
            if name in ("oedema", "wml")
            else np.clip(soft * mask * 1.3, 0, 1)
        )
        level = levels[name] * white_level * rng.uniform(0.92, 1.08)
        image = image * (1 - inner) + inner * level * (1 + 0.06 * texture)
    image = image * (1 + 0.035 * texture * rng.uniform(0.6, 1.4))
    bias = lesions.smooth_noise(t1.shape, 70 / spacing, rng)
    image = image * np.exp(rng.uniform(0.02, 0.07) * bias)
    sigma = rng.uniform(0.015, 0.04)
    image = np.hypot(
        image + sigma * rng.standard_normal(image.shape), sigma * rng.standard_normal(image.shape)
    )
    scale = rng.uniform(300, 900)
    edge = np.clip(ndimage.gaussian_filter(brain.astype(np.float32), 0.5) * 1.6 - 0.3, 0.35, 1)
    return np.where(brain, np.clip(image * edge * scale, 1, 65535), 0).astype(np.uint16)


def implant_lesion(
    image: nib.Nifti1Image,
    brain,
    seed: int,
    kind: str = "stroke",
    volume_ml: float | None = None,
    *,
    enhancing: bool = False,
):
    """Put a simulated lesion into a T1 scan's own anatomy: (image with lesion, lesion mask), on the scan's
    grid.

    image: 3-D, axes along the world's (RAS), any intensity scale >= 0. brain: mask image or array of the same
    shape.
    kind: "stroke", "glioma" (without mass effect: the scan is not deformed) or "wml". Levels come from the
    scan's own histogram. enhancing: a glioma's ring is bright, as with contrast agent. Outside the mask nothing
    changes. ValueError when the mask does not fit the scan or holds no brain.
    """
    if kind not in lesions.KINDS:
        raise ValueError(f"no lesion kind {kind!r}: choose from {', '.join(lesions.KINDS)}")
    _check_volume(volume_ml)
    rng = np.random.default_rng(seed)
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = np.asarray(getattr(brain, "dataobj", brain)) > 0
    spacing = float(np.abs(np.linalg.det(image.affine[:3, :3])) ** (1 / 3))
    if inside.shape != data.shape:
        raise ValueError(
            f"the brain mask has shape {inside.shape}, the scan {data.shape}: give a mask on the scan's grid"
        )
    if inside.sum() * spacing**3 < 100_000 or not np.median(data[inside]) > 0:
        raise ValueError(
            "the brain mask holds less than 100 mL of positive intensities: give the mask of a whole brain"
        )
    median, dark = np.median(data[inside]), np.percentile(data[inside], 3)
    depth = ndimage.distance_transform_edt(inside)
    ventricle = inside & (ndimage.gaussian_filter(data, 1) < 0.55 * median) & (depth * spacing > 25)
    wanted = lesions.draw_volume(kind, rng) if volume_ml is None else volume_ml
    if kind == "stroke":
        mask = lesions.stroke_mask(inside, ventricle, spacing, wanted, rng)
        level = dark + rng.uniform(0.02, 0.22) * (median - dark)
        texture = ndimage.gaussian_filter(rng.standard_normal(data.shape), 1)
        soft = np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 0.5) * mask * 1.3, 0, 1)
        changed = data * (1 - soft) + soft * (level + 0.08 * median * texture)
    else:
        white, white_level = _white_matter(data, inside, spacing)
        if kind == "wml":
            mask = lesions.wml_mask(inside, white, ventricle, spacing, wanted, rng)
            parts = {"wml": mask}
        else:
            mask, tumour, core, _, _ = lesions.glioma_masks(inside, white, ventricle, spacing, wanted, rng)
            parts = {"oedema": mask, "tumour": tumour, "core": core}
            if enhancing:
                parts["ring"] = _ring(tumour, core, spacing)
        levels = LESIONS["t1ce" if enhancing else "t1"]
        texture = lesions.smooth_noise(data.shape, max(1.5, 3 / spacing), rng)
        changed = data
        for name, part in parts.items():
            soft = np.clip(ndimage.gaussian_filter(part.astype(np.float32), 0.8) * part * 1.6, 0, 1)
            level = levels[name] * white_level * rng.uniform(0.92, 1.08)
            changed = changed * (1 - soft) + soft * level * (1 + 0.06 * texture)
    changed = np.where(mask, np.clip(changed, 1, None), data)
    return nib.Nifti1Image(changed.astype(np.float32), image.affine), nib.Nifti1Image(
        mask.astype(np.uint8), image.affine
    )


def _white_matter(data: np.ndarray, inside: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """White matter's share (0..1) of a T1 scan and its local level, from the scan's own histogram.

    Two-means clustering of the voxels brighter than CSF, after division by a smooth estimate of the bias
    field.
    """
    tissue = inside & (data > 0.5 * np.median(data[inside]))
    smooth = [ndimage.gaussian_filter(v.astype(np.float32), 25 / spacing) for v in (data * tissue, tissue)]
    bias = np.maximum(smooth[0] / np.maximum(smooth[1], 1e-3), 1e-6)
    flat = data / bias
    values = flat[tissue]
    grey, white = np.percentile(values, [20, 80])
    for _ in range(20):
        bright = values > (grey + white) / 2
        grey, white = values[~bright].mean(), values[bright].mean()
    share = np.clip((ndimage.gaussian_filter(flat, 0.5) - grey) / (white - grey), 0, 1) * inside
    return share, white * bias


def _write(image: nib.Nifti1Image, path: Path) -> None:
    """The same image always gives the same bytes: no time stamp and no file name in the gzip header."""

    def packed(raw) -> None:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=4) as f:
            f.write(image.to_bytes())

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, packed)


def _make_room(folder: Path, force: bool) -> None:
    """An empty folder to write to. Only an earlier cohort of ours is ever removed, and only its own files."""
    if folder.exists() and not folder.is_dir():
        raise ScanError(f"{folder}: is a file; choose another folder")
    if folder.exists() and any(folder.iterdir()):
        ours = is_simulated(folder)
        if not (ours and force):
            hint = ", or force to replace this cohort" if ours else ""
            raise ScanError(f"{folder}: is not empty; choose another folder{hint}")
        for old in folder.iterdir():
            if re.fullmatch(r"sub-\d{4,}", old.name) and old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
        (folder / "participants.tsv").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def write_cohort(
    folder: str | Path,
    *,
    normal: int = 8,
    patients: int = 4,
    contrasts: tuple[str, ...] = ("t1",),
    spacing: float = 2.0,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Write simulated subjects as BIDS-like NIfTI files and a participants table; returns the folder.

    The first `normal` subjects have no lesion; `patients` follow, their lesions' kinds by turns. force:
    replace an earlier cohort (its subjects and tables; nothing else in the folder is touched). ScanError when
    the folder holds anything else.
    """
    folder = Path(folder)
    _check(contrasts, spacing)
    if normal < 0 or patients < 0 or normal + patients == 0:
        raise ValueError(f"{normal} normal subjects and {patients} patients: ask for at least one subject")
    _make_room(folder, force)
    description = {
        "Name": SIMULATED,
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "madad_lite.simulation.cohort",
                "Description": "simulated from the MNI152 2009a template; no real patient",
            }
        ],
    }
    write_json(folder / "dataset_description.json", description)
    rows = ["participant_id\tgroup\tlesion\tvolume_ml\tseed\tspacing"]
    for i in tqdm(range(normal + patients), desc="simulating", unit="subject", disable=not progress):
        name, kind = (
            f"sub-{i + 1:04d}",
            None if i < normal else lesions.KINDS[(i - normal) % len(lesions.KINDS)],
        )
        subject = simulate_subject(seed * 10_000 + i, contrasts=contrasts, lesion=kind, spacing=spacing)
        anat = folder / name / "anat"
        for contrast, image in subject.images.items():
            _write(image, anat / f"{name}_{FILES[contrast]}.nii.gz")
        _write(subject.brain, anat / f"{name}_desc-brain_mask.nii.gz")
        if kind is not None:
            _write(subject.lesion, anat / f"{name}_label-lesion_mask.nii.gz")
        group = "normal" if kind is None else "patient"
        rows.append(
            f"{name}\t{group}\t{kind or 'n/a'}\t{subject.info['volume_ml']}\t{subject.info['seed']}\t{spacing}"
        )
    replace_file(folder / "participants.tsv", "\n".join(rows) + "\n")
    return folder
