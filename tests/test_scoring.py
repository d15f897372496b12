"""Anomaly maps: against the authors' own numbers and against the equation on values that one can work out by
hand.

data/parity_scoring.npz holds what the authors' published code (commit e76f546) computes on fixed inputs:
their anomaly map of four slices (the inputs of the first one too), a truth, and their metrics of the four.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from madad_lite.extensions.intensity_weight import weigh_by_intensity
from madad_lite.scoring import image_difference, latent_difference, mean_predicted_mask
from madad_lite.settings import AUTHORS, PAPER


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "data" / "parity_scoring.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays}


def slices(*values) -> torch.Tensor:
    """(N, 1, 8, 8), each slice filled with one value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_score_is_the_authors(official):
    score = image_difference(official["score_healed"], official["score_recon"], **AUTHORS)
    torch.testing.assert_close(score[:, 0], official["score_map"][:1], atol=1e-6, rtol=0)


def test_each_of_the_authors_settings_matters(official):
    for other in ({"gamma": 0.2}, {"squared": True}, {"sigma": 4.5}):
        score = image_difference(official["score_healed"], official["score_recon"], **{**AUTHORS, **other})
        assert (score[:, 0] - official["score_map"][:1]).abs().max() > 1e-3


def test_paper_form_is_the_squared_difference_clipped_at_gamma():
    score = image_difference(slices(0.1, 0.4, -0.9), slices(0.0, 0.0, 0.9), **PAPER, sigma=0)
    torch.testing.assert_close(score[:, 0, 0, 0], torch.tensor([0.05, 0.8, 1.0]))


def test_absolute_difference():
    score = image_difference(
        slices(0.1, -0.1, 0.5), slices(0.0, 0.0, 0.0), gamma=0.25, squared=False, sigma=0
    )
    torch.testing.assert_close(score[:, 0, 0, 0], torch.tensor([0.4, 0.4, 1.0]))


@pytest.mark.parametrize(("squared", "expected"), [(True, [0.25, 1.0]), (False, [0.5, 1.0])])
def test_without_gamma_only_the_largest_possible_difference_is_1(squared, expected):
    score = image_difference(slices(1.0, 1.0), slices(0.0, -1.0), gamma=None, squared=squared, sigma=0)
    torch.testing.assert_close(score[:, 0, 0, 0], torch.tensor(expected))


def test_intensity_raises_the_lesions_side_and_weakens_the_rest():
    found, scan = slices(0.9, 0.9, 0.9, 0.9), slices(1.0, 0.25, 0.0, -1.0)
    bright = weigh_by_intensity(found, scan, 2.0, contrast="flair")[:, 0, 0, 0]
    torch.testing.assert_close(bright, torch.tensor([0.9, 0.45, 0.3, 0.3]))  # 0.9 (1 + 2 s) / 3
    dark = weigh_by_intensity(found, scan, 2.0, contrast="t1")[:, 0, 0, 0]
    torch.testing.assert_close(dark, torch.tensor([0.3, 0.3, 0.3, 0.9]))
    assert torch.equal(weigh_by_intensity(found, scan, 0.0, contrast="flair"), found)
    with pytest.raises(ValueError, match="not negative"):
        weigh_by_intensity(found, scan, -1.0, contrast="flair")
    with pytest.raises(ValueError, match="image"):
        weigh_by_intensity(found, scan[:2], 1.0, contrast="flair")


def test_a_weight_scales_the_clipped_difference_before_smoothing():
    healed, scan = slices(0.9, 0.9, 0.1), slices(0.0, 0.0, 0.0)
    plain = image_difference(healed, scan, **PAPER, sigma=0)
    weight = torch.tensor([1.0, 0.25, 0.5]).view(3, 1, 1, 1)  # one cell for the whole slice
    assert torch.allclose(image_difference(healed, scan, **PAPER, sigma=0, weight=weight), plain * weight)
    with pytest.raises(ValueError, match="weight"):
        image_difference(healed, scan, weight=torch.full((3, 1, 2, 2), float("nan")))


def test_smoothing_is_a_gaussian_of_sigma_pixels_in_each_slice_alone():
    healed = torch.zeros(2, 1, 41, 41)
    healed[0, 0, 20, 20] = 1.0
    score = image_difference(healed, torch.zeros_like(healed), gamma=1.0, sigma=2.0)
    y, x = torch.meshgrid(torch.arange(-20.0, 21), torch.arange(-20.0, 21), indexing="ij")
    wanted = torch.exp(-(x**2 + y**2) / (2 * 2.0**2)) / (2 * np.pi * 2.0**2)
    torch.testing.assert_close(score[0, 0], wanted, atol=2e-5, rtol=0)
    assert (score[1] == 0).all()


def test_smoothing_comes_after_clipping():
    one = torch.zeros(1, 1, 21, 21)
    one[..., 10, 10] = 2.0
    for squared in (True, False):
        score = image_difference(one, torch.zeros_like(one), gamma=0.2, squared=squared, sigma=1.0)
        assert score.sum() == pytest.approx(1.0, abs=1e-5)  # one voxel counts 1, however bright


