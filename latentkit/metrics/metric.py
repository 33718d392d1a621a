"""Parts that core's metrics share: the mean of a value per sample, and noise that doesn't depend
on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import Figure, Measured, MetricBatch, MetricSetting, Moments
from latentkit.contracts.plugin_specs import Better
from latentkit.reading.posterior import Noise

Floats = npt.NDArray[np.float64]


POSTERIOR_STREAM, ELBO_STREAM, IWAE_STREAM = 0, 1, 2


class NoiseRows:
    """Standard normal numbers that depend on seed, stream and sample, not on the batch."""

    def __init__(
        self,
        seed: int,
        stream: int,
        positions: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._rows = [Noise(seed, stream, position) for position in positions]
        self._shape, self._device = shape, device

    def take(self, count: int) -> Tensor:
        """Draw the next `count` tensors for each sample, (count, N, *shape) float32."""
        values = np.empty((len(self._rows), count, *self._shape), np.float32)
        for noise, row in zip(self._rows, values, strict=True):
            noise.fill(row)
        return torch.from_numpy(values).to(self._device).transpose(0, 1)


def noise_for(batch: MetricBatch, stream: int) -> NoiseRows:
    """Return standard normal numbers for a batch's samples, independent for each `stream`."""
    mean = batch.posterior().mean
    return NoiseRows(batch.seed, stream, batch.positions, tuple(mean.shape[1:]), mean.device)


def draw(moments: Moments, noise: Tensor) -> Tensor:
    """Return mean + exp(logvar / 2) * noise, for noise (..., N, C, h, w)."""
    return moments.mean + torch.exp(0.5 * moments.logvar) * noise


class PerSample:
    """A metric with a value per sample; it reports their mean.

    Args:
        function: takes a batch and the setting, returns a value for each sample, (N,).
        unit, better: see `Figure`.
        protocol: how the value is measured; a text with the fields `{decoded_from}` and `{range}`.
    """

    def __init__(
        self,
        function: Callable[[MetricBatch, MetricSetting], Tensor],
        unit: str,
        better: Better,
        protocol: str,
    ) -> None:
        self._function, self._unit, self._better, self._protocol = function, unit, better, protocol

    def start(self, setting: MetricSetting) -> None:
        self._setting, self._values = setting, list[Tensor]()

    def add(self, batch: MetricBatch) -> None:
        self._values.append(self._function(batch, self._setting).cpu().double())

    def finish(self) -> Measured:
        values = concatenate(self._values)
        protocol = self._protocol.format(
            decoded_from=self._setting.decoded_from, range=show_range(self._setting.input_range)
        )
        return Measured(
            {"": Figure(mean(values), self._unit, protocol, self._better)}, {"": values}
        )


def show_range(limits: tuple[float, float]) -> str:
    """Format a range, such as "[-1, 1]"."""
    return f"[{limits[0]:g}, {limits[1]:g}]"


def concatenate(pieces: Sequence[Tensor]) -> Floats:
    """Join the values of all batches, (N,) float64."""
    return np.asarray(torch.cat(list(pieces)).cpu().double().numpy(), np.float64)


def mean(values: Floats) -> float:
    """Return the mean; infinite values give an infinite mean without numpy's warnings."""
    return (
        math.fsum(values.tolist()) / len(values)
        if np.isfinite(values).all()
        else float(torch.from_numpy(values).mean())
    )
