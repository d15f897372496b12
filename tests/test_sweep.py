"""The masked sweep, and the sweep with healing: with stand-ins for the denoiser whose answers are known."""

import pytest
import torch

from madad_lite.diffusion import make_scheduler
from madad_lite.pipeline import MadAdPipeline
from madad_lite.sweep import masked_sweep, sweep_and_heal


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


@pytest.fixture
def z0():
    return torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(1))


def test_every_cell_is_predicted_once_a_draw(z0):
    calls = []

    def denoiser(z_t, t):
        calls.append(t)
        return torch.full_like(z_t, 7.0), z_t[:, :1]

    assert torch.equal(masked_sweep(denoiser, z0, make_scheduler(), draws=3), torch.full_like(z0, 7.0))
    assert len(calls) == 12 and all((t == 9).all() for t in calls)


def test_no_cell_is_seen_when_it_is_judged(z0):
    """A denoiser that hands back what it gets gives noise where it was asked: nothing of the scan is left."""
    returned = masked_sweep(lambda z, t: (z, z[:, :1]), z0, make_scheduler(), draws=1, generator=generators(3))
    assert abs(torch.corrcoef(torch.stack([returned.flatten(), z0.flatten()]))[0, 1]) < 0.1
    seen = []

    def keeping(z_t, t):
        seen.append((z_t - z0).abs().amax(1) < 1e-6)
        return z_t, z_t[:, :1]

    masked_sweep(keeping, z0, make_scheduler(), draws=1)
    assert all(s.float().mean() == 0.75 for s in seen)  # a quarter is hidden
    assert (sum(s.int() for s in seen) == 3).all()  # each cell in one of the four quarters


def test_a_slice_does_not_depend_on_its_batch(z0):
    def denoiser(z_t, t):
        return torch.tanh(z_t).roll(1, -1), z_t[:, :1]

    together = masked_sweep(denoiser, z0, make_scheduler(), generator=generators(3))
    alone = masked_sweep(denoiser, z0[1:2], make_scheduler(), generator=generators(1, seed=1))
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together[1:2], masked_sweep(denoiser, z0[1:2], make_scheduler(), generator=generators(1, seed=9)))


def test_what_the_sweep_finds_is_healed_and_the_rest_is_not_touched():
    z0 = torch.zeros(1, 4, 12, 12)
    z0[..., 4:9, 4:9] = 5.0  # larger than a patch

    def denoiser(z_t, t):  # expects 0 everywhere, and sees noise where a cell is not 0
        return torch.zeros_like(z_t), 20 * (z_t.abs().amax(1, keepdim=True) > 1e-3).float() - 10

    result = sweep_and_heal(denoiser, z0, make_scheduler(), eta=0.0, generator=generators(1))
    assert result.latent.abs().max() < 1e-5
    assert torch.equal(result.trajectory[0], z0) and len(result.trajectory) == 11
    options = dict(limit=100.0, eta=0.0, generator=generators(1))
    blind = sweep_and_heal(lambda z, t: (z * 0, z[:, :1] * 0 - 10), z0, make_scheduler(), **options)
    assert torch.equal(blind.latent, z0)  # below the limit and not marked: left alone


@pytest.mark.parametrize("mode, steps", [("sweep", 1), ("combined", 10)])
def test_modes_of_the_pipeline(patient_scan, mode, steps):
    pipe = MadAdPipeline.from_pretrained("t1")
    scan = pipe.prepare(patient_scan["image"], z_range=(0, 30), lesion=patient_scan["lesion"])

    def run(**options):
        return pipe(scan, mode=mode, generator=torch.Generator().manual_seed(0), progress=False, **options)

    out = run()
    assert out.replaced.shape[0] == steps and out.trajectory.shape[0] == steps + 1 == len(out.timesteps) + 1
    torch.testing.assert_close(out.anomaly_map, run(batch_size=3).anomaly_map, atol=1e-4, rtol=0)
    lesion = torch.from_numpy(scan.lesion)[:, None] & out.brain
    assert out.anomaly_map[lesion].mean() > 2 * out.anomaly_map[out.brain & ~lesion].mean()
    with pytest.raises(ValueError, match="mode is one of reverse, sweep, combined"):
        pipe(scan, mode="guess")
