"""Rows that are read together, and whose values are computed together: torch takes longer to begin
with one small tensor than to compute it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import ExportRow
from latentkit.reading.dataset import LatentDataset
from latentkit.reading.posterior import BLOCK, Array, Noise

FIRST, LAST = slice(16), slice(16, 32)
"""Bytes of a hash."""


class RowBlock:
    """Raw values and latents of some rows of one shape, each computed for all when it is first
    used, in one thread.

    Args:
        dataset: whose rows they are.
        values: as stored, (N, ...).
        keys, views: of each row.
        seed: of the draws; None: the mean is exported.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        values: Tensor,
        keys: Sequence[str],
        views: Sequence[str],
        seed: int | None,
    ) -> None:
        self._dataset, self._values = dataset, values
        self._keys, self._views, self._seed = keys, views, seed
        self._num_means = values.shape[1] // 2 if dataset.has_moments else values.shape[1]
        self._raw: Tensor | None = None
        self._latents: Tensor | None = None

    @property
    def stored(self) -> list[dict[str, Tensor]]:
        """Return the tensors of each row by name, as in `ExportRow.stored`."""
        if not self._dataset.has_moments:
            return [{self._dataset.tensor_name: value} for value in self._values.unbind()]
        halves = (half.unbind() for half in self._values.chunk(2, 1))
        return [{"mean": mean, "logvar": logvar} for mean, logvar in zip(*halves, strict=True)]

    @property
    def noises(self) -> list[Callable[[], Tensor] | None]:
        """Return the functions that draw the noise of each row, if the posterior is drawn."""
        if self._seed is None or not self._dataset.has_moments:
            return [None] * len(self._values)
        shape = (self._num_means, *self._values.shape[2:])
        return [
            functools.partial(draw_noise, self._seed, key, view, shape)
            for key, view in zip(self._keys, self._views, strict=True)
        ]

    def raw(self) -> Tensor:
        """Draws or means, (N, C, ...) float32."""
        if self._raw is None:
            self._raw = self._values[:, : self._num_means].float()
            if self._seed is not None and self._dataset.has_moments:
                noise = np.empty(self._raw.shape, np.float32)
                fill_noise(self._seed, self._keys, self._views, noise)
                logvar = self._values[:, self._num_means :].float()
                self._raw = self._raw + (logvar / 2).exp() * torch.from_numpy(noise)
        return self._raw

    def latents(self) -> Tensor:
        """`raw` normalized, (N, C, ...) float32."""
        if self._latents is None:
            data = self._dataset
            self._latents = data.normalization.apply(self.raw(), data.layout.axes)
        return self._latents

    def rows(
        self, buckets: Iterable[str], geometries: Iterable[Mapping[str, Any]], mask: Tensor | None
    ) -> list[ExportRow]:
        """Return the rows as exporters get them, in order."""
        masks = [None] * len(self._values) if mask is None else mask.unbind()
        described = zip(
            self._views, buckets, geometries, self.stored, masks, strict=True
        )
        layout, normalization = self._dataset.layout, self._dataset.normalization
        return [
            _BlockRow(*said, layout, normalization, noise, self, place)
            for place, (said, noise) in enumerate(zip(described, self.noises, strict=True))
        ]


@dataclass(frozen=True)
class _BlockRow(ExportRow):
    """A row whose values are those of its block, copied: an exporter may keep or change them, and
    `torch.save` would write the memory of the whole block.
    """

    block: RowBlock | None = None
    place: int = 0

    @property
    def raw(self) -> Tensor:
        assert self.block is not None
        return self.block.raw()[self.place].clone()

    @property
    def latent(self) -> Tensor:
        assert self.block is not None
        return self.block.latents()[self.place].clone()


def draw_noise(seed: int, key: str, view: str, shape: Sequence[int]) -> Tensor:
    """Return standard normal float32 noise that depends on seed, key, view and shape alone."""
    out = np.empty((1, *shape), np.float32)
    fill_noise(seed, [key], [view], out)
    return torch.from_numpy(out[0])


def fill_noise(seed: int, keys: Sequence[str], views: Sequence[str], out: Array) -> None:
    """Write the noise of some rows into `out`, (N, ...) float32."""
    noise = _RowNoise(_digest(seed, key, view) for key, view in zip(keys, views, strict=True))
    step = max(1, BLOCK // max(1, out[:1].size))
    for start in range(0, len(out), step):
        noise.fill(out[start : start + step])


class _RowNoise(Noise):
    """Noise with a separate stream for each row, started by a hash of 32 bytes."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        super().__init__(0)
        self._digests = iter(digests)

    def _raw(self, num_rows: int, size: int) -> Array:
        return np.concatenate([self._row(next(self._digests), size) for _ in range(num_rows)])

    def _row(self, digest: bytes, size: int) -> Array:
        # the hash is the state itself: to seed a generator takes longer than to draw a row
        state, step = (int.from_bytes(digest[part], "little") for part in (FIRST, LAST))
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": step | 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._bits.random_raw(size)


def _digest(seed: int, key: str, view: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}\0{view}".encode("utf-8", "surrogatepass")).digest()
