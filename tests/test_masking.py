"""Random patch masks: sides, ratio, brain, determinism."""

import pytest
import torch

from madad_lite.masking import brain_cells, random_patch_mask


def draw(seed=0, n=64, size=(24, 24), **options):
    return random_patch_mask(n, size, generator=torch.Generator().manual_seed(seed), **options)


def test_shape_values_and_repeatability():
    mask = draw()
    assert mask.shape == (64, 1, 24, 24) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, draw()) and not torch.equal(mask, draw(seed=1))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_patches_have_the_side_that_was_asked_for(side):
    mask = draw(sides=(side,), side_probabilities=(1.0,))
    blocks = mask.unfold(2, side, side).unfold(3, side, side).flatten(4)  # (N, 1, rows, columns, side * side)
    assert (blocks.amin(-1) == blocks.amax(-1)).all()  # each patch is all noised or all clean
    assert mask.any()


def test_sides_follow_their_probabilities_independently_in_both_directions():
    seen = torch.zeros(4, 4)
    for seed in range(600):
        mask = draw(seed, n=8, size=(16, 16), max_ratio=1.0)
        # the smallest run of equal values along an axis is the side
        sides = []
        for axis in (2, 3):
            change = mask.diff(dim=axis).abs().amax(dim=(0, 1, 5 - axis)) > 0
            sides.append(next(i for i, s in enumerate((1, 2, 4, 8)) if change[s - 1]))
        seen[sides[0], sides[1]] += 1
    expected = torch.tensor([0.2, 0.3, 0.3, 0.2])
    assert torch.allclose(seen.sum(1) / 600, expected, atol=0.06)
    assert torch.allclose(seen / 600, expected[:, None] * expected, atol=0.05)


def test_ratio_is_uniform_up_to_the_largest():
    ratios = torch.cat(
        [draw(seed, sides=(1,), side_probabilities=(1.0,)).mean((1, 2, 3)) for seed in range(20)]
    )
    assert ratios.max() <= 0.4 + 1 / 576
    assert abs(ratios.mean() - 0.2) < 0.01 and abs(ratios.std() - 0.4 / 12**0.5) < 0.01


def test_never_outside_the_brain():
    brain = torch.zeros(64, 1, 24, 24, dtype=torch.bool)
    brain[:, :, 6:18, 6:18] = True
    mask = draw(brain=brain)
    assert mask[brain].any() and not mask[~brain].any()


def test_brain_cells_need_their_share_of_brain():
    brain = torch.zeros(1, 1, 16, 16)
    brain[..., :4, :4] = 1  # first cell wholly, second row of cells not at all
    brain[..., 0:2, 4:8] = 1  # half of the second cell
    assert brain_cells(brain, (4, 4), 0.9)[0, 0].nonzero().tolist() == [[0, 0]]
    assert brain_cells(brain, (4, 4), 0.5)[0, 0].nonzero().tolist() == [[0, 0], [0, 1]]
    brain[..., :8, :8] = 1
    assert brain_cells(brain, (4, 4), 0.9, block=2)[0, 0].sum() == 4
    brain[..., 0, 0:8] = 0  # 8 of 64 pixels gone: below 0.9 for the whole block
    assert brain_cells(brain, (4, 4), 0.9, block=2)[0, 0].sum() == 0


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="max_ratio"):
        draw(max_ratio=1.5)
    with pytest.raises(ValueError, match="sides"):
        draw(sides=(1, 2))
