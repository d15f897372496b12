"""Train what MAD-AD is compared with, each with the same budget: plain diffusion with two kinds of noise,
denoising autoencoder.

    python benchmarks/train_baselines.py --data work/ixi work/cohort_t1 --autoencoder work/ae_ixi/best --out
    work/baselines_t1

MAD-AD's own denoiser is trained once more, with their budget. An interrupted run goes on where it stopped.
`family.py` races the whole family.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from madad_lite.family.dae import DAE
from madad_lite.family.ddpm import AnoDDPM
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, configured

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
    budget = dict(steps=args.steps, batch_size=16, validate_every=250, checkpoint_every=250, variants=5)
    for name in args.only:
        out = args.out / name
        if name == "dae":
            DAE.train(args.data, out, DAE.Config(**budget), resume=True)
        elif name == "mad_ad":
            own = configured(RECIPES["lite"].denoiser, **budget)
            train_denoiser(args.data, args.autoencoder, out, own, resume=True)
        else:
            config = AnoDDPM.Config(**budget, noise=name)
            AnoDDPM.train(args.data, out, config, autoencoder=args.autoencoder, resume=True)


if __name__ == "__main__":
    main()
