"""madad_lite: masked diffusion for unsupervised anomaly detection on brain MRI (MAD-AD, arXiv 2502.16943).

from madad_lite import MadAdPipeline

pipe = MadAdPipeline.from_pretrained("t1")
out = pipe("scan.nii.gz")
out.anomaly_map, out.healed, out.to_nifti("anomaly_map")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madad_lite.denoiser import Denoiser
    from madad_lite.pipeline import MadAdOutput, MadAdPipeline

__version__ = "0.1.0"

# torch and diffusers take seconds to import: they are loaded when first asked for
_WHERE = {"MadAdPipeline": "pipeline", "MadAdOutput": "pipeline", "Denoiser": "denoiser"}

__all__ = ["Denoiser", "MadAdOutput", "MadAdPipeline", "__version__"]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(f"madad_lite.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'madad_lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # what is not loaded yet, too
