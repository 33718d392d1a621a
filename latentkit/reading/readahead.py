"""Tells the kernel which rows to read from disk before they are needed, while that is worth its
cost.

Rows at random positions of a file that isn't in memory are read one by one, each read waiting for
the one before. If the kernel knows many at once, a disk serves them in parallel. If everything is
already in memory, this wastes time. So it only happens while reading causes disk traffic, which the
kernel counts per thread.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from latentkit.store.columns import Rows

if sys.platform == "linux":
    import resource

SPAN_BATCHES = 4
"""Fewest batches that are announced at once, while those before them are read."""

PATIENCE_SPANS = 2
"""Spans without disk traffic after which announcing stops."""

SUPPORTED = sys.platform == "linux"
"""macOS and Windows don't count a thread's disk reads."""


class ReadAhead:
    """One pass through batches that announces a span of them while the previous span is read.

    Args:
        batches: what will be read, in this order.
        units: (batches,) unit number that each batch starts in, if they are read unit by unit. A
            span then ends with its unit, so that what is announced is read sequentially. None:
            spans of `SPAN_BATCHES`.
        first: the first batch to read.
        is_cold: whether the rows are probably not in memory.
        will_need: announces rows to the kernel.
    """

    def __init__(
        self,
        batches: Sequence[Rows],
        units: Rows | None,
        first: int,
        is_cold: bool,
        will_need: Callable[[Rows], None],
    ) -> None:
        self._batches = batches
        self._will_need = will_need
        self._starts = _span_starts(len(batches), units)
        self._first = first
        self._announced = 0
        self._last_cold = self._span(first) if is_cold and SUPPORTED else -1 - PATIENCE_SPANS

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """Wrap the reading of one batch, in the thread that reads it."""
        span, before = self._span(number), _disk_reads()
        if self._is_cold(span):
            self._announce(span)
        yield
        if _disk_reads() > before:
            self._last_cold = max(span, self._last_cold)

    def is_cold(self, number: int) -> bool:
        """Return whether the last batches up to this one were read from disk."""
        return self._is_cold(self._span(number))

    def _is_cold(self, span: int) -> bool:
        return span - self._last_cold <= PATIENCE_SPANS

    def _span(self, number: int) -> int:
        return bisect.bisect_right(self._starts, number) - 1

    def _announce(self, span: int) -> None:
        """Announce this span and the next, unless they were already."""
        for number in range(max(span, self._announced), min(span + 2, len(self._starts) - 1)):
            self._announced = number + 1
            start, stop = max(self._first, self._starts[number]), self._starts[number + 1]
            if start < stop:
                self._will_need(np.concatenate(self._batches[start:stop]))


def _span_starts(num_batches: int, units: Rows | None) -> list[int]:
    """Return the first batch of each span, and the end of the last."""
    possible = (
        range(num_batches) if units is None else [0, *(np.flatnonzero(np.diff(units)) + 1).tolist()]
    )
    starts = [0]
    for place in possible:
        if place - starts[-1] >= SPAN_BATCHES:
            starts.append(place)
    return [*starts, num_batches]


def _disk_reads() -> int:
    """Return how many blocks this thread has read from disk, plus page faults that waited for a
    disk (some file systems don't count blocks).
    """
    if sys.platform == "linux":
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        return usage.ru_inblock + usage.ru_majflt
    return 0
