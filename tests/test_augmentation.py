"""Augmentation keeps the background, follows its generator, and changes what it says it changes."""

import pytest
import torch

from madad_lite.slices.augment import (
    AUGMENTATIONS,
    bend,
    cut_off,
    move,
    random_contrast,
    thicken,
    vary_acquisition,
    vary_intensity,
    vary_tissues,
)


@pytest.fixture
def slices():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    brain = (rows**2 + columns**2 < 0.6).expand(4, 1, 48, 48)
    images = torch.where(brain, 0.3 * columns + 0.1, torch.tensor(-1.0))  # brighter on the right
    return images, brain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", [vary_intensity, random_contrast])
def test_intensity_changes_keep_background_and_range(slices, change):
    images, brain = slices
    changed = change(images, brain, seeded())
    assert (changed[~brain] == -1).all() and changed.abs().max() <= 1
    assert torch.equal(changed, change(images, brain, seeded()))
    assert not torch.equal(changed, change(images, brain, seeded(1)))


def test_no_strength_no_change(slices):
    images, brain = slices
    assert torch.allclose(vary_intensity(images, brain, seeded(), strength=0.0), images, atol=1e-3)
    assert torch.equal(random_contrast(images, brain, seeded(), share=0.0), images)


def test_move_shifts_flips_and_keeps_the_background(slices):
    images, brain = (x.repeat(16, 1, 1, 1) for x in slices)
    moved, inside = move(images, brain, seeded())
    assert (moved[~inside] == -1).all() and inside.dtype == torch.bool
    left = torch.where(inside, moved, 0.0)[..., :24].sum((1, 2, 3))
    right = torch.where(inside, moved, 0.0)[..., 24:].sum((1, 2, 3))
    flipped = (left > right).float().mean()
    assert 0.25 < flipped < 0.75
    still, same = move(images, brain, seeded(), degrees=0, shift=0, scale=0, flip=False)
    assert torch.allclose(still, images, atol=1e-5) and torch.equal(same, brain)


def test_authors_augmentation_changes_each_part_of_half_of_the_slices(slices):
    images, brain = (x.repeat(100, 1, 1, 1) for x in slices)
    changed, inside = AUGMENTATIONS["authors"](images, brain, seeded())
    assert (changed[~inside] == -1).all() and changed.min() >= -1 and changed.max() <= 1
    same = ((changed - images).abs() < 1e-5).flatten(1).all(1).float().mean()
    assert 0.02 < same < 0.12  # none of four parts, each with chance 1/2: 1/16
    still = (inside == brain).flatten(1).all(1).float().mean()
    assert 0.15 < still < 0.5  # neither rotated nor shifted: about a quarter


def test_acquisition_blurs_and_trims(slices):
    images, brain = (x.repeat(50, 1, 1, 1) for x in slices)
    images = torch.where(brain, 0.3 * torch.randn(images.shape, generator=seeded(1)), -1.0)
    changed, inside = vary_acquisition(images, brain, seeded())
    assert not (inside & ~brain).any() and (changed[~inside] == -1).all()
    trimmed = (inside.flatten(1).sum(1) < brain.flatten(1).sum(1)).float().mean()
    assert 0.2 < trimmed < 0.5
    sharp = ((changed == images) | ~inside).flatten(1).all(1).float().mean()
    assert 0.3 < sharp < 0.7


def test_tissues_keep_their_order_and_the_median_stays(slices):
    images, brain = (x.repeat(8, 1, 1, 1) for x in slices)
    changed = vary_tissues(images, brain, seeded())
    assert (changed[~brain] == -1).all() and changed.abs().max() <= 1
    before, after = images[brain].view(len(images), -1), changed[brain].view(len(images), -1)
    order = before.argsort(1)
    assert (after.gather(1, order).diff(dim=1) >= -1e-5).all()  # what was darker is darker
    assert (after.median(1).values - before.median(1).values).abs().max() < 0.02
    spreads = after.std(1) / before.std(1)
    assert spreads.min() < 0.8 and spreads.max() > 1.2  # weaker and stronger contrasts


def test_bending_widens_the_middle_and_keeps_the_background(slices):
    images, brain = (x.repeat(32, 1, 1, 1) for x in slices)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    hole = (rows**2 + columns**2 < 0.04).expand_as(brain)  # a ventricle
    images = torch.where(hole, -0.9, images)
    bent, inside = bend(images, brain, seeded())
    assert (bent[~inside] == -1).all() and bent.min() >= -1 and bent.max() <= 1
    wider = ((bent < -0.5) & inside).sum((1, 2, 3)) / hole[0].sum()
    assert wider.max() > 1.3 and wider.mean() > 1.05  # mostly wider, of some much
    assert ((inside.sum((1, 2, 3)) / brain[0].sum() - 1).abs() < 0.35).all()


def test_thick_slices_are_blurred_along_the_volume_only(slices):
    images, _ = slices
    volume = images.repeat(8, 1, 1, 1) + torch.linspace(-0.3, 0.3, 32).view(-1, 1, 1, 1)
    assert torch.allclose(thicken(volume, seeded(), share=1.0)[4:-4], volume[4:-4], atol=1e-5)  # linear in z
    alternating = torch.ones(32, 1, 8, 8) * torch.tensor([0.5, -0.5]).repeat(16).view(-1, 1, 1, 1)
    assert thicken(alternating, seeded(), share=1.0).abs().mean() < 0.45
    assert torch.equal(thicken(alternating, seeded(), share=0.0), alternating)


def test_a_cut_field_of_view_takes_one_side(slices):
    _, brain = (x.repeat(16, 1, 1, 1) for x in slices)
    cut = cut_off(brain, seeded(), share=1.0)
    assert not (cut & ~brain).any()
    left = cut.sum((1, 2, 3)) / brain.sum((1, 2, 3))
    assert left.min() > 0.5 and left.max() <= 1 and left.mean() < 0.97
    assert torch.equal(cut_off(brain, seeded(), share=0.0), brain)


def test_wide_augmentation_follows_its_generator_and_keeps_the_background(slices):
    images, brain = (x.repeat(8, 1, 1, 1) for x in slices)
    changed, inside = AUGMENTATIONS["wide"](images, brain, seeded())
    assert (changed[~inside] == -1).all() and changed.min() >= -1 and changed.max() <= 1
    again, _ = AUGMENTATIONS["wide"](images, brain, seeded())
    assert torch.equal(changed, again)
    assert changed.isfinite().all()
    empty = AUGMENTATIONS["wide"](torch.full_like(images, -1.0), torch.zeros_like(brain), seeded())
    assert (empty[0] == -1).all() and not empty[1].any()  # slices without brain
