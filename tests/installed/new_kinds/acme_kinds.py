"""A plugin of the kinds that version 3 of the contract added: a metric."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from latentkit.contracts import (
    BuildContext,
    Config,
    Figure,
    Measured,
    MetricBatch,
    MetricSetting,
    MetricSpec,
)
from latentkit.hooks import hookimpl

requires_contract = 3


class OffsetConfig(Config):
    """Metric `offset`."""

    factor: float = Field(1.0, gt=0, description="what the mean error is multiplied by")


class Offset:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def start(self, setting: MetricSetting) -> None:
        self.values: list[float] = []

    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        self.values += ((output - inputs).flatten(1).mean(1) * self.factor).tolist()

    def finish(self) -> Measured:
        mean = sum(self.values) / len(self.values)
        return Measured({"": Figure(mean, "units of the input", "mean of output - input")})


def build_offset(config: OffsetConfig, context: BuildContext) -> Any:
    return Offset(config.factor)


@hookimpl
def latentkit_metrics() -> Iterator[MetricSpec]:
    needs = ("decoder", "modality")
    yield MetricSpec(
        "offset", "mean error", OffsetConfig, build_offset, 1, needs, modalities=["image"]
    )
    yield MetricSpec("nowhere", "of no modality", OffsetConfig, build_offset, 1, needs)
