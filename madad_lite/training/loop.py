"""The loop that every training runs: accelerate's devices and precision, averaged weights, validation,
checkpoint, resume.

Every random draw of step k comes from a generator seeded with (seed, k), and the order of the data from
(seed, epoch), so that a resumed run goes on exactly as if it had never stopped. Every process draws for the
whole batch and then works on its share of it, so that the number of processes changes nothing but the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from madad_lite.errors import RunError
from madad_lite.files import save_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import BatchOrder, Run
from madad_lite.training.settings import TrainingConfig

Batch = dict[str, torch.Tensor]


def step_generator(seed: int, step: int, share: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 1009 * share) * 1_000_003 + step)


def _accelerator(config: TrainingConfig) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    precision = config.mixed_precision
    if precision == "auto":
        cuda = processes().device.type == "cuda"
        precision = (
            ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16") if cuda else "no"
        )
    return Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False)


class _Losses(torch.nn.Module):
    """loss_of as a module's forward: gradients are only shared among processes for what is computed inside
    one.
    """

    def __init__(self, model: torch.nn.Module, loss_of: Callable):
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        return self.loss_of(self.model, batch, generator)


def _learning_rate(config: TrainingConfig, steps: int, warmup: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, warmup))
        return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if config.schedule == "cosine" else 1.0)

    return factor


def train_model(
    model: torch.nn.Module,
    dataset: Dataset,
    out: Path,
    config: TrainingConfig,
    loss_of: Callable[[torch.nn.Module, Batch, torch.Generator], Batch],
    validate: Callable[[torch.nn.Module, torch.device], dict[str, float]],
    inputs: dict,
    resume: bool,
    progress: bool,
    title: str,
    draw: Callable[[Batch, torch.Generator], Batch] | None = None,
) -> Path:
    """The loop that both trainings run. `loss_of` returns {"loss": ..., parts}; `validate` returns
    {"val_loss": ..., ...}.

    `draw` turns a whole batch, on the CPU, into what loss_of is given a share of: all that is random belongs
    there. What loss_of itself draws is another sequence with another number of shares: its generator is
    seeded with the share's number. A batch has `gradient_accumulation` shares a process; losses are means
    over samples.
    """
    accelerator = _accelerator(config)
    device, main = accelerator.device, accelerator.is_main_process
    batch_size = min(config.batch_size, len(dataset))
    own, shares = config.gradient_accumulation, config.gradient_accumulation * accelerator.num_processes
    if batch_size < shares:
        raise RunError(
            f"{out}: a batch of {batch_size} cannot be shared by {shares}; use fewer processes or a larger batch_size"
        )
    run = Run(out, config, resume=resume, is_main=main, inputs=inputs)
    accelerator.wait_for_everyone()  # all have looked at the folder before one writes to it
    run.begin()
    # of cached variants a pass over the slices sees one each
    per_epoch = len(dataset) // getattr(dataset, "variants", 1) // batch_size
    steps = config.steps if config.epochs is None else round(config.epochs * per_epoch)
    warmup = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * per_epoch)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(config, steps, warmup))
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    done, best = 0, math.inf
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        ema.load_state_dict(state["ema"])
        done, best = state["step"], state["best"]
    order = BatchOrder(len(dataset), batch_size, config.seed, done, steps)
    loader = DataLoader(dataset, batch_sampler=order)
    plain = model
    model, optimizer = accelerator.prepare(_Losses(plain, loss_of), optimizer)
    ema.to(device)
    if accelerator.scaler is not None and (state or {}).get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])

    def backward(batch: Batch, step: int) -> Batch:
        """Gradients of this process's shares of a batch, added up; returns its part of the losses."""
        if draw is not None:
            batch = draw(batch, step_generator(config.seed, step))
        total: Batch = {}
        for number in range(own):
            share = accelerator.process_index * own + number
            rows = slice(batch_size * share // shares, batch_size * (share + 1) // shares)
            weight = (rows.stop - rows.start) / batch_size
            generator = step_generator(config.seed, step, share)
            torch.manual_seed(
                generator.initial_seed()
            )  # dropout, and what else draws from torch's own generator
            with nullcontext() if number == own - 1 else accelerator.no_sync(model):
                losses = model({k: v[rows].to(device) for k, v in batch.items()}, generator)
                accelerator.backward(
                    losses["loss"] * (weight * accelerator.num_processes)
                )  # the processes' mean is taken
            total = {k: total.get(k, 0) + v.detach() * weight for k, v in losses.items()}
        return total

    def averaged(action: Callable[[], dict | None]) -> dict | None:
        """Do something with the averaged weights in place of the current ones."""
        ema.store(plain.parameters())
        ema.copy_to(plain.parameters())
        plain.eval()
        result = action()
        plain.train()
        ema.restore(plain.parameters())
        return result

    model.train()
    with tqdm(total=steps, initial=done, desc=title, disable=not (progress and main), mininterval=1.0) as bar:
        for step, batch in enumerate(loader, start=done + 1):
            losses = backward(batch, step)
            accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(plain.parameters())
            bar.update()
            last = step == steps
            validated = step % config.validate_every == 0 or last
            if (
                step % 10 == 0 or step == 1 or validated
            ):  # reading a loss waits for the device: not at every step
                shown = {k: v.item() for k, v in accelerator.reduce(losses, "sum").items()}
                if not math.isfinite(shown["loss"]):
                    raise RunError(
                        f"{out}: the loss is {shown['loss']} at step {step}; try a lower learning rate"
                    )
                bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items()})
                line = {
                    "step": step,
                    "epoch": round(step / order.per_epoch, 3),
                    "lr": schedule.get_last_lr()[0],
                    **shown,
                }
                if main and validated:
                    measured = averaged(lambda: validate(plain, device))
                    line.update(measured)
                    if measured["val_loss"] < best:
                        best = measured["val_loss"]
                        averaged(lambda: save_model(plain, run.folder / "best"))
                run.log(**line)
            if main and (step % config.checkpoint_every == 0 or last):
                run.save(
                    {
                        "step": step,
                        "best": best,
                        "model": plain.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "ema": ema.state_dict(),
                        "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
                    }
                )
    if main:
        averaged(lambda: save_model(plain, run.folder / "last"))
    accelerator.wait_for_everyone()
    return run.folder
