"""The parts that recipes are made of: plugins by name, outputs, losses, optimizers, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from latentkit.contracts import RecipePart, Use

Auto = Literal["auto"]
AtLeastOne = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


NAMED_BY_METRIC = {"loss": ("loss", ""), "rfid": ("encoder", "encoder")}
"""Metrics whose options name another plugin: its kind, and the option that holds its name and
options; "" where all the options do.
"""


class ModelUse(Use):
    """The model to train."""

    train: Literal["all", "encoder", "decoder"] = Field(
        "all", description="which half of the model is trained"
    )


class Schedule(RecipePart):
    """Optimizer steps in which a loss counts."""

    start: int = Field(
        0,
        ge=0,
        description="optimizer steps before the loss first counts; until then it isn't computed",
    )
    warmup: int = Field(
        0,
        ge=0,
        description="optimizer steps, from start on, over which the weight rises to its full value",
    )
    until: AtLeastOne | None = Field(
        None, description="optimizer step after which the loss no longer counts; null: to the end"
    )

    @model_validator(mode="after")
    def _some_steps(self) -> Self:
        if self.until is not None and self.until <= self.start:
            raise ValueError(f"until: expected more than start ({self.start}), got {self.until}")
        return self


class EncodeOutput(RecipePart):
    """Where latents are written, and in which form."""

    path: str = Field(
        min_length=1, description="folder of the latent dataset; relative to the recipe"
    )
    store: Literal["moments", "mean"] = Field(
        "moments",
        description=(
            "moments: the raw posterior, sampled when latents are read; mean: the posterior's mean"
            " alone"
        ),
    )
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        "float16",
        description=(
            "type of the stored numbers; int8: with a scale per row and channel; dataset.json has"
            " its error"
        ),
    )
    unit_size: Auto | AtLeastOne = Field(
        "auto",
        description="samples in one unit, the smallest piece of work to resume or to distribute",
    )


class TrainOutput(RecipePart):
    """Where a trained model is written."""

    path: str = Field(min_length=1, description="folder of the run; relative to the recipe")
    checkpoint_every: AtLeastOne = Field(
        1000, description="optimizer steps from one checkpoint to the next"
    )
    keep: AtLeastOne = Field(2, description="newest checkpoints to keep, in addition to the best")


class Optimizer(RecipePart):
    """AdamW and its schedule."""

    lr: float = Field(
        1e-4, gt=0, allow_inf_nan=False, description="learning rate, after the warm-up"
    )
    betas: tuple[Fraction, Fraction] = Field(
        (0.5, 0.9), description="decay per step of the gradients' running mean and running square"
    )
    weight_decay: Finite = Field(
        0.0, description="decoupled weight decay, as a factor of the learning rate"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant",
        description=(
            "constant after the warm-up, or falling to 0 at the last step along a cosine or a line"
        ),
    )
    warmup: int = Field(
        0, ge=0, description="optimizer steps in which the learning rate rises from 0"
    )
    clip: float | None = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description=(
            "largest norm of all gradients together; larger ones are scaled; null: no limit"
        ),
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if max(betas) >= 1:
            raise ValueError("expected two numbers below 1")
        return betas


class LossUse(Use):
    """One loss."""

    weight: Finite = Field(1.0, description="factor of the loss, which is per input value")
    adaptive: bool = Field(
        False,
        description=(
            "multiply the weight by the ratio of the reconstruction losses' gradient to this"
            " loss's, at the last layer"
        ),
    )
    schedule: Schedule = Field(Schedule(), description="when the loss counts")
    optimizer: Optimizer | None = Field(
        None, description="optimizer of the loss's discriminator; null: as the model's"
    )


class MetricUse(Use):
    """One metric of an evaluation."""

    use: str = Field(min_length=1, description="name of the metric")

    def uses(self, where: str) -> Iterator[tuple[str, str, Use]]:
        """The metric, and the plugin that its options name, if any; see `Recipe.uses`."""
        yield "metric", where, self
        kind, key = NAMED_BY_METRIC.get(self.use, ("", ""))
        named = self.with_.get(key) if key else self.with_
        if kind and named:
            with contextlib.suppress(ValidationError):  # the metric's own config reports it
                use = Use.model_validate(named)
                yield kind, f"{where}.with.{key}".rstrip("."), use


class EvaluateOutput(RecipePart):
    """Where the results of an evaluation are written."""

    path: str = Field(
        min_length=1,
        description=(
            "folder for metrics.json, samples.parquet and report.html; relative to the recipe"
        ),
    )


class Evaluate(RecipePart):
    """Evaluation during training."""

    every: AtLeastOne = Field(
        1000,
        description=(
            "optimizer steps from one evaluation to the next; the first is before training starts,"
            " and the last after it ends"
        ),
    )
    source: Use = Field(description="where samples come from")
    modality: Use | None = Field(
        None,
        description=(
            "how media becomes a tensor; null: as in training, without the random changes of each"
            " epoch"
        ),
    )
    metrics: list[MetricUse] = Field(min_length=1, description="what is measured")
    best: str | None = Field(
        None,
        description=(
            "metric that chooses the best evaluated step, whose checkpoint is kept and becomes"
            " model/; null: the last step"
        ),
    )
    batch_size: AtLeastOne | None = Field(
        None, description="samples in one forward pass; null: as in training"
    )


class Ema(RecipePart):
    """Exponential moving average of the weights."""

    decay: float = Field(
        0.999, ge=0, lt=1, description="share of the average that one optimizer step keeps"
    )
