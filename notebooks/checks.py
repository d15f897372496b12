"""The checks of the exercises: each raises AssertionError, with a hint, for a wrong answer."""

import math
from types import SimpleNamespace

import numpy as np
import torch

from madad_lite import diffusion, scoring
from madad_lite.diffusion import make_scheduler
from madad_lite.evaluation import metrics


def run(check, answer, *more) -> None:
    """Print "right", or "not done yet" where the answer is None or a stub; a wrong one raises."""
    name = check.__name__.removeprefix("check_")
    try:
        if answer is None:
            raise NotImplementedError
        check(answer, *more)
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
    for t in (30, 80, 0):
        beta = 1 - ABAR[t] / (ABAR[t - 1] if t > 0 else 1)
        got = function(x, t, eps)
        assert t > 0 or got.isfinite().all(), (
            "not a number at t = 0: abar[-1] is the last level, and below level 0 alpha-bar is 1"
        )
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


# ---------------------------------------------------------------- lessons 05, 06, 07


def _numbers(n: int, c: int = 4, h: int = 6, w: int = 5):
    """z (N, C, h, w), another one, and a mask (N, 1, h, w) of zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    z, other = torch.randn(2, n, c, h, w, generator=generator)
    return z, other, (torch.rand(n, 1, h, w, generator=generator) < 0.4).float()


def check_05_steps_in_total(answer) -> None:
    assert answer != 1000, "what was done after the last checkpoint is done again"
    assert answer == 1130, "730 before the power went, and all from step 601 to step 1000 after it"


def check_05_forward(function) -> None:
    z0, eps, M = _numbers(3)
    abar = diffusion.make_scheduler().alphas_cumprod
    t = torch.tensor([0, 5, 9])
    got, wanted = (
        function(z0, eps, M, abar[t]),
        diffusion.masked_forward(z0, eps, M, t, diffusion.make_scheduler()),
    )
    assert got.shape == wanted.shape, f"z_t should be {tuple(wanted.shape)}, not {tuple(got.shape)}"
    untouched = (M == 0).expand_as(z0)
    assert torch.equal(got[untouched], z0[untouched]), "where M is 0 the latent stays as it is"
    assert torch.allclose(got, wanted, atol=1e-5), (
        "noised cells: square roots of abar_t and of 1 - abar_t"
    )


def check_05_with_region(function) -> None:
    z_t, foreign, M = _numbers(2)
    changed = torch.zeros_like(M, dtype=torch.bool)
    changed[..., 2:5, 1:4] = True
    before = z_t.clone(), M.clone()
    new_z, new_M = function(z_t, M, foreign, changed)
    assert torch.equal(z_t, before[0]) and torch.equal(M, before[1]), (
        "give new tensors, change none"
    )
    inside = changed.expand_as(z_t)
    assert torch.equal(new_z[inside], foreign[inside]), "changed cells hold the foreign latent"
    assert torch.equal(new_z[~inside], z_t[~inside]), "other cells stay as they are"
    assert (new_M[changed] == 1).all(), (
        "a region that is not marked teaches the network to overlook it"
    )
    assert torch.equal(new_M[~changed].float(), M[~changed]), "patches that are noised stay marked"


def check_05_doubt(answer, rows) -> None:
    wanted = [row["m_hat_lesion"] / row["m_hat_healthy"] for row in rows]
    assert len(answer) == len(wanted), f"one ratio for each of the {len(wanted)} rows"
    assert np.allclose(answer, wanted, rtol=0.02), "the stroke's mean over that of the other cells"


def check_06_share_left(answer) -> None:
    """The factor of the scan's latent at t = 8 in a cell that is replaced; eta = 0."""
    abar = diffusion.make_scheduler().alphas_cumprod
    assert abs(answer - abar[8].sqrt().item()) > 0.02, (
        "that is the factor of z0_hat; asked is the other one"
    )
    wanted = ((1 - abar[8]) / (1 - abar[9])).sqrt().item()
    assert abs(answer - wanted) < 0.01, "eps_hat is nearly z_9, and its factor is sqrt(1 - abar_8)"


def check_06_reverse_step(function) -> None:
    z, z0_hat, M_hat = _numbers(2)
    abar = diffusion.make_scheduler().alphas_cumprod
    M_hat = 0.2 + 0.6 * M_hat
    for t in (9, 4, 0):
        before = abar[t - 1] if t else torch.tensor(1.0)
        eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
        step = before.sqrt() * z0_hat + (1 - before).sqrt() * eps_hat
        got = function(z, z0_hat, M_hat, t, abar, 0.5)
        assert got.shape == z.shape, (
            f"the next latent should be {tuple(z.shape)}, not {tuple(got.shape)}"
        )
        kept = (M_hat <= 0.5).expand_as(z)
        assert torch.equal(got[kept], z[kept]), (
            "what the network does not doubt stays, to the last bit"
        )
        hint = (
            "at t = 0 the step ends at abar = 1"
            if t == 0
            else f"not the step from t = {t} to {t - 1}"
        )
        assert torch.allclose(got, torch.where(kept, z, step), atol=1e-4), hint


