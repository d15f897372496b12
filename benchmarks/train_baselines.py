"""Train what MAD-AD is compared with, each with the same budget: plain diffusion with two kinds of noise,
denoising autoencoder.

    python benchmarks/train_baselines.py --data work/ixi work/cohort_t1 --autoencoder work/ae_ixi/best --out
    work/baselines_t1

MAD-AD's own denoiser is trained once more, with their budget. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers import AutoencoderKL

from madad_lite.family.dae import train_dae
from madad_lite.family.ddpm import train_ddpm
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.latent_cache import encode_latents
from madad_lite.training.settings import RECIPES, TrainingConfig, configured

NETWORKS = ("gaussian", "dae", "mad_ad", "fractal")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument(
        "--autoencoder", type=Path, required=True, help="that of MAD-AD: all but one work on its latents"
    )
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--only", nargs="*", choices=NETWORKS, default=NETWORKS)
    args = p.parse_args()
    budget = dict(steps=args.steps, batch_size=16, validate_every=250, checkpoint_every=250)
    config, own = TrainingConfig(**budget), configured(RECIPES["lite"].denoiser, **budget, variants=5)
    latents = encode_latents(
        args.data, AutoencoderKL.from_pretrained(args.autoencoder), args.out / "latents", own
    )
    for name in args.only:
        out = args.out / name
        if name == "dae":
            train_dae(args.data, out, config, resume=True)
        elif name == "mad_ad":
            out.mkdir(exist_ok=True)
            if not (out / "latents").exists():
                (out / "latents").symlink_to(latents.resolve())
            train_denoiser(args.data, args.autoencoder, out, own, resume=True)
        else:
            train_ddpm(latents, out, config, noise=name, resume=True)


if __name__ == "__main__":
    main()
