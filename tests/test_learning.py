"""What the demo's short training learns, on subjects it has not seen: more than chance, more than an
untrained network.

At 4 mm, so that it takes a minute or two; the seeds are fixed, and nothing here was chosen on the subjects it
is measured on.
"""

from dataclasses import asdict

import pytest
import torch

from madad_lite.demo.run import short_training
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler, masked_forward
from madad_lite.evaluation.compare import load_split
from madad_lite.evaluation.metrics import auroc, average_precision
from madad_lite.family import BASELINES
from madad_lite.masking import brain_cells, random_patch_mask
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.settings import RECIPES


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(briefly trained pipeline, the same with an untrained denoiser, test slices)."""
    folder = tmp_path_factory.mktemp("learning")
    write_cohort(folder / "cohort", normal=12, patients=8, spacing=4.0, seed=2024, progress=False)
    prepare_folder(folder / "cohort", folder / "data", grid=Grid(4.0, 48), workers=1, progress=False)
    trained = short_training(folder / "data", folder, autoencoder_steps=300, denoiser_steps=300)
    torch.manual_seed(0)
    untrained = MadAdPipeline(trained.autoencoder, Denoiser.of_size("nano"), trained.scheduler)
    untrained.register_to_config(**asdict(RECIPES["lite"].detection))
    return trained, untrained, load_split(folder / "data", "test")


def test_the_mask_head_finds_noised_patches(learned):
    trained, untrained, test = learned
    generator = torch.Generator().manual_seed(0)
    z0 = trained.encode(test.image)
    brain = brain_cells(test.brain, z0.shape[-2:], 0.5)
    mask = random_patch_mask(len(z0), z0.shape[-2:], brain=brain, generator=generator)
    t = torch.full((len(z0),), 5)
    z_t = masked_forward(z0, torch.randn(z0.shape, generator=generator), mask, t, make_scheduler())
    with torch.no_grad():
        found, guessed = (p.denoiser(z_t, t)[1].sigmoid() for p in (trained, untrained))
    assert auroc(found, mask, brain) > 0.9
    assert auroc(found, mask, brain) > auroc(guessed, mask, brain) + 0.2


def test_noised_patches_are_healed(learned):
    """The prediction is nearer to the truth than the mean of all latents is (1.0 by the measured scaling)."""
    trained, untrained, test = learned
    generator = torch.Generator().manual_seed(1)
    z0 = trained.encode(test.image)
    mask = random_patch_mask(
        len(z0), z0.shape[-2:], brain=brain_cells(test.brain, z0.shape[-2:], 0.5), generator=generator
    )
    t = torch.full((len(z0),), 9)
    z_t = masked_forward(z0, torch.randn(z0.shape, generator=generator), mask, t, make_scheduler())
    marked = mask.bool().expand_as(z0)
    with torch.no_grad():
        errors = [(p.denoiser(z_t, t)[0] - z0)[marked].square().mean() for p in (trained, untrained)]
    spread = (z0[marked] - z0[marked].mean()).square().mean()
    assert errors[0] < 0.7 * spread < errors[1]


def test_lesions_are_found_better_than_by_an_untrained_network_or_the_reconstruction_error(learned):
    trained, untrained, test = learned
    ap = {}
    for name, pipe in (("trained", trained), ("untrained", untrained)):
        run = dict(
            brain=test.brain,
            volumes=test.subjects,
            generator=torch.Generator().manual_seed(0),
            progress=False,
        )
        output = pipe(test.image, **run)
        ap[name] = average_precision(output.anomaly_map, test.lesion, test.brain)
    error = BASELINES["reconstruction"](trained, test.image, test.brain)
    ap["reconstruction"] = average_precision(error, test.lesion, test.brain)
    assert ap["trained"] > 1.5 * ap["untrained"], ap
    assert ap["trained"] > 1.2 * ap["reconstruction"], ap
