"""Samples on their way to the encoder: fetched, hashed and turned into tensors ahead of it, in
order and within bounds.

A thread of its own claims units, reads shards and hands small groups of samples to a pool of
threads (or processes, where a modality asks for them). What is ahead is limited in samples and in
bytes, but a batch always fits.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

from torch import Tensor

from latentkit.preparing.processes import as_tensors, explained, open_processes, prepare_in_child
from latentkit.preparing.sample_preparer import PreparedSample, Preparer, Row, Task
from latentkit.preparing.stack import stack
from latentkit.runtime.buffers import BatchMemory, BufferPool, as_tensor
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.masks import MASK

T = TypeVar("T")

AHEAD_BYTES = 1 << 30
"""Of prepared tensors, or of media that a stream brought."""

GROUP_SAMPLES = 8
"""Samples that a thread prepares at one go, at most: handing over costs about as much as hashing a
picture.
"""


def gather(rows: Sequence[Row], pool: BufferPool) -> Any:
    """Return rows as a batch on the CPU: where they lie already if they were prepared side by side,
    else in memory of the pool.
    """
    memory = rows[0].memory
    if memory is not None and all(
        row.memory is memory and row.place == place for place, row in enumerate(rows)
    ):
        return _with_masks(as_tensor(memory.rows(len(rows))), rows, pool)
    return stack([row.view.tensor for row in rows], pool)


def _with_masks(values: Tensor, rows: Sequence[Row], pool: BufferPool) -> Any:
    """The batch, beside it the masks of its rows where they have them."""
    tensors = [row.view.tensor for row in rows]
    names = {tuple(tensor) if isinstance(tensor, Mapping) else () for tensor in tensors}
    if names == {()}:
        return values
    if len(names) > 1:
        return stack(tensors, pool)  # which says what is wrong
    named = [tensor for tensor in tensors if isinstance(tensor, Mapping)]
    return {
        name: stack([tensor[MASK] for tensor in named], pool) if name == MASK else values
        for name in names.pop()
    }


# ---------------------------------------------------------------- ahead of the encoder


class LookAhead(Generic[T]):
    """The outcomes of all units in order, prepared ahead of whoever iterates; a context.

    Args:
        preparer: what runs in the pool.
        units: each a token, such as the unit, that its outcomes come with, and its samples; called
            from a thread of its own.
        batch_size: rows per batch, which begin again with each unit.
        pool: of the batches' memory.
    """

    def __init__(
        self,
        preparer: Preparer,
        units: Iterable[tuple[T, Iterator[Task]]],
        batch_size: int,
        pool: BufferPool,
    ) -> None:
        self._preparer, self._units, self._batch_size, self._pool = (
            preparer,
            units,
            batch_size,
            pool,
        )
        self._in_processes = getattr(preparer.modality, "prepare_in", "threads") == "processes"
        num_views = len(preparer.views)
        self._samples_per_batch = -(-batch_size // num_views)
        self._most_samples = max(2 * self._samples_per_batch, 4 * share_of_cores())
        self._group = _group_size(self._most_samples, num_views, batch_size)
        self._ahead: deque[tuple[T, Future[list[PreparedSample]] | None]] = deque()
        self._num_ahead = 0
        self._largest_bytes = 0
        """Of a sample; unknown at first, so no more than a batch is ahead then."""
        self._bucket: str | None = None
        self._has_one_bucket = not self._in_processes
        self._is_closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._workers: Executor = (
            open_processes(self._preparer)
            if self._in_processes
            else ThreadPoolExecutor(share_of_cores(), "prepare")
        )
        self._feeder = ThreadPoolExecutor(1, "feed")
        self._feeding = self._feeder.submit(self._feed)
        self._feeding.add_done_callback(lambda _: self._notify())
        return self

    def __exit__(self, *_: object) -> None:
        """Samples in flight are finished, those that wait are dropped."""
        self._is_closed = True
        self._notify()
        self._feeder.shutdown(wait=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[T, list[PreparedSample] | None]]:
        """Outcomes with their unit, group by group; None at a unit's end.

        Raises:
            LatentkitError: whatever went wrong in a thread or process.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._feeding.done())
                if not self._ahead:
                    break
                unit, future = self._ahead.popleft()
            yield unit, None if future is None else self._taken(future)
        with explained():
            self._feeding.result()

    def _taken(self, future: Future[list[PreparedSample]]) -> list[PreparedSample]:
        with explained():
            outcomes = future.result()
        if self._in_processes:
            outcomes = as_tensors(outcomes)
        buckets = {row.view.bucket for outcome in outcomes for row in outcome.rows}
        self._bucket = self._bucket or next(iter(buckets), None)
        with self._changed:
            self._num_ahead -= len(outcomes)
            # Rows of a rare bucket wait for long, and would keep the memory of whole batches.
            self._has_one_bucket &= buckets <= {self._bucket}
            self._largest_bytes = max(
                self._largest_bytes, 1, *(outcome.num_bytes for outcome in outcomes)
            )
            self._changed.notify_all()
        return outcomes

    # ------------------------------------------------------------ on the feeding thread

    def _feed(self) -> None:
        for unit, tasks in self._units:
            memory, row = BatchMemory(self._pool, self._batch_size), 0
            while group := list(itertools.islice(tasks, self._group)):
                if row >= self._batch_size:
                    memory, row = BatchMemory(self._pool, self._batch_size), 0
                if not self._put(unit, group, memory, row):
                    return
                row += len(group) * len(self._preparer.views)
            with self._changed:
                self._ahead.append((unit, None))
                self._changed.notify_all()

    def _put(self, unit: T, group: list[Task], memory: BatchMemory, row: int) -> bool:
        """Whether the group was put into work, as soon as there was room."""
        media = [
            len(task.sample.media)
            for task in group
            if task.sample and isinstance(task.sample.media, bytes)
        ]
        with self._changed:
            self._largest_bytes = max(
                self._largest_bytes, *media, 0
            )  # of a stream, media waits in memory too
            self._changed.wait_for(
                lambda: self._is_closed
                or self._num_ahead + len(group) <= self._limit()
                or not self._num_ahead
            )
            if self._is_closed:
                return False
            fits = (
                self._has_one_bucket
                and row + len(group) * len(self._preparer.views) <= self._batch_size
            )
            if self._in_processes:
                future = self._workers.submit(prepare_in_child, group)
            else:
                future = self._workers.submit(
                    self._preparer.prepare, group, memory if fits else None, row
                )
            self._ahead.append((unit, future))
            self._num_ahead += len(group)
            self._changed.notify_all()
            return True

    def _limit(self) -> int:
        """Samples that may be ahead."""
        fitting = AHEAD_BYTES // self._largest_bytes if self._largest_bytes else 0
        return max(self._samples_per_batch, min(self._most_samples, fitting))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _group_size(most_samples: int, num_views: int, batch_size: int) -> int:
    """Return samples per group: work for every core, whole groups to a batch."""
    size = max(1, min(GROUP_SAMPLES, most_samples // (4 * share_of_cores())))
    while size > 1 and batch_size % (size * num_views):
        size -= 1
    return size
