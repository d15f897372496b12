"""The autoencoder's own reconstruction error, without any denoiser (Baur et al. 2021 compare such
autoencoders).
"""

from __future__ import annotations

import torch

from madad_lite.family.frame import Method, difference
from madad_lite.scoring import image_difference


def reconstruction_error(pipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Scored exactly as MAD-AD is, but with the plain reconstruction in the healed slice's place."""
    reconstruction = torch.where(brain, pipeline.decode(pipeline.encode(images)), -1.0)
    settings = {k: pipeline.config[k] for k in ("gamma", "squared", "sigma")}
    return image_difference(reconstruction, images, brain=brain, **settings)


class Reconstruction(Method):
    title = "reconstruction error"
    kinds = {}
    encoder = True

    def score(self, x, brain, rng):
        return difference(self.decode(self.encode(x), brain), x)
