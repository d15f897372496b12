"""REFLECT (Beizaee et al. 2025, arXiv 2508.02889): rectified flow from a corrupted latent to the normal one.

One to four regions of a normal latent, polygons of a random walk, are blended with foreign texture or noise, with a
strength of U(.2, 1): z_c. On the straight line z_tau = (1 - tau) z_c + tau z_0 the network predicts the velocity
z_0 - z_c, with MSE. At test ONE Euler step from the scan's own latent: z + v(z, 0). Score: half the image difference,
half the latent difference.

REFLECT-2, the second round ("reflow"): a second network, begun from the first, learns the line from z_c to what the
first made of it, so that start and end belong together.

    hidden: polygons      predicted: the velocity

Ours: texture is that of our own latents (another one of the batch, shifted); polygons of 8 corners; half of the
training for each round; latent differences as 1 - exp(-d^2). The authors' published script blends with the roots of the
strength and of its rest, and validates with five Euler steps and the latent difference alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from madad_lite.family.deco_diff import apart
from madad_lite.family.frame import FamilyConfig, Method, Stage, difference, knob
from madad_lite.family.parts import T, make_unet

CORNERS, REGIONS = 8, 4


def inside(corners: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The cells of polygons (N, K, 2), corners as (y, x) in cells, by the even-odd rule: (N, 1, h, w) bool."""
    y, x = torch.meshgrid(*(torch.arange(s) + 0.5 for s in size), indexing="ij")  # (h, w)
    result = torch.zeros(len(corners), *size, dtype=torch.bool)
    for a, b in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1)):
        (ay, ax), (by, bx) = (p.T[:, :, None, None] for p in (a, b))  # (N, 1, 1) each
        crosses = (ay > y) != (by > y)
        steep = torch.where(by == ay, 1.0, by - ay)
        result ^= crosses & (x < ax + (y - ay) * (bx - ax) / steep)
    return result[:, None]


def random_polygon(brain: torch.Tensor, generator: torch.Generator, most: float = 0.25) -> torch.Tensor:
    """One polygon a slice around a random brain cell, its corners the places of a random walk: (N, 1, h, w) bool.

    most: the longest step of the walk, of the latent's side.
    """
    n, _, h, w = brain.shape
    centre = (torch.rand(n, h * w, generator=generator) * (brain.flatten(1) + 1e-6)).argmax(1)
    centre = torch.stack([centre // w, centre % w], 1).float()[:, None]  # (N, 1, 2)
    step = (0.05 + (most - 0.05) * torch.rand(n, 1, 1, generator=generator)) * min(h, w)
    angle = 2 * math.pi * torch.rand(n, CORNERS, generator=generator)
    walk = torch.stack([angle.sin(), angle.cos()], 2).cumsum(1) * step  # (N, K, 2)
    return inside(centre + walk - walk.mean(1, keepdim=True), (h, w)) & brain.bool()


def corrupted(z0: torch.Tensor, brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """z_c: latents (N, C, h, w) with one to four regions blended with texture or noise."""
    n, z = len(z0), z0
    count = torch.randint(1, REGIONS + 1, (n, 1, 1, 1), generator=generator)
    for k in range(REGIONS):
        shift = torch.randint(min(z0.shape[2:]), (2,), generator=generator).tolist()
        texture = z0.roll(k + 1, 0).roll(shift, (2, 3))
        noise = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        foreign = torch.where(noise, torch.randn(z0.shape, generator=generator), texture)
        strength = 0.2 + 0.8 * torch.rand(n, 1, 1, 1, generator=generator)
        region = random_polygon(brain, generator) & (k < count)
        z = torch.where(region, torch.lerp(z, foreign, strength), z)
    return z


class Reflect(Method):
    title = "REFLECT"
    latent = True
    # length, batch and rate of the authors' published script
    paper = dict(size="latents-L", epochs=200, batch_size=96, learning_rate=1e-4, variants=1)
    tried = ({}, {"image": 1.0})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        image: float = knob(0.5, (0, 1))  # share of the image difference in the score

    def build(self):
        channels = self.autoencoder.config.latent_channels
        return {name: make_unet(channels, channels, self.config.size) for name in self.kinds}

    def draw(self, z0, brain, generator):
        tau = torch.rand(len(z0), 1, 1, 1, generator=generator)
        return {"z0": z0, "z_c": corrupted(z0, brain, generator), "tau": tau}

    def loss(self, drawn):
        return self.line_loss(self.unet, drawn["z_c"], drawn["z0"], drawn["tau"])

    def line_loss(self, network, start, end, tau) -> torch.Tensor:
        z = (1 - tau) * start + tau * end
        return F.mse_loss(self.velocity(network, z, tau.flatten()), end - start)

    @staticmethod
    def velocity(network: UNet2DModel, z: torch.Tensor, tau: torch.Tensor | float) -> torch.Tensor:
        tau = torch.as_tensor(tau, device=z.device, dtype=z.dtype).expand(len(z))
        return network(z, tau * (T - 1)).sample.float()

    def corrected(self, z: torch.Tensor) -> torch.Tensor:
        """One Euler step over the whole line."""
        return z + self.velocity(self.networks[list(self.kinds)[-1]], z, 0.0)

    def score(self, x, brain, rng):
        z0, c = self.encode(x), self.config
        z = self.corrected(z0)
        image = difference(self.decode(z, brain), self.decode(z0, brain))
        return c.image * image + (1 - c.image) * apart(z, z0, x.shape[2:])


class Reflect2(Reflect):
    title = "REFLECT-2"
    kinds = {"unet": UNet2DModel, "second": UNet2DModel}

    def stages(self):
        return [
            Stage("first", ["unet"], self.draw, self.loss, 0.5),
            Stage("second", ["second"], self.draw, self.second_loss, 0.5, self.begin_second),
        ]

    def begin_second(self):
        self.second.load_state_dict(self.unet.state_dict())

    def second_loss(self, drawn):
        z_c = drawn["z_c"]
        with torch.no_grad():
            end = z_c + self.velocity(self.unet, z_c, 0.0)
        return self.line_loss(self.second, z_c, end, drawn["tau"])
