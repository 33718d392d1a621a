"""Which rows the kernel is told to read from disk before they are asked for, and when that is worth
its cost.

Rows at random places of a file that isn't in memory are read one by one, each read waiting for the
one before. Told of many at once, a disk serves them side by side. Where everything is in memory
already the telling is a waste, so it happens only while reading causes disk traffic, which the
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
"""Batches, at least, that are told of at once, while the ones before them are read."""

PATIENCE_SPANS = 2
"""Spans without disk traffic after which the telling ends."""

SUPPORTED = sys.platform == "linux"
"""macOS and Windows count no disk reads of a thread."""


class ReadAhead:
    """One pass through batches, telling of a span of them while the span before is read.

    Args:
        batches: what will be read, in this order.
        units: (batches,) number of the unit that each begins in, where they come unit by unit: a
            span then ends with its unit, so that what is told of is read from front to back. None:
            spans of `SPAN_BATCHES`.
        first: the batch to begin with.
        is_cold: whether the rows are likely not in memory.
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
        self._told = 0
        self._last_cold = self._span(first) if is_cold and SUPPORTED else -1 - PATIENCE_SPANS

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """Around reading one batch, in the thread that does it."""
        span, before = self._span(number), _disk_reads()
        if self._is_cold(span):
            self._tell(span)
        yield
        if _disk_reads() > before:
            self._last_cold = max(span, self._last_cold)

    def is_cold(self, number: int) -> bool:
        """Whether reading up to this batch came from disk until lately."""
        return self._is_cold(self._span(number))

    def _is_cold(self, span: int) -> bool:
        return span - self._last_cold <= PATIENCE_SPANS

    def _span(self, number: int) -> int:
        return bisect.bisect_right(self._starts, number) - 1

    def _tell(self, span: int) -> None:
        """Of this span and the next, unless they have been told of."""
        for number in range(max(span, self._told), min(span + 2, len(self._starts) - 1)):
            self._told = number + 1
            start, stop = max(self._first, self._starts[number]), self._starts[number + 1]
            if start < stop:
                self._will_need(np.concatenate(self._batches[start:stop]))


def _span_starts(num_batches: int, units: Rows | None) -> list[int]:
    """Where each span starts, and where the last one ends."""
    possible = (
        range(num_batches) if units is None else [0, *(np.flatnonzero(np.diff(units)) + 1).tolist()]
    )
    starts = [0]
    for place in possible:
        if place - starts[-1] >= SPAN_BATCHES:
            starts.append(place)
    return [*starts, num_batches]


def _disk_reads() -> int:
    """Return blocks that this thread read from disk, and page faults that waited."""
    if sys.platform == "linux":
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        return usage.ru_inblock + usage.ru_majflt
    return 0
