"""Metric `loss`: the value of a loss plugin, such as the perceptual distance LPIPS."""

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
    """Build the metric that reports the values of a loss plugin.

    Raises:
        PluginError: there is no such plugin.
        RecipeError: the plugin rejects its options, or doesn't compare output and input.
    """
    registry = discover()
    spec = registry.find("loss", config.use).spec
    assert isinstance(spec, LossSpec)
    if spec.role != "reconstruction":
        raise RecipeError(
            f"metric 'loss': expected a loss that compares output and input, but {config.use!r} has"
            f" the role {spec.role}"
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
    """Return the loss of each sample's clamped reconstruction, (N,).

    Raises:
        PluginError: the loss doesn't give one value per sample.
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
            f"loss {name!r}: expected one value per sample, shape ({len(inputs)},), got"
            f" {tuple(value.shape)}"
        )
    return value
