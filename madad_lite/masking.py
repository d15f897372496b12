"""Random patch masks: which latent cells the forward process noises (MAD-AD, section 3.1).

Polarity as in the paper: M = 1 where a cell is noised, 0 where it stays as it is. (The authors' code stores
the opposite, "keep".)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def brain_cells(
    brain: torch.Tensor, size: tuple[int, int], min_fraction: float = 0.9, block: int = 1
) -> torch.Tensor:
    """Which latent cells count as brain.

    brain: (N, 1, H, W), 0/1 or bool. size: (h, w) of the latent. Returns (N, 1, h, w) bool: True where at
    least `min_fraction` of the pixels are brain, counted over blocks of `block` x `block` cells. The authors'
    code uses blocks of 16 x 16 pixels, that is block=2 with an encoder of factor 8.
    """
    h, w = size
    blocks = (-(-h // block), -(-w // block))
    fraction = F.adaptive_avg_pool2d(brain.float(), blocks)  # (N, 1, h/block, w/block)
    cells = fraction.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :h, :w]
    return cells >= min_fraction


def random_patch_mask(
    n: int,
    size: tuple[int, int],
    *,
    brain: torch.Tensor | None = None,  # (N, 1, h, w) cells that may be noised; None: all
    generator: torch.Generator | None = None,
    sides: tuple[int, ...] = (1, 2, 4, 8),
    side_probabilities: tuple[float, ...] = (0.2, 0.3, 0.3, 0.2),
    max_ratio: float = 0.4,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw one mask a sample: rectangles of one random shape a batch, a random share of them noised.

    The sides of the rectangle are drawn once a batch, independently in y and x; the share of noised
    rectangles is drawn for each sample from U[0, max_ratio]. Returns (N, 1, h, w) float32, 1 = noised; 0
    outside `brain`.
    """
    if len(sides) != len(side_probabilities):
        raise ValueError(f"{len(sides)} patch sides but {len(side_probabilities)} probabilities")
    if not 0 <= max_ratio <= 1:
        raise ValueError(f"max_ratio is a share between 0 and 1, not {max_ratio}")
    draw_on = generator.device if generator is not None else torch.device("cpu")
    h, w = size
    weights = torch.tensor(side_probabilities, dtype=torch.float32, device=draw_on)
    py, px = (sides[i] for i in torch.multinomial(weights, 2, replacement=True, generator=generator).tolist())
    rows, columns = -(-h // py), -(-w // px)
    order = torch.rand(n, rows * columns, generator=generator, device=draw_on).argsort(1).argsort(1)  # ranks
    ratio = torch.rand(n, 1, generator=generator, device=draw_on) * max_ratio
    chosen = (order < ratio * rows * columns).float().view(n, 1, rows, columns)
    mask = chosen.repeat_interleave(py, -2).repeat_interleave(px, -1)[..., :h, :w]  # (N, 1, h, w)
    if device is not None:
        mask = mask.to(device)
    return mask if brain is None else mask * brain.to(mask)