def check_06_score(function) -> None:
    generator = torch.Generator().manual_seed(2)
    healed, scan = torch.rand(2, 2, 1, 8, 8, generator=generator) * 2 - 1
    weight, brain = (
        torch.rand(2, 1, 8, 8, generator=generator),
        torch.ones(2, 1, 8, 8, dtype=torch.bool),
    )
    brain[..., :2] = False
    wanted = scoring.image_difference(
        healed, scan, gamma=0.2, squared=True, sigma=0, weight=weight, brain=brain
    )
    got = function(healed, scan, weight, brain, 0.2)
    assert got.max() <= 1 + 1e-6, "a score ends at 1: clip at gamma, and divide by it"
    assert (got[~brain] == 0).all(), "nothing is scored outside the brain"
    assert torch.allclose(got, wanted, atol=1e-5), (
        "squared, clipped, divided by gamma, times the weight"
    )


def check_06_smallest(answer) -> None:
    """{side in cells: share of such blocks that the shipped network marks at t = 0}."""
    assert set(answer) == {1, 2, 4}, "sides of 1, 2 and 4 cells"
    assert all(0 <= v <= 1 for v in answer.values()), "shares lie between 0 and 1"
    assert answer[1] < 0.95, "strong noise is found as well as that: take t = 0, not t = 9"
    assert answer[4] >= answer[1], (
        "a large block is easier than a small one: is the mask the right way round?"
    )
    assert answer[1] > 0.6, (
        "more of the single cells are marked: is the noise put where the mask is 1?"
    )


def check_07_pooled(answer) -> None:
    assert abs(answer - 2 * 132 / (132 + 153)) > 0.005, (
        "ten false pixels of a healthy slice count too"
    )
    assert abs(answer - 2 * 132 / (132 + 10 + 153)) < 0.005, (
        "2 x hits / (all found + all of the lesions)"
    )


def check_07_dice(function) -> None:
    left, right, empty = np.arange(8) < 4, np.arange(8) % 2 == 0, np.zeros(8, bool)
    assert function(left, left) == 1 and function(left, ~left) == 0, (
        "the same pixels, or none in common"
    )
    assert function(left, right) == 0.5, "twice what is in common, over the sum of both"
    assert function(np.arange(8) < 1, left) == 0.4, "twice what is in common, over the sum of both"
    assert function(empty, empty) == 1, "nothing to find and nothing found"


def check_07_strict(function) -> None:
    scores = np.linspace(0, 1, 100_001)[:-1] ** 2
    for limit in (0.001, 0.05):
        marked = (scores >= function(scores, limit)).mean()
        assert marked <= limit * 1.01, (
            f"marks {marked:.2%} of the healthy pixels, {limit:.2%} are allowed"
        )
        assert marked > limit * 0.9, f"marks only {marked:.3%}: a lower threshold would do as well"


def check_07_draw(function) -> None:
    subjects = np.array(["a"] * 5 + ["b"] * 2 + ["c"] * 9)
    sizes, seen = set(), set()
    for seed in range(40):
        rows = np.asarray(function(subjects, np.random.default_rng(seed)))
        counts = {s: np.bincount(rows, minlength=16)[subjects == s] for s in "abc"}
        assert all(len(set(c)) == 1 for c in counts.values()), (
            "a subject comes with all of its slices, or not at all"
        )
        times = [int(c[0]) for c in counts.values()]
        assert sum(times) == 3, "draw as many subjects as there are"
        sizes.add(len(rows))
        seen.add(max(times))
    assert seen != {1}, "draw with replacement: some come twice, some not at all"


def rare(healthy_per_lesion: int):
    """(scores, truth), each (1, 1, n), of a made-up detector that always separates as well."""
    rng = np.random.default_rng(1)
    truth = np.arange(300 * (1 + healthy_per_lesion)) < 300
    score = 1 / (1 + np.exp(-(rng.standard_normal(len(truth)) + 2.5 * truth)))
    return score[None, None], truth[None, None]


def check_07_rare(answer) -> None:
    """{healthy pixels for each lesion pixel: (AUROC, AP)}."""
    assert set(answer) == {1, 10, 100}, "for 1, 10 and 100 healthy pixels"
    for n, (auroc, ap) in answer.items():
        scores, truth = rare(n)
        assert abs(auroc - metrics.auroc(scores, truth)) < 0.01, "the first is the AUROC"
        assert abs(ap - metrics.average_precision(scores, truth)) < 0.01, "the second is the AP"


