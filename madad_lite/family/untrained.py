"""The control: the network of the denoising autoencoder as it was drawn, without any training. Ours.

A method that is no better than this has learnt nothing that its score needs (an untrained network answers with
little, so that what is left of the difference is the slice's own intensity).
"""

from __future__ import annotations

from madad_lite.family.dae import DAE


class Untrained(DAE):
    title = "untrained network"
    paper = None

    def stages(self):
        return []
