"""MadAdPipeline: a scan or slices in, an anomaly map out, in the layout of diffusers' pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from tqdm.auto import tqdm

from madad_lite import scoring
from madad_lite.autoencoder import decode, downsampling, encode
from madad_lite.denoiser import Denoiser
from madad_lite.extensions.intensity_weight import BRIGHT_LESIONS, weigh_by_intensity
from madad_lite.extensions.memory import fitting_batch
from madad_lite.extensions.neighbouring_slices import reverse_in_groups, slice_groups
from madad_lite.scans.given import given, quick_look
from madad_lite.scans.grid import Grid, PreparedScan
from madad_lite.scans.output import MadAdOutput
from madad_lite.scans.prepare import prepare_volume
from madad_lite.scans.tissues import check_normalisation
from madad_lite.settings import DetectionSettings, check_steps
from madad_lite.weights.folder import read_pipeline


class MadAdPipeline(DiffusionPipeline):
    """Encoder, denoiser and schedule, and how scans are prepared and scored.

    `MadAdPipeline.from_pretrained("t1")` takes a shipped name, a folder, or a hub id.
    """

    model_cpu_offload_seq = "denoiser->autoencoder"  # the denoiser makes room before slices are decoded

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        denoiser: Denoiser,
        scheduler: DDIMScheduler,
        contrast: str = "t1",
        grid: dict | None = None,  # of the slices that it was trained on, see scans.grid.Grid
        normalise: str = "median",  # how scans are scaled, those it was trained on and others: see prepare_volume
        decision_threshold: float | None = None,  # of the anomaly map, from validation data
        num_inference_steps: int = DetectionSettings.num_inference_steps,  # from here on see DetectionSettings
        eta: float = DetectionSettings.eta,
        mask_threshold: float = DetectionSettings.mask_threshold,
        gamma: float | None = DetectionSettings.gamma,
        squared: bool = DetectionSettings.squared,
        sigma: float = DetectionSettings.sigma,
        reference: str = DetectionSettings.reference,
        weighted: bool = DetectionSettings.weighted,
        mask_floor: float = DetectionSettings.mask_floor,
        intensity_weight: float = DetectionSettings.intensity_weight,
        neighbour_sigma: float = DetectionSettings.neighbour_sigma,
    ) -> None:
        settings = DetectionSettings.of(locals())
        if contrast not in BRIGHT_LESIONS:
            raise ValueError(f"no such contrast: {contrast!r}; choose one of {', '.join(BRIGHT_LESIONS)}")
        check_normalisation(normalise, contrast)
        if decision_threshold is not None and not 0 <= decision_threshold <= 1:
            raise ValueError(f"decision_threshold lies between 0 and 1, not {decision_threshold}")
        super().__init__()
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(contrast=contrast, grid=grid or Grid().to_dict(), **asdict(settings))
        self.register_to_config(normalise=normalise, decision_threshold=decision_threshold)
        self.set_progress_bar_config(desc="healing", unit="slice-step", leave=False)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, torch_dtype: torch.dtype = torch.float32, **changes
    ) -> MadAdPipeline:
        """A shipped model by its name, or that of a folder or a hub id; nothing in it is run (not in the paper).

        torch_dtype: what it computes in, whatever it is stored in. changes: parts and settings, in place of the
        folder's; of the hub: revision, token, cache_dir, local_files_only, force_download.
        WeightsError, one line that names the file: a folder that is missing, damaged or no such model.
        """
        dtype = changes.pop("dtype", torch_dtype)  # diffusers knows it by both names
        return read_pipeline(cls, name, dtype or torch.float32, **changes)

    def prepare(
        self,
        scan: str | os.PathLike,
        *,
        z_range: Sequence | None = None,
        z_spacing: float | None = None,
        normalise: str | None = None,
        **options,
    ) -> PreparedScan:
        """The scan's slices on this model's grid (not in the paper).

        z_range: (low, high) in MNI mm, z_spacing: mm from slice to slice, for a quick look; None: all slices.
        normalise: None: as the model was trained. options: brain, lesion, channel, register, as of prepare_volume.
        Returns a PreparedScan of (N, H, W) in [-1, 1]. ScanError: a scan that cannot be used; ValueError, TypeError:
        arguments that make no sense.
        """
        grid = quick_look(Grid.from_dict(self.config.grid), z_range, z_spacing)
        options |= {"normalise": normalise or self.config.normalise, "contrast": self.config.contrast}
        return prepare_volume(scan, grid=grid, **options)

    @torch.no_grad()
    def encode(self, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """z0 of slices (N, 1, H, W) in [-1, 1], the posterior's mode (section 3.1).

        batch_size: slices at once; None: as many as fit. Returns (N, C, h, w) float32 on the CPU.
        """
        device = self._execution_device
        batches = images.split(batch_size or fitting_batch(self.autoencoder, images.shape[-1], device))
        return torch.cat([encode(self.autoencoder, x.to(device)).float().cpu() for x in batches])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """x0_hat of latents (N, C, h, w) (section 3.1).

        batch_size: slices at once; None: as many as fit. Returns (N, 1, H, W) in [-1, 1], float32 on the CPU.
        """
        device, size = self._execution_device, latents.shape[-1] * downsampling(self.autoencoder)
        batches = latents.split(batch_size or fitting_batch(self.autoencoder, size, device))
        return torch.cat([decode(self.autoencoder, z.to(device)).clamp(-1, 1).float().cpu() for z in batches])

    @torch.no_grad()
    def __call__(
        self,
        scan: str | os.PathLike | PreparedScan | torch.Tensor | np.ndarray | Sequence,
        *,
        brain: torch.Tensor | np.ndarray | str | os.PathLike | None = None,
        volumes: Sequence | None = None,
        channel: int | None = None,
        register: bool | str = "auto",
        z_range: tuple[float, float] | None = None,
        z_spacing: float | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        mask_threshold: float | None = None,
        score: str = "image",
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        reconstruct: bool = True,
        progress: bool = True,
        callback_on_step_end: Callable | None = None,
        return_dict: bool = True,
    ) -> MadAdOutput | tuple:
        """Heal a scan and score the difference (section 3).

        scan: path of a NIfTI file, a PreparedScan, or slices (N, 1, H, W) in [-1, 1], background -1.
        brain: of a file, a mask file; of slices, (N, 1, H, W) bool or 0/1 (default: what is not background).
        volumes: of slices, (N,) the volume each is of, in order, none left out. With it, and for a scan,
        neighbours decide together what is noise if the model's neighbour_sigma says so.
        channel, register, z_range, z_spacing: of a file, see `prepare`.
        num_inference_steps, eta, mask_threshold: as in DetectionSettings; None: the model's own.
        score: "image", or the ablations' "latent" or "mask". generator: give one to repeat a run with eta > 0.
        batch_size: slices at once; None: as many as fit; the result does not depend on it.
        reconstruct: False: the output's reconstruction is None, unless the score needs it; saves half of the decoding.
        callback_on_step_end: (pipe, step, t, {"latents": z_t}) -> the same or None, after each step of a batch.
        Returns a MadAdOutput; return_dict=False: a tuple of it. ValueError, before any work: what makes no sense.
        """
        own = dict(num_inference_steps=num_inference_steps, eta=eta, mask_threshold=mask_threshold)
        settings = DetectionSettings.of(self.config, **{k: v for k, v in own.items() if v is not None})
        check_steps(settings.num_inference_steps, self.scheduler.config.num_train_timesteps)
        if score not in ("image", "latent", "mask"):
            raise ValueError(f'score is "image", "latent" or "mask", not {score!r}')
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, not {batch_size}")
        divisor = downsampling(self.autoencoder) * 2 ** (len(self.denoiser.config.channel_multipliers) - 1)
        of_file = dict(channel=channel, register=register, z_range=z_range, z_spacing=z_spacing)
        options = dict(brain=brain, volumes=volumes, **of_file)
        prepared, x0, brain, volumes = given(scan, self.prepare, divisor, **options)  # x0: (N, 1, H, W)
        grid = prepared.geometry.grid if prepared else Grid.from_dict(self.config.grid)
        device, size = self._execution_device, x0.shape[-2:]
        batch_size = batch_size or fitting_batch(self.autoencoder, size[-1], device)
        sigma = settings.neighbour_sigma / grid.step if volumes is not None else 0.0  # in slices
        groups = slice_groups(len(x0), volumes if sigma > 0 else None, batch_size)
        bar_settings = self._progress_bar_config if progress else {"disable": True}

        with tqdm(total=len(x0) * settings.num_inference_steps, **bar_settings) as bar:

            def on_step(i: int, t: torch.Tensor, z_t: torch.Tensor) -> torch.Tensor:
                bar.update(len(z_t))
                changed = callback_on_step_end(self, i, t, {"latents": z_t}) if callback_on_step_end else None
                return (changed or {}).get("latents", z_t)  # (N, C, h, w)

            z0 = self.encode(x0, batch_size)  # (N, C, h, w)
            parts = dict(sigma=sigma, batch_size=batch_size, device=device, generator=generator)
            options = dict(**parts, **settings.reverse(), on_step=on_step)
            result = reverse_in_groups(self.denoiser, z0, self.scheduler, groups, **options)
        wanted = [result.latent, z0] if reconstruct or settings.reference != "input" else [result.latent]
        decoded = [torch.where(brain, self.decode(z, batch_size), -1.0) for z in wanted]
        healed, reconstruction = (*decoded, None)[:2]  # (N, 1, H, W) each
        self.maybe_free_model_hooks()
        smooth = dict(sigma=settings.sigma, brain=brain)
        if score == "latent":
            a = scoring.latent_difference(result.latent, z0, size=size, **smooth)  # (N, 1, H, W)
        elif score == "mask":
            a = scoring.mean_predicted_mask(result.mask_probability, size=size, **smooth)  # (N, 1, H, W)
        else:
            reference = x0 if settings.reference == "input" else reconstruction  # (N, 1, H, W)
            floor = settings.mask_floor if settings.weighted else 1.0
            certainty = result.mask_probability.amax(0)  # (N, 1, h, w)
            weight = None if floor == 1 else floor + (1 - floor) * certainty  # (N, 1, h, w) in [floor, 1]
            clip = dict(gamma=settings.gamma, squared=settings.squared)
            a = scoring.image_difference(healed, reference, weight=weight, **clip, **smooth)  # (N, 1, H, W)
            a = weigh_by_intensity(a, x0, settings.intensity_weight, contrast=self.config.contrast)
        steps = {k: getattr(result, k) for k in ("mask_probability", "replaced", "trajectory", "timesteps")}
        output = MadAdOutput(a, healed, reconstruction, x0, brain, **steps, prepared=prepared)
        return output if return_dict else output.to_tuple()
