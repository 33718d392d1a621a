"""The numbers of a training run, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from latentkit.contracts import Loss, LossRole


@dataclass(frozen=True)
class WeightedLoss:
    """One loss of a run.

    Args:
        name: what log and messages call it; unique in the run.
        loss: gives (N,), unweighted, per input value.
        weight: factor in the sum.
        role: `LossSpec.role`.
    """

    name: str
    loss: Loss
    weight: float = 1.0
    role: LossRole = "reconstruction"


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate; the recipe's `optimizer`.

    Args:
        lr: learning rate after the warm-up.
        betas: decay of the running mean and of the running square of gradients, per step.
        weight_decay: decoupled, as a factor of the learning rate.
        schedule: how the learning rate falls to 0 at the last step.
        warmup: optimiser steps in which the learning rate rises from 0.
        clip: largest norm of all gradients together; None: any.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    clip: float | None = 1.0


@dataclass(frozen=True)
class TrainSettings:
    """Every number of a run; the recipe's keys of the same names.

    Args:
        steps: optimiser steps of the whole run.
        batch_size: samples per process and forward pass.
        accumulate: forward passes per optimiser step.
        precision: the network computes in this; weights and losses stay float32.
        optimizer: of the model.
        train: which half of the model is trained.
        ema_decay: share of the weights' moving average that one step keeps; None: no average.
        checkpoint_every: optimiser steps from one checkpoint to the next; the last step has one too.
        log_every: optimiser steps that a line of the log averages over.
        on_bad_sample: what happens at a sample that can't be used.
        max_bad: share of bad samples above which the run fails, when they are more than 10.
        seed: of every random draw.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: Literal["all", "encoder", "decoder"] = "all"
    ema_decay: float | None = None
    checkpoint_every: int = 1000
    log_every: int = 50
    on_bad_sample: Literal["skip", "fail"] = "skip"
    max_bad: float = 0.05
    seed: int = 0


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Learning rate of the step that follows `step` done ones: risen over the warm-up, then along the schedule to 0 at `num_steps`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(num_steps - settings.warmup, 1)
    if settings.schedule == "linear":
        return settings.lr * (1 - progress)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
