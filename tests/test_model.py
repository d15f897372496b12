"""The denoiser: the authors' sizes, its two heads, saving and loading."""

import pytest
import torch
from diffusers.models.attention_processor import Attention

from madad_lite.denoiser import SIZES, Denoiser


def parameters(size: str) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in Denoiser.of_size(size).parameters()) / 1e6


def test_sizes_are_the_authors():
    assert parameters("XS") == pytest.approx(16.142149, abs=1e-6)
    assert [round(parameters(s), 1) for s in ("S", "M", "L", "XL")] == [64.5, 145.0, 257.7, 402.7]
    assert parameters("nano") < 4


@pytest.mark.parametrize("size", ["XS", "M"])
def test_every_attention_has_the_sizes_number_of_heads(size):
    with torch.device("meta"):
        attentions = [m for m in Denoiser.of_size(size).modules() if isinstance(m, Attention)]
    assert len(attentions) == 16  # 3 levels x 2 down, 3 x 3 up, 1 in the middle
    assert {a.heads for a in attentions} == {SIZES[size].num_heads}
    assert all(a.scale == pytest.approx((a.inner_dim / a.heads) ** -0.5) for a in attentions)


def test_heads_and_shapes():
    torch.manual_seed(0)
    model = Denoiser.of_size("nano").eval()
    latent, logits = model(torch.randn(2, 4, 24, 24), torch.tensor([0, 9]))
    assert latent.shape == (2, 4, 24, 24) and logits.shape == (2, 1, 24, 24)
    assert [type(m).__name__ for m in model.mask_head] == ["GroupNorm", "Conv2d"]  # no SiLU
    moved = model(torch.randn(2, 4, 24, 24), torch.tensor([5, 9]))[0]
    assert not torch.allclose(moved, latent)


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="nano, fine, XS"):
        Denoiser.of_size("huge")


def test_saved_and_loaded_is_the_same(tmp_path):
    torch.manual_seed(0)
    model = Denoiser.of_size("nano").eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    again = Denoiser.from_pretrained(tmp_path).eval()
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    x, t = torch.randn(1, 4, 24, 24), torch.tensor([3])
    with torch.no_grad():
        for ours, theirs in zip(model(x, t), again(x, t)):
            torch.testing.assert_close(ours, theirs)


def test_heads_must_share_the_channels():
    with torch.device("meta"), pytest.raises(ValueError, match="12 heads"):
        Denoiser.of_size("XL", num_heads=12)
