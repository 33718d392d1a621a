"""The training loop: built objects in, the folder of a trained model out.

Read `train` first, then `_train_step`. Weights stay float32; the forward pass runs under autocast, losses outside it in float32. A run that
was killed goes on from its newest checkpoint and ends, on a CPU, with the same weights bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentkit.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from latentkit.contracts import Adversarial, HasModule, LossBatch, Modality, Moments, Reconstruction, Source, Trainable
from latentkit.ema import WeightAverage
from latentkit.errors import EncoderError, PluginError, TrainingError
from latentkit.losses.kl import kl_nats
from latentkit.training_batches import BadSamples, Batch, BatchSettings, Position, epoch_indices, read_batches
from latentkit.training_log import TrainingLog
from latentkit.training_result import measure_latents, save_result
from latentkit.training_settings import OptimizerSettings, TrainSettings, WeightedLoss, learning_rate
from latentkit.training_state import TrainState, pack, restore

__all__ = ["OptimizerSettings", "TrainResult", "TrainSettings", "WeightedLoss", "train"]

MAX_SKIPPED_STEPS = 10
"""Steps in a row whose loss or gradient isn't finite, after which a run ends."""
AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = {"encoder": {"encoder", "quant_conv"}, "decoder": {"decoder", "post_quant_conv"}}
"""Names, in a parameter's path, that belong to one half of an autoencoder, here and in diffusers."""
MAX_MEASURED_SAMPLES = 10_000
"""Of the training data, that the statistics of latents come from."""


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Args:
        model: folder of the model.
        steps: optimiser steps done in all.
        num_bad_samples: samples that this process could not use.
        num_skipped_steps: steps not taken because loss or gradient were not finite.
        finished_before: the run was done already, and nothing was computed.
    """

    model: Path
    steps: int
    num_bad_samples: int = 0
    num_skipped_steps: int = 0
    finished_before: bool = False


def train(
    model: Trainable, source: Source, modality: Modality, losses: Sequence[WeightedLoss], settings: TrainSettings, folder: Path
) -> TrainResult:
    """Train `model` on `source`; again with the same folder goes on from the newest checkpoint, or does nothing when all is done.

    Args:
        model: its weights are changed in place; at the end they are the result's.
        source: read by position, in an order drawn anew each epoch.
        modality: prepares one view of each sample, all of one shape.
        losses: their weighted sum is what training makes small.
        settings: every number.
        folder: gets model/, checkpoints/ and log.jsonl. The model has the averaged weights where there are any, and measured statistics.

    Raises:
        TrainingError: it can't start or go on; says from where it can be resumed.
        SourceError: media out of reach, or too few usable samples.
    """
    _check(source, losses)
    done = list_checkpoints(folder / "checkpoints")
    newest = read_checkpoint(done[-1]) if done else None
    if newest is not None and newest.step >= settings.steps and (folder / "model").is_dir():
        return TrainResult(folder / "model", newest.step, finished_before=True)
    if newest is None and (folder / "model").exists():
        raise TrainingError(f"{folder / 'model'} is there, but no checkpoint that it came from; give another output.path, or move it away")
    accelerator = Accelerator(mixed_precision="no")  # its precision is the whole process's: a second run could not have another
    log = TrainingLog(folder / "log.jsonl", settings.steps, accelerator.is_main_process)
    run = _start(model, losses, settings, accelerator, log)
    if newest is not None:
        for text in [f"going on from step {newest.step}", *restore(run.state, newest, settings, len(source), accelerator)]:
            log.note(text)
    log.begin(run.state.step)
    bad = BadSamples()
    shares = _shares(settings, accelerator.process_index, accelerator.num_processes)
    with contextlib.closing(read_batches(source, modality, shares, run.state.position, bad)) as batches:
        _train_steps(run, batches, folder / "checkpoints", len(source))
    if accelerator.is_main_process:
        _finish(run, model, source, modality, folder)
    accelerator.wait_for_everyone()
    return TrainResult(folder / "model", run.state.step, len(bad.reasons), run.state.num_skipped_steps)


@dataclass
class _Run:
    """What the functions below share: the state, which changes, and what doesn't."""

    state: TrainState
    passes: nn.Module
    losses: Sequence[WeightedLoss]
    settings: TrainSettings
    accelerator: Accelerator
    log: TrainingLog

    def forward(self, values: Tensor) -> Reconstruction:
        """The model's forward, computed in the precision asked for and given in float32."""
        with self._autocast():
            found: Reconstruction = self.passes(values)
        moments = found.moments
        return Reconstruction(
            output=found.output.float(),
            latents=found.latents.float(),
            moments=None if moments is None else Moments(moments.mean.float(), moments.logvar.float()),
            extra_losses={name: value.float() for name, value in found.extra_losses.items()},
        )

    def encode(self, values: Tensor) -> Moments | Tensor:
        """Moments of a batch, or latents where the model has none; float32."""
        found = self.forward(values)
        return found.latents if found.moments is None else found.moments

    def decode(self, latents: Tensor) -> Tensor:
        """The batch of raw latents; float32."""
        with self._autocast():
            decoded: Tensor = self.passes(latents, only_decode=True)
        return decoded.float()

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.settings.precision]
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)


