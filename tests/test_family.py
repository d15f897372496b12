"""The methods beside MAD-AD: their equations against a float64 reference, and what every one of them must do."""

import json

import numpy as np
import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.errors import Refused, RunError, WeightsError
from madad_lite.evaluation import race
from madad_lite.evaluation.compare import load_split
from madad_lite.family import bernoulli, itermask, mddpm, parts, reflect
from madad_lite.family.deco_diff import DecoDiff, shuffled
from madad_lite.family.frame import Stage, load
from madad_lite.family.mdps import MDPS
from madad_lite.family.pddpm import PDDPM
from madad_lite.family.postprocess import Postprocessing, without_small_parts
from madad_lite.family.registry import FAMILY, method_class
from madad_lite.scans.grid import Grid

BRIEF = dict(steps=30, batch_size=8, validate_every=30, checkpoint_every=30, warmup_steps=1, ema_decay=0.9)
NOT_TINY = ("mad_ad", "mad_ad_paper")
UNTRAINED = ("intensity", "reconstruction", "untrained")


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def each(n):
    return [seeded(i) for i in range(n)]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return make_autoencoder().eval()


@pytest.fixture
def slices():
    brain = torch.zeros(3, 1, 48, 48, dtype=torch.bool)
    brain[..., 8:40, 8:40] = True
    return torch.where(brain, torch.rand(3, 1, 48, 48, generator=seeded()) - 0.5, -1.0), brain


def made(name, encoder, **settings):
    kind = method_class(name)
    size = {} if name in NOT_TINY else {"size": "tiny"}
    method = kind(kind.Config(**size, **settings), autoencoder=encoder)
    generator = seeded(7)
    for p in method.networks.parameters():  # an untrained U-Net's last layers answer with little
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    return method


# ----------------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("name", FAMILY)
def test_same_seed_same_map_whatever_the_batch(name, encoder, slices):
    x, brain = slices
    method = made(name, encoder)
    together = method(x, brain, generator=seeded(3))
    assert together.shape == x.shape and 0 <= together.min() and together.max() <= 1
    assert not together[~brain].any() and together[brain].std() > 0
    assert torch.equal(together, method(x, brain, generator=seeded(3)))
    alone = method(x, brain, generator=seeded(3), batch_size=1)
    assert (
        (together - alone).abs() > 1e-3
    ).float().mean() < 2e-3  # a threshold may fall otherwise by rounding


@pytest.mark.parametrize("name", [n for n in FAMILY if n not in UNTRAINED])
def test_each_stage_teaches_its_networks_and_no_other(name, encoder, slices):
    x, brain = slices
    method = made(name, encoder)
    for stage in method.stages():
        stage.before()
        batch = {"image": x, "brain": brain}
        if method.latent:
            cells = torch.ones(3, 1, 12, 12, dtype=torch.bool)
            z = torch.randn(3, 4, 12, 12, generator=seeded())
            batch = {
                "mean": z,
                "std": 0.1 * z.abs(),
                "brain": cells,
                "corrupted": z.flip(0),
                "changed": cells,
            }
        drawn = method.draw_batch(batch, seeded(1), stage, augment=False)
        again = method.draw_batch(batch, seeded(1), stage, augment=False)
        assert all(torch.equal(v, again[k]) and len(v) == 3 for k, v in drawn.items())
        for n, network in method.networks.items():
            network.requires_grad_(n in stage.networks)
        stage.loss(drawn).backward()
        for n in stage.networks:
            learn = [p.grad is not None and bool(p.grad.any()) for p in method.networks[n].parameters()]
            assert np.mean(learn) > 0.8, n


@pytest.mark.parametrize("name", [n for n in FAMILY if method_class(n).paper])
def test_the_papers_settings_are_allowed(name):
    kind = method_class(name)
    assert kind.Config(**kind.paper).learning_rate <= 1e-3


@pytest.mark.parametrize("name", FAMILY)
def test_settings_to_choose_from_are_allowed_and_differ(name):
    kind = method_class(name)
    configs = [kind.Config(**choice) for choice in kind.tried]
    assert configs and len(set(configs)) == len(configs)
    assert all(c.batch_size == kind.Config().batch_size for c in configs)


