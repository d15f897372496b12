"""Augmentation keeps the background, follows its generator, and changes what it says it changes."""

import pytest
import torch

from madad_lite import augmentation


@pytest.fixture
def slices():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    brain = (rows**2 + columns**2 < 0.6).expand(4, 1, 48, 48)
    images = torch.where(brain, 0.3 * columns + 0.1, torch.tensor(-1.0))  # brighter on the right
    return images, brain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", [augmentation.vary_intensity, augmentation.random_contrast])
def test_intensity_changes_keep_background_and_range(slices, change):
    images, brain = slices
    changed = change(images, brain, seeded())
    assert (changed[~brain] == -1).all() and changed.abs().max() <= 1
    assert torch.equal(changed, change(images, brain, seeded()))
    assert not torch.equal(changed, change(images, brain, seeded(1)))


def test_no_strength_no_change(slices):
    images, brain = slices
    assert torch.allclose(augmentation.vary_intensity(images, brain, seeded(), strength=0.0), images, atol=1e-3)
    assert torch.equal(augmentation.random_contrast(images, brain, seeded(), share=0.0), images)


def test_move_shifts_flips_and_keeps_the_background(slices):
    images, brain = (x.repeat(16, 1, 1, 1) for x in slices)
    moved, inside = augmentation.move(images, brain, seeded())
    assert (moved[~inside] == -1).all() and inside.dtype == torch.bool
    left = torch.where(inside, moved, 0.0)[..., :24].sum((1, 2, 3))
    right = torch.where(inside, moved, 0.0)[..., 24:].sum((1, 2, 3))
    flipped = (left > right).float().mean()
    assert 0.25 < flipped < 0.75
    still, same = augmentation.move(images, brain, seeded(), degrees=0, shift=0, scale=0, flip=False)
    assert torch.allclose(still, images, atol=1e-5) and torch.equal(same, brain)
