"""Samples on their way to the encoder: fetched, hashed and turned into tensors ahead of it, in
order and within bounds.

A thread of its own claims units, reads shards and hands small groups of samples to a pool of
threads (or processes, where a modality asks for them). What is ahead is limited in samples and in
bytes, but a batch always fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from latentkit.preparing.look_ahead import LookAhead
from latentkit.preparing.processes import as_tensors, open_processes, prepare_in_child
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


class UnitsAhead(LookAhead[T, list[PreparedSample]]):
    """The outcomes of all units in order, group by group, each with its unit; None at a unit's end.

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
        self._preparer, self._units, self._pool = preparer, units, pool
        self._batch_size, self._num_views = batch_size, len(preparer.views)
        self._in_processes = getattr(preparer.modality, "prepare_in", "threads") == "processes"
        self._samples_per_batch = -(-batch_size // self._num_views)
        self._most_samples = max(2 * self._samples_per_batch, 4 * share_of_cores())
        self._group = _group_size(self._most_samples, self._num_views, batch_size)
        self._largest_bytes = 0
        """Of a sample; unknown at first, so no more than a batch is ahead then."""
        self._bucket: str | None = None
        self._has_one_bucket = not self._in_processes
        workers = (
            open_processes(preparer)
            if self._in_processes
            else ThreadPoolExecutor(share_of_cores(), "prepare")
        )
        super().__init__(self._start(), workers, self._most_groups, self._look_at)

    def _start(self) -> Iterator[tuple[T, Future[list[PreparedSample]] | None]]:
        """Put groups into work as they are asked for; on the feeding thread."""
        for unit, tasks in self._units:
            memory, row = BatchMemory(self._pool, self._batch_size), 0
            while group := list(itertools.islice(tasks, self._group)):
                if row >= self._batch_size:
                    memory, row = BatchMemory(self._pool, self._batch_size), 0
                yield unit, self._submit(group, memory, row)
                row += len(group) * self._num_views
            yield unit, None

    def _submit(
        self, group: list[Task], memory: BatchMemory, row: int
    ) -> Future[list[PreparedSample]]:
        samples = [task.sample for task in group if task.sample]
        media = [len(one.media) for one in samples if isinstance(one.media, bytes)]
        # Of a stream, media waits in memory too.
        self._largest_bytes = max(self._largest_bytes, *media, 0)
        if self._in_processes:
            return self._workers.submit(prepare_in_child, group)
        fits = row + len(group) * self._num_views <= self._batch_size
        own = memory if self._has_one_bucket and fits else None
        return self._workers.submit(self._preparer.prepare, group, own, row)

    def _look_at(self, outcomes: list[PreparedSample]) -> list[PreparedSample]:
        """The outcomes of a group, as tensors; what is ahead hangs on how large they are."""
        if self._in_processes:
            outcomes = as_tensors(outcomes)
        buckets = {row.view.bucket for outcome in outcomes for row in outcome.rows}
        self._bucket = self._bucket or next(iter(buckets), None)
        # Rows of a rare bucket wait for long, and would keep the memory of whole batches.
        self._has_one_bucket &= buckets <= {self._bucket}
        self._largest_bytes = max(
            self._largest_bytes, 1, *(outcome.num_bytes for outcome in outcomes)
        )
        return outcomes

    def _most_groups(self) -> int:
        """Groups that may be ahead."""
        fitting = AHEAD_BYTES // self._largest_bytes if self._largest_bytes else 0
        most = max(self._samples_per_batch, min(self._most_samples, fitting))
        return most // self._group


def _group_size(most_samples: int, num_views: int, batch_size: int) -> int:
    """Return samples per group: work for every core, whole groups to a batch."""
    size = max(1, min(GROUP_SAMPLES, most_samples // (4 * share_of_cores())))
    while size > 1 and batch_size % (size * num_views):
        size -= 1
    return size