def test_mad_ad_tiny_is_as_small_as_the_others_and_its_threshold_can_be_chosen(encoder, slices):
    counts = {}
    for name in ("mad_ad", "deco_diff"):
        kind = method_class(name)
        method = kind(kind.Config(size="tiny"), autoencoder=encoder)
        counts[name] = sum(p.numel() for p in method.networks.parameters())
    assert counts["mad_ad"] == pytest.approx(counts["deco_diff"], rel=0.05)
    method = made("mad_ad", encoder)
    assert method.changed(mask_threshold=0.9).detection().mask_threshold == 0.9
    assert method.detection().mask_threshold == method.recipe.detection.mask_threshold
    x, brain = slices
    maps = [method.changed(mask_threshold=t)(x, brain) for t in (0.0, 1.0)]
    assert maps[0].sum() > maps[1].sum()


# name: validation loss after 30 steps of the last stage, of that before them
TAUGHT = {"pddpm": 0.9, "mddpm": 0.9, "cddpm": 0.9, "maediff": 0.9, "mdps": 0.97, "bernoulli": 0.98}
TAUGHT |= {"itermask": 0.9, "deco_diff": 0.99, "reflect": 1.0, "mad_ad_paper": 0.95}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_a_short_training_beats_the_untrained_network(name, encoder, prepared_cohort, tmp_path):
    kind = method_class(name)
    size = {} if name in NOT_TINY else {"size": "tiny"}
    config = kind.Config(**{**BRIEF, **size}, variants=1)
    needs = encoder if kind.latent or kind.encoder else None
    folder = kind.train(prepared_cohort, tmp_path / "run", config, autoencoder=needs, progress=False)
    stage = kind(config, autoencoder=needs).stages()[-1].name
    log = [json.loads(t) for t in (folder / f"training/{stage}/log.jsonl").read_text().splitlines()]
    assert log[-1]["val_loss"] < TAUGHT[name] * log[0]["loss"]
    method = load(folder)
    assert method.config == config and method.contrast == "t1" and method.grid["size"] == 48
    s = load_split(prepared_cohort, "val")
    maps = method(s.image[:2], s.brain[:2])
    assert torch.isfinite(maps).all() and maps[s.brain[:2]].std() > 0


# ------------------------------------------------------------------------------------------------- equations


