"""Prepares a training run: refuses what can't be trained, and makes everything that steps need."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path

import torch

# Before there is a process group: imported later, its functions keep the group as a default
# argument. Then destroying the group doesn't end its threads, and one that is still running while
# the interpreter ends aborts the process.
import torch.distributed.nn.functional
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from latentkit.contracts import Adversarial, HasModule, LossBatch, Source, Trainable
from latentkit.errors import TrainingError
from latentkit.runtime.device import (
    can_compile,
    choose_device,
    has_bfloat16,
    has_float64,
    memory_format,
    restored_random_state,
    warn_once,
)
from latentkit.runtime.key_errors import suggest
from latentkit.runtime.launcher import check_launcher
from latentkit.runtime.processes import share_weights
from latentkit.runtime.step_ranges import describe_gap
from latentkit.training.batches import Batch
from latentkit.training.checkpoint_contents import Discriminator, TrainState
from latentkit.training.ema import WeightAverage
from latentkit.training.log import TrainingLog
from latentkit.training.settings import (
    OptimizerSettings,
    TrainEvaluation,
    TrainSettings,
    WeightedLoss,
)
from latentkit.training.shared_state import Run
from latentkit.training.step import compute, to_device

MAX_WAIT = timedelta(hours=2)
"""Timeout of the other processes: the first one evaluates alone, which takes longer than torch's
ten minutes on a large hold-out set.
"""

GROUPED_KINDS = {"cuda", "xpu", "npu", "mlu", "musa", "sdaa", "hpu", "neuron"}
"""Kinds of devices for which accelerate makes a process group. With others, processes communicate
over the CPU.
"""

HALVES = {"encoder": {"encoder", "quant_conv"}, "decoder": {"decoder", "post_quant_conv"}}
"""Names in a parameter's path that belong to one half of an autoencoder, here and in diffusers."""


def check(
    source: object,
    losses: Sequence[WeightedLoss],
    settings: TrainSettings,
    evaluation: TrainEvaluation | None,
) -> None:
    """Check that these can be trained together.

    Raises:
        TrainingError: something can't be trained; the message says what and why.
    """
    if not isinstance(source, Source):
        raise TrainingError(
            "training reads samples by position, in a new order each epoch; this source is a stream"
        )
    names = [loss.name for loss in losses]
    if len(set(names)) < len(names):
        raise TrainingError(f"losses must have different names, got {', '.join(names)}")
    plain = [
        loss.schedule
        for loss in losses
        if loss.role == "reconstruction" and not loss.adaptive and loss.weight
    ]
    if gap := describe_gap(
        [(schedule.start, schedule.until) for schedule in plain], settings.steps
    ):
        raise TrainingError(gap)
    for loss in losses:
        if loss.role == "adversarial" and not isinstance(loss.loss, Adversarial):
            raise TrainingError(f"loss {loss.name!r} is adversarial, but has no discriminator")
        if loss.optimizer is not None and not isinstance(loss.loss, Adversarial):
            raise TrainingError(
                f"loss {loss.name!r} has no discriminator, so its optimizer would have no effect."
                " Leave it out"
            )
        if loss.schedule.start >= settings.steps:
            raise TrainingError(
                f"loss {loss.name!r} would start after {loss.schedule.start} steps, but the run has"
                f" {settings.steps}"
            )
    if evaluation is not None and evaluation.every < 1:
        raise TrainingError(f"an evaluation every {evaluation.every} steps: expected at least 1")
    check_trackers(settings.trackers)


def join_processes(wanted: str = "auto") -> torch.device:
    """Join the processes that a launcher has started, and return this one's device, as
    `choose_device` names it.

    Raises:
        DeviceError: the device doesn't exist.
        LatentkitError: the launcher asks for an unsupported feature, such as FSDP.
    """
    check_launcher()
    device = torch.device(choose_device(wanted))
    # Unless told to use the CPU, accelerate takes processes without a GPU that it knows for
    # strangers, each with a run of its own.
    state = PartialState(cpu=device.type not in GROUPED_KINDS, timeout=MAX_WAIT)
    # which accelerate leaves without its number, or takes for the CPU where it doesn't know the
    # kind
    state.device = device
    return device


