"""Prepares samples ahead of the encoder: loaded, hashed and turned into tensors, in order and
within a memory limit.

A thread claims units, reads shards and hands small groups of samples to a pool of threads (or
processes, if a modality asks for them). The samples prepared ahead are limited in number and in
bytes, but one batch is always allowed.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

from torch import Tensor

from latentkit.preparing.processes import (
    as_tensors,
    explain_dead_process,
    open_processes,
    prepare_in_child,
)
from latentkit.preparing.sample_preparer import PreparedSample, Preparer, Row, Task
from latentkit.preparing.stack import stack
from latentkit.runtime.buffers import BatchMemory, BufferPool, as_tensor
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.masks import MASK

T = TypeVar("T")

AHEAD_BYTES = 1 << 30
"""Most bytes of prepared tensors, or of media that a stream has read."""

GROUP_SAMPLES = 8
"""Most samples that a thread prepares at once. Handing a task over costs about as much as hashing
an image.
"""


def gather(rows: Sequence[Row], pool: BufferPool) -> Any:
    """Return rows as a batch on the CPU. Rows that were prepared side by side are used in place,
    others are copied into memory of the pool.
    """
    memory = rows[0].memory
    if memory is not None and all(
        row.memory is memory and row.place == place for place, row in enumerate(rows)
    ):
        return _with_masks(as_tensor(memory.rows(len(rows))), rows, pool)
    return stack([row.view.tensor for row in rows], pool)


def _with_masks(values: Tensor, rows: Sequence[Row], pool: BufferPool) -> Any:
    """Return the batch, together with the rows' masks if they have any."""
    tensors = [row.view.tensor for row in rows]
    names = {tuple(tensor) if isinstance(tensor, Mapping) else () for tensor in tensors}
    if names == {()}:
        return values
    if len(names) > 1:
        return stack(tensors, pool)  # raises a clear error
    named = [tensor for tensor in tensors if isinstance(tensor, Mapping)]
    return {
        name: stack([tensor[MASK] for tensor in named], pool) if name == MASK else values
        for name in names.pop()
    }


# ---------------------------------------------------------------- ahead of the encoder


class LookAhead(Generic[T]):
    """Prepares the samples of all units ahead of the caller, who iterates over them in order. Use
    it as a context manager.

    Args:
        preparer: prepares samples in the pool.
        units: (token, samples) of each unit; the token, such as the unit itself, is returned with
            the results. Iterated in a separate thread.
        batch_size: rows per batch; batches start anew with each unit.
        pool: memory for the batches.
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
        """Largest bytes of a sample; unknown at first, so only one batch is prepared ahead then."""
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
        """Finish the samples being prepared and drop those that wait."""
        self._is_closed = True
        self._notify()
        self._feeder.shutdown(wait=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[T, list[PreparedSample] | None]]:
        """Yield prepared samples with their unit's token, group by group; None at the end of a
        unit.

        Raises:
            LatentkitError: an error in a thread or process.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._feeding.done())
                if not self._ahead:
                    break
                unit, future = self._ahead.popleft()
            yield unit, None if future is None else self._result_of(future)
        with explain_dead_process():
            self._feeding.result()

    def _result_of(self, future: Future[list[PreparedSample]]) -> list[PreparedSample]:
        """Return the results of one group and count its bytes as no longer ahead."""
        with explain_dead_process():
            outcomes = future.result()
        if self._in_processes:
            outcomes = as_tensors(outcomes)
        buckets = {row.view.bucket for outcome in outcomes for row in outcome.rows}
        self._bucket = self._bucket or next(iter(buckets), None)
        with self._changed:
            self._num_ahead -= len(outcomes)
            # Rows of a rare bucket wait long, and would keep the memory of whole batches.
            self._has_one_bucket &= buckets <= {self._bucket}
            self._largest_bytes = max(
                self._largest_bytes, 1, *(outcome.num_bytes for outcome in outcomes)
            )
            self._changed.notify_all()
        return outcomes

    # ------------------------------------------------------------ on the feeding thread

    def _feed(self) -> None:
        """Hand groups of samples to the pool until all units are done."""
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
        """Hand a group to the pool as soon as there is room; False if iteration has ended."""
        media = [
            len(task.sample.media)
            for task in group
            if task.sample and isinstance(task.sample.media, bytes)
        ]
        with self._changed:
            self._largest_bytes = max(
                self._largest_bytes, *media, 0
            )  # the media of a stream waits in memory too
            self._changed.wait_for(
                lambda: (
                    self._is_closed
                    or self._num_ahead + len(group) <= self._max_ahead()
                    or not self._num_ahead
                )
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

    def _max_ahead(self) -> int:
        """Return the number of samples that may be prepared ahead."""
        fitting = AHEAD_BYTES // self._largest_bytes if self._largest_bytes else 0
        return max(self._samples_per_batch, min(self._most_samples, fitting))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _group_size(most_samples: int, num_views: int, batch_size: int) -> int:
    """Return samples per group: enough groups to keep every core busy, and a whole number of groups
    per batch.
    """
    size = max(1, min(GROUP_SAMPLES, most_samples // (4 * share_of_cores())))
    while size > 1 and batch_size % (size * num_views):
        size -= 1
    return size
