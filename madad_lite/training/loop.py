"""The loop that every training runs: accelerate's devices and precision, averaged weights, validation,
checkpoint, resume.

Every random draw of step k comes from a generator seeded with (seed, k), and the order of the data from
(seed, epoch), so that a resumed run goes on exactly as if it had never stopped. Every process draws for the
whole batch and then works on its share of it, so that the number of processes changes nothing but the time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from madad_lite.errors import RunError
from madad_lite.training.loader import Batch, drawn_ahead, to_device
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import BatchOrder, Run
from madad_lite.training.settings import TrainingConfig

log = logging.getLogger(__name__)


def step_generator(seed: int, step: int, share: int = 0) -> torch.Generator:
    """The source of all that is random in a step, or in one share of its batch."""
    return torch.Generator().manual_seed((seed + 1009 * share) * 1_000_003 + step)


def _accelerator(config: TrainingConfig) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    precision, device = config.mixed_precision, processes().device
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "no" if device.type != "cuda" else "bf16" if bf16 else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise RunError("mixed_precision=fp16 needs a GPU; use auto, bf16 or no")
    return Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False)


class _Losses(torch.nn.Module):
    """losses_of as a module's forward: gradients are only shared among processes for what is computed inside
    one.
    """

    def __init__(self, model: torch.nn.Module, losses_of: Callable):
        super().__init__()
        self.model, self.losses_of = model, losses_of

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        return self.losses_of(self.model, batch, generator)


def learning_rate_factor(step: int, config: TrainingConfig, steps: int, warmup: int) -> float:
    """What learning_rate is multiplied by, step 0 .. steps - 1: linear warm-up times, with "cosine", half a
    cosine from 1 to 0.

    Not diffusers' get_scheduler: its first step has the rate 0, and its cosine begins only after the warm-up.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if config.schedule == "cosine" else 1.0)


