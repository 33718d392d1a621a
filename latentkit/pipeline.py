"""From units to committed files: samples are prepared ahead in threads, encoded here, and written by another thread.

Everything is bounded, and the head of the next unit is prepared while the tail of the last one is encoded and written. The order of rows
and the batches depend on the plan alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.batching import check_latents, stack, stored_tensors, to_host
from latentkit.buffers import BufferPool
from latentkit.contracts import Encoder, Modality, Prepared, Sample, Shard, Source, StreamSource, Unit, UnitResult, Worker
from latentkit.errors import PluginError, SampleError, SourceError
from latentkit.numerics import fixed_numerics, frozen_garbage, num_cores
from latentkit.progress import Progress
from latentkit.retry import retried
from latentkit.store.claims import Claims
from latentkit.store.columns import escape
from latentkit.store.folder import Folder
from latentkit.store.plan import Plan, PlanSettings
from latentkit.store.writer import NOT_FINITE, RowLabel, UnitWriter, unit_name

MAX_WRITES_WAITING = 8
HELD_BYTES = 64 << 20
"""Media files up to this size are read whole; larger ones stay paths, for the modality to stream."""


@dataclass(frozen=True)
class EncodeJob:
    """All that a worker needs, in any process.

    Args:
        folder: of the latent dataset.
        plan: what is to be done.
        source, modality: built.
        views: names of the views that the modality gives of each sample.
        open_encoder: device to encoder; called when there is work.
        store, dtype: as in the recipe's `output`.
        seed: of draws, with `store: sample`.
        on_bad_sample: "skip" or "fail".
        settings: what holds for the units left; the plan's, unless the recipe says otherwise.
        places: position in the source of each row of the plan; None for a stream.
        show_progress: whether this process prints the live line.
    """

    folder: Folder
    plan: Plan
    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    open_encoder: Callable[[str], Encoder]
    store: str
    dtype: str
    seed: int
    on_bad_sample: str
    settings: PlanSettings
    places: npt.NDArray[np.int64] | None
    show_progress: bool = True


def make_worker(job: EncodeJob, device: str) -> Worker:
    """A worker for one device, picklable where the job is."""
    return functools.partial(_work, job, device)


@dataclass
class _OpenUnit:
    """A unit at work: its writer, the batches that are filling up, and its times."""

    unit: Unit
    writer: UnitWriter
    filling: dict[str, list[tuple[RowLabel, Prepared]]] = field(default_factory=dict)
    writes: list[Future[None]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class _Outcome:
    """What preparing a sample gave: its views with their labels, or the reason why there are none."""

    labels: Sequence[RowLabel]
    views: Sequence[Prepared]
    reason: str | None = None


def _work(job: EncodeJob, device: str, units: Iterator[Unit]) -> Iterator[UnitResult]:
    claims = Claims(job.folder)
    with fixed_numerics(job.settings.threads, device), frozen_garbage(), claims.beating(), ThreadPoolExecutor(1, "write") as writing:
        preparing = ThreadPoolExecutor(num_cores(), "prepare")
        loop = _Loop(job, device, writing, claims)
        begun: dict[Unit, _OpenUnit] = {}
        try:
            for result in loop.run(_prepared(job, _claimed(job, claims, units), preparing, begun)):
                del begun[result.unit]
                yield result
        finally:
            # Samples in flight are dropped; a commit under way is finished by the writing thread's own shutdown.
            preparing.shutdown(wait=True, cancel_futures=True)
            writing.shutdown(wait=True, cancel_futures=True)
            for at_work in begun.values():
                at_work.writer.close()


def _claimed(job: EncodeJob, claims: Claims, units: Iterator[Unit]) -> Iterator[Unit]:
    """The units that are nobody else's."""
    for unit in units:
        if job.folder.exists(unit_name(unit.name)) or not claims.take(unit.name):
            continue
        if job.folder.exists(unit_name(unit.name)):
            claims.drop(unit.name)
            continue
        yield unit


# ---------------------------------------------------------------- preparing


