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
    """Which latent cells count as brain: those of blocks with enough brain pixels (section 3.1).

    brain: (N, 1, H, W), 0/1 or bool. size: (h, w) of the latent. min_fraction: share of brain pixels, 0..1,
    that is enough. block: side of the blocks in cells; the authors' code: 16 pixels, 2 cells where f = 8.
    Returns (N, 1, h, w) bool.
    """
    h, w = size
    blocks = (-(-h // block), -(-w // block))  # rounded up
    fraction = F.adaptive_avg_pool2d(brain.float(), blocks)  # (N, 1, h / block, w / block)
    cells = fraction.repeat_interleave(block, -2).repeat_interleave(block, -1)  # (N, 1, >= h, >= w)
    return cells[..., :h, :w] >= min_fraction  # (N, 1, h, w)


def random_patch_mask(
    n: int,
    size: tuple[int, int],
    *,
    brain: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    sides: tuple[int, ...] = (1, 2, 4, 8),
    side_probabilities: tuple[float, ...] = (0.2, 0.3, 0.3, 0.2),
    max_ratio: float = 0.4,
) -> torch.Tensor:
    """M: rectangles of one random shape a batch, a random share of them noised in each sample (section 3.1).

    n: samples. size: (h, w) of the latent. brain: (N, 1, h, w), the cells that may be noised; None: all.
    sides, side_probabilities: the rectangle's in cells, drawn once a batch, independently in y and x.
    max_ratio: the share of noised rectangles is drawn from U[0, max_ratio], once a sample.
    Returns M (N, 1, h, w) float32, 1 = noised. ValueError: a max_ratio outside 0..1, or unequal lengths.
    """
    if len(sides) != len(side_probabilities):
        raise ValueError(f"{len(sides)} patch sides but {len(side_probabilities)} probabilities")
    if not 0 <= max_ratio <= 1:
        raise ValueError(f"max_ratio is a share between 0 and 1, not {max_ratio}")
    draw_on = generator.device if generator is not None else torch.device("cpu")
    h, w = size
    weights = torch.tensor(side_probabilities, dtype=torch.float32, device=draw_on)
    py, px = (sides[i] for i in torch.multinomial(weights, 2, replacement=True, generator=generator).tolist())
    rows, columns = -(-h // py), -(-w // px)  # rounded up
    rank = torch.rand(n, rows * columns, generator=generator, device=draw_on).argsort(1).argsort(1)
    ratio = torch.rand(n, 1, generator=generator, device=draw_on) * max_ratio  # (N, 1)
    M = (rank < ratio * rows * columns).float().view(n, 1, rows, columns)  # (N, 1, rows, columns)
    M = M.repeat_interleave(py, -2).repeat_interleave(px, -1)[..., :h, :w]  # (N, 1, h, w)
    return M if brain is None else M * brain.to(M)
