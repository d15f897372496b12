"""madad_lite: masked diffusion for unsupervised anomaly detection on brain MRI (MAD-AD, arXiv 2502.16943).

from madad_lite import MadAdPipeline

pipe = MadAdPipeline.from_pretrained("t1")
out = pipe("scan.nii.gz")
out.anomaly_map, out.healed, out.to_nifti("anomaly_map")
"""

import importlib

__version__ = "0.1.0"

# torch and diffusers take seconds to import: they are loaded when first asked for
_WHERE = {"MadAdPipeline": "pipeline", "MadAdOutput": "pipeline", "Denoiser": "denoiser"}

__all__ = ["Denoiser", "MadAdOutput", "MadAdPipeline", "__version__"]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"madad_lite.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'madad_lite' has no attribute {name!r}")
