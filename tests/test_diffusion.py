"""Schedule, forward process, losses and reverse process: against the authors' own numbers and against the
equations.

data/parity_diffusion.npz holds (for two samples, of the reverse process the first four rows, which do not
depend on the others) what the authors' published code (commit e76f546) computes on fixed inputs. Its `keep`
has the authors' polarity: 1 = clean.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward, selective_reverse


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "data" / "parity_diffusion.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays}


def stand_in(x, t):
    """A closed form in the network's place, the one the authors' numbers were computed with."""
    s = ((t.float() + 1) / 10).view(-1, 1, 1, 1)
    prediction = torch.tanh(x) * (1 - 0.3 * s) + 0.05 * torch.roll(x, 1, -1)
    return prediction, -(4 * (0.8 - x.abs().mean(1, keepdim=True)) + s)  # logits of "noised"


def test_schedule_is_the_authors(official):
    np.testing.assert_allclose(make_scheduler().alphas_cumprod, official["alphas_cumprod"], atol=1e-5)


def test_forward_process_is_the_authors(official):
    mask = 1 - official["keep"].float()
    z_t = masked_forward(official["z0"], official["noise"], mask, official["t"], make_scheduler())
    torch.testing.assert_close(z_t, official["zt"], atol=1e-5, rtol=0)


def test_forward_process_leaves_unmasked_cells_alone():
    z0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    z_t = masked_forward(z0, noise, mask, torch.tensor([9, 0]), make_scheduler())
    assert torch.equal(z_t[:, :, 4:], z0[:, :, 4:])
    abar = make_scheduler().alphas_cumprod[9]
    expected = abar.sqrt() * z0[0, :, :4] + (1 - abar).sqrt() * noise[0, :, :4]
    torch.testing.assert_close(z_t[0, :, :4], expected)


def test_losses_are_the_authors(official):
    prediction, logits = stand_in(official["zt"], official["t"])
    mask = 1 - official["keep"].float()
    losses = denoising_losses(prediction, logits, official["z0"], mask, mask_loss="mse", mask_weight=0.001)
    for ours, name in zip(losses, ("loss_mse", "loss_mask_prediction", "loss_loss")):
        torch.testing.assert_close(ours, official[name], atol=1e-5, rtol=0)


def test_papers_mask_loss_is_binary_cross_entropy(official):
    prediction, logits = stand_in(official["zt"], official["t"])
    mask = 1 - official["keep"].float()
    latent, masked, total = denoising_losses(
        prediction, logits, official["z0"], mask, mask_loss="bce", mask_weight=0.3
    )
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    m = mask.double().numpy()
    expected = -(m * np.log(p) + (1 - m) * np.log(1 - p)).mean((1, 2, 3))
    np.testing.assert_allclose(masked, expected, atol=1e-5)
    torch.testing.assert_close(total, latent + 0.3 * masked)
    with pytest.raises(ValueError, match="mask_loss"):
        denoising_losses(prediction, logits, official["z0"], mask, mask_loss="l1")


@pytest.mark.parametrize("steps", [10, 5, 2])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_reverse_process_is_the_authors(official, steps, eta):
    result = selective_reverse(
        stand_in,
        official["ddim_start"],
        make_scheduler(),
        num_inference_steps=steps,
        eta=eta,
        step_noise=official["ddim_step_noise"],
    )
    assert torch.equal(result.timesteps, official[f"ddim{steps}_timesteps"])
    torch.testing.assert_close(result.latent, official[f"ddim{steps}_eta{eta}"], atol=1e-5, rtol=0)
    assert torch.equal(result.replaced, official[f"ddim{steps}_eta{eta}_replaced"])


def test_reverse_process_replaces_only_what_is_taken_for_noise():
    z0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = torch.full((2, 1, 8, 8), -5.0)
    logits[:, :, 2:4, 2:4] = 5.0
    result = selective_reverse(lambda z, t: (torch.zeros_like(z), logits), z0, make_scheduler(), eta=0.0)
    marked = (logits > 0).expand_as(z0)
    assert torch.equal(result.latent[~marked], z0[~marked])
    assert result.latent[marked].abs().max() < 1e-6  # the last step gives the prediction itself, here 0
    assert result.trajectory.shape == (11, 2, 4, 8, 8) and torch.equal(result.trajectory[0], z0)
    assert result.mask_probability.shape == result.replaced.shape == (10, 2, 1, 8, 8)


def test_reverse_process_repeats_with_a_generator():
    z0 = 2 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(seed):
        return selective_reverse(
            stand_in, z0, make_scheduler(), eta=0.5, generator=torch.Generator().manual_seed(seed)
        ).latent

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_scheduler_is_left_as_it_was():
    """So that two calls may share it."""
    scheduler = make_scheduler()
    before = {k: v for k, v in vars(scheduler).items() if k in ("num_inference_steps", "timesteps")}
    z0 = torch.zeros(1, 4, 8, 8)
    selective_reverse(stand_in, z0, scheduler, num_inference_steps=2)
    assert scheduler.num_inference_steps == before["num_inference_steps"]
    assert torch.equal(scheduler.timesteps, before["timesteps"])


def test_a_step_may_be_looked_at_and_changed():
    z0, seen = torch.ones(1, 4, 8, 8), []

    def on_step(i, t, z_t):
        seen.append((i, int(t)))
        return torch.zeros_like(z_t) if i == 1 else z_t

    result = selective_reverse(stand_in, z0, make_scheduler(), num_inference_steps=2, on_step=on_step)
    assert seen == [(0, 5), (1, 0)] and not result.latent.any() and not result.trajectory[-1].any()