def cosine(t):
    """abar of the cosine schedule, Nichol and Dhariwal 2021, in float64."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[t]


def test_noised_slices_follow_the_equation():
    x, eps = (np.random.default_rng(i).standard_normal((2, 1, 4, 4)) for i in (0, 1))
    t = np.array([3, 700])
    a = cosine(t)[:, None, None, None]
    expected = np.sqrt(a) * x + np.sqrt(1 - a) * eps
    found = parts.noised(*(torch.from_numpy(v) for v in (x, eps, t)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert parts.abar(-1, found).item() == 1


def test_boxes_cover_the_slice():
    grid = parts.boxes((48, 48), 0.5, 0.5)
    assert len(grid) == 4 and (grid.sum(0) == 1).all()
    overlapping = parts.boxes((48, 48), 0.5, 0.25)
    assert len(overlapping) == 9 and overlapping.sum(0).min() == 1 and overlapping.sum(0).max() == 4


def test_pddpm_noises_one_box_and_stitches_four(encoder, slices):
    x, brain = slices
    method = made("pddpm", encoder)
    drawn = method.draw(x, brain, seeded())
    assert torch.equal(drawn["x_t"][~drawn["box"]], x[~drawn["box"]]) and drawn["box"].float().mean() == 0.25
    seen = []

    class Copying(PDDPM):
        def rebuild(self, x_t, t, box):
            seen.append((x_t, box))
            return x_t

    Copying.Config = PDDPM.Config
    copying = Copying(method.config)
    stitched = copying.stitched(x, each(3))
    eps = parts.fractal_noise(x.shape, each(3), octaves=6).double().numpy()
    expected = np.sqrt(cosine(500)) * x.double().numpy() + np.sqrt(1 - cosine(500)) * eps
    np.testing.assert_allclose(stitched, expected, atol=1e-4)
    assert len(seen) == 4 and all(torch.equal(x_t[:, ~box[0]], x[:, ~box[0]]) for x_t, box in seen)


def test_mddpm_filters_frequencies():
    x = torch.rand(2, 1, 32, 32, generator=seeded()) - 0.5
    spectrum = np.fft.fftshift(np.fft.fft2(x.double().numpy() + 1), axes=(2, 3))
    k = np.abs(np.arange(-16, 16))
    inside = np.maximum(k[:, None], k[None]) <= 4
    for keep in (True, False):
        kept = np.where(inside == keep, spectrum, 0)
        expected = np.clip(np.fft.ifft2(np.fft.ifftshift(kept, axes=(2, 3))).real - 1, -1, 1)
        found = mddpm.filtered(x, torch.tensor([4, 4]), torch.tensor([keep, keep]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    brain = torch.zeros(40, 1, 64, 64, dtype=torch.bool)
    brain[..., 7:57, 14:54] = True  # 50 x 40
    pasted = mddpm.rectangles(brain, seeded())
    area = pasted.flatten(1).sum(1)
    assert not pasted[~brain].any() and area.min() == 0 and 0 < area.max() <= 5 * 9 * 7


def test_bernoulli_posterior_follows_from_bayes():
    t, s = 150, 90
    k_t, k_s = cosine(t), cosine(s)
    for b_0 in (0.0, 1.0):
        for b_t in (0.0, 1.0):
            prior = {b: k_s * (b_0 == b) + (1 - k_s) / 2 for b in (0, 1)}
            likely = {b: (k_t / k_s) * (b_t == b) + (1 - k_t / k_s) / 2 for b in (0, 1)}
            expected = prior[1] * likely[1] / sum(prior[b] * likely[b] for b in (0, 1))
            bits = (torch.full((1, 1, 1, 1), b, dtype=torch.float64) for b in (b_t, b_0))
            assert bernoulli.posterior(*bits, t, s).item() == pytest.approx(expected, abs=1e-5)
    drifted = bernoulli.drifted(torch.ones(1, 1, 1, 1, dtype=torch.float64), t).item()
    assert drifted == pytest.approx(k_t + (1 - k_t) / 2, abs=1e-5)


def test_bernoulli_keeps_the_scans_bits_outside_the_mask(encoder):
    method = made("bernoulli", encoder, steps_back=5)
    b_0 = (torch.rand(2, 16, 12, 12, generator=seeded()) < 0.5).float()
    healed, mask = method.heal(b_0, each(2))
    assert torch.equal(healed[~mask], b_0[~mask]) and set(healed.unique().tolist()) == {0.0, 1.0}
    method.flip_logits = lambda b_t, t: torch.full_like(b_t, -9.0)  # sure that nothing flipped
    healed, mask = method.heal(b_0, each(2))
    assert torch.equal(healed, b_0) and not mask.any()


def test_mdps_is_guided_by_the_distance(encoder):
    class Zero(MDPS):
        Config = MDPS.Config

        def eps(self, x_t, t):
            return torch.zeros_like(x_t)

    method = Zero(MDPS.Config(size="tiny"), autoencoder=encoder)
    x, y = (torch.rand(2, 1, 8, 8, generator=seeded(i)) for i in (0, 1))
    a = cosine(120)
    apart = x.double().numpy() / np.sqrt(a) - y.double().numpy()  # x0_hat - y
    gradient = apart / np.sqrt((apart**2).sum((1, 2, 3), keepdims=True)) / np.sqrt(a)
    np.testing.assert_allclose(method.guided(x, 120, y, 2.0), np.sqrt(1 - a) * 2 * gradient, atol=1e-4)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    back = method.back(y, 1.0, each(2), mask)
    assert torch.equal(back[~mask], y[~mask]) and not torch.equal(back, y)


def test_itermask_keeps_high_frequencies_and_the_worst_pixels():
    x = torch.rand(1, 1, 64, 64, generator=seeded()) - 0.5
    k = np.arange(-32, 32)
    outside = k[:, None] ** 2 + k[None] ** 2 > (15 * 64 / 128) ** 2
    spectrum = np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(2, 3)) * outside
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(2, 3))).real
    np.testing.assert_allclose(itermask.edges(x), expected, atol=1e-5)
    error, brain = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    brain[..., 3, :] = False
    assert itermask.worst(error, brain, 0.25).nonzero()[:, 3].tolist() == [1, 2, 3]


def test_itermask_ends_with_what_cannot_be_rebuilt(encoder, slices):
    x, brain = slices
    method = made("itermask", encoder)
    lesion = torch.zeros_like(brain)
    lesion[..., 12:20, 12:20] = True
    sick = torch.where(lesion, x + 1.0, x)
    method.measured = {"threshold": 0.5}
    method.answer = lambda network, *seen: x  # knows the healthy slice
    mask, error = method.shrunk(sick, brain, each(3))
    assert torch.equal(mask, lesion) and (error[lesion] == 1).all()


def test_deco_diff_takes_the_deviation_away(encoder):
    z0 = torch.randn(2, 4, 12, 12, generator=seeded())
    moved = shuffled(z0, seeded(1))
    assert not torch.equal(moved, z0)
    assert torch.equal(moved.flatten(2).sort().values, z0.flatten(2).sort().values)
    method = made("deco_diff", encoder)
    foreign = torch.zeros_like(z0)
    foreign[..., 3:6, 3:6] = 2.0
    method.deviation = lambda z, t: z - z0  # knows the normal latent
    torch.testing.assert_close(method.corrected(z0 + foreign), z0, atol=1e-5, rtol=0)
    drawn = method.draw(z0, torch.ones(2, 1, 12, 12), seeded(2))
    torch.testing.assert_close(drawn["z_t"] - drawn["deviation"], z0)
    assert isinstance(method, DecoDiff) and (drawn["deviation"] == 0).any()


def test_reflect_goes_the_line_in_one_step(encoder):
    square = torch.tensor([[[2.0, 3.0], [2.0, 7.0], [6.0, 7.0], [6.0, 3.0]]])
    inside = reflect.inside(square, (10, 10))
    assert inside[0, 0, 2:6, 3:7].all() and inside.sum() == 16
    method = made("reflect", encoder)
    z0 = torch.randn(4, 4, 24, 24, generator=seeded())
    drawn = method.draw(z0, torch.ones(4, 1, 24, 24), seeded(3))
    changed = (drawn["z_c"] != z0).any(1)
    assert 0 < changed.float().mean() < 0.6 and drawn["tau"].shape == (4, 1, 1, 1)
    start, end, tau = drawn["z_c"], z0, drawn["tau"]
    line, asked = (1 - tau) * start + tau * end, []
    method.velocity = lambda network, z, at: asked.append((z, at)) or (end - start)
    assert method.loss(drawn).item() == 0
    torch.testing.assert_close(asked[0][0], line)
    torch.testing.assert_close(method.corrected(start), z0)


# ------------------------------------------------------------------------------- one block after all of them


def test_postprocessing_does_what_it_says():
    maps, brain = torch.zeros(3, 1, 32, 32), torch.ones(3, 1, 32, 32, dtype=torch.bool)
    maps[:, 0, 8:14, 8:14] = 0.8
    maps[1, 0, 20, 20] = 0.9  # a small part
    maps[1, 0, 0, 5] = 0.7  # at the edge
    same = Postprocessing()(maps, maps, brain)
    assert torch.equal(same, maps) and str(Postprocessing()) == "as it is"
    eroded = Postprocessing(erode=1)(maps, maps, brain)
    assert eroded[1, 0, 0, 5] == 0 and torch.equal(eroded[:, :, 1:-1, 1:-1], maps[:, :, 1:-1, 1:-1])
    assert Postprocessing(median=3)(maps, maps, brain)[1, 0, 20, 20] == 0
    dropped = Postprocessing(smallest=5)(maps, maps, brain, [0, 0, 0])
    assert dropped[1, 0, 20, 20] < 0.01 and torch.allclose(dropped[:, 0, 8:14, 8:14], maps[:, 0, 8:14, 8:14])
    through = Postprocessing(through=1.0)
    assert through(maps, maps, brain, [0, 0, 0])[0, 0, 20, 20] > 0
    assert through(maps, maps, brain, [0, 1, 2])[0, 0, 20, 20] == 0
    dark = torch.full_like(maps, -1.0)
    weighed = Postprocessing(weight=2.0)
    torch.testing.assert_close(weighed(maps, dark, brain, contrast="t1"), maps)
    assert weighed(maps, dark, brain, contrast="flair").max() == pytest.approx(0.3)
    with pytest.raises(Refused, match="median"):
        Postprocessing(median=-1)
    steps = np.full((1, 8, 8), 0.2)
    steps[0, 2, 2] = 0.9
    assert without_small_parts(steps, 2)[0, 2, 2] < 0.3 and without_small_parts(steps, 1)[0, 2, 2] == 0.9


# ----------------------------------------------------------------------------------------------- refusals, files


def test_bad_settings_and_folders_are_refused_before_work(encoder, slices, prepared_cohort, tmp_path):
    with pytest.raises(Refused, match="t_test"):
        PDDPM.Config(t_test=1000)
    with pytest.raises(Refused, match="no such method"):
        method_class("unknown")
    with pytest.raises(Refused, match="needs a trained autoencoder"):
        method_class("reflect").train(prepared_cohort, tmp_path / "a")
    with pytest.raises(Refused, match="settings of its own"):
        PDDPM.train(prepared_cohort, tmp_path / "a", MDPS.Config())
    (tmp_path / "b").mkdir()
    (tmp_path / "b/other.txt").write_text("mine")
    with pytest.raises(RunError, match="other.txt"):
        PDDPM.train(prepared_cohort, tmp_path / "b")
    assert not (tmp_path / "a").exists() and len(list((tmp_path / "b").iterdir())) == 1
    x, brain = slices
    method = made("pddpm", encoder)
    for wrong in ((x[:, 0], brain), (x[..., :46, :46], brain[..., :46, :46]), (x * float("nan"), brain)):
        with pytest.raises(Refused):
            method(*wrong)


def test_a_folder_is_checked_when_it_is_loaded(encoder, slices, tmp_path):
    x, brain = slices
    method = made("cddpm", encoder)
    method.grid = Grid().to_dict()
    folder = method.save(tmp_path / "m")
    assert torch.equal(load(folder)(x, brain), method(x, brain))
    about = json.loads((folder / "method.json").read_text())
    for change, said in (({"method": "none"}, "no such method"), ({"measured": 3}, "measured")):
        (folder / "method.json").write_text(json.dumps(about | change))
        with pytest.raises(WeightsError, match=said):
            load(folder)
    (folder / "method.json").write_text(json.dumps(about | {"settings": about["settings"] | {"hidden": 7}}))
    with pytest.raises(WeightsError, match="hidden"):
        load(folder)
    with pytest.raises(WeightsError, match="method.json"):
        load(tmp_path)
    assert isinstance(method.stages()[0], Stage)


# ------------------------------------------------------------------------------------------------ command line


def test_a_comparison_whose_picture_failed_is_begun_again(prepared_cohort, tmp_path, monkeypatch):
    """And torch's quantile, which takes no more than 2^24 values, is not asked."""
    monkeypatch.setattr(torch.Tensor, "quantile", None)
    with monkeypatch.context() as broken:
        broken.setattr(race, "picture", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            race.compare(prepared_cohort, ["intensity"], tmp_path / "c", progress=False)
    race.compare(prepared_cohort, ["intensity"], tmp_path / "c", progress=False)
    assert (tmp_path / "c" / "comparison.png").stat().st_size > 1000


def test_compare_train_and_detect_from_the_command_line(
    prepared_cohort, patient_scan, tmp_path, capsys, monkeypatch
):
    words = ["--data", str(prepared_cohort), "--out", str(tmp_path / "c")]
    brief = ["--steps", "2", "--set", "size=tiny", "batch_size=4", "variants=1"]
    assert main(["compare", *words, "--methods", "intensity,dae", *brief]) == 0
    told = capsys.readouterr().out
    assert "| intensity |" in told and "| dae |" in told and "[" in told
    numbers = json.loads((tmp_path / "c/comparison.json").read_text())
    assert set(numbers["methods"]) == {"intensity", "dae"} and numbers["after"] == "sigma 0.7"
    assert (tmp_path / "c/comparison.md").exists() and (tmp_path / "c/comparison.png").stat().st_size > 10_000
    assert main(["compare", *words, "--methods", "intensity,nothing"]) == 2
    assert main(["compare", *words, "--methods", "dae", "--set", "t_test=3"]) == 2
    train = ["train", "untrained", "--data", str(prepared_cohort), "--out", str(tmp_path / "m")]
    assert main([*train, "--set", "size=tiny"]) == 0 and main([*train, "--recipe", "authors"]) == 2
    scan = ["detect", patient_scan["image"], "--brain", patient_scan["brain"], "--out", str(tmp_path / "d")]
    quick = ["--z-range", "0", "8", "--register", "no", "--method", str(tmp_path / "m")]
    assert main([*scan, *quick]) == 0
    assert len(list((tmp_path / "d").glob("*_anomaly.nii.gz"))) == 1
    assert main([*scan, *quick]) == 1 and main([*scan, *quick, "--force"]) == 0
    assert main([*scan, *quick, "--mask"]) == 2
    (result,) = (tmp_path / "d").glob("*_anomaly.nii.gz")
    assert main([*scan, *quick, "--force", "--brain", str(result)]) == 2  # read, and would be overwritten
    monkeypatch.setattr("madad_lite.detection.other_methods.contrast_seen", lambda prepared: "flair")
    capsys.readouterr()
    assert main([*scan, *quick, "--force"]) == 1
    assert "its contrast looks like FLAIR, and the weights are for T1" in capsys.readouterr().err
    assert main([*scan, *quick, "--force", "--force-contrast"]) == 0
