"""The frame that every method of the family fills in: trained, kept and called in the same way.

A method says in one file which networks it has (`build`), what a training step draws and minimises (`draw`, `loss`,
or `stages`, where one network is trained after another) and how slices become a map (`score`). The rest is here:

    folder = method_class("pddpm").train(data, out, config)     # on training.loop.train_model: resumes, averages, ..
    method = load(folder)
    maps = method(slices, brain)                                # (N, 1, H, W) in [0, 1], 0 outside the brain

The folder is complete in itself, and nothing in it is run:

    method.json      name, settings, what its slices are, what was measured on healthy validation slices; written last
    NAME/            each network in diffusers' layout (safetensors)
    autoencoder/     a copy, for those that live in its latents
    training/        the runs, to resume from; may be deleted. latents/: the cache of those that live in latents
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DModel

from madad_lite import autoencoder as latents
from madad_lite.errors import Refused, RunError, WeightsError, one_line
from madad_lite.extensions.intensity_weight import BRIGHT_LESIONS
from madad_lite.family.parts import SIZES
from madad_lite.family.registry import FAMILY, method_class
from madad_lite.files import read_json, save_model, write_json
from madad_lite.scans.grid import Grid
from madad_lite.slices.augment import AUGMENTATIONS
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest
from madad_lite.training.autoencoder import as_autoencoder
from madad_lite.training.latent_cache import LatentDataset, encode_latents, latents_fingerprint
from madad_lite.training.loop import Batch, step_generator, train_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import described, refuse_others, spread
from madad_lite.training.settings import Between, DenoiserConfig, TrainingConfig, configured
from madad_lite.weights.folder import read_model

FILE = "method.json"
SCHEMA = {
    "method": str,
    "contrast": set(BRIGHT_LESIONS),
    "grid": {str: None},
    "normalise?": {"median", "tissue"},
    "settings": {str: None},
    "measured": {str: float},
}
FULL = 0.6  # a difference of so much, of the slices' range of 2, is fully anomalous: the same for all methods
Rng = list[torch.Generator]  # one a slice, so that a map does not depend on the slices beside it


def knob(default: Any, allowed) -> Any:
    """A setting of a method with its default, and what it may be: some words, or (lowest, highest)."""
    limits = Between(*allowed) if isinstance(allowed, tuple) and not isinstance(allowed[0], str) else allowed
    return field(default=default, metadata={"allowed": limits})


@dataclass(frozen=True)
class FamilyConfig(TrainingConfig):
    """How a method is trained, and in its subclasses also its own settings."""

    size: str = knob("nano", SIZES)  # of the U-Net
    augmentation: str = knob("lite", AUGMENTATIONS)
    variants: int = knob(4, (1, 1000))  # latents cached of each slice: the plain one and 3 augmented ones


class Networks(torch.nn.ModuleDict):
    """Some networks, trained and saved together."""

    def save_pretrained(self, folder: Path) -> None:
        for name, network in self.items():
            network.save_pretrained(folder / name)


@dataclass
class Stage:
    """A part of the training: which networks learn, from what, and which share of the steps it gets."""

    name: str
    networks: Sequence[str]
    draw: Callable[[torch.Tensor, torch.Tensor, torch.Generator], Batch]
    loss: Callable[[Batch], torch.Tensor]
    share: float = 1.0
    before: Callable[[], None] = lambda: None


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b| of slices, scaled to 0..1."""
    return (a - b).abs().clamp(max=FULL) / FULL


