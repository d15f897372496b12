"""Lesion-like corruption: where it changes a slice, how large the regions are; its place in the latent cache
and the training.
"""

import json

import numpy as np
import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.diffusion import make_scheduler
from madad_lite.extensions.lesion_like import corrupt, random_region, with_regions
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.denoiser import masked_draw, train_denoiser
from madad_lite.training.latent_cache import CHANGED, LatentDataset, encode_latents
from madad_lite.training.settings import DenoiserConfig, configured


@pytest.fixture(scope="module")
def slices(prepared_cohort):
    dataset = SliceDataset(prepared_cohort, "train")
    items = [dataset[i] for i in range(4, len(dataset), 3)]
    return torch.stack([i["image"] for i in items]), torch.stack([i["brain"] for i in items])


def seeded(n):
    return torch.Generator().manual_seed(n)


def test_regions_are_blobs_in_the_brain(slices):
    _, brain = slices
    small, large = (random_region(brain, seeded(0), radius=(r, r)) for r in (1.5, 8.0))
    for region in (small, large):
        assert region.min() >= 0 and region.max() <= 1 and not region[~brain].any()
    assert small.sum() < 0.2 * large.sum()
    assert ((small > 0.1).flatten(1).sum(1) > 0).all()  # every slice has its region


def test_corruption_changes_regions_and_nothing_else(slices):
    images, brain = slices
    changed = corrupt(images, brain, seeded(1))
    assert changed.shape == images.shape and changed.min() >= -1 and changed.max() <= 1
    assert torch.equal(changed[~brain], images[~brain])
    share = ((changed != images) & brain).flatten(1).sum(1) / brain.flatten(1).sum(1)
    assert 0.02 < share.mean() < 0.5  # some of the brain, never most of it
    assert (changed - images).abs().max() > 0.5  # and some of it by far
    assert torch.equal(corrupt(images, brain, seeded(1)), changed) and not torch.equal(
        corrupt(images, brain, seeded(2)), changed
    )


def test_corruption_makes_dark_and_bright_regions(slices):
    images, brain = slices
    difference = torch.cat([corrupt(images, brain, seeded(n)) - images for n in range(8)])
    assert (difference > 0.3).any() and (difference < -0.3).any()


CONFIG = DenoiserConfig(
    steps=4,
    batch_size=4,
    variants=2,
    validate_every=4,
    checkpoint_every=4,
    corruption_share=0.5,
    last_step_share=0.5,
)


def test_cache_holds_a_corrupted_twin_of_each_variant(prepared_cohort, tmp_path):
    torch.manual_seed(0)
    autoencoder = make_autoencoder().eval()
    cache = encode_latents(prepared_cohort, autoencoder, tmp_path, CONFIG, progress=False)
    data = LatentDataset(cache, "train")
    item = data[5]
    assert set(item) == {"mean", "std", "brain", "corrupted", "changed"}
    assert item["corrupted"].shape == item["mean"].shape and item["changed"].dtype == torch.bool
    moved = np.square(data.arrays["corrupted"].astype("f4") - data.arrays["mean"].astype("f4")).mean(
        1, keepdims=True
    )
    clear = np.abs(moved - CHANGED) > 0.01  # half precision decides neither way at the limit itself
    assert np.array_equal((moved > CHANGED)[clear], data.arrays["changed"][clear])
    plain = configured(CONFIG, corruption_share=0.0)
    cache = encode_latents(prepared_cohort, autoencoder, tmp_path, plain, progress=False)
    assert set(LatentDataset(cache, "val")[0]) == {"mean", "std", "brain"}  # the old twins are gone


def test_denoiser_trains_with_corruption(prepared_cohort, tmp_path):
    torch.manual_seed(0)
    run = train_denoiser(prepared_cohort, make_autoencoder(), tmp_path / "run", CONFIG, progress=False)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4 and np.isfinite(log[-1]["val_loss"]) and (run / "best").exists()


def test_regions_arrive_clean_or_noised_and_count_as_noised():
    n, scheduler = 400, make_scheduler()
    latents = {"mean": torch.zeros(n, 4, 8, 8), "std": torch.zeros(n, 4, 8, 8)}
    latents |= {"brain": torch.ones(n, 1, 8, 8, dtype=torch.bool), "corrupted": torch.zeros(n, 4, 8, 8)}
    latents["changed"] = torch.zeros(n, 1, 8, 8, dtype=torch.bool)
    latents["changed"][:, :, :3, :3] = True
    latents["corrupted"][:, :, :3, :3] = 2.0
    plain = masked_draw(latents, scheduler, seeded(0))
    none = with_regions(plain, latents, 0.0, scheduler, seeded(1))
    assert all(torch.equal(none[k], plain[k]) for k in plain)
    drawn = with_regions(plain, latents, 1.0, scheduler, seeded(1))
    region = drawn["z_t"][:, :, :3, :3]
    assert (drawn["M"][:, :, :3, :3] == 1).all() and not drawn["z_t"][
        (drawn["M"] == 0).expand(-1, 4, -1, -1)
    ].any()
    clean = (region == 2).flatten(1).all(1)
    assert 0.1 < clean.float().mean() < 0.5  # 1 of t + 2 chances
    patches = (drawn["M"][:, :, 3:] == 1).flatten(1).any(1) & (plain["M"][:, :, 3:] == 1).flatten(1).any(1)
    kept = patches.sum() / (plain["M"][:, :, 3:] == 1).flatten(1).any(1).sum()
    assert 0.4 < kept < 0.6  # beside half of the regions
    assert all(torch.equal(drawn[k], plain[k]) for k in ("z0", "t", "eps"))
    share = with_regions(plain, latents, 0.3, scheduler, seeded(2))
    assert 0.2 < (share["M"][:, :, :3, :3] == 1).flatten(1).all(1).float().mean() < 0.5
