"""The numbers of a training run; learning rate and loss weights as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from latentkit.contracts import Loss, LossRole


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate; the recipe's `optimizer`, which describes each key."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    clip: float | None = 1.0


@dataclass(frozen=True)
class WeightSchedule:
    """When a loss counts; the recipe's `losses[i].schedule`, which describes each key."""

    start: int = 0
    warmup: int = 0
    until: int | None = None

    def is_active(self, step: int) -> bool:
        """Whether the loss is computed in the step that follows `step` done ones."""
        return step >= self.start and (self.until is None or step < self.until)

    def factor(self, step: int) -> float:
        """Of the weight, from 0 to 1, in the step that follows `step` done ones."""
        if not self.is_active(step):
            return 0.0
        return min((step - self.start + 1) / self.warmup, 1.0) if self.warmup else 1.0


@dataclass(frozen=True)
class WeightedLoss:
    """One loss of a run.

    Args:
        name: what log and messages call it; unique in the run.
        loss: gives (N,), unweighted, per input value.
        weight: factor in the sum.
        adaptive: multiply the weight by the ratio of the reconstruction losses' gradient to its
            own, at the layer that both reach last.
        optimizer: of its discriminator; None: the model's settings. Only losses with a
            discriminator have one.
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
    """What measures the model while it trains.

    Args:
        every: optimizer steps from one evaluation to the next; there is one before the first step
            and one after the last too.
        measure: called in the first process with the bare module (averaged weights where there are
            any, eval mode, no gradients) and the number of steps done; gives metrics by name.
            Random numbers it draws are not missed.
        best: metric by which one evaluated step is the best: its checkpoint is kept, and the model
            is of it; None: of the last step.
    """

    every: int
    measure: Callable[[nn.Module, int], Mapping[str, float]]
    best: str | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class TrainSettings:
    """Every number of a run: the recipe's keys of the same names, described there.

    `keep`, `checkpoint_every` and `trackers` are its output.keep, output.checkpoint_every and log;
    a line of the log averages over `log_every` optimizer steps.
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
    """Return the learning rate of the step after `step` done ones: warm-up, then schedule."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(num_steps - settings.warmup, 1)
    if settings.schedule == "linear":
        return settings.lr * (1 - progress)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
