"""Build the playground: the page of docs/playground, and beside it what its JavaScript needs and git does not hold.

    python scripts/make_playground.py build/site/playground

    models/t1, models/flair   shipped weights as ONNX (`madad export-onnx --half`)
    runtime/                  onnxruntime-web, from npm, its WebAssembly gzipped
    slices.json               simulated slices: eight of healthy subjects, eight of patients with their lesions
    film.gif                  a healing, for browsers that cannot run the models
    playground.json           what there is, with sizes in bytes

Where npm is missing or reaches nothing, the page is built without its runtime and shows the film.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from madad_lite import MadAdPipeline
from madad_lite.onnx_export import export_onnx
from madad_lite.scans.prepare import prepare_volume
from madad_lite.simulation.cohort import simulate_subject

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "playground"
VENDORED = ROOT / "build" / "vendor"  # what npm brought, kept from build to build
RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
# For each kind: the JavaScript, which holds all but the WebAssembly, and the WebAssembly. The second knows both.
RUNTIME_FILES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
CONTRASTS = ("t1", "flair")  # each more would make the site 8 MB larger
HEALTHY = {901: (-4, 26), 902: (10, 40), 903: (18, 50), 904: (4, 32)}  # seed: MNI mm of two slices
PATIENTS = {921: ("stroke", 30.0), 922: ("stroke", 9.0), 923: ("glioma", 25.0), 924: ("wml", 12.0)}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in PAGE.iterdir():
        shutil.copyfile(file, out / file.name)
    contrasts = {}
    for name in CONTRASTS:
        folder = export_onnx(name, out / "models" / name, half=True, force=True)
        contrasts[name] = {f.name: f.stat().st_size for f in sorted(folder.glob("*.onnx"))}
    slices = simulated_slices(list(contrasts))
    (out / "slices.json").write_text(json.dumps(slices))
    write_film(slices["t1"]["patients"][0], out / "film.gif")
    content = {"contrasts": contrasts, "runtime": vendor_runtime(out / "runtime")}
    (out / "playground.json").write_text(json.dumps(content, indent=1))


# ---------------------------------------------------------------- slices


def simulated_slices(contrasts: list[str]) -> dict:
    """{"t1": {"healthy": [slice, ..], "patients": [slice with "lesion", ..]}, ..}, see `stored`."""
    found = {c: {"healthy": [], "patients": []} for c in contrasts}
    for seed, levels in HEALTHY.items():
        for c, scan in prepared(simulate_subject(seed, contrasts=tuple(contrasts))).items():
            rows = [nearest(scan, z) for z in levels]
            found[c]["healthy"] += [stored(scan, k) for k in rows]
    for seed, (kind, volume) in PATIENTS.items():
        subject = simulate_subject(seed, contrasts=tuple(contrasts), lesion=kind, volume_ml=volume)
        for c, scan in prepared(subject).items():
            area = scan.lesion.sum((1, 2))
            largest = int(area.argmax())
            # and one further up, where the lesion is about half as large
            second = max(range(largest, len(area)), key=lambda k: (area[k] >= area[largest] / 2, k))
            found[c]["patients"] += [stored(scan, k, kind) for k in (largest, second)]
    for c in found:
        found[c]["healthy"].sort(key=lambda s: s["z"])
    return found


def prepared(subject) -> dict:
    """Its slices in each contrast: {"t1": PreparedScan, ..}."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder, f"{n}.nii") for n in ("brain", "lesion", *subject.images)}
        for name, path in paths.items():
            nib.save(subject.images.get(name) or getattr(subject, name), path)
        masks = dict(brain=paths["brain"], lesion=paths["lesion"], register=False)
        for contrast in subject.images:
            found[contrast] = prepare_volume(paths[contrast], **masks)
    return found


def z_of(scan, k: int) -> float:
    """MNI mm of a slice."""
    grid = scan.geometry.grid
    return grid.z_range[0] + scan.geometry.slice_index[k] * grid.step


