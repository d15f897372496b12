"""MadAdPipeline: a scan or slices in, an anomaly map out, in the layout of diffusers' pipelines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput, logging
from tqdm.auto import tqdm

from madad_lite import scoring
from madad_lite.autoencoder import decode, downsampling, encode, folding
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import ReverseResult, selective_reverse
from madad_lite.extensions.intensity_weight import weigh_by_intensity
from madad_lite.extensions.neighbouring_slices import deciding_together, neighbour_weights
from madad_lite.scans.grid import Grid, PreparedScan
from madad_lite.scans.nifti import return_to_scan
from madad_lite.scans.prepare import prepare_volume

WEIGHTS = Path(__file__).parent / "weights"  # the shipped models


def shipped() -> list[str]:
    """Names of the shipped weights."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/model_index.json"))


@dataclass
class MadAdOutput(BaseOutput):
    """Maps and pictures of N slices; S executed steps. Float32 on the CPU."""

    anomaly_map: torch.Tensor  # (N, 1, H, W) in [0, 1]
    healed: torch.Tensor  # (N, 1, H, W) in [-1, 1], the decoded healed latent
    reconstruction: torch.Tensor  # (N, 1, H, W) in [-1, 1], the decoded latent before healing
    image: torch.Tensor  # (N, 1, H, W) in [-1, 1], the scan itself
    brain: torch.Tensor  # (N, 1, H, W) bool
    mask_probability: torch.Tensor  # (S, N, 1, h, w) in [0, 1], chance of "noised" at each step
    replaced: torch.Tensor  # (S, N, 1, h, w) bool, the cells replaced at each step
    trajectory: torch.Tensor  # (S + 1, N, C, h, w), the latent before each step and the last one
    timesteps: torch.Tensor  # (S,)
    prepared: PreparedScan | None = None  # of a scan: where its slices lie

    def to_nifti(self, field: str = "anomaly_map"):
        """A field as a nibabel image on the scan's own grid and affine; pictures in the scan's own
        intensities.
        """
        if self.prepared is None:
            raise ValueError("slices were given, not a scan: there is no scan to return to")
        values = getattr(self, field)[:, 0].numpy()
        if field in ("healed", "reconstruction", "image"):
            values = self.prepared.geometry.to_intensity(values)
        return return_to_scan(values, self.prepared.geometry)


