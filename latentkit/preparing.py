"""Samples on their way to the encoder: fetched, hashed and turned into tensors ahead of it, in order and within bounds.

A thread of its own claims units, reads shards and hands small groups of samples to a pool of threads (or processes, where a modality
asks for them). What is ahead is limited in samples and in bytes, but a batch always fits.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from latentkit.batching import num_bytes_of, stack
from latentkit.buffers import BatchMemory, BufferPool, as_tensor, preparing_into
from latentkit.contracts import Modality, Prepared, Sample, Shard, Source, StreamSource, Unit
from latentkit.errors import PluginError, SampleError, SourceError
from latentkit.masks import MASK, without_mask
from latentkit.preparing_processes import as_tensors, explained, open_processes, prepare_in_child
from latentkit.retry import retried
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.plugin_faults import faults_cost_the_sample
from latentkit.samples import file_state, num_bytes
from latentkit.store.columns import escape
from latentkit.store.plan import Plan
from latentkit.store.writer import RowLabel

GONE = "gone from the source"
"""Why a sample of an incremental plan can be missing without any fault; the next comparison drops it."""

AHEAD_BYTES = 1 << 30
"""Of prepared tensors, or of media that a stream brought."""

HELD_BYTES = 64 << 20
"""Media files up to this size are read whole; larger ones, and those that samples are spans of, stay paths, for the modality to stream."""

GROUP_SAMPLES = 8
"""Samples that a thread prepares at one go, at most: handing over costs about as much as hashing a picture."""


# ---------------------------------------------------------------- one sample


@dataclass(frozen=True)
class Task:
    """A sample to prepare: its position in the plan (streams: in the unit), and itself, or its key and its place in the source.

    A place of -1 stands for a sample that is gone from there.
    """

    position: int
    key: str = ""
    place: int = -1
    sample: Sample | None = None


@dataclass(frozen=True)
class Row:
    """A view that is ready to be encoded; `place` is the row of `memory` that its one tensor besides a mask was prepared into."""

    label: RowLabel
    view: Prepared
    memory: BatchMemory | None = None
    place: int = 0

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return num_bytes_of(self.view.tensor)


@dataclass(frozen=True)
class Outcome:
    """What preparing a sample gave: a row per view, or the views that can't be had and the reason."""

    rows: Sequence[Row]
    skipped: Sequence[RowLabel] = ()
    reason: str = ""

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(row.num_bytes for row in self.rows)


@dataclass(frozen=True)
class Preparer:
    """Turns samples into outcomes, in any thread or process."""

    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]

    def prepare(self, tasks: Sequence[Task], memory: BatchMemory | None = None, row: int = 0) -> list[Outcome]:
        """Outcomes of samples that follow each other; the tensors go into `memory` from `row` on where the modality asks for it.

        Raises:
            SourceError: the source changed, or can't be reached.
            PluginError: the modality gave other views than it says.
        """
        outcomes = []
        for task in tasks:
            outcomes.append(retried(functools.partial(self._prepare, task, memory, row), f"sample {task.position}"))
            row += len(self.views)
        return outcomes

    def _prepare(self, task: Task, memory: BatchMemory | None, row: int) -> Outcome:
        sample, content = None, None
        try:
            with faults_cost_the_sample(self.source, task.key):
                sample = self._fetch(task) if task.sample is None else task.sample
            sample = self._held(sample)
            before = file_state(sample.media) if isinstance(sample.media, os.PathLike) else None
            content = sample.content()
            into = nullcontext() if memory is None else preparing_into(memory, row, len(self.views))
            with into, faults_cost_the_sample(self.modality, sample.key):
                views = list(self.modality.prepare(sample))
            if isinstance(sample.media, os.PathLike) and file_state(sample.media) != before:
                raise OSError(f"{sample.media} changed while it was read")
        except SampleError as error:
            skipped = [self._label(task, sample, number, content) for number in range(len(self.views))]
            return Outcome([], skipped, str(error))
        names = [view.view for view in views]
        if names != list(self.views):
            raise PluginError(f"the modality gave the views {names}, expected {list(self.views)}")
        return Outcome([self._row(task, sample, number, content, view, memory, row + number) for number, view in enumerate(views)])

    def _held(self, sample: Sample) -> Sample:
        """The sample with the bytes of its file, so that it is read once; with its path where the modality takes that, or must."""
        takes_path = getattr(self.modality, "takes_paths", False) or sample.span is not None
        if takes_path or not isinstance(sample.media, os.PathLike) or num_bytes(sample.media) > HELD_BYTES:
            return sample
        return replace(sample, media=sample.read())

    def _fetch(self, task: Task) -> Sample:
        if task.place < 0:
            raise SampleError(GONE)
        sample = cast(Source, self.source)[task.place]
        if escape(sample.key) != task.key:
            raise SourceError(f"the source changed while it was read: {sample.key!r} is where {task.key!r} was; run again")
        return sample

    def _row(
        self, task: Task, sample: Sample, number: int, content: str, view: Prepared, memory: BatchMemory | None, place: int
    ) -> Row:
        geometry = {**view.geometry, "remarks": list(view.remarks)} if view.remarks else view.geometry
        label = self._label(task, sample, number, content, geometry)
        values = without_mask(view.tensor)
        if memory is not None and values is not None and memory.holds(place, values):
            return Row(label, view, memory, place)
        return Row(label, view)

    def _label(
        self, task: Task, sample: Sample | None, number: int, content: str | None, geometry: Mapping[str, Any] | None = None
    ) -> RowLabel:
        view = self.views[number]
        if sample is None:
            return RowLabel(task.position, view, number, content, geometry)
        if task.sample is None:
            return RowLabel(task.position, view, number, content, geometry, stamp=sample.stamp)
        return RowLabel(task.position, view, number, content, geometry, sample.key, sample.stamp, sample.attributes)