def nearest(scan, z: float) -> int:
    return min(range(len(scan.image)), key=lambda k: abs(z_of(scan, k) - z))


def stored(scan, k: int, kind: str | None = None) -> dict:
    """A slice as bytes in base64: 0 is background, and b stands for b / 127.5 - 1."""
    values = np.clip(np.round((scan.image[k] + 1) * 127.5), 1, 255) * scan.brain[k]
    content = {"z": z_of(scan, k), "values": base64.b64encode(values.astype(np.uint8).tobytes()).decode()}
    if kind:
        lesion = scan.lesion[k] & scan.brain[k]
        content |= {"kind": kind, "lesion": base64.b64encode(lesion.astype(np.uint8).tobytes()).decode()}
    return content


def write_film(patient: dict, path: Path) -> None:
    """The scan beside the ten steps of its healing, as a GIF."""
    values = np.frombuffer(base64.b64decode(patient["values"]), np.uint8).reshape(96, 96)
    x0 = torch.from_numpy(values / 127.5 - 1).float()[None, None]  # (1, 1, H, W)
    pipe = MadAdPipeline.from_pretrained("t1")
    result = pipe(x0, generator=torch.Generator().manual_seed(0), progress=False)
    frames = pipe.decode(result.trajectory[:, 0])  # (S + 1, 1, H, W)
    frames = torch.where(result.brain, frames, -1.0)
    pairs = torch.cat([x0.expand_as(frames), frames], 3)[:, 0]  # (S + 1, H, 2 W)
    pictures = [Image.fromarray(((p + 1) * 127.5).byte().numpy()).resize((576, 288)) for p in pairs]
    times = [900] + [250] * (len(pictures) - 2) + [2500]  # ms
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)


# ---------------------------------------------------------------- onnxruntime-web


def vendor_runtime(out: Path) -> dict:
    """Copy the runtime's files; {"wasm": {"script": .., "binary": .., "bytes": ..}, ..}, or {} without npm."""
    package = VENDORED / f"{RUNTIME}-{VERSION}"
    if not package.is_dir() and (reason := fetch(package)):
        print(f"the playground will only show its film: {reason}", file=sys.stderr)
        return {}
    out.mkdir(exist_ok=True)
    found = {}
    for kind, (script, binary) in RUNTIME_FILES.items():
        shutil.copyfile(package / script, out / script)
        shutil.copyfile(package / f"{binary}.gz", out / f"{binary}.gz")
        bytes_ = (out / f"{binary}.gz").stat().st_size
        found[kind] = {"script": script, "binary": f"{binary}.gz", "bytes": bytes_}
    return found


def fetch(package: Path) -> str:
    """Bring RUNTIME_FILES by npm into the folder; why not, in a few words, or ""."""
    npm = shutil.which("npm")
    if npm is None:
        return f"npm is not installed, and it brings {RUNTIME}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [npm, "pack", "--silent", "--prefer-offline", f"{RUNTIME}@{VERSION}"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return f"npm did not bring {RUNTIME} within five minutes"
        archive = Path(folder, f"{RUNTIME}-{VERSION}.tgz")
        if done.returncode or not archive.is_file():
            why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            return f"npm cannot bring {RUNTIME} {VERSION} ({why})"
        if hashlib.sha512(archive.read_bytes()).hexdigest() != SHA512:
            return f"what npm brought as {RUNTIME} {VERSION} is another file than it was"
        part = package.with_name(package.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            for script, binary in RUNTIME_FILES.values():
                (part / script).write_bytes(tar.extractfile(f"package/dist/{script}").read())
                packed = gzip.compress(tar.extractfile(f"package/dist/{binary}").read(), mtime=0)
                (part / f"{binary}.gz").write_bytes(packed)
            for name in ("package/LICENSE", "package/README.md"):
                if name in tar.getnames():
                    (part / Path(name).name).write_bytes(tar.extractfile(name).read())
        part.rename(package)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site" / "playground")
