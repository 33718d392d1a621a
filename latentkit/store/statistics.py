"""Mean and variance per latent channel, in float64, in pieces that add up to the same result for
any number of processes.

Pieces are merged by the parallel formula of Chan, Golub and LeVeque, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances" (1979), eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of `count` values per channel: their mean, the sum of squared differences from it,
    and the sum of posterior variances.

    All arrays are (C,) float64; `variance_sum` is zero if there is no posterior.
    """

    count: int
    mean: Floats
    squares: Floats
    variance_sum: Floats

    def as_json(self) -> dict[str, Any]:
        """Return the statistics for a unit's header. Floats are exact."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
            "variance_sum": self.variance_sum.tolist(),
        }

    @classmethod
    def from_json(cls, piece: Mapping[str, Any]) -> ChannelStatistics:
        """Return statistics from a unit's header; the inverse of `as_json`."""
        return cls(
            int(piece["count"]),
            *(np.array(piece[name], np.float64) for name in ("mean", "squares", "variance_sum")),
        )

    def without(self, part: ChannelStatistics) -> ChannelStatistics:
        """Return statistics of the rest if some of the values are removed; the inverse of `merge`.

        If little remains of a sum, its last digits are lost; it never falls below zero.
        """
        count = self.count - part.count
        if count <= 0:
            zeros = np.zeros_like(self.mean)
            return ChannelStatistics(0, zeros, zeros, zeros)
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        between = np.square(part.mean - mean) * (part.count * count / self.count)
        squares = np.maximum(self.squares - part.squares - between, 0)
        variances = np.maximum(self.variance_sum - part.variance_sum, 0)
        return ChannelStatistics(count, mean, squares, variances)

    def summary(self) -> dict[str, Any]:
        """Return the statistics for dataset.json, in raw latent space, per channel.

        "mean" and "mean_std" are of the posterior means (or latents); "std" is of a posterior draw:
        Var[z] = Var[mean] + E[variance].
        """
        count = max(self.count, 1)
        spread = self.squares / count
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "mean_std": np.sqrt(spread).tolist(),
            "std": np.sqrt(spread + self.variance_sum / count).tolist(),
        }


def measure(mean: npt.NDArray[Any], logvar: npt.NDArray[Any] | None) -> ChannelStatistics:
    """Return statistics of one batch of latents (N, C, ...), with each value's logvar if there is
    one.
    """
    values = _per_channel(mean)
    center = values.mean(axis=1)
    values -= center[:, None]
    squares = np.square(values, out=values).sum(axis=1)
    if logvar is None:
        return ChannelStatistics(values.shape[1], center, squares, np.zeros_like(center))
    values = _per_channel(logvar)
    return ChannelStatistics(
        values.shape[1], center, squares, np.exp(values, out=values).sum(axis=1)
    )


def measure_on_device(stored: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return what a writer would otherwise compute on the CPU, where one thread is slower than a
    GPU.

    Args:
        stored: rows of the same shape (N, ...) by name, without padding, on a device that supports
            float64.
        name: "moments" or "latent", the tensor to measure.

    Returns:
        "finite": (N,) bool, whether every value of the row is; "statistics": (3, C) float64, mean,
            squares and variance sum
        of `ChannelStatistics`.
    """
    import torch

    floating = [tensor for tensor in stored.values() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().flatten(1).all(1) for tensor in floating]).all(0)
    values = stored[name].transpose(0, 1).flatten(1).double()
    logvar = values[len(values) // 2 :] if name == "moments" else None
    mean = values if logvar is None else values[: len(values) // 2]
    center = mean.mean(1)
    squares = (mean - center[:, None]).square().sum(1)
    variances = torch.zeros_like(center) if logvar is None else logvar.exp().sum(1)
    return {"finite": finite, "statistics": torch.stack([center, squares, variances])}


def merge(pieces: Iterable[ChannelStatistics]) -> ChannelStatistics | None:
    """Return all pieces as one, added in their order; None if there is none."""
    total: ChannelStatistics | None = None
    for piece in pieces:
        total = piece if total is None else _merge_two(total, piece)
    return total


def _merge_two(a: ChannelStatistics, b: ChannelStatistics) -> ChannelStatistics:
    """Return the statistics of all values of two pieces."""
    count = a.count + b.count
    gap = b.mean - a.mean
    return ChannelStatistics(
        count,
        a.mean + gap * (b.count / count),
        a.squares + b.squares + np.square(gap) * (a.count * b.count / count),
        a.variance_sum + b.variance_sum,
    )


def _per_channel(values: npt.NDArray[Any]) -> Floats:
    """Reshape (N, C, ...) to (C, values) float64."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)
