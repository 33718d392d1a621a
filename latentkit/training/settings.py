"""The numbers of a training run, and learning rate and loss weights as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from latentkit.contracts import Loss, LossRole


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate: the recipe's `optimizer`.

    Args:
        lr: learning rate after the warm-up.
        betas: decay of the running mean and of the running square of gradients, per step.
        weight_decay: decoupled, as a factor of the learning rate.
        schedule: how the learning rate falls to 0 at the last step.
        warmup: optimizer steps in which the learning rate rises from 0.
        clip: largest norm of all gradients together; None: no limit.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    clip: float | None = 1.0


@dataclass(frozen=True)
class WeightSchedule:
    """When a loss is active: the recipe's `losses[i].schedule`.

    Args:
        start: optimizer steps before the loss is first active; until then it isn't computed.
        warmup: optimizer steps after `start` in which its weight rises to its full value.
        until: optimizer step from which the loss is no longer active; None: it is active to the
            end.
    """

    start: int = 0
    warmup: int = 0
    until: int | None = None

    def is_active(self, step: int) -> bool:
        """Return whether the loss is computed in the step after `step` completed ones."""
        return step >= self.start and (self.until is None or step < self.until)

    def factor(self, step: int) -> float:
        """Return the factor of the weight, from 0 to 1, in the step after `step` completed ones."""
        if not self.is_active(step):
            return 0.0
        return min((step - self.start + 1) / self.warmup, 1.0) if self.warmup else 1.0


@dataclass(frozen=True)
class WeightedLoss:
    """One loss of a run.

    Args:
        name: its name in log and messages; unique in the run.
        loss: returns (N,), unweighted, per input value.
        weight: factor in the sum.
        adaptive: whether to multiply the weight by the ratio of the reconstruction losses' gradient
            to its own, at the last layer that both reach.
        optimizer: optimizer of its discriminator; None: the model's settings. Only for losses with
            a discriminator.
    """

    name: str
    loss: Loss
    weight: float = 1.0
    role: LossRole = "reconstruction"
    adaptive: bool = False
    schedule: WeightSchedule = field(default_factory=WeightSchedule)
    optimizer: OptimizerSettings | None = None


@dataclass(frozen=True)
class TrainEvaluation:
    """Measures the model while it trains.

    Args:
        every: optimizer steps between evaluations; there is also one before the first step and one
            after the last.
        measure: called in the first process with the bare module (averaged weights if there are
            any, eval mode, no gradients) and the number of completed steps; returns metrics by
            name. Random numbers it draws don't affect the run.
        best: metric that decides the best evaluated step, whose checkpoint is kept and whose model
            is the result; None: the last step.
    """

    every: int
    measure: Callable[[nn.Module, int], Mapping[str, float]]
    best: str | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class TrainSettings:
    """Every number of a run: the recipe's keys of the same names.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: samples per process and forward pass.
        accumulate: forward passes per optimizer step.
        precision: dtype that the network computes in; weights and losses stay float32.
        train: which half of the model is trained.
        ema_decay: share of the weights' moving average that one step keeps; None: no average.
        checkpoint_every: optimizer steps between checkpoints; the last step has one too.
        keep: number of recent checkpoints to keep.
        log_every: optimizer steps that a line of the log averages over.
        trackers: names of Accelerate's trackers that get what the log gets.
        on_bad_sample: what is done with a bad sample.
        max_bad: share of bad samples above which the run fails, when they are more than 10.
        max_bad_steps: steps in a row without finite loss or gradient after which the run ends.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping
            them.
        seed: seed of all random numbers.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: Literal["all", "encoder", "decoder"] = "all"
    ema_decay: float | None = None
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 50
    trackers: Sequence[str] = ()
    on_bad_sample: Literal["skip", "fail"] = "skip"
    max_bad: float = 0.05
    max_bad_steps: int = 10
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Return the learning rate of the step after `step` completed ones: rising during the warm-up,
    then following the schedule to 0 at `num_steps`.
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(num_steps - settings.warmup, 1)
    if settings.schedule == "linear":
        return settings.lr * (1 - progress)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
