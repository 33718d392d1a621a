"""Prepares samples ahead of the encoder: loaded, hashed and turned into tensors, in order and
within a memory limit.

A thread claims units, reads shards and hands small groups of samples to a pool of threads (or
processes, if a modality asks for them). The samples prepared ahead are limited in number and in
bytes, but one batch is always allowed.
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
        return stack(tensors, pool)  # which says what is wrong
    named = [tensor for tensor in tensors if isinstance(tensor, Mapping)]
    return {
        name: stack([tensor[MASK] for tensor in named], pool) if name == MASK else values
        for name in names.pop()
    }


# ---------------------------------------------------------------- ahead of the encoder


class UnitsAhead(LookAhead[T, list[PreparedSample]]):
    """Prepares the samples of all units ahead of the caller, who iterates over them in order. Use
    it as a context manager.

    Args:
        preparer: prepares samples in the pool.
        units: (token, samples) of each unit; the token, such as the unit itself, is returned with
            the results. Iterated in a separate thread.
        batch_size: rows per batch; each unit starts a new batch.
        pool: memory for the batches.
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
        """Most bytes of a sample so far; 0 before the first one, when one batch is ahead."""
        self._bucket: str | None = None
        self._has_one_bucket = not self._in_processes
        workers = (
            open_processes(preparer)
            if self._in_processes
            else ThreadPoolExecutor(share_of_cores(), "prepare")
        )
        super().__init__(self._start(), workers, self._most_groups, self._look_at)

    def _start(self) -> Iterator[tuple[T, Future[list[PreparedSample]] | None]]:
        """Yield the prepared groups of each unit, then None, starting a group when it is requested.
        """
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
        """Start preparing a group of samples, into a batch's memory from `row` on if they fit."""
        samples = [task.sample for task in group if task.sample]
        media = [len(one.media) for one in samples if isinstance(one.media, bytes)]
        # The media of a stream's samples waits in memory too.
        self._largest_bytes = max(self._largest_bytes, *media, 0)
        if self._in_processes:
            return self._workers.submit(prepare_in_child, group)
        fits = row + len(group) * self._num_views <= self._batch_size
        own = memory if self._has_one_bucket and fits else None
        return self._workers.submit(self._preparer.prepare, group, own, row)

    def _look_at(self, outcomes: list[PreparedSample]) -> list[PreparedSample]:
        """Return the results of a group as tensors, and record their size, which limits the rest.
        """
        if self._in_processes:
            outcomes = as_tensors(outcomes)
        buckets = {row.view.bucket for outcome in outcomes for row in outcome.rows}
        self._bucket = self._bucket or next(iter(buckets), None)
        # Rows of a rare bucket wait long for a batch, and would keep the memory of whole batches.
        self._has_one_bucket &= buckets <= {self._bucket}
        self._largest_bytes = max(
            self._largest_bytes, 1, *(outcome.num_bytes for outcome in outcomes)
        )
        return outcomes

    def _most_groups(self) -> int:
        """Return the number of groups that may be ahead."""
        fitting = AHEAD_BYTES // self._largest_bytes if self._largest_bytes else 0
        most = max(self._samples_per_batch, min(self._most_samples, fitting))
        return most // self._group


def _group_size(most_samples: int, num_views: int, batch_size: int) -> int:
    """Return samples per group: enough groups to keep every core busy, and a whole number of groups
    per batch.
    """
    size = max(1, min(GROUP_SAMPLES, most_samples // (4 * share_of_cores())))
    while size > 1 and batch_size % (size * num_views):
        size -= 1
    return size
