"""What a metric is: it sees batches, and at the end gives figures, a number per sample where it has
one, and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Moments
from latentkit.contracts.plugin_specs import Better as Better
from latentkit.reading.posterior import Noise

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One number, and how it was measured.

    Args:
        value: of all samples; may be infinite.
        unit: such as "dB"; empty where there is none.
        protocol: everything that another program would have to do the same for its number to be
            comparable.
        better: which way; empty where neither is.
    """

    value: float
    unit: str
    protocol: str
    better: Better = ""


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Args:
        figures: by what is appended to the metric's name; "" is the metric's own.
        per_sample: by the same, (N,) float64 in the order in which samples came.
        tables: whatever else it knows, JSON-like.
        warnings: why the figures may mislead.
    """

    figures: Mapping[str, Figure]
    per_sample: Mapping[str, Floats] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Setting:
    """What holds for all batches of an evaluation.

    Args:
        input_range: lowest and highest value of the inputs.
        layout: of the latents.
        decoded_from: what latents were decoded, such as "the posterior's mean".
        num_samples: how many will come at most; None where nobody knows.
    """

    input_range: tuple[float, float]
    layout: LatentLayout
    decoded_from: str
    num_samples: int | None = None


@dataclass(frozen=True)
class MetricBatch:
    """What a metric may look at.

    Tensors are float32 on one device; there are no inputs where latents alone are looked at.

    Args:
        positions: number of each sample, which seeds its draws.
        latents: raw, (N, C, ...): the mean or a draw, as the evaluation was asked for.
        moments: raw; None where there is no posterior.
        inputs: (N, C, ...) in the model's range.
        output: the latents decoded, of the inputs' shape, not clamped.
        is_draw: whether `latents` is a draw from the posterior.
        seed: of all draws.
        decode: raw latents to a batch.
    """

    positions: Sequence[int]
    latents: Tensor
    moments: Moments | None
    inputs: Tensor | None = None
    output: Tensor | None = None
    is_draw: bool = False
    seed: int = 0
    decode: Callable[[Tensor], Tensor] | None = None

    def pair(self) -> tuple[Tensor, Tensor]:
        """Inputs and output."""
        assert self.inputs is not None
        assert self.output is not None
        return self.inputs, self.output

    def posterior(self) -> Moments:
        """The moments."""
        assert self.moments is not None
        return self.moments

    def draws(self, stream: int) -> NoiseRows:
        """Standard normal numbers for these samples; those of another `stream` are independent."""
        mean = self.posterior().mean
        return NoiseRows(self.seed, stream, self.positions, tuple(mean.shape[1:]), mean.device)


POSTERIOR_STREAM, ELBO_STREAM, IWAE_STREAM = 0, 1, 2


class NoiseRows:
    """Standard normal numbers that depend on seed, stream and each sample's number alone, whatever
    the batches.
    """

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
        """The next `count` of each sample, (count, N, *shape) float32."""
        values = np.empty((len(self._rows), count, *self._shape), np.float32)
        for noise, row in zip(self._rows, values, strict=True):
            noise.fill(row)
        return torch.from_numpy(values).to(self._device).transpose(0, 1)


def draw(moments: Moments, noise: Tensor) -> Tensor:
    """mean + exp(logvar / 2) * noise, for noise (..., N, C, h, w)."""
    return moments.mean + torch.exp(0.5 * moments.logvar) * noise


class Metric(Protocol):
    """A metric. `start` may be called again, and forgets what came before."""

    def start(self, setting: Setting) -> None:
        """Raises `RecipeError`: it can't be measured so."""
        ...

    def add(self, batch: MetricBatch) -> None:
        """Raises `SourceError`: it can't be measured on samples like these."""
        ...

    def finish(self) -> Measured: ...


class PerSample:
    """A metric with a number per sample, whose figure is their mean.

    Args:
        function: a batch to (N,) float64.
        unit, better: see `Figure`.
        protocol: how it is measured; a text with a place for `decoded_from`.
    """

    def __init__(
        self,
        function: Callable[[MetricBatch, Setting], Tensor],
        unit: str,
        better: Better,
        protocol: str,
    ) -> None:
        self._function, self._unit, self._better, self._protocol = function, unit, better, protocol

    def start(self, setting: Setting) -> None:
        """See `Metric`."""
        self._setting, self._values = setting, list[Tensor]()

    def add(self, batch: MetricBatch) -> None:
        """See `Metric`."""
        self._values.append(self._function(batch, self._setting).cpu().double())

    def finish(self) -> Measured:
        """See `Metric`."""
        values = concatenate(self._values)
        protocol = self._protocol.format(
            decoded_from=self._setting.decoded_from, range=show_range(self._setting.input_range)
        )
        return Measured(
            {"": Figure(mean(values), self._unit, protocol, self._better)}, {"": values}
        )


def show_range(limits: tuple[float, float]) -> str:
    """Such as "[-1, 1]"."""
    return f"[{limits[0]:g}, {limits[1]:g}]"


def concatenate(pieces: Sequence[Tensor]) -> Floats:
    """Numbers of all batches one after the other, (N,) float64."""
    return np.asarray(torch.cat(list(pieces)).cpu().double().numpy(), np.float64)


def mean(values: Floats) -> float:
    """The mean; infinite where a value is, without numpy's warnings."""
    return (
        math.fsum(values.tolist()) / len(values)
        if np.isfinite(values).all()
        else float(torch.from_numpy(values).mean())
    )
