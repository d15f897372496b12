"""Masked diffusion in the image and frequency domain (mDDPM; Iqbal et al. 2023, arXiv 2305.19867).

pDDPM whose context is corrupted, in training only, so that the box cannot simply be copied from its surroundings: the
slice is filtered in the frequency domain, where a square of half-width 2 to 10 around zero is either kept or removed
(half each), and 0 to 5 rectangles of that filtered slice, 9 to 18 % of the brain's extent a side, are pasted into the
context. The target is the clean slice. Test and score are those of pDDPM.

Ours: the slice is filtered as x + 1, so that the background is 0, and cut to the range; what pDDPM's file says; its
full-size settings, which were not checked against this paper.
"""

from __future__ import annotations

import torch

from madad_lite.family.pddpm import PDDPM

HALF_WIDTHS, RECTANGLES, EXTENT = (2, 10), 5, (0.09, 0.18)


def filtered(x: torch.Tensor, half_width: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Slices (N, 1, H, W) of which only the frequencies |ky|, |kx| <= half_width (N,) are kept, or, where `keep` (N,)
    is False, all others.
    """
    ky, kx = (torch.fft.fftfreq(n, 1 / n, device=x.device).abs() for n in x.shape[2:])  # (H,), (W,)
    inside = torch.maximum(ky[:, None], kx[None]) <= half_width.view(-1, 1, 1, 1)  # (N, 1, H, W)
    spectrum = torch.fft.fft2(x + 1) * (inside == keep.view(-1, 1, 1, 1))
    return (torch.fft.ifft2(spectrum).real - 1).clamp(-1, 1)


def rectangles(brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """0 to 5 rectangles in the brain's bounding box of each slice: (N, 1, H, W) bool."""
    n, _, h, w = brain.shape
    result = torch.zeros_like(brain, dtype=torch.bool)
    y, x = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    counts = torch.randint(RECTANGLES + 1, (n,), generator=generator)
    draws = torch.rand(n, RECTANGLES, 4, generator=generator)
    for i in range(n):
        where = brain[i, 0].nonzero()
        if not len(where):
            continue
        low, extent = where.min(0).values, where.max(0).values - where.min(0).values + 1  # (2,): y, x
        for place_y, place_x, size_y, size_x in draws[i, : counts[i]].tolist():
            sides = [EXTENT[0] + (EXTENT[1] - EXTENT[0]) * s for s in (size_y, size_x)]
            (dy, dx), (ey, ex) = (
                (max(1, round(s * e)) for s, e in zip(sides, extent.tolist())),
                extent.tolist(),
            )
            y0, x0 = low[0] + int(place_y * (ey - dy + 1)), low[1] + int(place_x * (ex - dx + 1))
            result[i] |= (y >= y0) & (y < y0 + dy) & (x >= x0) & (x < x0 + dx)
    return result


class MDDPM(PDDPM):
    title = "mDDPM"

    def context(self, x, brain, generator):
        n, (low, high) = len(x), HALF_WIDTHS
        half_width = torch.randint(low, high + 1, (n,), generator=generator)
        keep = torch.rand(n, generator=generator) < 0.5
        return torch.where(rectangles(brain, generator), filtered(x, half_width, keep), x)
