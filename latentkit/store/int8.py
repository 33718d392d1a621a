"""Latents as int8 with a scale per row and channel, and the rounding error.

Quantization is symmetric, so zero stays zero: scale = max|x| / 127 over all values of one row's
channel, and a value is its integer times the scale. A row's numbers depend only on that row, not on
its batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentkit.errors import DamagedError

Int8s = npt.NDArray[np.int8]
Float32s = npt.NDArray[np.float32]

LEVELS = 127
LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(LEVELS), np.float32(0))
"""Limit so that the largest float32 isn't read back as infinity."""

SCALE = ".scale"
"""End of the name of the tensor with the scales of another tensor."""

METADATA = "quantisation"
"""Entry of a unit's header with the error of its rows; missing if the unit has no quantized
latents.
"""


def quantize(
    values: Float32s, lengths: npt.NDArray[np.int64] | None = None
) -> tuple[Int8s, Float32s]:
    """Return integers (N, C, ...) in [-127, 127], rounded half to even, and their scales (N, C)
    float32.

    A channel with only zeros, or with values so small that their scale would be subnormal (below
    1.5e-36), has scale 0.

    Args:
        values: (N, C, ...) float32, finite.
        lengths: for ragged rows stored end to end, how many of the N positions each has; the scales
            are then (rows, C).
    """
    flat = values.reshape(*values.shape[:2], -1)
    peak = np.maximum(flat.max(axis=2, initial=0), -flat.min(axis=2, initial=0))
    if lengths is not None:
        peak = np.maximum.reduceat(peak, np.cumsum(lengths) - lengths)
    scale = np.minimum(peak / np.float32(LEVELS), LARGEST_SCALE)
    scale[scale < np.finfo(np.float32).tiny] = (
        0  # a subnormal scale is too coarse: integers could exceed the range
    )
    divisor = np.where(scale > 0, scale, np.float32(1))
    scaled = (
        flat / (divisor if lengths is None else np.repeat(divisor, lengths, axis=0))[:, :, None]
    )
    return np.rint(scaled, out=scaled).astype(np.int8).reshape(values.shape), scale


def dequantize(stored: Int8s, scale: Float32s) -> Float32s:
    """Return what a reader sees, (N, C, ...) float32: each integer times the scale of its row and
    channel.
    """
    return np.multiply(
        stored, scale.reshape(*scale.shape, *[1] * (stored.ndim - 2)), dtype=np.float32
    )


@dataclass(frozen=True)
class RoundingError:
    """Rounding error of `count` values per channel: the sum of squared differences between stored
    and original values, (C,) float64.
    """

    count: int
    squares: npt.NDArray[np.float64]

    def __add__(self, other: RoundingError) -> RoundingError:
        return RoundingError(self.count + other.count, self.squares + other.squares)

    def as_json(self) -> dict[str, Any]:
        """Return the error for a unit's header. Floats are exact."""
        return {"count": self.count, "squares": self.squares.tolist()}

    @classmethod
    def from_json(cls, piece: Mapping[str, Any]) -> RoundingError:
        """Return the error from a unit's header; the inverse of `as_json`."""
        return cls(int(piece["count"]), np.array(piece["squares"], np.float64))

    @property
    def rms(self) -> npt.NDArray[np.float64]:
        """Return the root mean square error per channel, (C,)."""
        return np.sqrt(self.squares / max(self.count, 1))


def measure_error(stored: Float32s, given: Float32s) -> RoundingError:
    """Return the error of one batch, both (N, C, ...) float32. Differences are computed and added
    in float64.
    """
    work = np.empty((len(stored), *stored.shape[2:]))
    squares = np.empty(stored.shape[1])
    for channel in range(stored.shape[1]):
        np.subtract(stored[:, channel], given[:, channel], out=work, dtype=np.float64)
        squares[channel] = np.square(work, out=work).sum()
    return RoundingError(work.size, squares)


def merge_errors(headers: Iterable[Mapping[str, str]]) -> dict[str, RoundingError]:
    """Return the error of all units together, by name of the tensor; empty if nothing is quantized.

    Args:
        headers: metadata of every unit, in the order of the plan.

    Raises:
        DamagedError: an entry isn't what was written.
    """
    total: dict[str, RoundingError] = {}
    for metadata in headers:
        try:
            for name, piece in json.loads(metadata.get(METADATA, "{}")).items():
                own = RoundingError.from_json(piece)
                total[name] = total[name] + own if name in total else own
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(
                f"a unit's {METADATA} entry is damaged ({type(error).__name__}). Delete the unit"
                " and run again"
            ) from error
    return total


def summarize_error(headers: Iterable[Mapping[str, str]]) -> dict[str, Any] | None:
    """Return the error for dataset.json: {"rms": {"mean": [C], "logvar": [C]}} or {"rms":
    {"latent": [C]}}, in raw latent space, per channel.

    Return None if nothing is quantized. Arguments and errors are those of `merge_errors`.
    """
    rms: dict[str, list[float]] = {}
    for name, error in merge_errors(headers).items():
        values = error.rms.tolist()
        if name == "moments":
            rms |= {"mean": values[: len(values) // 2], "logvar": values[len(values) // 2 :]}
        else:
            rms[name] = values
    return {"rms": rms} if rms else None