def _prepared(
    job: EncodeJob, units: Iterable[Unit], pool: ThreadPoolExecutor, begun: dict[Unit, _OpenUnit]
) -> Iterator[tuple[_OpenUnit, Future[_Outcome] | None]]:
    """Samples of all units in order, prepared ahead; None marks a unit's end. Units are entered in `begun`."""
    ahead: deque[tuple[_OpenUnit, Future[_Outcome] | None]] = deque()
    limit = max(2 * job.settings.batch_size // len(job.views), 4 * num_cores())
    shards = {shard.name: shard for shard in job.source.shards()} if isinstance(job.source, StreamSource) else {}
    for unit in units:
        at_work = begun[unit] = _OpenUnit(unit, UnitWriter(unit, job.plan.settings.stream))
        for position, fetch in _samples(job, unit, shards):
            ahead.append((at_work, pool.submit(retried, functools.partial(_prepare, job, position, fetch), f"sample {position}")))
            while len(ahead) > limit:
                yield ahead.popleft()
        ahead.append((at_work, None))
    yield from ahead


def _samples(job: EncodeJob, unit: Unit, shards: Mapping[str, Shard]) -> Iterator[tuple[int, Callable[[], Sample]]]:
    """Position in the plan (streams: in the unit) and fetcher of each sample of a unit; a stream's are read here, in order."""
    keys = job.plan.keys(unit.start, unit.stop)
    if isinstance(job.source, StreamSource):
        position = 0
        for name in keys:
            for sample in read_shard(job.source, shards[name]):
                yield position, functools.partial(give, sample)
                position += 1
        return
    for position, key in zip(range(unit.start, unit.stop), keys, strict=True):
        yield position, functools.partial(_fetch, job, position, key)


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


def _fetch(job: EncodeJob, position: int, key: str) -> Sample:
    """The sample that a row of the plan means.

    Raises:
        SourceError: the source has another one in its place.
    """
    assert job.places is not None
    assert isinstance(job.source, Source)
    sample = job.source[int(job.places[position])]
    if escape(sample.key) != key:
        raise SourceError(f"the source changed while it was read: {sample.key!r} is where {key!r} was; run again")
    return sample


def _prepare(job: EncodeJob, position: int, fetch: Callable[[], Sample]) -> _Outcome:
    """All views of one sample, or why there are none."""
    try:
        sample = fetch()
    except SampleError as error:
        return _Outcome([_label(job, position, None, name, None) for name in job.views], [], str(error))
    if isinstance(sample.media, os.PathLike) and os.path.getsize(sample.media) <= HELD_BYTES:
        sample = replace(sample, media=sample.read())  # read once: what is hashed is what is decoded
    content = sample.content()
    try:
        views = list(job.modality.prepare(sample))
        _check_views(job, views)
    except SampleError as error:
        return _Outcome([_label(job, position, sample, name, content) for name in job.views], [], str(error))
    return _Outcome([_label(job, position, sample, view.view, content, view.geometry) for view in views], views)


def _label(
    job: EncodeJob, position: int, sample: Sample | None, view: str, content: str | None, geometry: Mapping[str, Any] | None = None
) -> RowLabel:
    number = list(job.views).index(view)
    if sample is None:
        return RowLabel(position, view, number, content, geometry)
    if not job.plan.settings.stream:
        return RowLabel(position, view, number, content, geometry, stamp=sample.stamp)
    return RowLabel(position, view, number, content, geometry, sample.key, sample.stamp, sample.attributes)


def _check_views(job: EncodeJob, views: Sequence[Prepared]) -> None:
    names = [view.view for view in views]
    if names != list(job.views):
        raise PluginError(f"the modality gave the views {names}, expected {list(job.views)}")


# ---------------------------------------------------------------- encoding


class _Loop:
    """The loop of one worker: batches to the encoder, results to the writing thread."""

    def __init__(self, job: EncodeJob, device: str, writing: ThreadPoolExecutor, claims: Claims) -> None:
        self.job, self.device, self.writing, self.claims = job, device, writing, claims
        self._encoder: Encoder | None = None
        self._pool = BufferPool(pinned=device.startswith("cuda"))
        self._writes: deque[Future[None]] = deque()
        self._commits: deque[Future[UnitResult]] = deque()

    def run(self, samples: Iterator[tuple[_OpenUnit, Future[_Outcome] | None]]) -> Iterator[UnitResult]:
        total = sum(unit.stop - unit.start for unit in self.job.plan.units() if not self.job.folder.exists(unit_name(unit.name)))
        with Progress(total, "shards" if self.job.plan.settings.stream else "samples", self.job.show_progress) as progress:
            while True:
                begun = time.monotonic()
                entry = next(samples, None)
                if entry is None:
                    break
                at_work, future = entry
                if future is None:
                    self._finish(at_work)
                    progress.update(int(self.job.plan.settings.stream), 0.0)
                else:
                    outcome = future.result()
                    waited = time.monotonic() - begun
                    at_work.waited_seconds += waited
                    self._take(at_work, outcome)
                    progress.update(int(not self.job.plan.settings.stream), waited)
                while self._commits and self._commits[0].done():
                    yield self._commits.popleft().result()
            while self._commits:
                yield self._commits.popleft().result()

    def _take(self, at_work: _OpenUnit, outcome: _Outcome) -> None:
        if outcome.reason is not None:
            if self.job.on_bad_sample == "fail":
                name = outcome.labels[0].key or self.job.plan.keys(outcome.labels[0].position, outcome.labels[0].position + 1)[0]
                raise SourceError(f"sample {name!r}: {outcome.reason}; with on_bad_sample: skip it would be recorded and left out")
            for label in outcome.labels:
                self._write(at_work, at_work.writer.skip, label, outcome.reason)
        for label, view in zip(outcome.labels, outcome.views, strict=False):
            filling = at_work.filling.setdefault(view.bucket, [])
            filling.append((label, view))
            if len(filling) == self.job.settings.batch_size:
                self._encode(at_work, view.bucket)

    def _finish(self, at_work: _OpenUnit) -> None:
        for bucket in sorted(at_work.filling):
            if at_work.filling[bucket]:
                self._encode(at_work, bucket)
        self._commits.append(self.writing.submit(self._commit, at_work))

    def _encode(self, at_work: _OpenUnit, bucket: str) -> None:
        rows = at_work.filling.pop(bucket)
        labels = [label for label, _ in rows]
        batch = stack([view.tensor for _, view in rows], self.device, self._pool)
        encoder = self._opened()
        latents = encoder.encode(batch)
        check_latents(latents, encoder.layout, batch)
        draws = [draw_seed(self.job, label) for label in labels] if self.job.store == "sample" else None
        tensors, wait = to_host(stored_tensors(latents, self.job.store, getattr(torch, self.job.dtype), draws))
        self._write(at_work, self._add, at_work.writer, bucket, labels, tensors, wait)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self.job.open_encoder(self.device)
            if self.job.settings.compile and hasattr(self._encoder, "compile"):
                self._encoder.compile()
        return self._encoder

    def _write(self, at_work: _OpenUnit, function: Callable[..., None], *args: Any) -> None:
        write = self.writing.submit(function, *args)
        at_work.writes.append(write)
        self._writes.append(write)
        while self._writes and (len(self._writes) > MAX_WRITES_WAITING or self._writes[0].done()):
            self._writes.popleft().result()

    def _add(
        self, writer: UnitWriter, bucket: str, labels: Sequence[RowLabel], tensors: Mapping[str, Tensor], wait: Callable[[], None]
    ) -> None:
        """On the writing thread."""
        wait()
        num_skipped = writer.num_skipped
        writer.add(bucket, labels, tensors)
        if self.job.on_bad_sample == "fail" and writer.num_skipped > num_skipped:
            raise SourceError(f"{NOT_FINITE}; with on_bad_sample: skip those samples would be recorded and left out")

    def _commit(self, at_work: _OpenUnit) -> UnitResult:
        """On the writing thread, after all of the unit's rows."""
        for write in at_work.writes:
            write.result()
        settings = self.job.settings
        recorded = {"batch_size": settings.batch_size, "threads": settings.threads, "compile": settings.compile}
        writer = at_work.writer
        writer.commit(self.job.folder, recorded, self.job.plan.settings.fingerprint)
        self.claims.drop(at_work.unit.name)
        seconds = time.monotonic() - at_work.started
        return UnitResult(at_work.unit, writer.num_ok, writer.num_skipped, seconds, at_work.waited_seconds)


def draw_seed(job: EncodeJob, label: RowLabel) -> int:
    """Seed of one row's draw: the same whatever batch the row is in."""
    key = label.key or job.plan.keys(label.position, label.position + 1)[0]
    digest = hashlib.blake2b(f"{job.seed}\0{key}\0{label.view}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
