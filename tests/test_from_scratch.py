"""The method written out in one file, number for number against the package; the notebook shows the same code."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward, selective_reverse
from madad_lite.masking import random_patch_mask
from madad_lite.scoring import image_difference

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
FILE = NOTEBOOKS / "madad_from_scratch.py"


@pytest.fixture(scope="module")
def scratch():
    spec = importlib.util.spec_from_file_location("madad_from_scratch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def material():
    z0, eps = torch.randn(2, 5, 4, 24, 24, generator=seeded(1))
    brain = (torch.rand(5, 1, 24, 24, generator=seeded(2)) < 0.7).float()
    return z0, eps, brain, torch.randint(10, (5,), generator=seeded(3))


@pytest.fixture(scope="module")
def network(scratch):
    torch.manual_seed(0)
    return scratch.TwoHeadUNet().eval()


def test_schedule_masks_and_forward_process(scratch, material):
    z0, eps, brain, t = material
    scheduler, abar = make_scheduler(), scratch.cosine_schedule()
    assert torch.allclose(abar, scheduler.alphas_cumprod, atol=1e-6)
    for seed in range(20):
        M = random_patch_mask(5, (24, 24), brain=brain, generator=seeded(seed))
        assert torch.equal(scratch.draw_mask(brain, seeded(seed)), M)
    ours = scratch.masked_forward(z0, eps, M, t, abar)
    assert torch.allclose(ours, masked_forward(z0, eps, M, t, scheduler), atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_losses_and_reverse_process(scratch, material, network, eta):
    z0, _, brain, t = material
    with torch.no_grad():
        z0_hat, logits = network(z0, t)
    package = denoising_losses(z0_hat, logits, z0, brain)
    assert all(
        torch.allclose(a, b.mean()) for a, b in zip(scratch.two_losses(z0_hat, logits, z0, brain), package)
    )
    noises = torch.randn(10, *z0.shape, generator=seeded(4))
    healed, M_hat = scratch.selective_reverse(network, z0, eta=eta, noises=noises)
    package = selective_reverse(network, z0, make_scheduler(), eta=eta, threshold=0.5, step_noise=noises)
    assert 0.1 < package.replaced.float().mean() < 0.95  # both kinds of cells occur
    assert torch.allclose(healed, package.latent, atol=1e-4)
    assert torch.allclose(M_hat, package.mask_probability, atol=1e-4)


def test_score(scratch):
    healed, scan = 2 * torch.rand(2, 3, 1, 64, 64, generator=seeded(5)) - 1
    brain = torch.ones(3, 1, 64, 64)
    brain[..., :30, :10] = 0
    package = image_difference(healed, scan, gamma=0.2, squared=True, sigma=2.0, brain=brain)
    assert torch.allclose(scratch.anomaly_map(healed, scan, brain), package, atol=1e-5)


def test_training_learns_to_find_noise_and_repeats(scratch):
    mean = torch.zeros(8, 4, 8, 8)  # a world in which all brains are alike
    std, brain = torch.full_like(mean, 0.1), torch.ones(8, 1, 8, 8)

    def trained(steps):
        torch.manual_seed(0)
        model = scratch.TwoHeadUNet(width=16)
        return model, scratch.train(model, mean, std, brain, steps=steps, batch_size=8, learning_rate=3e-3)

    model, _ = trained(120)
    assert trained(3)[1] == trained(3)[1] != [(0.0, 0.0)] * 3
    M = torch.zeros(1, 1, 8, 8)
    M[..., 2:5, 2:5] = 1
    eps = torch.randn(1, 4, 8, 8, generator=seeded(6))
    z_t = scratch.masked_forward(mean[:1], eps, M, torch.tensor([9]), scratch.cosine_schedule())
    with torch.no_grad():
        _, logits = model(z_t, torch.tensor([9]))
    assert logits[M > 0].mean() > logits[M == 0].mean() + 1


def definitions(path):
    """{name: code without its layout} of the functions and classes of a file."""
    found = ast.parse(path.read_text(encoding="utf-8")).body
    return {n.name: ast.dump(n) for n in found if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def test_the_notebook_has_the_same_code():
    file, notebook = definitions(FILE), definitions(NOTEBOOKS / "04_madad_from_scratch.py")
    assert len(file) > 10 and {k: notebook.get(k) for k in file} == file


def test_it_stays_short_and_does_not_import_the_package():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 and "import madad_lite" not in text and "from madad_lite" not in text
