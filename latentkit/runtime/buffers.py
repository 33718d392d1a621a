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
    """Lends a buffer to one array: views of the array, and tensors made from it, keep the lease
    alive, and with the last of them the buffer is idle again.
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
        # Without a lock: the garbage collector may come here from inside `BufferPool.get`.
        self._idle.append(self._buffer)


class BufferPool:
    """Arrays whose memory is used again once nothing refers to them any more; never more than were
    in use at one time.
    """

    def __init__(self, pinned: bool) -> None:
        self.is_pinned = pinned
        self._idle: list[Array] = []
        """Bytes that nobody uses. Grows at its end at any time, and shrinks under the lock."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[bool]]:
        """Pickled without its buffers."""
        return BufferPool, (self.is_pinned,)

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous array whose content is undefined."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.is_pinned:
            # torch caches pinned memory itself, and knows of copies to a GPU that are still under
            # way: see `as_tensor`.
            buffer: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            return buffer.view(dtype).reshape(shape)
        with self._lock:
            buffer = self._take(size)
        return np.asarray(_Lease(buffer, self._idle, shape, dtype))

    def _take(self, size: int) -> Array:
        """The smallest idle buffer of so many bytes, or a new one in place of the largest."""
        sizes = [buffer.nbytes for buffer in self._idle]
        fitting = [place for place, has in enumerate(sizes) if has >= size]
        if fitting:
            return self._idle.pop(min(fitting, key=sizes.__getitem__))
        if sizes:
            del self._idle[sizes.index(max(sizes))]
        return np.empty(size, np.uint8)  # numpy asks for huge pages, torch doesn't


def as_tensor(array: Array) -> torch.Tensor:
    """A pool's array, or a part of one, as a tensor that shares its memory.

    What a pool has pinned becomes a view of torch's own storage: torch gives pinned memory away
    again once its storage is gone and the copies from it are done, and it takes note of a copy by
    the storage.
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
        """Where a row goes; None when the batch is of another shape, which whoever comes first
        decides, or has no such row.
        """
        with self._lock:
            if self._batch is None:
                self._batch = self._pool.get((self._num_rows, *shape), dtype)
        if number >= self._num_rows or self._batch.shape[1:] != shape or self._batch.dtype != dtype:
            return None
        row: Array = self._batch[number]
        return row

    def holds(self, number: int, tensor: torch.Tensor) -> bool:
        """Whether a tensor is that row, not something that looks like it."""
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
        """The first rows, once each is held."""
        assert self._batch is not None
        return self._batch[:count]


class BatchRows:
    """Memory for the views of one sample, each asked for once and in order: their own rows of a
    batch, which saves a copy, or where those don't fit a pool's.

    Args:
        batch: that the sample is part of.
        first, count: its rows; those after belong to other samples.
        pool: of what doesn't fit.
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
"""For `prepared_memory`, which a modality calls from inside a `prepare(sample)` that has no
argument by which the memory could come.
"""


@contextmanager
def lending(rows: BatchRows | None) -> Iterator[None]:
    """Let `prepared_memory` give these rows inside the block, in this thread."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def prepared_memory(shape: tuple[int, ...], dtype: npt.DTypeLike, pool: BufferPool) -> Array:
    """Return memory for a prepared tensor, its content undefined: its place in a batch where that
    is known, which saves a copy, or the pool's. A `prepare` with `memory` is handed the same.
    """
    return (_rows.get() or pool).get(shape, dtype)
