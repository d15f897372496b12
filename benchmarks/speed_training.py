"""One training step: what the package does against the same mathematics written plainly
(plain_training.py).
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Report, interleaved, medians, seconds
from benchmarks.plain_training import PlainTraining, plain_loss, plain_masks
from madad_lite.autoencoder import downsampling, make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.masking import random_patch_mask
from madad_lite.training.denoiser import masked_draw
from madad_lite.training.loader import Batch, drawn_ahead, to_device
from madad_lite.training.loop import step_generator

MASK_WEIGHT = 0.1


def half() -> torch.dtype:
    """The half precision of this GPU's trainings, as in training/loop.py; a T4 has no bfloat16."""
    real = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if real else torch.float16


class FastTraining:
    """The step of madad_lite/training/denoiser.py and training/loop.py: latents from the cache, masks of a
    batch at once, drawn ahead beside a GPU, and no waiting.
    """

    def __init__(self, model: Denoiser, scheduler, device: torch.device, channels_last=False, compiled=False):
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self.scheduler, self.device, self.parameters = scheduler, device, list(model.parameters())
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.ema = EMAModel(self.parameters, decay=0.999, use_ema_warmup=True, power=0.75)
        self.ema.to(device)

    def loss(self, z0, M, t, z_t) -> torch.Tensor:
        with torch.autocast(self.device.type, half(), enabled=self.device.type == "cuda"):
            z0_hat, logits = self.model(z_t.contiguous(memory_format=self.layout), t)
        return denoising_losses(z0_hat.float(), logits.float(), z0, M, mask_weight=MASK_WEIGHT)[2].mean()

    def step(self, batch: Batch) -> None:
        """batch: of Case.drawn, on the CPU."""
        drawn = to_device(batch, self.device)
        self.loss(*(drawn[k] for k in ("z0", "M", "t", "z_t"))).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)


class Case:
    """A denoiser, an encoder and one batch of slices. What is in them does not change the time: they are
    noise.
    """

    def __init__(self, size: str, encoder: str, batch: int, pixels: int, device: torch.device):
        torch.manual_seed(0)
        self.device, self.batch, self.scheduler = device, batch, make_scheduler()
        self.autoencoder = make_autoencoder(encoder).requires_grad_(False).eval().to(device)
        self.images = torch.rand(batch, 1, pixels, pixels, device=device) * 2 - 1
        side = pixels // downsampling(self.autoencoder)
        self.mean, self.std = torch.randn(batch, 4, side, side), torch.full((batch, 4, side, side), 0.1)
        self.brain = torch.rand(batch, 1, side, side) < 0.6
        self.batches = iter(self.drawn())
        self.model = Denoiser.of_size(size).to(device)
        self.plain = PlainTraining(copy.deepcopy(self.model), self.autoencoder, self.scheduler, MASK_WEIGHT)

    def fast(self, **options) -> FastTraining:
        return FastTraining(copy.deepcopy(self.model), self.scheduler, self.device, **options)

    def drawn(self, steps: int = 10**6) -> DataLoader:
        """What the training's loader gives, step by step: {"z0", "M", "t", "z_t"}."""
        rows = [{"mean": m, "std": s, "brain": b} for m, s, b in zip(self.mean, self.std, self.brain)]

        def draw(batch: Batch, step: int) -> Batch:
            drawn = masked_draw(batch, self.scheduler, step_generator(0, step))
            return {k: drawn[k] for k in ("z0", "M", "t", "z_t")}

        every = range(self.batch)
        return drawn_ahead(rows, ((step, every) for step in range(steps)), draw, self.device)

    def fast_step(self, fast: FastTraining) -> None:
        fast.step(next(self.batches))

    def timed(self, step) -> None:
        step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def fixed_inputs(self) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(self.mean.shape, generator=generator)
        mask = random_patch_mask(
            self.batch, tuple(self.mean.shape[-2:]), brain=self.brain, generator=generator
        )
        t = torch.randint(10, (self.batch,), generator=generator)
        return tuple(x.to(self.device) for x in (self.mean, noise, mask, t))

    def disagreement(self) -> tuple[float, float]:
        """Relative differences of the two losses and of their gradients, same weights, same inputs; ask
        before a step is done.
        """
        fast, (z0, noise, M, t) = self.fast(), self.fixed_inputs()
        losses = [
            plain_loss(self.plain.model, z0, noise, M, t, self.scheduler, MASK_WEIGHT)[0],
            fast.loss(z0, M, t, masked_forward(z0, noise, M, t, self.scheduler)),
        ]
        gradients = []
        for loss, model in zip(losses, (self.plain.model, fast.model)):
            loss.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
        return (
            ((losses[0] - losses[1]).abs() / losses[0]).item(),
            ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item(),
        )

    def gflop(self) -> float:
        """Of a step without the encoder, multiplications and additions of matrix products, convolutions and
        attention.
        """
        with FlopCounterMode(display=False) as counter:
            plain_loss(self.plain.model, *self.fixed_inputs(), self.scheduler, MASK_WEIGHT)[0].backward()
        self.plain.model.zero_grad()
        return counter.get_total_flops() / 1e9


def matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's measured limit: billions of operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def multiply():
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    multiply()
    return 2 * n**3 / min(seconds(multiply) for _ in range(7)) / 1e9


KINDS = {  # of a profiler's table: what an operation's name begins with
    "convolutions": (
        "aten::mkldnn_convolution",
        "aten::convolution",
        "aten::cudnn_convolution",
        "aten::_slow_conv",
    ),
    "attention": ("aten::_scaled_dot_product", "aten::_flash", "aten::_efficient"),
    "linear layers": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "group norm": ("aten::native_group_norm",),
    "SiLU": ("aten::silu",),
    "copies and layout": ("aten::copy_", "aten::cat", "aten::contiguous", "aten::clone", "aten::upsample"),
    "optimiser, averaging, clipping": (
        "Optimizer",
        "aten::_foreach",
        "aten::_fused",
        "aten::lerp",
        "aten::addc",
        "aten::sqrt",
    ),
}


def profiled(step) -> list[dict]:
    """Where a step's time goes, by kind of operation; the largest first."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        step()
    total: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((k for k, starts in KINDS.items() if event.key.startswith(starts)), "all else")
        total[kind] = total.get(kind, 0) + (
            event.self_device_time_total if cuda else event.self_cpu_time_total
        )
    every = sum(total.values())
    return [
        {"kind": k, "share of the step, %": 100 * v / every}
        for k, v in sorted(total.items(), key=lambda i: -i[1])
    ]


def compared(report: Report, case: Case, title: str, rounds: int, compiled: bool) -> dict[str, float]:
    """Time the ways of one case, add their table to the report; returns the medians."""
    loss, gradient = case.disagreement()
    report.note(
        f"{title}: on the same inputs plain and ours differ by {loss:.1e} in the loss, {gradient:.1e} in the gradient."
    )
    if loss > (1e-2 if case.device.type == "cuda" else 1e-4):
        raise AssertionError(f"{title}: plain and ours do not compute the same, {loss}")
    variants = {"ours": {}, "ours, channels-last": {"channels_last": True}}
    if compiled:
        variants["ours, compiled"] = {"compiled": True}
    z0 = case.mean.to(case.device)
    ways = {
        "plain, encoder in the step": partial(case.plain.step, case.images, case.brain),
        "plain, without its encoder": partial(case.plain.step, case.images, case.brain, z0),
    }
    ways |= {name: partial(case.fast_step, case.fast(**options)) for name, options in variants.items()}
    ways = {name: partial(case.timed, step) for name, step in ways.items()}
    for name, step in ways.items():
        if "encoder in" not in name:  # the longest needs no warming up, all it does is done below
            first = seconds(step)
            if name == "ours, compiled":
                report.note(f"{title}: compiling took {first:.0f} s.")
    times = medians(interleaved(ways, rounds, warm_up=False))
    kind = half() if case.device.type == "cuda" else torch.float32
    gflop, limit = case.gflop(), matmul_gflops(case.device, kind)
    plain = times["plain, encoder in the step"]
    rows = []
    for name, value in times.items():
        share = None if "encoder in" in name else 100 * gflop / value / limit
        rows.append(
            {"step": name, "seconds": value, "times as fast": plain / value, "of the matrix rate, %": share}
        )
    report.table(
        f"{title}: {gflop:.0f} GFLOP a step beside the encoder, matrix products reach {limit:.0f} GFLOP/s",
        rows,
    )
    return times


def loop_seconds(steps: int) -> float:
    """Seconds a step of the whole of train_denoiser (lite, nano, batch 16): two lengths, so that what comes
    once is left out.
    """
    from madad_lite.simulation.cohort import write_cohort
    from madad_lite.slices.folder import prepare_folder
    from madad_lite.training.denoiser import train_denoiser
    from madad_lite.training.settings import DenoiserConfig

    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        cohort = write_cohort(Path(folder) / "cohort", normal=3, patients=0, spacing=4.0, progress=False)
        prepare_folder(
            cohort,
            Path(folder) / "slices",
            fractions=(0.6, 0.3, 0.1),
            register=False,
            workers=1,
            progress=False,
        )
        autoencoder, often = make_autoencoder("nano"), dict(validate_every=10**6, checkpoint_every=10**6)
        times = []
        for n in (2, 2 + steps):
            config = DenoiserConfig(steps=n, batch_size=16, variants=1, **often)
            run = partial(
                train_denoiser,
                Path(folder) / "slices",
                autoencoder,
                Path(folder) / f"run{n}",
                config,
                progress=False,
            )
            times.append(seconds(run))
    return (times[1] - times[0]) / steps


def measure(quick: bool = False, compiled: bool = False) -> Report:
    report, cpu = Report("training"), torch.device("cpu")
    rounds = 1 if quick else 3

    case = Case("nano", "nano", 2 if quick else 16, 96, cpu)
    nano = compared(
        report,
        case,
        f"nano, batch {case.batch}, slices of 96 x 96, nano encoder",
        1 if quick else 7,
        compiled,
    )
    loop = loop_seconds(2 if quick else 20)
    report.note(
        f"The whole of train_denoiser (nano, batch 16; data, accelerate, log) takes {loop:.3f} s a step, the bare step "
        f"{nano['ours']:.3f} s."
    )
    case = Case(
        "nano" if quick else "XS", "nano" if quick else "paper", 2 if quick else 8, 64 if quick else 256, cpu
    )
    title = f"XS, batch {case.batch}, slices of 256 x 256, Stable Diffusion's encoder"
    xs = compared(report, case, title, rounds, compiled)
    encoder = xs["plain, encoder in the step"] - xs["plain, without its encoder"]
    report.note(
        f"Filling the cache costs {encoder / case.batch:.1f} s a slice, once; the plain step pays it in every epoch."
    )
    report.table("Where the time of our XS step goes", profiled(partial(case.fast_step, case.fast())))

    brain = torch.ones(96, 1, 32, 32, dtype=torch.bool)
    masks = {
        "plain": lambda: plain_masks(brain),
        "ours": lambda: random_patch_mask(96, (32, 32), brain=brain),
    }
    masks = medians(
        interleaved(masks, 5 if quick else 41)
    )  # many: the time depends on the patches' random size
    report.note(
        f"Masks of a batch of 96: {masks['plain'] * 1e3:.1f} ms one by one, {masks['ours'] * 1e3:.2f} ms all at once."
    )
    if not compiled:
        report.note(
            "torch.compile is left out: it pays after thousands of steps only (`--compile` measures it)."
        )
    report.target(
        "XS step on 2 cores, encoder counted",
        xs["plain, encoder in the step"] / xs["ours"],
        ">=",
        12,
        "times as fast",
    )
    return report