class MadAdPipeline(DiffusionPipeline):
    """Encoder, denoiser and schedule, and how scans are prepared and scored.

    `MadAdPipeline.from_pretrained("t1")` takes a shipped name, a folder, or a hub id.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        denoiser: Denoiser,
        scheduler: DDIMScheduler,
        contrast: str = "t1",
        grid: dict | None = None,  # of the slices that it was trained on, see scans.grid.Grid
        # score: differences are clipped at gamma (paper: 0.2, squared; authors' code: 0.25, absolute)
        gamma: float = 0.2,
        squared: bool = True,
        # score: Gaussian smoothing in pixels
        sigma: float = 2.0,
        # compare the healed slice with the decoded latent, or with the "input" (paper)
        reference: str = "reconstruction",
        # score: differences count as much as the network took the cell for noise; not in the paper
        weighted: bool = False,
        # score: bright (on T1: dark) voxels count more, see extensions/intensity_weight.py
        intensity_weight: float = 0.0,
        # mm over which the slices of a volume decide together, see extensions/neighbouring_slices.py
        neighbour_sigma: float = 0.0,
        eta: float = 0.5,  # randomness of the reverse process; 0: none
        mask_threshold: float = 0.5,  # a latent cell is replaced where its chance of "noised" is above (authors: 0.5)
        # of the anomaly map; both thresholds come from validation data
        decision_threshold: float | None = None,
    ):
        super().__init__()
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            contrast=contrast,
            grid=grid or Grid().to_dict(),
            gamma=gamma,
            squared=squared,
            sigma=sigma,
            weighted=weighted,
            reference=reference,
            intensity_weight=intensity_weight,
            neighbour_sigma=neighbour_sigma,
            eta=eta,
            mask_threshold=mask_threshold,
            decision_threshold=decision_threshold,
        )
        self.set_progress_bar_config(disable=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> MadAdPipeline:
        name = str(pretrained_model_name_or_path)
        if (WEIGHTS / name / "model_index.json").exists():
            name = str(WEIGHTS / name)
        elif not (Path(name) / "model_index.json").exists() and (Path(name).exists() or name.count("/") != 1):
            raise ValueError(
                f"{name}: neither a shipped model ({', '.join(shipped())}), nor a folder with a "
                "model_index.json, nor a hub id"
            )
        logging.disable_progress_bar()  # three small files
        try:
            pipe = super().from_pretrained(name, **kwargs)
        finally:
            logging.enable_progress_bar()
        for model in (pipe.autoencoder, pipe.denoiser):
            model.float()  # shipped in half precision to stay small, computed in single
        return pipe

    def prepare(
        self,
        scan: str | os.PathLike,
        *,
        z_range: tuple[float, float] | None = None,
        z_spacing: float | None = None,
        **options,
    ) -> PreparedScan:
        """The scan's slices on this model's grid; `options` as of scans.prepare.prepare_volume.

        For a quick look: z_range, only the slices between these heights, MNI mm; z_spacing, mm from slice to
        slice (a map is interpolated in between). ValueError when they make no sense.
        """
        grid = Grid.from_dict(self.config.grid)
        if z_range is not None:
            if not z_range[0] <= z_range[1]:
                raise ValueError(f"z_range goes from low to high, not from {z_range[0]} to {z_range[1]}")
            grid = replace(grid, z_range=tuple(float(z) for z in z_range))
        if z_spacing is not None:
            if not 0 < z_spacing < 100:
                raise ValueError(f"z_spacing is in mm and above 0, not {z_spacing}")
            grid = replace(grid, z_spacing=float(z_spacing))
        return prepare_volume(scan, grid=grid, **options)

    @torch.no_grad()
    def encode(self, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Slices (N, 1, H, W) -> latents (N, C, h, w), the posterior's mode. batch_size: slices at once;
        None: as many as fit.
        """
        batches = images.split(batch_size or self._fitting_batch(images.shape[-1]))
        return torch.cat([encode(self.autoencoder, x.to(self.device)).cpu() for x in batches])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Latents (N, C, h, w) -> slices (N, 1, H, W) in [-1, 1]."""
        batches = latents.split(
            batch_size or self._fitting_batch(latents.shape[-1] * downsampling(self.autoencoder))
        )
        return torch.cat(
            [decode(self.autoencoder, z.to(self.device)).clamp(-1, 1).float().cpu() for z in batches]
        )

    @torch.no_grad()
    def __call__(
        self,
        scan: str | os.PathLike | PreparedScan | torch.Tensor | np.ndarray | Sequence,
        *,
        brain: torch.Tensor | np.ndarray | str | os.PathLike | None = None,
        volumes: Sequence | None = None,  # (N,) the volume that each of some slices is of
        num_inference_steps: int = 10,
        eta: float | None = None,  # None: the model's own, from its config; 0: no randomness at all
        mask_threshold: float | None = None,  # likewise
        score: str = "image",
        generator: torch.Generator | None = None,
        batch_size: int | None = None,  # slices at once; None: as many as fit
        progress: bool = True,
        **prepare_options,
    ) -> MadAdOutput:
        """Heal a scan and score the difference.

        scan: path of a NIfTI file, a PreparedScan, or slices (N, 1, H, W) in [-1, 1], background -1. brain:
        mask file of the scan, or (N, 1, H, W) mask of the slices (default: where they are not background).
        score: "image" (default), "latent" or "mask". volumes: with it, and for a scan, neighbouring slices
        decide together what is noise if the model's neighbour_sigma says so; a volume's slices must be in
        order, none left out. Without it each is judged alone. The result does not depend on the batch size;
        with eta > 0 give a generator to repeat it.
        """
        if score not in ("image", "latent", "mask"):
            raise ValueError(f'score is "image", "latent" or "mask", not {score!r}')
        prepared, step = None, Grid.from_dict(self.config.grid).step
        if isinstance(scan, (str, os.PathLike)):
            scan = self.prepare(scan, brain=brain, **prepare_options)
        if isinstance(scan, PreparedScan):
            prepared, images, brain = (
                scan,
                torch.from_numpy(scan.image)[:, None],
                torch.from_numpy(scan.brain)[:, None],
            )
            volumes, step = [0] * len(images), scan.geometry.grid.step
        else:
            images = torch.as_tensor(np.asarray(scan), dtype=torch.float32)
            images = images[:, None] if images.ndim == 3 else images
            if images.ndim != 4 or images.shape[1] != 1:
                raise ValueError(f"slices must be (N, 1, H, W), not {tuple(images.shape)}")
            if not torch.isfinite(images).all() or images.min() < -1.001 or images.max() > 1.001:
                raise ValueError(
                    "slices must be finite and within [-1, 1]; prepare_volume makes such slices from a scan"
                )
            brain = (
                images > -1 if brain is None else torch.as_tensor(np.asarray(brain)).bool().view(images.shape)
            )
        threshold = self.config.mask_threshold if mask_threshold is None else mask_threshold
        eta = self.config.eta if eta is None else eta
        sigma = self.config.neighbour_sigma / step  # in slices
        options = (num_inference_steps, eta, threshold, generator, batch_size, progress)
        z0, result = self._heal(images, volumes if sigma > 0 else None, sigma, *options)
        reconstruction, healed = self.decode(z0, batch_size), self.decode(result.latent, batch_size)
        reconstruction, healed = (torch.where(brain, x, -1.0) for x in (reconstruction, healed))
        size, sigma = tuple(images.shape[-2:]), self.config.sigma
        if score == "image":
            reference = images if self.config.reference == "input" else reconstruction
            anomaly_map = scoring.image_difference(
                healed,
                reference,
                gamma=self.config.gamma,
                squared=self.config.squared,
                sigma=sigma,
                brain=brain,
                weight=result.mask_probability.amax(0) if self.config.weighted else None,
            )
            anomaly_map = weigh_by_intensity(
                anomaly_map, images, self.config.intensity_weight, contrast=self.config.contrast
            )
        elif score == "latent":
            anomaly_map = scoring.latent_difference(result.latent, z0, size=size, sigma=sigma, brain=brain)
        else:
            anomaly_map = scoring.mean_predicted_mask(
                result.mask_probability, size=size, sigma=sigma, brain=brain
            )
        return MadAdOutput(
            anomaly_map=anomaly_map,
            healed=healed,
            reconstruction=reconstruction,
            image=images,
            brain=brain,
            mask_probability=result.mask_probability,
            replaced=result.replaced,
            trajectory=result.trajectory,
            timesteps=result.timesteps,
            prepared=prepared,
        )

    def _heal(self, images, volumes, neighbour_sigma, steps, eta, threshold, generator, batch_size, progress):
        """(latents, ReverseResult) of all slices, a batch at a time, or a volume at a time where its slices
        decide together.
        """
        batch_size = batch_size or self._fitting_batch(images.shape[-1])
        latents = self.encode(images, batch_size).float()
        if volumes is None:
            groups = [(rows, None) for rows in torch.arange(len(images)).split(batch_size)]
        else:
            labels = np.asarray(volumes)
            if labels.shape != (len(images),):
                raise ValueError(
                    f"volumes names the volume of each of the {len(images)} slices, not {labels.shape}"
                )
            ends = [*(np.flatnonzero(labels[1:] != labels[:-1]) + 1), len(labels)]
            groups = []
            for start, end in zip([0, *ends], ends):
                groups.append((torch.arange(start, end), neighbour_weights(end - start, neighbour_sigma)))
        # a generator for each slice, so that the batch size does not matter
        device = generator.device if generator else "cpu"
        seeds = torch.randint(2**62, (len(images),), generator=generator, device=device).tolist()
        bar = tqdm(
            total=len(images) * steps, desc="healing", unit="slice-step", disable=not progress, leave=False
        )
        parts = []
        for rows, weights in groups:
            parts.append(
                selective_reverse(
                    deciding_together(self.denoiser, weights, batch_size),
                    latents[rows].to(self.device),
                    self.scheduler,
                    num_inference_steps=steps,
                    eta=eta,
                    threshold=threshold,
                    generator=[torch.Generator().manual_seed(seeds[row]) for row in rows],
                    on_step=partial(bar.update, len(rows)),
                )
            )
        bar.close()
        joined = {
            k: torch.cat([getattr(p, k).cpu() for p in parts], 1)
            for k in ("mask_probability", "replaced", "trajectory")
        }
        return latents, ReverseResult(
            latent=torch.cat([p.latent.cpu() for p in parts]), timesteps=parts[0].timesteps.cpu(), **joined
        )

    def _fitting_batch(self, size: int) -> int:
        """How many slices' widest layer, a dozen times over, fits in half of the free memory; on a CPU in 1
        GiB at most.
        """
        width = self.autoencoder.config.block_out_channels[0] / folding(self.autoencoder) ** 2
        one = size**2 * width * 4 * 12  # bytes
        on_gpu = self.device.type == "cuda"
        room = (
            torch.cuda.mem_get_info()[0] / 2 if on_gpu else min(2**30, psutil.virtual_memory().available / 2)
        )
        return int(min(256, max(1, room // one)))


def load_parts(autoencoder: str | os.PathLike, denoiser: str | os.PathLike, **settings) -> MadAdPipeline:
    """A pipeline from the folders that the two trainings wrote (their `best/`)."""
    from madad_lite.diffusion import make_scheduler

    return MadAdPipeline(
        AutoencoderKL.from_pretrained(autoencoder),
        Denoiser.from_pretrained(denoiser),
        make_scheduler(),
        **settings,
    )