@contextmanager
def _averaged(model: torch.nn.Module, ema: EMAModel) -> Iterator[None]:
    """The network has its averaged weights, and does not train, for a while."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    model.eval()
    yield
    model.train()
    ema.restore(model.parameters())


def train_model(
    model: torch.nn.Module,
    dataset: Dataset,
    out: str | Path,
    config: TrainingConfig,
    *,
    losses_of: Callable[[torch.nn.Module, Batch, torch.Generator], Batch],
    validate: Callable[[torch.nn.Module, torch.device], dict[str, float]],
    draw: Callable[[Batch, torch.Generator], Batch] | None = None,
    inputs: dict | None = None,
    resume: bool = False,
    progress: bool = True,
    title: str = "training",
) -> Path:
    """Train a network on the items (dictionaries) of a dataset; returns the run's folder, `out`.

    losses_of(model, batch, generator): {"loss": the scalar to minimise, other scalars for the log}, means
        over the samples of the share of a batch that it is given, on the training's device.
    validate(model, device): {"val_loss": what decides which weights are the best, other numbers for the log},
        by the averaged weights.
    draw(batch, generator): turns a whole batch, on the CPU, into what losses_of is given a share of; all that
        is random belongs there. Beside a GPU it runs ahead of the step, in workers (loader.py). What losses_of
        itself draws is another sequence with another number of shares: its generator is seeded with the
        share's number.
    inputs: what a resumed run must find unchanged, beside the settings.

    A batch has `gradient_accumulation` shares a process. Raises RunError for a folder that cannot be used,
    and when the loss is no longer a number.
    """
    # Set up: what an epoch is, and how a batch is shared.
    accelerator, out = _accelerator(config), Path(out)
    device, main, count = accelerator.device, accelerator.is_main_process, accelerator.num_processes
    batch_size = min(config.batch_size, len(dataset))
    own, shares = config.gradient_accumulation, config.gradient_accumulation * count
    if batch_size < shares:
        raise RunError(
            f"{out}: a batch of {batch_size} cannot be shared by {shares}; use fewer processes or a larger batch_size"
        )
    # of cached variants a pass over the slices sees one each; a batch may hold all of them and more
    per_epoch = max(1, len(dataset) // getattr(dataset, "variants", 1) // batch_size)
    steps = config.steps if config.epochs is None else round(config.epochs * per_epoch)
    warmup = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * per_epoch)
    if steps < 1:
        raise RunError(
            f"{out}: epochs={config.epochs:g} are no step, of {per_epoch} an epoch; use more epochs"
        )
    run = Run(out, config, resume=resume, is_main=main, inputs=inputs)
    accelerator.wait_for_everyone()  # all have looked at the folder before one writes to it
    run.begin()

    # Optimiser, learning rate, averaged weights.
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config, steps, warmup)
    )
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    scaler = accelerator.scaler  # of fp16; else None

    # Resume: everything as it was at the last checkpoint.
    def restore(state: dict) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if [p.shape for p in state["ema"]["shadow_params"]] != [p.shape for p in ema.shadow_params]:
            raise TypeError("averaged weights of another network")
        ema.load_state_dict(state["ema"])
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])

    done, best = run.load(restore)
    log.info("%s: %s, %d of %d steps done, on %d x %s", out, title, done, steps, count, device)

    # Draw: what is random, the same in every process.
    def drawn(batch: Batch, step: int) -> Batch:
        return batch if draw is None else draw(batch, step_generator(config.seed, step))

    order = enumerate(BatchOrder(len(dataset), batch_size, config.seed, done, steps), start=done + 1)
    loader = drawn_ahead(dataset, order, drawn, device, count)
    network, optimizer = accelerator.prepare(_Losses(model, losses_of), optimizer)
    ema.to(device)
    network.train()

    with tqdm(total=steps, initial=done, desc=title, disable=not (progress and main), mininterval=1.0) as bar:
        for step, batch in enumerate(loader, start=done + 1):
            # Forward and backward: this process's shares of the batch; their gradients add up.
            losses: Batch = {}
            for number in range(own):
                share = accelerator.process_index * own + number
                rows = slice(batch_size * share // shares, batch_size * (share + 1) // shares)
                weight = (rows.stop - rows.start) / batch_size
                generator = step_generator(config.seed, step, share)
                torch.manual_seed(generator.initial_seed())  # dropout draws from torch's own generator
                with nullcontext() if number == own - 1 else accelerator.no_sync(network):
                    parts = network(to_device(batch, device, rows), generator)
                    accelerator.backward(parts["loss"] * (weight * count))  # the processes' mean is taken
                losses = {k: losses.get(k, 0) + v.detach() * weight for k, v in parts.items()}

            # Update: weights, learning rate, averaged weights.
            accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            bar.update()

            # Log and validate. Reading a loss waits for the device: not at every step.
            last = step == steps
            validated = step % config.validate_every == 0 or last
            if step % 10 == 0 or step == 1 or validated:
                shown = {k: v.item() for k, v in accelerator.reduce(losses, "sum").items()}
                if not math.isfinite(shown["loss"]):
                    raise RunError(
                        f"{out}: the loss is {shown['loss']} at step {step}; try a lower learning rate"
                    )
                bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items()})
                if main and validated:
                    with _averaged(model, ema):
                        shown |= validate(model, device)
                        if shown["val_loss"] < best:
                            best = shown["val_loss"]
                            run.save_weights(model, "best")
                run.log(step=step, epoch=round(step / per_epoch, 3), lr=schedule.get_last_lr()[0], **shown)

            # Checkpoint: all that `restore` reads.
            if main and (step % config.checkpoint_every == 0 or last):
                if not all(p.isfinite().all() for p in model.parameters()):  # the last good one stays
                    raise RunError(f"{out}: weights are not finite at step {step}; try a lower learning rate")
                state = dict(model=model, optimizer=optimizer, schedule=schedule, ema=ema)
                state = {k: x.state_dict() for k, x in state.items()}
                run.save({"step": step, "best": best, **state, "scaler": scaler and scaler.state_dict()})

    # End: the averaged weights of the last step.
    if main:
        with _averaged(model, ema):
            run.save_weights(model, "last")
    accelerator.wait_for_everyone()
    return run.folder