def check_07_capstone(yours, dae, test) -> None:
    """Scores two sets of maps (N, 1, H, W) in [0, 1] on the test slices: is yours ahead?"""
    for name, maps in (("yours", yours), ("denoising autoencoder", dae)):
        assert maps.shape == test.lesion.shape, (
            f"{name}: maps of shape {tuple(test.lesion.shape)} are needed"
        )
        dice, _ = metrics.pooled_max_dice(maps, test.lesion, test.brain)
        ap = metrics.average_precision(maps, test.lesion, test.brain)
        print(f"{name:22} pooled max Dice {dice:.3f}, AP {ap:.3f}")
    low, high = metrics.difference_interval(
        "ap", yours, dae, test.lesion, test.subjects, brain=test.brain
    )
    print(f"AP of yours minus the other's: {low:+.3f} to {high:+.3f}")
    assert low > 0, "not yet: the interval of the difference contains 0, or lies below it"


# ---------------------------------------------------------------- 09


def check_09_border(answer, with_border_ml, found_ml) -> None:
    """What is found with the border, in mL: "less" than without, "the same" or "more"?"""
    assert answer in ("less", "the same", "more"), 'one of "less", "the same" and "more"'
    ratio = with_border_ml / max(found_ml, 1e-6)
    right = "less" if ratio < 0.9 else "more" if ratio > 1.1 else "the same"
    assert answer == right, (
        f"it is {right}: {with_border_ml:.1f} mL with the border, {found_ml:.1f} mL without"
    )


def check_09_side(function) -> None:
    """side(part): "left", "right" or "middle" of a part whose centre is in MNI152's millimetres."""
    for x, right in ((-30.0, "left"), (30.0, "right"), (2.0, "middle"), (-4.9, "middle")):
        got = function(SimpleNamespace(centre=(x, 12.0, -20.0)))
        assert got == right, f"x = {x:+} mm is {right}: x grows to the patient's right"


def check_09_thick(answer, thick, scan, found_ml) -> None:
    """The mL found in `thick`: `scan` with slices three times as thick. found_ml: ours, of it."""
    height, wanted = (np.linalg.norm(image.affine[:3, 2]) for image in (thick, scan))
    assert np.isclose(height, 3 * wanted), (
        f"slices of {height:.1f} mm: {3 * wanted:.1f} mm are asked for"
    )
    middle = [
        image.affine[:3, :3] @ [0, 0, (image.shape[2] - 1) / 2] + image.affine[:3, 3]
        for image in (thick, scan)
    ]
    assert np.linalg.norm(np.subtract(*middle)) < 1.5 * wanted, (
        "the affine moves the head: the first new slice lies where the second old one lay"
    )
    assert abs(answer - found_ml) < 0.05 * found_ml + 0.1, (
        "not what is found in thick.nii.gz at this threshold"
    )


# ---------------------------------------------------------------- 10


def check_10_lazy(answer):
    """The mean Dice per image of a detector that marks nothing: 30 of 40 slices have no lesion."""
    assert abs(answer) > 1e-6, "that is the pooled Dice: here an empty slice counts 1"
    assert abs(answer - 0.75) < 1e-6, "30 slices count 1, and 10 count 0"


def check_10_stitch(function):
    """stitch(rebuilt, boxes, x): the mean of the boxes, x where there is none."""
    rebuilt, x = drawn(3, 8, 8), drawn(8, 8, seed=1)
    boxes = torch.zeros(3, 8, 8, dtype=torch.bool)
    boxes[0, :5, :5] = boxes[1, 3:, 3:] = boxes[2, 2:6, 1:6] = True
    wanted = x.clone()
    for i in range(8):
        for j in range(8):
            said = [rebuilt[k, i, j] for k in range(3) if boxes[k, i, j]]
            wanted[i, j] = sum(said) / len(said) if said else x[i, j]
    close(function(rebuilt, boxes, x), wanted, "the mean where boxes overlap, x where none lies")


def check_10_behind(answer, rows):
    """How many methods have every seed's interval of the difference below 0, on cohort_t1."""
    ends = {}
    for r in rows:
        if r["test"] == "cohort_t1" and r["minus_high"]:
            ends.setdefault(r["method"], []).append(float(r["minus_high"]))
    assert answer != len(ends), "not all of them: look at the upper end of each interval"
    assert answer != sum(e[0] < 0 for e in ends.values()), (
        "that is by the first seed alone: look at all of them"
    )
    assert answer == sum(max(e) < 0 for e in ends.values()), (
        "count the methods whose upper ends all are below 0"
    )
