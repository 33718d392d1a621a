"""Metrics `mse`, `l1` and `psnr`: distances of values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentkit.contracts import MetricBatch, MetricSetting
from latentkit.metrics.metric import PerSample
from latentkit.runtime.device import to_float64

PEAK = 255.0
ROUNDED = "reconstruction clamped and rounded to 8 bits"
NOT_ROUNDED = "reconstruction clamped, not rounded"


def levels(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Map values from the range `limits` to whole numbers in [0, 255], clamped, float64."""
    scaled = (values.float() - limits[0]) * (PEAK / (limits[1] - limits[0]))
    return to_float64(scaled.clamp(0, PEAK).round())


def mse() -> PerSample:
    """Return the metric of the mean squared error."""
    return _distance(torch.square, "squared input", "squared")


def l1() -> PerSample:
    """Return the metric of the mean absolute error."""
    return _distance(torch.abs, "input", "absolute")


def psnr() -> PerSample:
    """Return the metric of the peak signal-to-noise ratio, which is infinite for a perfect copy."""

    def measure(batch: MetricBatch, setting: MetricSetting) -> Tensor:
        inputs, output = (levels(values, setting.input_range) for values in batch.pair())
        errors = (inputs - output).square().flatten(1).mean(dim=1)
        return 10 * torch.log10(PEAK**2 / errors)

    protocol = (
        f"mean over samples of each sample's own PSNR; {ROUNDED}; data range 255; decoded"
        " from {decoded_from}"
    )
    return PerSample(measure, "dB", "higher", protocol)


def _distance(function: Callable[[Tensor], Tensor], unit: str, name: str) -> PerSample:
    """Return the metric of the mean of a function of the errors, such as their square."""
    def measure(batch: MetricBatch, setting: MetricSetting) -> Tensor:
        inputs, output = batch.pair()
        return (
            function(to_float64(inputs) - to_float64(output).clamp(*setting.input_range))
            .flatten(1)
            .mean(dim=1)
        )

    how = f"mean over samples of the mean {name} error of their values; {NOT_ROUNDED}"
    protocol = how + "; values in {range}; decoded from {decoded_from}"
    return PerSample(measure, unit, "lower", protocol)
