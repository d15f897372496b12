import numpy as np
import pytest
import torch

from madad_lite.diffusion import make_scheduler, selective_reverse
from madad_lite.extensions.neighbouring_slices import deciding_together, neighbour_weights, slice_groups
from madad_lite.pipeline import MadAdPipeline


def test_weights_are_a_gaussian_that_sums_to_one():
    weights = neighbour_weights(9, 1.5)
    assert torch.allclose(weights.sum(1), torch.ones(9))
    assert weights[4, 5] / weights[4, 4] == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-5)
    assert weights[4, 2] == pytest.approx(weights[4, 6].item())
    assert torch.allclose(neighbour_weights(5, 1e-3), torch.eye(5))  # hardly any neighbour counts: each alone


def test_only_the_logits_are_averaged_and_the_batch_size_does_not_matter():
    draw = torch.Generator().manual_seed(0)
    z, mix = torch.randn(7, 4, 6, 6, generator=draw), torch.randn(4, generator=draw)

    def denoiser(latent, t):
        assert len(latent) == len(t) <= 3
        return latent * 2, (latent * mix.view(1, 4, 1, 1)).sum(1, keepdim=True)

    t, weights = torch.full((7,), 9), neighbour_weights(7, 1.0)
    prediction, logits = deciding_together(denoiser, weights, 3)(z, t)
    assert torch.equal(prediction, z * 2)
    alone = deciding_together(denoiser, None, 2)(z, t)[1]
    assert torch.allclose(logits[3], sum(weights[3, j] * alone[j] for j in range(7)), atol=1e-6)
    assert torch.allclose(logits, deciding_together(denoiser, weights, 1)(z, t)[1], atol=1e-6)


def test_a_false_alarm_is_outvoted_and_a_lesion_is_not():
    """Slice 2 alone looks like noise at one cell; at another cell slices 1 to 5 do, but slice 3 was
    overlooked.
    """
    z = torch.zeros(7, 1, 2, 2)
    z[2, 0, 0, 0] = z[1:6, 0, 1, 1] = 1
    z[3, 0, 1, 1] = 0

    def denoiser(latent, t):
        return torch.full_like(latent, -1), (latent > 0.5).float() * 4 - 2  # logits 2 and -2

    def changed(weights):
        result = selective_reverse(
            deciding_together(denoiser, weights, 4), z, make_scheduler(), num_inference_steps=1, eta=0
        )
        return result.replaced[0, :, 0]

    alone, together = changed(None), changed(neighbour_weights(7, 1.0))
    assert alone[2, 0, 0] and not alone[3, 1, 1]
    assert not together[:, 0, 0].any() and together[2:5, 1, 1].all()


def test_slices_are_grouped_by_volume_or_by_batch():
    def rows(*arguments):
        return [group.tolist() for group in slice_groups(*arguments)]

    assert rows(5, list("aabbb"), 2) == [[0, 1], [2, 3, 4]]
    assert rows(5, None, 2) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="each of the 5 slices"):
        slice_groups(5, [0, 1], 2)


@pytest.fixture(scope="module")
def pipe():
    pipe = MadAdPipeline.from_pretrained("t1")
    pipe.register_to_config(neighbour_sigma=2.4)
    return pipe


def test_volumes_do_not_mix_and_slices_without_volumes_stay_alone(pipe, patient_scan):
    scan = pipe.prepare(patient_scan["image"])
    images, brain = (torch.from_numpy(x[30:36])[:, None] for x in (scan.image, scan.brain))

    def maps(rows, volumes):
        run = dict(brain=brain[rows], eta=0.0, progress=False)
        return pipe(images[rows], volumes=volumes, **run).mask_probability

    both = maps([0, 1, 2, 3, 4, 5], list("aaabbb"))
    assert torch.allclose(both[:, :3], maps([0, 1, 2], list("aaa")), atol=1e-5)
    assert torch.allclose(both[:, 3:], maps([3, 4, 5], list("aaa")), atol=1e-5)
    alone = maps([0, 1, 2, 3, 4, 5], None)
    assert torch.allclose(alone[:, :1], maps([0], None), atol=1e-5)
    assert not torch.allclose(alone, both, atol=1e-2)
    with pytest.raises(ValueError, match="volumes"):
        pipe(images, brain=brain, volumes=[0, 1], progress=False)


def test_a_scan_is_one_volume(pipe, patient_scan):
    scan = pipe.prepare(patient_scan["image"], z_range=(20, 28))
    images, brain = (torch.from_numpy(x)[:, None] for x in (scan.image, scan.brain))
    as_scan = pipe(scan, eta=0.0, progress=False)
    as_slices = pipe(images, brain=brain, volumes=[0] * len(images), eta=0.0, progress=False)
    assert torch.equal(as_scan.anomaly_map, as_slices.anomaly_map)
