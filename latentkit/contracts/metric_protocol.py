"""The protocol of a metric: it gets batches, and returns at the end figures (numbers with their
unit), numbers per sample, and tables. Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentkit.contracts.encoder_description import LatentLayout
from latentkit.contracts.protocols import Moments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from latentkit.contracts.plugin_specs import Better


@dataclass(frozen=True)
class Figure:
    """One result of a metric: a number, its unit, and how it was measured.

    Args:
        value: the number, over all samples; may be infinite.
        unit: its unit, such as "dB"; empty where there is none.
        protocol: everything that another program must do in the same way for a comparable number.
        better: whether "higher" or "lower" is better; empty where neither is.
    """

    value: float
    unit: str
    protocol: str
    better: Better = ""


@dataclass(frozen=True)
class Measured:
    """The results of a metric.

    Args:
        figures: results by the suffix of the metric's name; "" is the metric's own.
        per_sample: numbers per sample by the same names, (N,) float64 in the order of samples.
        tables: other results, JSON-like.
        warnings: why the figures may mislead.
    """

    figures: Mapping[str, Figure]
    per_sample: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class MetricSetting:
    """The settings that all batches of an evaluation share.

    Args:
        input_range: lowest and highest value of the inputs.
        layout: layout of the latents.
        decoded_from: which latents were decoded, such as "the posterior's mean".
        num_samples: most samples that will come; None if it isn't known.
    """

    input_range: tuple[float, float]
    layout: LatentLayout
    decoded_from: str
    num_samples: int | None = None


@dataclass(frozen=True)
class MetricBatch:
    """One batch of samples, for a metric.

    Tensors are float32 on one device; there are no inputs where latents alone are looked at.

    Args:
        positions: number of each sample, which seeds its draws.
        latents: raw latents, (N, C, ...): the mean or a draw, by the evaluation's setting.
        moments: raw moments; None where there is no posterior.
        inputs: (N, C, ...) in the model's range.
        output: the decoded latents, in the inputs' shape, not clamped.
        is_draw: whether `latents` is a draw from the posterior.
        seed: seed of all draws.
        decode: decodes raw latents to a batch.
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
        """Return inputs and output, for a metric whose spec needs "decoder"."""
        assert self.inputs is not None
        assert self.output is not None
        return self.inputs, self.output

    def posterior(self) -> Moments:
        """Return the moments, for a metric whose spec needs "posterior"."""
        assert self.moments is not None
        return self.moments


@runtime_checkable
class Metric(Protocol):
    """A measure of reconstructions or latents.

    `start` may be called again; it then forgets the earlier batches.
    """

    def start(self, setting: MetricSetting) -> None:
        """Begin an evaluation.

        Raises:
            RecipeError: the metric can't be measured with this setting.
        """
        ...

    def add(self, batch: MetricBatch) -> None:
        """Add one batch to the results.

        Raises:
            SourceError: the metric can't be measured on samples like these.
        """
        ...

    def finish(self) -> Measured:
        """Return the results of all batches since `start`."""
        ...
