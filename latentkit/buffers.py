"""Memory that is used again: faulting in fresh pages costs several times as much as filling them."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


def _count_idle_references() -> int:
    """References to an array that only a list holds, seen from a loop over it; interpreters count them differently."""
    for buffer in [np.empty(0)]:
        count = sys.getrefcount(buffer)
    return count


IDLE_REFERENCES = _count_idle_references()


class BufferPool:
    """Arrays that are handed out again once nothing refers to them any more."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._buffers: list[Array] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[bool]]:
        """Pickled without its buffers."""
        return BufferPool, (self._pinned,)

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A C-contiguous array whose content is undefined; its first axis may be a part of a longer buffer's."""
        if self._pinned:
            # torch caches pinned memory itself, and knows of copies to a GPU that are still under way.
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            pinned: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
            return pinned
        with self._lock:
            return self._get(shape, np.dtype(dtype))

    def _get(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        for buffer in self._buffers:
            # A tensor made from a buffer holds it until its storage dies, however many views of it there are.
            fits = buffer.dtype == dtype and buffer.shape[1:] == shape[1:] and len(buffer) >= shape[0]
            if fits and sys.getrefcount(buffer) == IDLE_REFERENCES:
                return buffer[: shape[0]]
        buffer = np.empty(shape, dtype)  # numpy asks for huge pages, torch doesn't
        self._buffers.append(buffer)
        return buffer[:]
