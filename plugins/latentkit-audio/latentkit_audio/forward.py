"""Frames in the order in which they are decoded: exact where a seek is not."""

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
"""Opens a file from its start; what has to be closed afterwards goes on the stack."""


KEPT_FRAMES = 1 << 24
"""The most that is kept for a part that begins earlier: 6 minutes at 44.1 kHz."""


class ForwardReader:
    """Any part of a file, decoded from its start: a part of which nothing was dropped yet goes on
    from there, another begins at the start again.

    Args:
        open_chunks: what decodes.
        num_channels: of a frame.
    """

    keep_from: int | None = None
    """First frame that later parts may begin with; None drops all that lies before each part."""

    def __init__(self, open_chunks: Chunks, num_channels: int) -> None:
        self._open, self._num_channels = open_chunks, num_channels
        self._stack = ExitStack()
        self._begin()

    def read(self, start: int, stop: int) -> Frames:
        """The frames from `start` to before `stop`, fewer where the file ends before."""
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
        """Close the file of a thread that has ended."""
        self._stack.close()

    def _begin(self) -> None:
        self._stack.close()
        self._chunks = self._open(self._stack)
        self._start = self._end = 0
        self._pieces: deque[Frames] = deque()
        """What was decoded last, from `_start` to `_end`: the next part may overlap this one."""

    def _drop_before(self, start: int) -> None:
        if self.keep_from is not None:
            start = min(start, max(self.keep_from, self._end - KEPT_FRAMES))
        while self._pieces and self._start + len(self._pieces[0]) <= start:
            self._start += len(self._pieces.popleft())


class _Kept(threading.local):
    """The reader that a thread used last."""

    name: Hashable = None
    reader: ForwardReader | None = None


KEPT = _Kept()


@contextmanager
def open_forward(name: Hashable, open_chunks: Chunks, num_channels: int) -> Iterator[ForwardReader]:
    """A reader of a file; the one of the same name that this thread used last goes on where it was.

    Spans of a long file, in their order, are so decoded once in each thread, not from the start
    each.

    Args:
        name: of the file and its state; None for one that is used once.
    """
    kept, KEPT.reader = KEPT.reader, None
    if kept is not None and (name is None or name != KEPT.name):
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
        KEPT.name, KEPT.reader = name, reader
