"""`<name>.json` beside a scan's results: what made them. It decides which files are ours, and what `--resume`
may leave out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import madad_lite
from madad_lite.errors import ScanError, WeightsError
from madad_lite.files import read_json
from madad_lite.pipeline import MadAdPipeline

MADE_BY = "madad detect"
RECORD = {  # what counts as one, see files.misfit
    "made_by": {MADE_BY},
    "files": [str],
    "finished?": bool,
    "scan?": {str: None},
    "options?": {str: None},
    "weights?": {str: None},
}
HEALTHY = {"who": str, "z_mm": [float], "lowest": [float], "median": [float], "highest": [float]}
BLOCK = 2**20  # bytes


def _hash_of_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_of_weights(pipe: MadAdPipeline) -> str:
    """SHA-256 of all tensors and settings of a pipeline, wherever it came from."""
    settings = {k: v for k, v in dict(pipe.config).items() if not k.startswith("_")}
    settings["denoiser"] = {k: v for k, v in dict(pipe.denoiser.config).items() if not k.startswith("_")}
    settings["latents"] = [pipe.autoencoder.config.get(k) for k in ("scaling_factor", "_folding")]
    settings["schedule"] = [pipe.scheduler.config.prediction_type, pipe.scheduler.alphas_cumprod.tolist()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for model in (pipe.autoencoder, pipe.denoiser):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def made_of(scan: Path, image: Path, brain: Path | str | None, options: dict) -> dict:
    """What a scan's results depend on, besides the weights. image: the scan's file, if it is a DICOM folder the one
    that it was converted to.
    """
    mask = (
        {"file": str(brain), "sha256": _hash_of_file(brain)} if isinstance(brain, Path) else brain or "auto"
    )
    return {
        "made_by": MADE_BY,
        "finished": True,
        "version": madad_lite.__version__,
        "scan": {"file": str(scan), "sha256": _hash_of_file(image)},
        "brain": mask,
        "options": options,
    }


def text(now: dict) -> str:
    return json.dumps(now, indent=1) + "\n"


def of_earlier_run(files: dict[str, Path], *, force: bool, resume: bool) -> dict | None:
    """The record of an earlier run. ScanError when a file is there that is not of one, or one may not
    replace it.
    """
    try:
        old = read_json(files["record"], RECORD)
    except ScanError:
        old = None
    for file in files.values():
        if not file.exists() and not file.is_symlink():
            continue
        if old is None or (file.name not in old["files"]):
            raise ScanError(
                f"{file}: exists and was not written by {MADE_BY}; choose another --out folder, or move it away"
            )
        if not (force or resume):
            raise ScanError(
                f"{file}: exists already; --resume leaves out what is finished, --force overwrites it"
            )
    return old


def is_finished(old: dict | None, now: dict, weights: list[str], files: dict[str, Path]) -> bool:
    """Whether all files are there, of the same scan, weights and options. ScanError when they are of others."""
    if old is None or not old.get("finished"):
        return False
    before, after = _flat(old), _flat(now)
    if before["weights"] in weights:
        after["weights"] = before["weights"]
    else:
        after["weights"] = weights[0]
    if changed := sorted(k for k in after if before.get(k) != after[k]):
        k = changed[0]
        was, now = ("not given" if x is None else repr(x) for x in (before.get(k), after[k]))
        what = "with other weights" if k == "weights" else f"with {k}: {was}, now: {now}"
        what = f"from another {k}" if k in ("scan", "brain mask") else what
        raise ScanError(
            f"{files['anomaly']}: was made {what}; --force makes it again, or choose another --out folder"
        )
    return all(f.is_file() and f.stat().st_size for f in files.values())


def _flat(content: dict) -> dict:
    """What has to be the same, by the names that a user knows."""
    brain = content.get("brain")
    return {
        "scan": content.get("scan", {}).get("sha256"),
        "brain mask": brain.get("sha256") if isinstance(brain, dict) else brain,
        "weights": content.get("weights", {}).get("sha256"),
        "version": content.get("version"),
        **{"steps" if k == "num_inference_steps" else k: v for k, v in content.get("options", {}).items()},
    }


def healthy_range(pipe: MadAdPipeline) -> dict | None:
    """Summed scores of healthy subjects' slices, measured by benchmarks/healthy_range.py, if the weights' folder
    has them: {"who", "z_mm", "lowest", "median", "highest"}.
    """
    file = Path(pipe.name_or_path or "none") / "healthy.json"
    if not file.exists():
        return None
    found = read_json(
        file, HEALTHY, error=WeightsError, hint="copy or download the weights again, or remove the file"
    )
    if len({len(v) for k, v in found.items() if k in HEALTHY and k != "who"}) > 1:
        raise WeightsError(f"{file}: damaged (its lists are of different lengths); remove the file")
    return found
