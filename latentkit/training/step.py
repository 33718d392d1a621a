"""One optimizer step: the model with every loss, and each discriminator on the same batches with
detached inputs.

The two are separate. A discriminator's weights are frozen in the model's pass, so that it gets no
gradient there, and its inputs are detached from the model. An inactive loss isn't computed.
Discriminators and losses compute in float32, also with fp16: only the model's loss is scaled, so a
discriminator needs no scaler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentkit.contracts import Adversarial, LossBatch, Moments, Reconstruction
from latentkit.errors import EncoderError, PluginError, TrainingError
from latentkit.losses.kl import kl_nats
from latentkit.runtime.device import memory_format
from latentkit.runtime.processes import average_buffers, average_gradients
from latentkit.training.adaptive_weight import gradient_ratio
from latentkit.training.batches import Batch
from latentkit.training.checkpoint_contents import Discriminator
from latentkit.training.settings import WeightedLoss, learning_rate
from latentkit.training.shared_state import Run, in_float32

NUM_NAMED = 4
"""Number of weights that a message names."""

Values = dict[str, Tensor]
"""Scalars by their name in the log."""


def take_step(run: Run, batches: Iterator[Batch]) -> tuple[dict[str, float] | None, list[str]]:
    """Make one optimizer step. Return its values averaged over passes and processes (None if the
    model's step was skipped), and the names of what was skipped because loss or gradient weren't
    finite: "the model", or discriminators by their loss.
    """
    state, settings, accelerator = run.state, run.settings, run.accelerator
    losses = run.active_losses()
    discriminators = {
        loss.name: state.discriminators[loss.name]
        for loss in losses
        if loss.name in state.discriminators
    }
    seen: Values = {}
    buffers = copy_buffers([state.module, *state.loss_modules.values()])
    their_buffers = {
        name: copy_buffers([discriminator.module]) for name, discriminator in discriminators.items()
    }
    for _ in range(settings.accumulate):
        batch = next(batches)
        state.position = batch.after
        detached, values = model_pass(run, batch, losses)
        for loss in losses:
            if loss.name in discriminators:
                values |= discriminator_pass(run, loss, discriminators[loss.name], detached)
        for name, value in values.items():
            seen[name] = seen.get(name, 0) + value.detach() / settings.accumulate
    seen["grad_norm"] = _gather_model_gradients(run)
    for name, discriminator in discriminators.items():
        average_gradients(discriminator.parameters)
        seen[f"discriminators.{name}.grad_norm"] = nn.utils.clip_grad_norm_(
            discriminator.parameters, discriminator.settings.clip or math.inf
        )
    seen["stop"] = seen["grad_norm"].new_full((), float(run.stop.number))
    means = accelerator.reduce(
        torch.stack([value.float() for value in seen.values()]), "mean"
    ).tolist()
    averages = dict(zip(seen, means, strict=True))
    run.stop.is_agreed = averages.pop("stop") > 0
    state.is_whole = False
    averages["num_samples"] *= settings.accumulate * accelerator.num_processes
    finite = math.isfinite(averages["loss"]) and math.isfinite(averages["grad_norm"])
    skipped = []
    if not finite:
        skipped.append("the model")
        restore_buffers(buffers)
    for name, discriminator in discriminators.items():
        if not _step_discriminator(discriminator, name, averages, finite):
            skipped.append(f"the discriminator of {name!r}")
            restore_buffers(their_buffers[name])
    averages["lr"] = _step_model(run, finite)
    state.is_whole = True
    return averages if finite else None, skipped


def copy_buffers(modules: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Return each buffer, such as a running statistic, with a copy, because passes change them even
    if the step is then skipped.
    """
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]


