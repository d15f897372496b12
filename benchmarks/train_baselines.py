"""Train the networks of the baselines, each with the same budget: plain diffusion with two kinds of noise, denoising autoencoder.

    python benchmarks/train_baselines.py --data work/ixi work/cohort_t1 --latents work/dn_t1/latents --out work/baselines_t1

`--latents` are those that MAD-AD's denoiser was trained on. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from madad_lite.baselines.dae import train_dae
from madad_lite.baselines.ddpm import train_ddpm
from madad_lite.recipes import TrainingConfig


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--latents", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--only", nargs="*", choices=("gaussian", "fractal", "dae"), default=["gaussian", "dae", "fractal"])
    args = p.parse_args()
    config = TrainingConfig(steps=args.steps, batch_size=16, validate_every=250, checkpoint_every=250)
    for name in args.only:
        out = Path(args.out) / name
        if name == "dae":
            train_dae(args.data, out, config, resume=True)
        else:
            train_ddpm(args.latents, out, config, noise=name, resume=True)


if __name__ == "__main__":
    main()