class Method:
    """A method with its networks. A subclass says what is its own; see the head of this file and CONTRIBUTING.md.

    config: of the class's own `Config`. networks: as of `build`, which makes untrained ones. contrast, grid,
    normalise: of the slices. autoencoder: for those that need one. measured: what `measure` gave.
    """

    title: ClassVar[str]
    Config: ClassVar[type[FamilyConfig]] = FamilyConfig
    kinds: ClassVar[dict[str, type[ModelMixin]]] = {"unet": UNet2DModel}  # the classes of its networks
    latent: ClassVar[bool] = False  # is it trained on the autoencoder's latents?
    encoder: ClassVar[bool] = False  # does it need the autoencoder otherwise?
    paper: ClassVar[dict | None] = None  # full-size settings; what its paper does not say is ours
    trained_as: ClassVar[str | None] = None  # the method whose networks serve it as well
    tried: ClassVar[tuple[dict, ...]] = ({},)  # settings at test time, among which validation may choose

    def __init__(
        self,
        config: FamilyConfig | None = None,
        networks: dict[str, ModelMixin] | None = None,
        *,
        contrast: str = "t1",
        grid: dict | None = None,
        normalise: str = "median",
        autoencoder: AutoencoderKL | None = None,
        measured: dict | None = None,
    ) -> None:
        if (self.latent or self.encoder) and autoencoder is None:
            raise Refused(f"{self.name} needs a trained autoencoder: --autoencoder RUN/best")
        self.config = self.Config() if config is None else config
        self.contrast, self.grid = contrast, grid or {}
        self.normalise, self.measured = normalise, measured or {}
        self.autoencoder = None if autoencoder is None else autoencoder.requires_grad_(False).eval()
        if networks is None:
            torch.manual_seed(self.config.seed)
            networks = self.build()
        self.networks = Networks(networks).requires_grad_(False).eval()
        self.device = torch.device("cpu")

    # what a method says of itself

    def build(self) -> dict[str, ModelMixin]:
        """Its untrained networks, by the names of `kinds`."""
        return {}

    def draw(self, x: torch.Tensor, brain: torch.Tensor, generator: torch.Generator) -> Batch:
        """What a training step draws at random for slices x (N, 1, H, W) with their brain, or, if `latent`, for
        latents (N, C, h, w) with their brain cells; on the CPU, N rows each.
        """
        raise NotImplementedError

    def loss(self, drawn: Batch) -> torch.Tensor:
        """What a training step minimises, a scalar; on the training's device."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """Its training; none: there is nothing to train."""
        return [Stage("all", list(self.kinds), self.draw, self.loss)] if self.kinds else []

    def measure(self, x: torch.Tensor, brain: torch.Tensor, rng: Rng) -> dict[str, float]:
        """What it must know of healthy validation slices after training."""
        return {}

    def score(self, x: torch.Tensor, brain: torch.Tensor, rng: Rng) -> torch.Tensor:
        """The map of some slices, (N, 1, H, W); what is below 0, above 1 or outside the brain is cut afterwards."""
        raise NotImplementedError

    # what all have in common

    @property
    def name(self) -> str:
        return next(n for n, (_, kind) in FAMILY.items() if kind == type(self).__name__)

    @property
    def divisor(self) -> int:
        """What the sides of slices must be divisible by."""
        size = SIZES[self.config.size]
        f = latents.downsampling(self.autoencoder) if self.autoencoder is not None else 1
        fold = f if self.latent else size.fold
        return max(f, fold * 2 ** (len(size.widths) - 1)) if self.kinds else f

    def __getattr__(self, name: str) -> ModelMixin:
        """A network by its name: self.unet."""
        networks = self.__dict__.get("networks", {})
        if name not in networks:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return networks[name]

    def to(self, device: torch.device | str) -> Method:
        self.device = torch.device(device)
        for module in (self.networks, self.autoencoder):
            if module is not None:
                module.to(self.device)
        return self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """z0 of slices (N, 1, H, W), (N, C, h, w), the posterior's mode."""
        return latents.encode(self.autoencoder, x).float()

    def decode(self, z: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """The slices (N, 1, H, W) of latents, -1 outside the brain."""
        return torch.where(brain, latents.decode(self.autoencoder, z).float().clamp(-1, 1), -1.0)

    @torch.no_grad()
    def __call__(
        self,
        slices: torch.Tensor,
        brain: torch.Tensor,
        volumes: Sequence | None = None,
        generator: torch.Generator | None = None,
        *,
        batch_size: int = 32,
    ) -> torch.Tensor:
        """The anomaly map of slices: (N, 1, H, W) in [0, 1], 0 outside the brain, float32 on the CPU.

        slices: (N, 1, H, W) in [-1, 1], background -1. brain: (N, 1, H, W) bool or 0/1. volumes: (N,) the volume of
        each slice, for a method whose neighbours decide together. generator: None: the same draws at each call.
        batch_size: slices at once; the map does not depend on it. ValueError: what makes no sense.
        """
        if slices.ndim != 4 or slices.shape[1] != 1 or brain.shape != slices.shape or not len(slices):
            shapes = f"{tuple(slices.shape)} and {tuple(brain.shape)}"
            raise Refused(f"slices and brain must be (N, 1, H, W), not {shapes}")
        if any(side % self.divisor for side in slices.shape[2:]):
            raise Refused(
                f"{self.name}: sides of slices must be divisible by {self.divisor}: {tuple(slices.shape)}"
            )
        if not torch.isfinite(slices).all() or batch_size < 1:
            raise Refused("slices hold NaN or infinite values, or the batch size is below 1")
        brain, generator = brain.bool(), generator or torch.Generator().manual_seed(0)
        seeds = torch.randint(2**62, (len(slices),), generator=generator, device=generator.device).tolist()
        maps = self.maps(slices.float(), brain, volumes, seeds, batch_size)
        return torch.where(brain, maps.float().clamp(0, 1), 0.0)

    def maps(self, slices, brain, volumes, seeds: list[int], batch_size: int) -> torch.Tensor:
        """Batch by batch; `volumes` count for nothing here."""
        parts = []
        for i in range(0, len(slices), batch_size):
            rows = slice(i, i + batch_size)
            rng = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
            parts.append(self.score(slices[rows].to(self.device), brain[rows].to(self.device), rng).cpu())
        return torch.cat(parts)

    def draw_batch(self, batch: Batch, generator: torch.Generator, stage: Stage, augment: bool) -> Batch:
        """From a batch of the dataset to `draw`: a sample of the posterior, or an augmented slice."""
        if self.latent:
            z0 = batch["mean"] + batch["std"] * torch.randn(batch["mean"].shape, generator=generator)
            return stage.draw(z0, batch["brain"], generator)
        x, brain = batch["image"], batch["brain"]
        if augment:
            x, brain = AUGMENTATIONS[self.config.augmentation](x, brain, generator)
        return stage.draw(x, brain, generator)

    def cache_config(self) -> DenoiserConfig:
        """What the cached latents are to be like."""
        c = self.config
        return DenoiserConfig(variants=c.variants, augmentation=c.augmentation, seed=c.seed)

    @classmethod
    def train(
        cls,
        data: str | Path | Sequence[str | Path],
        out: str | Path,
        config: FamilyConfig | None = None,
        *,
        autoencoder: str | Path | AutoencoderKL | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> Path:
        """Train on the lesion-free slices of prepared folders; returns the method's folder, `out`.

        autoencoder: a folder of train_autoencoder (its best/), that of a pipeline or its shipped name, or a model.
        Refused, RunError, ScanError, before any work: settings or folders that cannot be used.
        """
        out = Path(out)
        config = cls.Config() if config is None else config
        if not isinstance(config, cls.Config):
            raise Refused(
                f"{cls.title}: wants settings of its own, {cls.__name__}.Config, not {type(config).__name__}"
            )
        first = Manifest.load(data if isinstance(data, (str, Path)) else data[0])
        about = dict(contrast=first.contrast, grid=first.grid.to_dict(), normalise=first.normalise)
        method = cls(config, **about, autoencoder=as_autoencoder(autoencoder))
        if first.grid.size % method.divisor:
            raise Refused(
                f"{method.name}: the sides of slices must be divisible by {method.divisor}, not "
                f"{first.grid.size}; prepare others, or choose another size"
            )
        refuse_others(out, {FILE, "training", "latents", "autoencoder", *cls.kinds})
        if (out / FILE).exists() and not resume:
            raise RunError(f"{out}: holds a trained method already; resume it or choose another folder")
        method._train(data, out, resume, progress)
        return out

    def _train(self, data, out: Path, resume: bool, progress: bool) -> None:
        self.to(processes().device if torch.cuda.is_available() else "cpu")
        slices = {split: SliceDataset(data, split, lesion_free=True) for split in ("train", "val")}
        inputs = described(data, slices["train"]) | {"method": self.name}
        sets: dict = slices
        if self.latent:
            with processes().main_process_first():  # the others find it done
                cache = out / "latents"
                encode_latents(data, self.autoencoder, cache, self.cache_config(), progress=progress)
            sets = {split: LatentDataset(cache, split) for split in ("train", "val")}
            inputs["latents"] = latents_fingerprint(cache)
        for stage in self.stages():
            self._train_stage(stage, sets, out / "training" / stage.name, inputs, resume, progress)
        shown = [slices["val"][i] for i in spread(len(slices["val"]), 96)]
        x, brain = (torch.stack([s[k] for s in shown]).to(self.device) for k in ("image", "brain"))
        rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
        with torch.no_grad():
            self.measured = self.measure(x, brain, rng)
        if processes().is_main_process:
            self.save(out)
        processes().wait_for_everyone()

    def _train_stage(self, stage: Stage, sets: dict, run: Path, inputs: dict, resume, progress) -> None:
        stage.before()
        networks = Networks({n: self.networks[n] for n in stage.networks}).requires_grad_(True)
        items = [sets["val"][i] for i in spread(len(sets["val"]), 96)]

        def draw(batch: Batch, generator: torch.Generator) -> Batch:
            return self.draw_batch(batch, generator, stage, augment=True)

        def losses_of(_: torch.nn.Module, drawn: Batch, generator: torch.Generator) -> Batch:
            return {"loss": stage.loss(drawn)}

        def validate(_: torch.nn.Module, device: torch.device) -> dict[str, float]:
            losses = []
            for i in range(0, len(items), 32):
                some = items[i : i + 32]
                batch = {k: torch.stack([torch.as_tensor(x[k]) for x in some]) for k in some[0]}
                drawn = self.draw_batch(batch, step_generator(12345, i // 32), stage, augment=False)
                with torch.no_grad():
                    losses.append(stage.loss({k: v.to(device) for k, v in drawn.items()}).item())
            return {"val_loss": sum(losses) / len(losses)}

        config = replace(self.config, steps=max(1, round(self.config.steps * stage.share)))
        if config.epochs is not None:
            config = replace(config, epochs=config.epochs * stage.share)
        functions = dict(losses_of=losses_of, validate=validate, draw=draw)
        told = dict(inputs=inputs, resume=resume, progress=progress)
        title = self.title + (f", {stage.name}" if stage.share < 1 else "")
        train_model(networks, sets["train"], run, config, **functions, **told, title=title)
        for name, network in networks.items():
            network.load_state_dict(read_model(self.kinds[name], run / "best" / name).state_dict())
        networks.requires_grad_(False).eval()

    def save(self, folder: str | Path) -> Path:
        """Write it as a folder; what of it is there already is replaced."""
        (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
        for name, network in self.networks.items():
            save_model(network, folder / name)
        if self.autoencoder is not None:
            save_model(self.autoencoder, folder / "autoencoder")
        about = {"method": self.name} | {k: getattr(self, k) for k in ("contrast", "grid", "normalise")}
        write_json(folder / FILE, about | {"settings": asdict(self.config), "measured": self.measured})
        return folder

    def changed(self, **settings) -> Method:
        """The same networks with other settings at test time. Refused: a setting that is not allowed."""
        about = {k: getattr(self, k) for k in ("contrast", "grid", "normalise", "measured", "autoencoder")}
        config = configured(self.config, **settings)
        return type(self)(config, dict(self.networks.items()), **about).to(self.device)


def load(folder: str | os.PathLike, *, name: str | None = None, **changes) -> Method:
    """A trained method from its folder, for use.

    name: another method of the family that the same networks serve (`trained_as`). changes: settings in place of
    the folder's. WeightsError, one line that names the file: a folder that is missing, damaged or no method's.
    """
    folder = Path(folder)
    hint = "train the method again, or give a folder of `madad train METHOD`"
    content = read_json(folder / FILE, SCHEMA, error=WeightsError, hint=hint)
    try:
        Grid.from_dict(content["grid"])
        trained = method_class(content["method"])
        config = configured(trained.Config(), **content["settings"])
    except (LookupError, TypeError, ValueError) as error:  # Refused is a ValueError
        raise WeightsError(f"{folder / FILE}: {one_line(error)}; {hint}") from None
    kind = trained if name is None else _serving(folder, trained, name)
    networks = {n: read_model(k, folder / n) for n, k in kind.kinds.items()}
    encoder = read_model(AutoencoderKL, folder / "autoencoder") if kind.latent or kind.encoder else None
    about = {k: content[k] for k in ("contrast", "grid", "normalise", "measured") if k in content}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # takes no memory, leaves no trace
        meant = trained(config, autoencoder=encoder, **about).networks
    for n, network in networks.items():
        found, wanted = ({k: v.shape for k, v in m.state_dict().items()} for m in (network, meant[n]))
        if found != wanted:
            raise WeightsError(f"{folder / n}: is not the network that {FILE} describes; {hint}")
    return kind(configured(config, **changes), networks, autoencoder=encoder, **about)


def _serving(folder: Path, trained: type[Method], name: str) -> type[Method]:
    """The class of the method `name`, if the networks of `trained` serve it."""
    wanted = method_class(name)
    if wanted is not trained and (
        wanted.trained_as is None or method_class(wanted.trained_as) is not trained
    ):
        raise Refused(f"{folder}: holds a trained {trained.title}, which does not serve {wanted.title}")
    return wanted