# ---------------------------------------------------------------- units to tasks


def list_tasks(source: Source | StreamSource, plan: Plan, places: npt.NDArray[np.int64] | None, unit: Unit) -> Iterator[Task]:
    """The samples of a unit, in order; a stream's are read here.

    Raises:
        SourceError: a shard is gone, or can't be reached.
    """
    keys = plan.keys(unit.start, unit.stop)
    if isinstance(source, StreamSource):
        shards = {escape(shard.name): shard for shard in source.shards()}
        gone = [name for name in keys if name not in shards]
        if gone:
            advice = "put it back, or write to another output"
            raise SourceError(f"shard {gone[0]!r}, which is left to encode, is gone from the source; {advice}")
        samples = itertools.chain.from_iterable(read_shard(source, shards[name]) for name in keys)
        yield from (Task(position, sample=sample) for position, sample in enumerate(samples))
        return
    assert places is not None
    for position, key in zip(range(unit.start, unit.stop), keys, strict=True):
        yield Task(position, key, int(places[position]))


def read_shard(source: StreamSource, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard; when it can't be reached in the middle, it is read again up to where it was.

    Raises:
        SourceError: it can't be reached.
    """
    samples, num_read = source.read(shard), 0

    def advance() -> Sample | None:
        nonlocal samples
        try:
            return next(samples, None)
        except OSError:
            samples = itertools.islice(source.read(shard), num_read, None)
            raise

    while (sample := retried(advance, f"shard {shard.name}")) is not None:
        yield sample
        num_read += 1


def give(sample: Sample) -> Sample:
    """The sample itself: the fetcher of one that is already read."""
    return sample


def gather(rows: Sequence[Row], pool: BufferPool) -> Any:
    """Return rows as a batch on the CPU: where they lie already if they were prepared side by side, else in memory of the pool."""
    memory = rows[0].memory
    if memory is not None and all(row.memory is memory and row.place == place for place, row in enumerate(rows)):
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
    return {name: stack([tensor[MASK] for tensor in named], pool) if name == MASK else values for name in names.pop()}


# ---------------------------------------------------------------- ahead of the encoder


class LookAhead:
    """The outcomes of all units in order, prepared ahead of whoever iterates; to be used as a context.

    Args:
        preparer: what runs in the pool.
        tasks: the samples of a unit.
        units: called from a thread of its own.
        batch_size: rows per batch, which begin anew with each unit.
        pool: of the batches' memory.
    """

    def __init__(self, preparer: Preparer, units: Iterable[tuple[Unit, Iterator[Task]]], batch_size: int, pool: BufferPool) -> None:
        self._preparer, self._units, self._batch_size, self._pool = preparer, units, batch_size, pool
        self._in_processes = getattr(preparer.modality, "prepare_in", "threads") == "processes"
        num_views = len(preparer.views)
        self._samples_per_batch = -(-batch_size // num_views)
        self._most_samples = max(2 * self._samples_per_batch, 4 * share_of_cores())
        self._group = _group_size(self._most_samples, num_views, batch_size)
        self._ahead: deque[tuple[Unit, Future[list[Outcome]] | None]] = deque()
        self._num_ahead = 0
        self._largest_bytes = 0
        """Of a sample; unknown at first, so no more than a batch is ahead then."""
        self._bucket: str | None = None
        self._has_one_bucket = not self._in_processes
        self._is_closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> LookAhead:
        self._workers: Executor = open_processes(self._preparer) if self._in_processes else ThreadPoolExecutor(share_of_cores(), "prepare")
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

    def __iter__(self) -> Iterator[tuple[Unit, list[Outcome] | None]]:
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

    def _taken(self, future: Future[list[Outcome]]) -> list[Outcome]:
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
            self._largest_bytes = max(self._largest_bytes, 1, *(outcome.num_bytes for outcome in outcomes))
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

    def _put(self, unit: Unit, group: list[Task], memory: BatchMemory, row: int) -> bool:
        """Whether the group was put into work, as soon as there was room."""
        media = [len(task.sample.media) for task in group if task.sample and isinstance(task.sample.media, bytes)]
        with self._changed:
            self._largest_bytes = max(self._largest_bytes, *media, 0)  # of a stream, media waits in memory too
            self._changed.wait_for(lambda: self._is_closed or self._num_ahead + len(group) <= self._limit() or not self._num_ahead)
            if self._is_closed:
                return False
            fits = self._has_one_bucket and row + len(group) * len(self._preparer.views) <= self._batch_size
            if self._in_processes:
                future = self._workers.submit(prepare_in_child, group)
            else:
                future = self._workers.submit(self._preparer.prepare, group, memory if fits else None, row)
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
    """Samples per group: enough groups to keep every core busy, and a whole number of them to a batch."""
    size = max(1, min(GROUP_SAMPLES, most_samples // (4 * share_of_cores())))
    while size > 1 and batch_size % (size * num_views):
        size -= 1
    return size
