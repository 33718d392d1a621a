"""Reusable memory: getting new memory pages from the system costs several times as much as filling
them.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


def _count_idle_references() -> int:
    """References to an array that only a list and a variable hold; interpreters count them
    differently.
    """
    buffers = [np.empty(0)]
    buffer = buffers[0]
    return sys.getrefcount(buffer)


IDLE_REFERENCES = _count_idle_references()


class BufferPool:
    """Arrays that are handed out again once nothing refers to them any more; never more than were
    in use at one time.
    """

    def __init__(self, pinned: bool) -> None:
        self.is_pinned = pinned
        self._buffers: list[Array] = []
        """Bytes, from the smallest buffer to the largest."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[bool]]:
        """Pickled without its buffers."""
        return BufferPool, (self.is_pinned,)

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A C-contiguous array whose content is undefined; it may be a part of a larger buffer."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.is_pinned:
            # torch caches pinned memory itself, and knows of copies to a GPU that are still under
            # way: see `as_tensor`.
            buffer: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            with self._lock:
                buffer = self._get(size)
        return buffer.view(dtype).reshape(shape)

    def _get(self, size: int) -> Array:
        """The first `size` bytes of the smallest idle buffer that has them."""
        idle = None
        for place in range(len(self._buffers)):
            buffer = self._buffers[place]
            # A tensor made from a buffer holds it until its storage dies, however many views of it
            # there are.
            if sys.getrefcount(buffer) == IDLE_REFERENCES:
                if buffer.nbytes >= size:
                    return buffer[:size]
                idle = place
        if idle is not None:
            del self._buffers[idle]  # makes room
        buffer = np.empty(size, np.uint8)  # numpy asks for huge pages, torch doesn't
        self._buffers.append(buffer)
        self._buffers.sort(key=len)
        return buffer[:]


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


class _Place(threading.local):
    """Where this thread's next prepared tensors go."""

    memory: BatchMemory | None = None
    row = stop = 0


_place = _Place()


@contextmanager
def prepare_in_memory(memory: BatchMemory, row: int, count: int) -> Iterator[None]:
    """Let this thread's `prepared_memory` be `count` rows of a batch from `row` on; those after
    belong to other samples.
    """
    _place.memory, _place.row, _place.stop = memory, row, row + count
    try:
        yield
    finally:
        _place.memory = None


def prepared_memory(shape: tuple[int, ...], dtype: npt.DTypeLike, pool: BufferPool) -> Array:
    """Memory for a prepared tensor, its content undefined: its place in a batch where that is
    known, which saves a copy, or the pool's.
    """
    row = None
    if _place.memory is not None and _place.row < _place.stop:
        row = _place.memory.row(_place.row, shape, dtype)
        _place.row += 1
    return pool.get(shape, dtype) if row is None else row