def open_accelerator(
    settings: TrainSettings, folder: Path, device: str = "auto"
) -> tuple[Accelerator, TrainSettings]:
    """Return accelerate's object for this process, and the settings with unsupported ones replaced.

    Args:
        settings: settings with the names of the run's trackers, whose files are in
            `folder`/trackers.
        device: device, as for `choose_device`.
    """
    settings = _adapt_to_device(settings, join_processes(device))
    accelerator = Accelerator(
        # its precision applies to the whole process, so a second run couldn't have another
        mixed_precision="no",
        log_with=list(settings.trackers) or None,
        project_dir=folder / "trackers" if settings.trackers else None,
    )
    atexit.unregister(_end_process_group)  # once is enough for any number of runs
    atexit.register(_end_process_group)
    return accelerator, settings


def _adapt_to_device(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """Return the settings with those that the device doesn't support replaced, with a warning."""
    if settings.precision == "bf16" and not has_bfloat16(device):
        warn_once(
            f"{device} can't compute in bfloat16; training in float32 instead of precision: bf16"
            " (fp16 is the other choice)"
        )
        settings = replace(settings, precision="float32")
    if settings.precision == "fp16" and device.type != "mps" and not has_float64(device):
        warn_once(
            f"{device} has no float64, which torch's loss scaling needs; training in float32"
            " instead of precision: fp16"
        )
        settings = replace(settings, precision="float32")
    if settings.compile and not can_compile(device):
        warn_once(f"{device}: torch can't compile for this device; training without compile: true")
        settings = replace(settings, compile=False)
    return settings


def _end_process_group() -> None:
    """End the process group, whose threads must not outlive the interpreter."""
    PartialState().destroy_process_group()


def start(
    model: Trainable,
    losses: Sequence[WeightedLoss],
    settings: TrainSettings,
    accelerator: Accelerator,
    log: TrainingLog,
) -> Run:
    """Return a run before its first step.

    Raises:
        TrainingError: the weights aren't float32, the half to train doesn't exist, or a loss can't
            be adaptive.
    """
    module = model.module
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()}
    if dtypes != {"float32"}:
        raise TrainingError(
            f"training needs float32 weights, the model has {', '.join(sorted(dtypes))}; precision"
            " is what it computes in"
        )
    trained = _choose_parameters(module, settings.train)
    last_layers = _find_last_layers(model, losses)
    if settings.gradient_checkpointing:
        _save_memory(module)
    _prepare_module(module, accelerator)
    torch.manual_seed(settings.seed + accelerator.process_index)
    if settings.compile:
        module.compile(dynamic=False)
    modules = {
        loss.name: _prepare_module(loss.loss.module, accelerator)
        for loss in losses
        if isinstance(loss.loss, HasModule)
    }
    groups = [
        trained,
        *([own for own in part.parameters() if own.requires_grad] for part in modules.values()),
    ]
    discriminators = {
        loss.name: _open_discriminator(loss, settings, accelerator)
        for loss in losses
        if isinstance(loss.loss, Adversarial)
    }
    state = TrainState(
        module=module,
        optimizer=_adamw(settings.optimizer, groups),
        scaler=torch.amp.GradScaler(
            accelerator.device.type, init_scale=1024.0, enabled=settings.precision == "fp16"
        ),
        average=None if settings.ema_decay is None else WeightAverage(module, settings.ema_decay),
        loss_modules=modules,
        discriminators=discriminators,
    )
    return Run(state, losses, last_layers, settings, accelerator, log)


