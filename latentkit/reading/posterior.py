"""Converts stored rows to what a trainer needs: a posterior draw or the mean, normalized.

It works on whole batches, and draws block by block so that values stay in the CPU's cache.
Everything runs in the calling thread, because the reader has its own threads, which torch's threads
would slow down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization
from latentkit.contracts.normalization import cut_to, fold
from latentkit.runtime.buffers import BufferPool, as_tensor

Posterior = Literal["sample", "mean", "moments"]
Array = npt.NDArray[Any]

BLOCK = 1 << 17
"""Values that are computed at once, few enough for a core's cache."""

ROW_JUMP = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Distance between the random streams of two rows: 2^128 over the golden ratio, as in numpy's
`jumped`.
"""

SERIAL = 1 << 15
"""Most values that torch computes in the calling thread alone."""


def to_float32(stored: Tensor, scales: Array | None, out: Array) -> None:
    """Write stored values (N, C, ...) of any dtype into `out` as float32. int8 values are
    multiplied by the scales (N, C) of their rows and channels.
    """
    sources, targets = (
        torch.split(tensor.flatten(), SERIAL) for tensor in (stored, torch.from_numpy(out))
    )
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
    if scales is not None:
        np.multiply(out, scales.reshape(*scales.shape, *[1] * (out.ndim - 2)), out=out)


def draw(moments: Array, noise: Array) -> None:
    """Write mean + exp(logvar / 2) * noise into `noise` (N, C, ...), float32. `moments` (N, 2C,
    ...), mean then logvar, are overwritten.
    """
    channels = noise.shape[1]
    logvar = moments[:, channels:]
    np.multiply(logvar, np.float32(0.5), out=logvar)
    np.exp(logvar, out=logvar)
    np.multiply(noise, logvar, out=noise)
    np.add(noise, moments[:, :channels], out=noise)


class Noise:
    """Standard normal float32 numbers from a seed, drawn row by row, so a row's numbers don't
    depend on how many rows follow.

    G. E. P. Box and M. E. Muller, "A Note on the Generation of Random Normal Deviates" (1958),
    applied to 32-bit integers of numpy's PCG64, whose stream numpy guarantees. In float32 and over
    whole blocks it takes 0.7 of the time of torch's own generator.
    """

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def fill(self, out: Array) -> None:
        """Write the next `out.size` numbers into `out`, (N, ...) float32 and C-contiguous."""
        rows = out.reshape(len(out), -1)
        size = rows.shape[1]
        half = -(-size // 2)
        # Two 32-bit integers give two numbers: the first is the distance from the origin, the
        # second the angle.
        bits = self._raw(len(rows), half).view(np.int32).reshape(len(rows), 2 * half)
        radius, angle = (np.empty((len(rows), half), np.float32) for _ in range(2))
        np.bitwise_or(bits, 1, out=bits)  # never 0, whose logarithm is infinite
        np.copyto(radius, bits[:, :half], casting="unsafe")
        np.copyto(angle, bits[:, half:], casting="unsafe")
        np.multiply(radius, np.float32(2.0**-31), out=radius)
        np.abs(radius, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2), out=radius)
        np.sqrt(radius, out=radius)
        np.multiply(angle, np.float32(math.pi * 2.0**-31), out=angle)
        np.multiply(np.cos(angle, out=rows[:, :half]), radius, out=rows[:, :half])
        np.multiply(np.sin(angle, out=angle), radius, out=angle)
        rows[:, half:] = angle[:, : size - half]

    def _raw(self, num_rows: int, size: int) -> Array:
        """Return the next `num_rows` times `size` 64-bit integers."""
        return self._bits.random_raw(num_rows * size)


class RowNoise(Noise):
    """Noise in which a row's numbers depend only on the seed and the row.

    Args:
        seed: seed of all rows.
        rows: row numbers, in the order in which they are filled.
        lengths: for ragged rows, how many rows of `fill` are positions of each; None: one.
    """

    def __init__(self, seed: Sequence[int], rows: Array, lengths: Array | None) -> None:
        super().__init__(*seed)
        counts = np.ones(len(rows), np.int64) if lengths is None else lengths
        self._following = zip(rows.tolist(), counts.tolist(), strict=True)
        self._place = self._left = 0

    def _raw(self, num_rows: int, size: int) -> Array:
        """Return random 64-bit integers for some rows, each from the row's own stream."""
        raw = np.empty(num_rows * size, np.uint64)
        start = 0
        while start < len(raw):
            while not self._left:
                row, self._left = next(self._following)
                self._bits.advance(row * ROW_JUMP - self._place)
                self._place = row * ROW_JUMP
            count = min(self._left, (len(raw) - start) // size)
            stop = start + count * size
            raw[start:stop] = self._bits.random_raw(stop - start)
            self._place += stop - start
            self._left -= count
            start = stop
        return raw


class Normalizer:
    """`Normalization.apply` for float32 batches that may be overwritten, with its constants
    prepared once.
    """

    def __init__(self, normalization: Normalization, layout: LatentLayout) -> None:
        self.normalization = normalization
        self.axes = layout.axes
        self._shift = _constant(normalization.shift, len(layout.axes))
        self._scale = _constant(normalization.scale, len(layout.axes))
        self._shifts = bool((self._shift != 0).any())
        self._scales = bool((self._scale != 1).any())

    def __call__(self, latents: Tensor) -> Tensor:
        """Return (fold(z) - shift) * scale of float32 raw latents (N, C, ...), which are
        overwritten.
        """
        folded = fold(latents, self.axes, self.normalization.fold)
        values, sizes = folded.numpy(), folded.shape[1:]
        if self._shifts:
            np.subtract(values, cut_to(self._shift, sizes, self.axes), out=values)
        if self._scales:
            np.multiply(values, cut_to(self._scale, sizes, self.axes), out=values)
        return folded


class LatentMaker:
    """Converts batches of stored rows to batches of latents, (N, C, ...) float32."""

    def __init__(self, normalization: Normalization, layout: LatentLayout) -> None:
        self._normalize = Normalizer(normalization, layout)
        self._fold = normalization.fold
        channels = layout.channels * math.prod(normalization.fold.values())
        for name in ("shift", "scale"):
            value = getattr(normalization, name)
            if not isinstance(value, int | float) and len(value) != channels:
                raise ValueError(f"{name} has {len(value)} values for {channels} channels")
        self._scratch = BufferPool(False)

    def __call__(
        self, stored: Tensor, scales: Array | None, noise: Noise | None, pool: BufferPool
    ) -> Tensor:
        """Return normalized latents: draws from stored moments with this noise, or stored latents
        if the noise is None.
        """
        channels = stored.shape[1] // (2 if noise else 1)
        shape = (len(stored), channels, *stored.shape[2:])
        raw = (self._scratch if self._fold else pool).get(shape, np.float32)
        if noise is None:
            to_float32(stored, scales, raw)
        else:
            self._draw(stored, scales, noise, raw)
        latents = self._normalize(as_tensor(raw))
        return (
            as_tensor(pool.get(latents.shape, np.float32)).copy_(latents) if self._fold else latents
        )

    def _draw(self, stored: Tensor, scales: Array | None, noise: Noise, out: Array) -> None:
        """Write one raw draw per row of moments (N, 2C, ...) into `out` (N, C, ...)."""
        step = max(1, BLOCK // out[:1].size)
        moments = self._scratch.get((step, *stored.shape[1:]), np.float32)
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            block = out[part]
            to_float32(
                stored[part], None if scales is None else scales[part], moments[: len(block)]
            )
            noise.fill(block)
            draw(moments[: len(block)], block)


def _constant(value: object, num_axes: int) -> Array:
    constant = np.asarray(value, np.float32)
    return constant.reshape(-1, *[1] * (num_axes - 1)) if constant.ndim == 1 else constant
