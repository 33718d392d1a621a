"""Reusable memory: getting new memory pages from the system costs several times as much as filling
them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


class _Lease:
    """Lends a buffer to one array. Views of the array, and tensors made from it, keep the lease
    alive; after the last of them the buffer is idle again.
    """

    def __init__(
        self, buffer: Array, idle: list[Array], shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> None:
        self._buffer, self._idle = buffer, idle
        self.__array_interface__ = {
            "data": (buffer.ctypes.data, False),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }

    def __del__(self) -> None:
        # Without a lock, because the garbage collector may call this inside `BufferPool.get`.
        self._idle.append(self._buffer)


class BufferPool:
    """Arrays whose memory is reused when nothing refers to them any more. It never has more than
    were in use at one time.
    """

    def __init__(self, pinned: bool) -> None:
        self.is_pinned = pinned
        self._idle: list[Array] = []
        """Unused buffers. They are added at the end at any time, and removed under the lock."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[bool]]:
        """Pickle the pool without its buffers."""
        return BufferPool, (self.is_pinned,)

    @property
    def num_idle(self) -> int:
        """Return how many buffers wait to be used again."""
        return len(self._idle)

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous array whose content is undefined."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.is_pinned:
            # torch caches pinned memory itself, and knows which copies to a GPU aren't finished;
            # see `as_tensor`.
            buffer: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            return buffer.view(dtype).reshape(shape)
        with self._lock:
            buffer = self._take(size)
        return np.asarray(_Lease(buffer, self._idle, shape, dtype))

    def _take(self, size: int) -> Array:
        """Return the smallest idle buffer with this many bytes, or a new one that replaces the
        largest.
        """
        sizes = [buffer.nbytes for buffer in self._idle]
        fitting = [place for place, has in enumerate(sizes) if has >= size]
        if fitting:
            return self._idle.pop(min(fitting, key=sizes.__getitem__))
        if sizes:
            del self._idle[sizes.index(max(sizes))]
        return np.empty(size, np.uint8)  # numpy asks for huge pages, torch doesn't


def as_tensor(array: Array) -> torch.Tensor:
    """Return a pool's array, or a part of one, as a tensor that shares its memory.

    A pinned array becomes a view of torch's storage: torch reuses pinned memory when its storage is
    freed and the copies from it are finished, and it records copies by storage.
    """
    tensor = torch.from_numpy(array)
    owner = getattr(
        array.base, "base", None
    )  # numpy's views refer to the first array, and that to the tensor it was made from
    if not isinstance(owner, torch.Tensor):
        return tensor
    offset = (tensor.data_ptr() - owner.data_ptr()) // tensor.itemsize
    return torch.empty(0, dtype=tensor.dtype).set_(
        owner.untyped_storage(), offset, tensor.shape, tensor.stride()
    )


class BatchMemory:
    """Memory of one batch, which several threads fill row by row in any order."""

    def __init__(self, pool: BufferPool, num_rows: int) -> None:
        self._pool, self._num_rows = pool, num_rows
        self._batch: Array | None = None
        self._lock = threading.Lock()

    def row(self, number: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array | None:
        """Return a row's memory; None if the batch has no such row or another shape, which the
        first call decides.
        """
        with self._lock:
            if self._batch is None:
                self._batch = self._pool.get((self._num_rows, *shape), dtype)
        if number >= self._num_rows or self._batch.shape[1:] != shape or self._batch.dtype != dtype:
            return None
        row: Array = self._batch[number]
        return row

    def holds(self, number: int, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is that row itself, not a copy."""
        batch = self._batch
        if batch is None or number >= self._num_rows:
            return False
        address = batch.__array_interface__["data"][0] + number * batch.strides[0]
        return (
            tensor.data_ptr() == address
            and tensor.shape == batch.shape[1:]
            and tensor.is_contiguous()
        )

    def rows(self, count: int) -> Array:
        """Return the first rows, once each is filled."""
        assert self._batch is not None
        return self._batch[:count]


class BatchRows:
    """Memory for the views of one sample, requested in order: rows of a batch, which saves a copy,
    or memory of a pool if those don't fit.

    Args:
        batch: batch that the sample is part of.
        first, count: the sample's rows; later rows belong to other samples.
        pool: pool for what doesn't fit.
    """

    def __init__(self, batch: BatchMemory, first: int, count: int, pool: BufferPool) -> None:
        self._batch, self._pool = batch, pool
        self._left = iter(range(first, first + count))

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous array whose content is undefined."""
        number = next(self._left, None)
        row = None if number is None else self._batch.row(number, shape, dtype)
        return self._pool.get(shape, dtype) if row is None else row


_rows: ContextVar[BatchRows | None] = ContextVar("rows", default=None)
"""For `prepared_memory`, which a modality calls inside a `prepare(sample)` without the argument
`memory`.
"""


@contextmanager
def lending(rows: BatchRows | None) -> Iterator[None]:
    """Let `prepared_memory` return these rows inside the block, in this thread."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def prepared_memory(shape: tuple[int, ...], dtype: npt.DTypeLike, pool: BufferPool) -> Array:
    """Return memory for a prepared tensor, with undefined content: a row of a batch if possible,
    which saves a copy, or the pool's. A `prepare` with `memory` gets the same.
    """
    return (_rows.get() or pool).get(shape, dtype)
