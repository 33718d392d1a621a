"""Reads frames by decoding forward, which is exact where a seek isn't."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.float32]
"""(frames, channels); full scale is 1.0."""

Chunks = Callable[[ExitStack], Iterator[Frames]]
"""Opens a file at its start and yields its frames; the stack closes what must be closed."""


KEPT_FRAMES = 1 << 24
"""Most frames that are kept for a part that begins earlier: 6 minutes at 44.1 kHz."""


class ForwardReader:
    """Reads any part of a file by decoding from its start. It continues if nothing of the part was
    dropped yet, otherwise it starts again.

    Args:
        open_chunks: opens the decoder.
        num_channels: of a frame.
    """

    keep_from: int | None = None
    """First frame at which later parts may begin; None drops everything before each part."""

    def __init__(self, open_chunks: Chunks, num_channels: int) -> None:
        self._open, self._num_channels = open_chunks, num_channels
        self._stack = ExitStack()
        self._begin()

    def read(self, start: int, stop: int) -> Frames:
        """Return the frames from `start` to before `stop`, fewer at the end of the file."""
        if start < self._start:
            self._begin()
        while self._end < stop and (chunk := next(self._chunks, None)) is not None:
            self._pieces.append(chunk)
            self._end += len(chunk)
            self._drop_before(start)
        self._drop_before(start)
        at, parts = self._start, [np.empty((0, self._num_channels), np.float32)]
        for piece in self._pieces:
            parts.append(piece[max(start - at, 0) : max(stop - at, 0)])
            at += len(piece)
        return np.concatenate(parts)

    @property
    def num_held(self) -> int:
        """Frames that were decoded and are held for the parts that follow."""
        return sum(map(len, self._pieces))

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __del__(self) -> None:
        """Close the file when its thread has ended."""
        self._stack.close()

    def _begin(self) -> None:
        self._stack.close()
        self._chunks = self._open(self._stack)
        self._start = self._end = 0
        self._pieces: deque[Frames] = deque()
        """What was decoded last, from `_start` to `_end`: the next part may overlap this one."""

    def _drop_before(self, start: int) -> None:
        """Drop decoded frames that no later part needs."""
        if self.keep_from is not None:
            start = min(start, max(self.keep_from, self._end - KEPT_FRAMES))
        while self._pieces and self._start + len(self._pieces[0]) <= start:
            self._start += len(self._pieces.popleft())


class _ThreadReader(threading.local):
    """The reader that a thread used last."""

    name: Hashable = None
    reader: ForwardReader | None = None


THREAD_READER = _ThreadReader()


@contextmanager
def open_forward(name: Hashable, open_chunks: Chunks, num_channels: int) -> Iterator[ForwardReader]:
    """Return a reader of a file. If this thread's last reader has the same name, it continues.

    So the spans of a long file, in order, are decoded once per thread and not each from the start.

    Args:
        name: identifies the file and its state; None for a reader that is used once.
    """
    kept, THREAD_READER.reader = THREAD_READER.reader, None
    if kept is not None and (name is None or name != THREAD_READER.name):
        kept.close()
        kept = None
    reader = kept or ForwardReader(open_chunks, num_channels)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    if name is None:
        reader.close()
    else:
        THREAD_READER.name, THREAD_READER.reader = name, reader
