"""Random changes of position and intensity, so that a scanner's particulars are not learnt as anatomy.

All work on batches: images (N, 1, H, W) in [-1, 1] with background exactly -1, brain (N, 1, H, W) bool. They
draw from the generator that is given and keep the background at exactly -1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high, generator=generator)


def move(
    images: torch.Tensor,
    brain: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 5.0,
    shift: float = 1 / 32,  # of the slice's side
    scale: float = 0.05,
    flip: bool = True,  # left and right
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, shift, scale and mirror, each slice by its own amounts. Returns (images, brain)."""
    n = len(images)
    angle = _uniform(n, -degrees, degrees, generator).flatten() * math.pi / 180
    zoom = 1 + _uniform(n, -scale, scale, generator).flatten()
    offset = torch.empty(n, 2).uniform_(
        -2 * shift, 2 * shift, generator=generator
    )  # the grid spans -1..1: factor 2
    sign = torch.where(torch.rand(n, generator=generator) < (0.5 if flip else 0.0), -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = torch.stack(
        [torch.stack([cos * sign, -sin, offset[:, 0]], 1), torch.stack([sin * sign, cos, offset[:, 1]], 1)], 1
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)  # (N, H, W, 2)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside the slice: background
    inside = F.grid_sample(brain.float(), grid, align_corners=False) > 0.5
    return torch.where(inside, moved, -1.0), inside


def vary_intensity(
    images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> torch.Tensor:
    """Brightness, contrast, gamma, a smooth bias field and noise, in proportion to `strength` (0: none)."""
    n = len(images)
    v = (images + 1) / 2  # 0..1, the brain's median near 0.5
    v = v.clamp_min(1e-4) ** _uniform(n, -0.25, 0.25, generator).mul(strength).exp()
    v = v * (1 + strength * _uniform(n, -0.1, 0.1, generator)) + strength * _uniform(
        n, -0.03, 0.03, generator
    )
    field = torch.empty(n, 1, 4, 4).normal_(generator=generator) * 0.06 * strength
    v = v * (1 + F.interpolate(field, size=images.shape[-2:], mode="bicubic", align_corners=True))
    noise = torch.empty_like(v).normal_(generator=generator)
    v = v + noise * _uniform(n, 0.0, 0.02, generator) * strength
    return torch.where(brain, (2 * v - 1).clamp(-1, 1), -1.0)


def random_contrast(
    images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, share: float = 0.3
) -> torch.Tensor:
    """Give a share of the slices an arbitrary new contrast: each intensity is sent through a random broken
    line.

    This makes an autoencoder a codec for brain anatomy at large, of any contrast and with any lesion, rather
    than for one cohort's grey values.
    """
    n, knots = len(images), 6
    levels = torch.rand(n, knots, generator=generator)  # new value of 0, 0.2, .. 1
    position = (images.flatten(1) + 1) / 2 * (knots - 1)  # (N, H*W), 0..5
    left = position.floor().clamp(0, knots - 2).long()
    value = torch.lerp(levels.gather(1, left), levels.gather(1, left + 1), position - left)
    chosen = torch.rand(n, 1, 1, 1, generator=generator) < share
    return torch.where(chosen & brain, 2 * value.view_as(images) - 1, images)


def vary_acquisition(
    images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur some slices a little, and trim the brain mask of some by a pixel or two: scanners and
    skull-stripping differ.

    Returns (images, brain).
    """
    n = len(images)
    chance = torch.rand(n, 1, 1, 1, generator=generator)
    inner = ~F.max_pool2d((~brain).float(), 3, 1, 1).bool()  # without the outermost pixel
    inner2 = ~F.max_pool2d((~inner).float(), 3, 1, 1).bool()
    brain = torch.where(chance < 0.1, inner2, torch.where(chance < 0.35, inner, brain))
    side = _uniform(n, 0, 0.2, generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    for dim in (-1, -2):  # a kernel (side, 1 - 2 side, side)
        images = images * (1 - 2 * side) + side * (images.roll(1, dim) + images.roll(-1, dim))
    return torch.where(brain, images, -1.0), brain


def _lite(images, brain, generator):
    images, brain = move(images, brain, generator)
    return vary_acquisition(vary_intensity(images, brain, generator), brain, generator)


def _authors(images, brain, generator):
    """The authors' code: rotation by up to 5 degrees, shift by up to 1/32, brightness and contrast by up to
    0.1, each p = .5.
    """
    n = len(images)
    yes = [torch.rand(n, 1, 1, 1, generator=generator) < 0.5 for _ in range(4)]
    for chosen, change in ((yes[0], dict(shift=0.0)), (yes[1], dict(degrees=0.0))):
        moved, inside = move(images, brain, generator, scale=0.0, flip=False, **change)
        images, brain = torch.where(chosen, moved, images), torch.where(chosen, inside, brain)
    brightness = torch.where(yes[2], 1 + _uniform(n, -0.1, 0.1, generator), 1.0)
    contrast = torch.where(yes[3], 1 + _uniform(n, -0.1, 0.1, generator), 1.0)
    v = (images + 1) / 2 * brightness
    mean = (v * brain).sum((1, 2, 3), keepdim=True) / brain.sum((1, 2, 3), keepdim=True).clamp_min(1)
    v = mean + (v - mean) * contrast
    return torch.where(brain, (2 * v - 1).clamp(-1, 1), -1.0), brain


def bend(
    images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Deform each slice smoothly by up to a few pixels, and widen its middle by up to 40 %: brains differ in form,
    and the ventricles of old ones are wide. Returns (images, brain).
    """
    n, _, h, w = images.shape
    still = torch.eye(2, 3).expand(n, 2, 3)
    grid = F.affine_grid(still, [n, 1, h, w], align_corners=False)  # (N, H, W, 2), -1..1
    knots = torch.empty(n, 2, 6, 6).normal_(generator=generator) * _uniform(n, 0, 2.5 / w, generator)
    grid = grid + F.interpolate(knots, size=(h, w), mode="bicubic", align_corners=True).movedim(1, -1)
    weight = brain.float() / brain.sum((2, 3), keepdim=True).clamp_min(1)
    centre = (weight.movedim(1, -1) * grid).sum((1, 2), keepdim=True)  # (N, 1, 1, 2), of the brain
    away = grid - centre
    reach = _uniform(n, 0.25, 0.45, generator)  # of half a slice
    near = torch.exp(-away.square().sum(-1, keepdim=True) / (2 * reach**2))  # (N, H, W, 1)
    grid = centre + away * (1 - near * _uniform(n, -0.1, 0.28, generator))
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    inside = F.grid_sample(brain.float(), grid, align_corners=False) > 0.5
    return torch.where(inside, moved, -1.0), inside


def vary_tissues(
    images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, strength: float = 0.5
) -> torch.Tensor:
    """Send each slice's intensities through a random rising curve, so that the tissues keep their order and change
    their contrast, and bring the brain's median back to where it was.

    strength: 0: no change; 1: steps of the curve from about a third to three times the even ones.
    """
    n, knots = len(images), 8
    steps = (strength * torch.empty(n, knots).uniform_(-1.1, 1.1, generator=generator)).exp()
    levels = F.pad((steps / steps.sum(1, keepdim=True)).cumsum(1), (1, 0))  # (N, 9), 0..1
    position = (images.flatten(1) + 1) / 2 * knots
    left = position.floor().clamp(0, knots - 1).long()
    value = torch.lerp(levels.gather(1, left), levels.gather(1, left + 1), position - left).view_as(images)
    return torch.where(brain, (2 * value * _to_median(images, value, brain) - 1).clamp(-1, 1), -1.0)


def _to_median(before: torch.Tensor, value: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """(N, 1, 1, 1): by what `value` (0..1) is multiplied to have the median of `before` (-1..1) in the brain."""
    nan = torch.tensor(float("nan"))
    medians = [torch.where(brain, v, nan).flatten(1).nanmedian(1).values for v in ((before + 1) / 2, value)]
    return (medians[0] / medians[1].clamp_min(0.05)).nan_to_num(1.0).clamp(0.5, 2.0).view(-1, 1, 1, 1)


def thicken(images: torch.Tensor, generator: torch.Generator, share: float = 0.3) -> torch.Tensor:
    """Blur a share of the slices with their neighbours in the batch, as thick slices are: consecutive slices of a
    volume, as a SliceDataset gives them in order, are what this is for.
    """
    n = len(images)
    order = torch.arange(n)
    near, far = (
        (images[(order - k).clamp_min(0)] + images[(order + k).clamp_max(n - 1)]) / 2 for k in (1, 2)
    )
    thick = 0.4 * images + 0.4 * near + 0.2 * far  # 8 mm, of slices 2 mm apart
    amount = _uniform(n, 0, 1, generator) * (torch.rand(n, 1, 1, 1, generator=generator) < share)
    return torch.lerp(images, thick, amount)


def cut_off(brain: torch.Tensor, generator: torch.Generator, share: float = 0.05) -> torch.Tensor:
    """The brain without all beyond a line across the slice, in a share of them: a field of view that ends in it."""
    n, _, h, w = brain.shape
    angle = _uniform(n, 0, 2 * math.pi, generator)
    y, x = torch.linspace(-1, 1, h).view(1, 1, h, 1), torch.linspace(-1, 1, w).view(1, 1, 1, w)
    beyond = angle.cos() * x + angle.sin() * y > _uniform(n, 0.35, 0.7, generator)
    return brain & ~(beyond & (torch.rand(n, 1, 1, 1, generator=generator) < share))


def _wide(images, brain, generator):
    """Other hospitals: tissue contrast, bias, noise, thick slices, cut fields of view, other brains' forms."""
    images = thicken(images, generator)
    images, brain = bend(*move(images, brain, generator, degrees=8.0, scale=0.1), generator)
    brain = cut_off(brain, generator)
    images = vary_tissues(torch.where(brain, images, -1.0), brain, generator)
    n = len(images)
    strong = vary_intensity(images, brain, generator, strength=2.5)
    images = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, strong, images)
    value = (images + 1) / 2
    images = torch.where(
        brain, (2 * value * _to_median(torch.zeros_like(images), value, brain) - 1).clamp(-1, 1), -1.0
    )
    return vary_acquisition(vary_intensity(images, brain, generator), brain, generator)


# (images, brain, generator) -> (images, brain)
AUGMENTATIONS = {"lite": _lite, "authors": _authors, "wide": _wide}
