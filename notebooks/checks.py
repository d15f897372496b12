"""The checks of the exercises. Each takes an answer and raises AssertionError, with a hint, where it is wrong."""

import math

import numpy as np
import torch

from madad_lite import scoring
from madad_lite.diffusion import make_scheduler


def solved(check, answer) -> None:
    """Print "right" or, for an untouched exercise, "not done yet"; a wrong answer raises the check's error."""
    name = check.__name__.removeprefix("check_")
    try:
        if answer is None:
            raise NotImplementedError
        check(answer)
    except NotImplementedError:
        print(f"Exercise {name}: not done yet")
    else:
        print(f"Exercise {name}: right")


def drawn(*shape, seed=0):
    """Gaussian numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got, wanted, hint, atol=1e-4):
    got, wanted = (torch.as_tensor(x, dtype=torch.float32) for x in (got, wanted))
    assert got.shape == wanted.shape, f"the shape is {tuple(got.shape)}, not {tuple(wanted.shape)}"
    assert torch.allclose(got, wanted, atol=atol), hint


# ---------------------------------------------------------------- 00


def check_00_eta(answer):
    """Which eta makes two runs without a generator the same?"""
    assert answer in (0, 0.5, 1), "one of 0, 0.5 and 1"
    assert answer == 0, "eta is the share of the noise that is drawn afresh: what if none is?"


def check_00_dice(function):
    """dice(found, lesion), two boolean arrays of one shape."""
    found, lesion = np.zeros((2, 8, 8), bool)
    found[2:6, 2:6] = True  # 16 pixels
    lesion[4:8, 4:8] = True  # 16 pixels, 4 in common
    got = function(found, lesion)
    assert abs(got - 4 / 28) > 1e-6, (
        "this is the share of the union: Dice divides by the sum of both sizes"
    )
    assert abs(got - 4 / 16) < 1e-6, "16 pixels found, 16 of lesion, 4 in common: 2 * 4 / (16 + 16)"
    found[:4] = False
    assert abs(function(found, lesion) - 8 / 24) < 1e-6, (
        "8 found, 16 of lesion, 4 in common: 8 / 24"
    )


# ---------------------------------------------------------------- 01


def cosine_abar(T):
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (f[1:] / f[:-1]).clamp(min=0.001).cumprod(0).float()


ABAR = cosine_abar(100)


def check_01_abar(answer):
    """alpha-bar at t = 99 of 200 levels, to one decimal."""
    assert abs(answer - 0.5) < 0.06, "half of the way: where was alpha-bar one half?"


def check_01_eps_from_v(function):
    """eps_from_v(x_t, v, t), with the 100 levels of the notebook."""
    x0, eps = drawn(50, 2), drawn(50, 2, seed=1)
    for t in (5, 50, 95):
        signal, noise = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()
        got = function(signal * x0 + noise * eps, signal * eps - noise * x0, t)
        close(got, eps, f"not the noise at t = {t}", atol=1e-3)


def check_01_forward_step(function):
    """forward_step(x, t, eps), from level t - 1 to t."""
    x, eps = drawn(5000, 2), drawn(5000, 2, seed=1)
    for t in (30, 80):
        beta = 1 - ABAR[t] / ABAR[t - 1]
        got = function(x, t, eps)
        assert abs(got.std() - 1) < 0.02, "the spread has to stay at 1"
        close(got, (1 - beta).sqrt() * x + beta.sqrt() * eps, f"not the step to t = {t}")


# ---------------------------------------------------------------- 02


def check_02_split(answer):
    """Of how many subjects are slices on both sides, when slices are dealt out at random?"""
    assert answer == 10, (
        "each subject has ten slices: how likely is it that all ten end on one side?"
    )


def check_02_voxel_of(function):
    """voxel_of(affine, xyz): the voxel nearest to a point in mm, three whole numbers."""
    for angle, xyz in ((0.0, (0, -18, 14)), (0.3, (11.7, 30.2, -5.9))):
        c, s = 2 * math.cos(angle), 2 * math.sin(angle)
        affine = np.array([[c, -s, 0, -78], [s, c, 0, -112], [0, 0, 2, -70], [0, 0, 0, 1.0]])
        wanted = np.rint(np.linalg.inv(affine) @ [*xyz, 1])[:3].astype(int)
        got = np.asarray(function(affine, xyz))
        assert got.shape == (3,), "three numbers"
        assert np.abs(got - wanted).max() < 50, (
            "the affine leads from voxels to mm: here it is the other way"
        )
        assert (got == wanted).all(), (
            f"{xyz} mm lies nearest to {wanted.tolist()}: round, do not cut off"
        )


def check_02_normalised(function):
    """normalised(values, brain): the formula of section 6."""
    values = drawn(6, 6, 6).abs().numpy() * 400
    values[0, 0, 0] = 9000.0
    brain = np.zeros((6, 6, 6), bool)
    brain[:4] = True
    got = function(values, brain)
    assert got.min() >= -1 and got.max() <= 1, "clip to [-1, 1]"
    wanted = np.clip(values / np.median(values[brain]) - 1, -1, 1)
    close(got, wanted, "divide by the median inside the brain, then subtract 1, then clip")


# ---------------------------------------------------------------- 03


def check_03_pairs(answer):
    """How many times as many pairs for attention, with cells of half the side?"""
    assert answer != 4, "4 times as many cells: and pairs of them?"
    assert answer == 16, "attention compares every cell with every other one"


def check_03_scale(answer):
    """The scaling factor of latents with a standard deviation of 2.5."""
    assert answer != 2.5, "scaled latents are s * mu: their spread has to be 1"
    assert abs(answer - 0.4) < 1e-3, "it brings the standard deviation to 1: s = 1 / std"


def check_03_kl(function):
    """kl(mu, sigma), for each value."""
    mu, sigma = drawn(3, 4), drawn(3, 4, seed=1).abs() + 0.1
    got = function(mu, sigma)
    close(
        function(torch.zeros(2), torch.ones(2)), torch.zeros(2), "with mu = 0 and sigma = 1 it is 0"
    )
    close(
        got, 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log()), "0.5 (mu^2 + sigma^2 - 1 - ln sigma^2)"
    )


# ---------------------------------------------------------------- 04


def check_04_sure(answer):
    """What is returned where the network takes no cell for noise: "z0", "z0_hat" or "noise"?"""
    assert answer in ("z0", "z0_hat", "noise"), 'one of "z0", "z0_hat" and "noise"'
    assert answer == "z0", (
        "what does torch.where choose where M_hat > threshold is false everywhere?"
    )


def check_04_authors_map(function):
    """authors_map(healed, decoded, brain, sigma=2.0), all (N, 1, H, W)."""
    healed, decoded = (drawn(2, 1, 32, 32, seed=s).clamp(-1, 1) for s in (0, 1))
    brain = torch.zeros(2, 1, 32, 32)
    brain[..., 6:26, 6:26] = 1
    options = dict(gamma=0.25, squared=False, sigma=2.0, brain=brain.bool())
    got = function(healed, decoded, brain)
    assert got.max() <= 1 + 1e-6, "a map ends at 1: divide by where you clip"
    wanted = scoring.image_difference(healed, decoded, **options)
    close(got, wanted, "absolute difference, clipped at 0.25, smoothed, then the brain")


def check_04_ddim_step(function):
    """ddim_step(z, z0_hat, t): without chance, from level t to t - 1."""
    z, guess = drawn(2, 3, 4, 6, 6)
    scheduler = make_scheduler()
    scheduler.set_timesteps(10)
    for t in (9, 5, 1):
        wanted = scheduler.step(guess, t, z, eta=0.0).prev_sample
        close(function(z, guess, t), wanted, f"not the step of DDIM at t = {t}")


# ---------------------------------------------------------------- 08


def check_08_score(function):
    """score(healed, decoded, brain): the code's score, not smoothed."""
    healed, decoded = (drawn(2, 1, 8, 8, seed=s).clamp(-1, 1) for s in (0, 1))
    brain = drawn(2, 1, 8, 8, seed=2) > 0
    options = dict(gamma=0.25, squared=False, sigma=0.0, brain=brain)
    wanted = scoring.image_difference(healed, decoded, **options)
    close(
        function(healed, decoded, brain), wanted, "min(|d|, 0.25) / 0.25, and 0 outside the brain"
    )


def check_08_crossing(answer):
    """From which |d| on are both scores equal?"""
    assert abs(answer - 0.25) > 1e-3, (
        "there the code's score is 1, and the paper's 5 * 0.25^2 = 0.31"
    )
    assert abs(answer - 0.2**0.5) < 1e-3, "where is the later of the two full?"


def check_08_gap(answer):
    """The smallest possible lead of MAD-AD's average per image, in points of Dice."""
    assert abs(answer - 21.9) > 0.5, (
        "that is the lead of the two printed averages, which are not alike"
    )
    assert abs(answer - 2.78) < 0.1, (
        "the smallest average per image that section 9 found, less 29.7"
    )
