"""Metric `loss`: what a loss plugin says of reconstructions, such as the perceptual distance LPIPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkit.contracts import (
    BuildContext,
    HasModule,
    Loss,
    LossBatch,
    LossSpec,
    MetricBatch,
    MetricSetting,
    Reconstruction,
)
from latentkit.errors import PluginError, RecipeError
from latentkit.metrics.metric import PerSample
from latentkit.metrics.pixels import NOT_ROUNDED
from latentkit.plugins import discover

if TYPE_CHECKING:
    from latentkit.metrics.options import LossMetricConfig


def open_loss(config: LossMetricConfig, context: BuildContext) -> PerSample:
    """The metric of a loss plugin.

    Raises:
        PluginError: no such plugin.
        RecipeError: it refuses its options, or doesn't compare output and input.
    """
    registry = discover()
    spec = registry.find("loss", config.use).spec
    assert isinstance(spec, LossSpec)
    if spec.role != "reconstruction":
        raise RecipeError(
            f"metric 'loss': expected a loss that compares output and input, and {config.use!r} is"
            f" of the role {spec.role}"
        )
    options = registry.configure("loss", config.use, config.with_, "metric 'loss'")
    loss: Loss = spec.build(options, context)
    if isinstance(loss, HasModule):
        loss.module.eval().to(context.device)

    def measure(batch: MetricBatch, setting: MetricSetting) -> Tensor:
        return measure_loss(config.use, loss, batch, setting)

    protocol = (
        f"mean over samples of the loss {config.use}; {NOT_ROUNDED}; values in {{range}};"
        " decoded from {decoded_from}"
    )
    return PerSample(measure, "", "lower", protocol)


def measure_loss(name: str, loss: Loss, batch: MetricBatch, setting: MetricSetting) -> Tensor:
    """The loss of each sample, (N,), of the clamped reconstruction.

    Raises:
        PluginError: it isn't one value a sample.
    """
    inputs, output = batch.pair()
    found = Reconstruction(output.clamp(*setting.input_range), batch.latents, batch.moments)
    assert batch.decode is not None
    with torch.no_grad():
        value = loss(
            LossBatch(
                inputs, found, None, 0, lambda _: batch.moments or batch.latents, batch.decode
            )
        )
    if value.shape != (len(inputs),):
        raise PluginError(
            f"loss {name!r}: expected one value a sample, shape ({len(inputs)},), got"
            f" {tuple(value.shape)}"
        )
    return value
