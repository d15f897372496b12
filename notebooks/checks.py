"""Checks of the exercises: check_NN_NAME(answer, ...) raises AssertionError with a hint when the answer is wrong."""

# ---------------------------------------------------------------- lessons 05, 06, 07

import numpy as np
import torch

from madad_lite import diffusion, scoring
from madad_lite.evaluation import metrics


def run(check, answer, *more):
    """Check an answer and say what came of it; an answer that is missing, or a stub, is not done yet."""
    if answer is None:
        print("not done yet")
        return
    try:
        check(answer, *more)
    except NotImplementedError:
        print("not done yet")
    else:
        print("right")


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
    """Of the scan's latent, in a cell that is replaced in every step, when t = 8 is reached; eta = 0."""
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
    """(scores, truth), each (1, 1, n), of a made-up detector; how rare lesions are changes, how well it separates does not."""
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
    """Scores two sets of maps (N, 1, H, W) in [0, 1] on the test slices, and says whether yours is ahead."""
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