def check_losses_on_first_batch(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Compute the losses that only become active later once on the first batch, so that problems
    show now. Return the same batches.

    Discriminators aren't run before they are active. Nothing of the run changes.

    Raises:
        TrainingError, PluginError: a loss can't be computed with this model.
    """
    early = run.active_losses()
    late = [loss for loss in run.losses if loss not in early]
    if run.state.step or not late:
        return batches
    first = next(batches)
    for loss in late:
        smallest = (
            getattr(loss.loss.discriminator, "smallest_side", 1)
            if isinstance(loss.loss, Adversarial)
            else 1
        )
        sides = tuple(first.inputs.shape[2:])
        if min(sides, default=smallest) < smallest:
            raise TrainingError(
                f"loss {loss.name!r} takes sides of at least {smallest}, the samples have {sides};"
                " see modality.with.size"
            )
    _compute_once(run, [loss for loss in late if not isinstance(loss.loss, Adversarial)], first)
    return chain([first], batches)


def _compute_once(run: Run, losses: Sequence[WeightedLoss], first: Batch) -> None:
    """Compute these losses once in eval mode, to find errors."""
    if not losses:
        return
    run.state.module.eval()
    with restored_random_state(run.accelerator.device), torch.no_grad():
        inputs = to_device(first.inputs, run.accelerator)
        batch = LossBatch(inputs, run.forward(inputs), None, 0, run.encode, run.decode)
        for loss in losses:
            compute(loss, batch)
    run.state.module.train()


# ---------------------------------------------------------------- parts


def check_trackers(names: Sequence[str]) -> None:
    """Check that all trackers exist and are installed.

    Raises:
        TrainingError: the message names the tracker.
    """
    installed = [str(found) for found in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise TrainingError(
                f"log: unknown tracker {name!r}{suggest(name, LOGGER_TYPE_TO_CLASS)}; available:"
                f" {known}"
            )
        if name not in installed:
            package = '"latentkit-diffusion[tensorboard]"' if name == "tensorboard" else name
            advice = f"pip install {package}, or leave it out (log.jsonl is written anyway)"
            raise TrainingError(f"log: the tracker {name!r} isn't installed; {advice}")


def _choose_parameters(module: nn.Module, half: str) -> list[nn.Parameter]:
    """Return the trained parameters, and freeze the others."""
    chosen = []
    for name, parameter in module.named_parameters():
        wanted = half == "all" or _belongs(name, half)
        parameter.requires_grad_(wanted)
        chosen += [parameter] if wanted else []
    if not chosen:
        raise TrainingError(f"train: {half}: the model has no part of that name")
    return chosen


def _belongs(name: str, half: str) -> bool:
    return bool(HALVES[half] & set(name.split(".")))


def _find_last_layers(model: Trainable, losses: Sequence[WeightedLoss]) -> dict[str, nn.Parameter]:
    """Return, by role of an adaptive loss, the weight at which gradients are compared: the
    encoder's last for latent losses, else the decoder's.
    """
    layers: dict[str, nn.Parameter] = {}
    for loss in losses:
        if not loss.adaptive:
            continue
        if loss.role == "latent":
            weights = [
                weight
                for name, weight in model.module.named_parameters()
                if weight.ndim > 1 and _belongs(name, "encoder")
            ]
            if not weights:
                raise TrainingError(
                    f"loss {loss.name!r} can't be adaptive: the model has no part named encoder."
                    " Give it a fixed weight"
                )
            layers[loss.role] = weights[-1]
        else:
            layers[loss.role] = model.last_layer()
        if not layers[loss.role].requires_grad:
            raise TrainingError(
                f"loss {loss.name!r} can't be adaptive: the layer for its gradient isn't trained."
                " Give it a fixed weight"
            )
    return layers


def _save_memory(module: nn.Module) -> None:
    """Enable gradient checkpointing, through the method that diffusers' models have."""
    switches = [
        switch
        for part in module.modules()
        if (switch := getattr(part, "enable_gradient_checkpointing", None)) is not None
    ]
    try:
        for switch in switches:
            switch()
    except ValueError as error:
        raise TrainingError(
            f"gradient_checkpointing: the model doesn't support it: {error}"
        ) from error
    if not switches:
        raise TrainingError(
            "gradient_checkpointing: the model doesn't support it (no"
            " enable_gradient_checkpointing). Leave it out"
        )


def _set_memory_format(module: nn.Module, device: torch.device) -> None:
    """Store weights in the memory format in which the device's convolutions are fast."""
    for parameter in module.parameters():
        # `to`, because `contiguous` keeps the strides of 1 x 1 kernels, which costs a few percent
        parameter.data = parameter.data.to(memory_format=memory_format(device, parameter.ndim))


def _prepare_module(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the module on this process's device, in training mode, with the first process's
    weights.
    """
    module.to(accelerator.device).train()
    _set_memory_format(module, accelerator.device)
    share_weights(module)
    return module


def _open_discriminator(
    loss: WeightedLoss, settings: TrainSettings, accelerator: Accelerator
) -> Discriminator:
    """Return a loss's discriminator with its optimizer, frozen until its own pass."""
    assert isinstance(loss.loss, Adversarial)
    module = _prepare_module(loss.loss.discriminator, accelerator)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    choice = loss.optimizer or settings.optimizer
    optimizer = _adamw(choice, [parameters])
    module.requires_grad_(False)
    end = (
        settings.steps if loss.schedule.until is None else min(loss.schedule.until, settings.steps)
    )
    return Discriminator(module, parameters, optimizer, choice, end - loss.schedule.start)


def _adamw(
    choice: OptimizerSettings, groups: Sequence[Sequence[nn.Parameter]]
) -> torch.optim.Optimizer:
    """Return AdamW over groups of parameters. Weight decay applies only to the first group."""
    described = [
        {"params": list(group), "weight_decay": 0.0 if number else choice.weight_decay}
        for number, group in enumerate(groups)
        if group
    ]
    return torch.optim.AdamW(described, lr=choice.lr, betas=choice.betas)