def restore_buffers(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Restore buffers from their copies."""
    for buffer, before in buffers:
        buffer.copy_(before)


# ---------------------------------------------------------------- the model's pass


def model_pass(
    run: Run, prepared: Batch, losses: Sequence[WeightedLoss]
) -> tuple[LossBatch, Values]:
    """Add the gradients of the weighted sum of `losses` to the model's. Return the batch without
    its graph, and values for the log.

    Raises:
        EncoderError: the reconstruction's shape differs from the input's.
        PluginError: a loss isn't one value per sample.
        TrainingError: a loss can't be computed with this model.
    """
    inputs = to_device(prepared.inputs, run.accelerator)
    if prepared.moments is None:
        with run.autocast():
            found = run.state.module(inputs)
        found = in_float32(found)
    else:
        mean, logvar = prepared.moments.to(
            run.accelerator.device, torch.float32, non_blocking=True
        ).chunk(2, dim=1)
        found = run.decode_moments(Moments(mean, logvar))
    if found.output.shape != inputs.shape:
        raise EncoderError(
            f"the model's reconstruction has the shape {tuple(found.output.shape)}, but its input"
            f" has {tuple(inputs.shape)}; the two must be equal"
        )
    batch = LossBatch(inputs, found, None, run.state.step, run.encode, run.decode)
    total, values = _weigh(run, batch, losses)
    torch.autograd.backward(run.state.scaler.scale(total / run.settings.accumulate))
    values |= {
        "num_samples": inputs.new_full((), float(len(inputs))),
        "num_values": inputs.new_full((), float(inputs[0].numel())),
    }
    if found.moments is not None:
        values["kl_nats"] = kl_nats(found.moments).mean()
        values["num_latent_values"] = inputs.new_full((), float(found.moments.mean[0].numel()))
    return _detached(run, batch), values


def compute(loss: WeightedLoss, batch: LossBatch) -> Tensor:
    """Return the loss of each sample, (N,).

    Raises:
        PluginError: the loss isn't one value per sample.
        TrainingError: the loss can't be computed with this model or these inputs.
    """
    try:
        value = loss.loss(batch)
    except ValueError as error:
        raise TrainingError(f"loss {loss.name!r} can't be computed here: {error}") from error
    _check_shape(loss.name, value, batch)
    return value


def to_device(inputs: Tensor, accelerator: Accelerator) -> Tensor:
    """Return a batch on this process's device, in its fast memory format."""
    inputs = inputs.to(accelerator.device, non_blocking=True)
    return inputs.contiguous(memory_format=memory_format(accelerator.device, inputs.ndim))


def _weigh(run: Run, batch: LossBatch, losses: Sequence[WeightedLoss]) -> tuple[Tensor, Values]:
    """Return the weighted sum, a scalar, and values for the log."""
    means = {loss.name: compute(loss, batch).mean() for loss in losses}
    weighted = {
        loss.name: loss.weight * loss.schedule.factor(run.state.step) * means[loss.name]
        for loss in losses
    }
    values: Values = {}
    plain = [
        weighted[loss.name]
        for loss in losses
        if loss.role == "reconstruction" and not loss.adaptive
    ]
    for loss in losses:
        if loss.adaptive and loss.weight:
            if not plain:
                raise TrainingError(
                    f"loss {loss.name!r} is adaptive, but no reconstruction loss is active in step"
                    f" {run.state.step + 1}"
                )
            ratio = gradient_ratio(run, torch.stack(plain).sum(), means[loss.name], loss)
            weighted[loss.name] = weighted[loss.name] * ratio
            values[f"adaptive.{loss.name}"] = ratio
    for name, value in batch.reconstruction.extra_losses.items():
        _check_shape(name, value, batch)
        means[name] = weighted[name] = value.mean()
    total = sum(weighted.values(), batch.inputs.new_zeros(()))
    values |= {"loss": total}
    values |= {f"losses.{name}": value for name, value in means.items()}
    values |= {f"weighted.{name}": value for name, value in weighted.items()}
    return total, values


def _check_shape(name: str, value: Tensor, batch: LossBatch) -> None:
    """Check that a loss is one value per sample, on the batch's device."""
    count = len(batch.inputs)
    if value.shape != (count,):
        raise PluginError(
            f"loss {name!r}: expected one value per sample, shape ({count},), got"
            f" {tuple(value.shape)}"
        )
    if value.device != batch.inputs.device:
        raise PluginError(
            f"loss {name!r}: expected values on {batch.inputs.device}, like the batch, got values"
            f" on {value.device}"
        )


# ---------------------------------------------------------------- a discriminator's pass


def discriminator_pass(
    run: Run, loss: WeightedLoss, discriminator: Discriminator, batch: LossBatch
) -> Values:
    """Add the gradients of the discriminator's own loss to its own. The model gets none.

    Args:
        batch: as `model_pass` returns it, without a graph.

    Raises:
        PluginError: its loss isn't one value per sample.
    """
    assert isinstance(loss.loss, Adversarial)
    _require_gradients(discriminator.parameters, True)
    try:
        value = loss.loss.discriminator_loss(batch)
        _check_shape(loss.name, value, batch)
        torch.autograd.backward(value.mean() / run.settings.accumulate)
    finally:
        _require_gradients(discriminator.parameters, False)
    return {f"discriminators.{loss.name}.loss": value.mean()}


def _detached(run: Run, batch: LossBatch) -> LossBatch:
    """Return the batch without its graph, for discriminators."""
    found = batch.reconstruction
    moments = (
        None
        if found.moments is None
        else Moments(found.moments.mean.detach(), found.moments.logvar.detach())
    )
    cut = Reconstruction(found.output.detach(), found.latents.detach(), moments)
    return LossBatch(
        batch.inputs,
        cut,
        batch.mask,
        batch.step,
        torch.no_grad()(run.encode),
        torch.no_grad()(run.decode),
    )


def _require_gradients(parameters: Iterable[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


# ---------------------------------------------------------------- the optimizers


def _gather_model_gradients(run: Run) -> Tensor:
    """Return the norm of all gradients, of the model and of the losses' own weights, before
    clipping.

    They are averaged over processes here, after all passes and without a wrapper around the model,
    so any passes may reach any weights.
    """
    trained = [
        parameter for group in run.state.optimizer.param_groups for parameter in group["params"]
    ]
    average_gradients(trained)
    run.state.scaler.unscale_(run.state.optimizer)
    return nn.utils.clip_grad_norm_(trained, run.settings.optimizer.clip or math.inf)


def _step_model(run: Run, finite: bool) -> float:
    """Make the model's step if all was finite, and return its learning rate."""
    state, settings = run.state, run.settings
    rate = learning_rate(settings.optimizer, state.step, settings.steps)
    if finite:
        if state.step == 0:
            _note_missing_gradients(run)
        _set_rate(state.optimizer, rate)
        state.scaler.step(state.optimizer)
        state.step += 1
    else:
        state.num_skipped_steps += 1
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if finite:
        discriminators = [discriminator.module for discriminator in state.discriminators.values()]
        average_buffers([state.module, *state.loss_modules.values(), *discriminators])
        if state.average is not None:
            state.average.update(state.module)
    return rate


def _note_missing_gradients(run: Run) -> None:
    """Print which of the model's weights got no gradient in the first step."""
    weights = dict(run.state.module.named_parameters())
    trained = [name for name, weight in weights.items() if weight.requires_grad]
    unreached = [name for name in trained if weights[name].grad is None]
    if unreached:
        size = sum(weights[name].numel() for name in unreached)
        names = ", ".join(unreached[:NUM_NAMED])
        more = f" and {len(unreached) - NUM_NAMED} more" if len(unreached) > NUM_NAMED else ""
        run.log.note(
            f"{len(unreached)} of {len(trained)} weights ({size:,} numbers) got no gradient in the"
            f" first step; a weight doesn't change until it gets one: {names}{more}"
        )


def _step_discriminator(
    discriminator: Discriminator, name: str, averages: dict[str, float], wanted: bool
) -> bool:
    """Make the discriminator's step if the model's was made (`wanted`) and its own loss and
    gradient are finite. Return whether it was made.
    """
    names = [f"discriminators.{name}.loss", f"discriminators.{name}.grad_norm"]
    taken = wanted and all(math.isfinite(averages[part]) for part in names)
    if taken:
        averages[f"discriminators.{name}.lr"] = rate = learning_rate(
            discriminator.settings, discriminator.step, discriminator.num_steps
        )
        _set_rate(discriminator.optimizer, rate)
        discriminator.optimizer.step()
        discriminator.step += 1
    else:
        discriminator.num_skipped_steps += 1
        for part in names:
            del averages[part]
    discriminator.optimizer.zero_grad(set_to_none=True)
    return taken


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