class _Passes(nn.Module):
    """Every pass through one forward, so that a wrapper such as DistributedDataParallel sees all of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: Tensor, only_decode: bool = False) -> Any:
        if not only_decode:
            return self.module(values)
        decode = getattr(self.module, "decode", None)
        if decode is None:
            raise TrainingError("a loss of this run decodes latents, but the model's module has no method decode")
        return decode(values)


# ---------------------------------------------------------------- before the first step


def _check(source: object, losses: Sequence[WeightedLoss]) -> None:
    if not isinstance(source, Source):
        raise TrainingError("training reads samples by position, in a new order each epoch; this source is a stream")
    names = [loss.name for loss in losses]
    if len(set(names)) < len(names):
        raise TrainingError(f"losses must have different names, got {', '.join(names)}")
    if not any(loss.role == "reconstruction" for loss in losses):
        raise TrainingError("training needs a reconstruction loss, such as l1 or mse")
    for loss in losses:
        if isinstance(loss.loss, Adversarial | HasModule):
            raise TrainingError(f"loss {loss.name!r} has weights of its own, which this version doesn't train; leave it out")


def _start(
    model: Trainable, losses: Sequence[WeightedLoss], settings: TrainSettings, accelerator: Accelerator, log: TrainingLog
) -> _Run:
    """A run before its first step.

    Raises:
        TrainingError: the weights aren't float32, or the half that is to be trained isn't there.
    """
    module = model.module.train()
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()}
    if dtypes != {"float32"}:
        raise TrainingError(f"training needs float32 weights, the model has {', '.join(sorted(dtypes))}; precision is what it computes in")
    trained = _choose_parameters(module, settings.train)
    for parameter in module.parameters():
        if parameter.ndim == 4:  # channels last, the format in which convolutions are quick
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(settings.seed + accelerator.process_index)
    passes = accelerator.prepare(_Passes(module))
    choice = settings.optimizer
    state = TrainState(
        module=module,
        optimizer=torch.optim.AdamW(trained, lr=choice.lr, betas=choice.betas, weight_decay=choice.weight_decay),
        scaler=torch.amp.GradScaler(accelerator.device.type, init_scale=1024.0, enabled=settings.precision == "fp16"),
        average=None if settings.ema_decay is None else WeightAverage(module, settings.ema_decay),
    )
    return _Run(state, passes, losses, settings, accelerator, log)


def _choose_parameters(module: nn.Module, half: str) -> list[nn.Parameter]:
    """The parameters that are trained; the others are frozen.

    Raises:
        TrainingError: none belongs to that half.
    """
    chosen = []
    for name, parameter in module.named_parameters():
        wanted = half == "all" or bool(HALVES[half] & set(name.split(".")))
        parameter.requires_grad_(wanted)
        chosen += [parameter] if wanted else []
    if not chosen:
        raise TrainingError(f"train: {half}: the model has no part of that name")
    return chosen


def _shares(settings: TrainSettings, rank: int, world_size: int) -> BatchSettings:
    return BatchSettings(settings.batch_size, settings.seed, rank, world_size, settings.on_bad_sample, settings.max_bad)


# ---------------------------------------------------------------- steps


def _train_steps(run: _Run, batches: Iterator[Batch], checkpoints: Path, num_samples: int) -> None:
    """All steps that are left, with checkpoints."""
    state, settings = run.state, run.settings
    weights = {loss.name: loss.weight for loss in run.losses}
    skipped_in_row = 0
    while state.step < settings.steps:
        values = _train_step(run, batches)
        if values is None:
            skipped_in_row += 1
            if skipped_in_row == MAX_SKIPPED_STEPS:
                raise TrainingError(_diverged(state.step, checkpoints))
            continue
        skipped_in_row = 0
        at_end = state.step == settings.steps
        run.log.add(values, weights)
        if at_end or state.step % settings.log_every == 0:
            run.log.write(state.step, state.position.epoch, state.num_skipped_steps)
        if at_end or state.step % settings.checkpoint_every == 0:
            packed = pack(state, settings, num_samples, run.accelerator)
            if run.accelerator.is_main_process:
                write_checkpoint(checkpoints, packed)
            run.accelerator.wait_for_everyone()


def _train_step(run: _Run, batches: Iterator[Batch]) -> dict[str, float] | None:
    """What one optimiser step saw, averaged over its passes and processes; None when it was skipped, loss or gradient not being finite."""
    state, settings, accelerator = run.state, run.settings, run.accelerator
    seen: dict[str, Tensor] = {}
    for number in range(settings.accumulate):
        last = number == settings.accumulate - 1
        batch = next(batches)
        state.position = batch.after
        with contextlib.nullcontext() if last else accelerator.no_sync(run.passes):
            loss, values = _weigh(run, batch.inputs)
            accelerator.backward(state.scaler.scale(loss / settings.accumulate))
        for name, value in values.items():
            seen[name] = seen.get(name, 0) + value.detach() / settings.accumulate
    state.scaler.unscale_(state.optimizer)
    trained = state.optimizer.param_groups[0]["params"]
    seen["grad_norm"] = nn.utils.clip_grad_norm_(trained, settings.optimizer.clip or math.inf)
    means = accelerator.reduce(torch.stack([value.float() for value in seen.values()]), "mean").tolist()
    averages = dict(zip(seen, means, strict=True))
    averages["lr"] = learning_rate(settings.optimizer, state.step, settings.steps)
    averages["num_samples"] *= settings.accumulate * accelerator.num_processes
    finite = math.isfinite(averages["loss"]) and math.isfinite(averages["grad_norm"])
    if finite:
        state.optimizer.param_groups[0]["lr"] = averages["lr"]
        state.scaler.step(state.optimizer)
        state.step += 1
    else:
        state.num_skipped_steps += 1
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if finite and state.average is not None:
        state.average.update(state.module)
    return averages if finite else None


def _weigh(run: _Run, prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all losses over a batch, a scalar, and what the log wants: scalars by name.

    Raises:
        EncoderError: the reconstruction has another shape than the input.
        PluginError: a loss that isn't one value a sample.
    """
    inputs = prepared.to(run.accelerator.device, non_blocking=True)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    found = run.forward(inputs)
    if found.output.shape != inputs.shape:
        raise EncoderError(f"the model gave {tuple(found.output.shape)} for an input of {tuple(inputs.shape)}")
    batch = LossBatch(inputs, found, None, run.state.step, run.encode, run.decode)
    parts = {loss.name: (loss.weight, loss.loss(batch)) for loss in run.losses}
    parts |= {name: (1.0, value) for name, value in found.extra_losses.items()}
    for name, (_, value) in parts.items():
        if value.shape != (len(inputs),):
            raise PluginError(f"loss {name!r}: expected one value a sample, shape ({len(inputs)},), got {tuple(value.shape)}")
    total = sum((weight * value.mean() for weight, value in parts.values()), inputs.new_zeros(()))
    values = {"loss": total} | {f"losses.{name}": value.mean() for name, (_, value) in parts.items()}
    values["num_samples"] = inputs.new_tensor(float(len(inputs)))
    values["num_values"] = inputs.new_tensor(float(inputs[0].numel()))
    if found.moments is not None:
        values["kl_nats"] = kl_nats(found.moments).mean()
    return total, values


def _diverged(step: int, checkpoints: Path) -> str:
    kept = list_checkpoints(checkpoints)
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return (
        f"loss or gradient were not finite {MAX_SKIPPED_STEPS} times running after step {step}; {good}. "
        "Lower optimizer.lr, set optimizer.clip or precision: float32, then run again"
    )


# ---------------------------------------------------------------- after the last step


def _finish(run: _Run, model: Trainable, source: Source, modality: Modality, folder: Path) -> None:
    """Write the model, with the averaged weights where there are any, its latents measured on the training data."""
    module = run.state.module
    if run.state.average is not None:
        module.load_state_dict(run.state.average.tensors)
    module.eval()
    if run.settings.train == "decoder":  # the encoder is as it was, and so are its latents' statistics
        save_result(model, None, folder)
        return
    shares = _shares(run.settings, 0, 1)
    num_batches = min(len(epoch_indices(len(source), shares, 0)), math.ceil(MAX_MEASURED_SAMPLES / shares.batch_size))
    with contextlib.closing(read_batches(source, modality, shares, Position())) as batches:
        statistics = measure_latents(module, batches, num_batches, run.settings.seed)
    save_result(model, statistics, folder)