def test_outside_the_brain_is_zero_and_inside_is_as_without_a_mask():
    healed, reference = noise(2, 1, 16, 16), noise(2, 1, 16, 16, seed=1)
    brain = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    brain[..., 4:12, 4:12] = True
    score, whole = image_difference(healed, reference, brain=brain), image_difference(healed, reference)
    assert (score[~brain] == 0).all() and (score[brain] == whole[brain]).all()
    assert torch.equal(score, image_difference(healed, reference, brain=brain.float()))


def test_latent_difference_is_the_mean_over_channels_enlarged():
    healed, latent = torch.zeros(1, 4, 6, 6), torch.zeros(1, 4, 6, 6)
    healed[:, 0] = 2.0  # d^2 = 4 in one channel of four: 1 on average
    plain = latent_difference(healed, latent, size=(24, 12), sigma=0)
    torch.testing.assert_close(plain, torch.full((1, 1, 24, 12), 1 - float(np.exp(-1))))
    half = latent_difference(healed, latent, size=(24, 12), gamma=2.0, sigma=0)
    torch.testing.assert_close(half, torch.full((1, 1, 24, 12), 0.5))
    assert (latent_difference(healed, latent, size=(24, 12), gamma=0.5, sigma=0) == 1).all()


def test_latent_cells_land_where_they_are():
    healed = torch.zeros(1, 3, 8, 8)
    healed[0, :, 1, 6] = 5.0
    for sigma in (0, 1.0):
        score = latent_difference(healed, torch.zeros_like(healed), size=(32, 32), sigma=sigma)
        rows, columns = np.unravel_index(int(score.argmax()), (32, 32))
        assert 4 <= rows < 8 and 24 <= columns < 28
        assert score[0, 0, 16:].max() == 0


def test_mean_predicted_mask_is_the_mean_over_steps():
    probability = torch.stack([torch.full((2, 1, 4, 4), p) for p in (0.0, 0.3, 0.9)])
    torch.testing.assert_close(mean_predicted_mask(probability, size=(8, 8)), torch.full((2, 1, 8, 8), 0.4))


def test_every_map_lies_in_0_1_and_keeps_the_brain():
    brain = noise(3, 1, 16, 16, seed=5) > 0
    maps = [
        image_difference(noise(3, 1, 16, 16), noise(3, 1, 16, 16, seed=1), sigma=0.5, brain=brain),
        latent_difference(9 * noise(3, 4, 4, 4), noise(3, 4, 4, 4, seed=1), size=(16, 16), brain=brain),
        mean_predicted_mask(noise(5, 3, 1, 4, 4).abs(), size=(16, 16), brain=brain),
    ]
    for score in maps:
        assert score.shape == (3, 1, 16, 16) and score.dtype == torch.float32
        assert score.min() >= 0 and 0 < score.max() <= 1 and (score[~brain] == 0).all()


def test_rounding_never_leaves_0_1():
    one = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    for sigma in np.arange(0.3, 6, 0.1):  # the Gaussian's weights do not sum to 1 to the last bit
        assert image_difference(one, -one, sigma=float(sigma)).max() <= 1


def test_half_precision_is_computed_in_single_and_double_stays_double():
    healed, reference = noise(1, 1, 8, 8).half(), noise(1, 1, 8, 8, seed=1).half()
    score = image_difference(healed, reference)
    assert torch.equal(score, image_difference(healed.float(), reference.float()))
    assert image_difference(healed.double(), reference.double()).dtype == torch.float64


IMAGE, LATENT = torch.zeros(2, 1, 8, 8), torch.zeros(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_difference(IMAGE, IMAGE[:1]), "differ in shape"),
        (lambda: image_difference(IMAGE[:, 0], IMAGE[:, 0]), r"healed must be \(N, 1, H, W\)"),
        (lambda: image_difference(IMAGE * torch.nan, IMAGE), "healed holds NaN"),
        (lambda: image_difference(IMAGE, IMAGE + torch.inf), "reference holds NaN or infinite"),
        (lambda: image_difference(IMAGE, IMAGE, gamma=0), "gamma must be positive"),
        (lambda: image_difference(IMAGE, IMAGE, sigma=-1), "sigma"),
        (lambda: image_difference(IMAGE, IMAGE, brain=IMAGE[:, 0]), "brain .* shape of the map"),
        (lambda: latent_difference(LATENT, LATENT[:, :3], size=(8, 8)), "differ in shape"),
        (lambda: latent_difference(LATENT, LATENT, size=(8, 8), brain=LATENT), "brain"),
        (lambda: latent_difference(LATENT, LATENT, size=(8, 8), gamma=-1.0), "gamma"),
        (lambda: mean_predicted_mask(IMAGE, size=(8, 8)), r"\(S, N, 1, h, w\)"),
        (lambda: mean_predicted_mask(IMAGE[None][:0], size=(8, 8)), "S >= 1"),
        (lambda: mean_predicted_mask(IMAGE[None] * torch.nan, size=(8, 8)), "NaN"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
