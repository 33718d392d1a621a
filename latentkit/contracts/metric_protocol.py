"""What a metric is: it sees batches, and at the end gives figures, a number per sample where it has
one, and tables. Importing this loads no torch.

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
    per_sample: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class MetricSetting:
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
        """Inputs and output, for a metric whose spec needs "decoder"."""
        assert self.inputs is not None
        assert self.output is not None
        return self.inputs, self.output

    def posterior(self) -> Moments:
        """The moments, for a metric whose spec needs "posterior"."""
        assert self.moments is not None
        return self.moments


@runtime_checkable
class Metric(Protocol):
    """A measure of reconstructions or latents.

    `start` may be called again, and forgets what came before.
    """

    def start(self, setting: MetricSetting) -> None:
        """Begin an evaluation.

        Raises:
            RecipeError: it can't be measured so.
        """
        ...

    def add(self, batch: MetricBatch) -> None:
        """Look at one batch.

        Raises:
            SourceError: it can't be measured on samples like these.
        """
        ...

    def finish(self) -> Measured:
        """What was found in all batches since `start`."""
        ...
