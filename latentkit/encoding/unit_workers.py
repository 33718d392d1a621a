"""From units to committed files: samples are prepared ahead, encoded here, written by a second
thread and committed by a third.

Everything is bounded, and the head of the next unit is prepared while the tail of the last one is
encoded and written. The order of rows and the batches depend on the plan alone."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import Encoder, Modality, Source, StreamSource, Unit, UnitResult, Worker
from latentkit.encoding.batch_encoder import BatchEncoder
from latentkit.encoding.batch_tensors import axis_of, stored_tensors
from latentkit.errors import SourceError
from latentkit.preparing.look_ahead import LookAhead, gather
from latentkit.preparing.sample_preparer import GONE, PreparedSample, Preparer, Row
from latentkit.preparing.unit_samples import list_tasks
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.device import can_compile, has_float64, make_current, pins_memory, say_once
from latentkit.runtime.masks import MASK
from latentkit.runtime.numerics import fixed_numerics, frozen_garbage, many_graphs
from latentkit.runtime.progress import Progress
from latentkit.runtime.transfer import Transfer, WaitClock
from latentkit.store.claims import Claims
from latentkit.store.folder import Folder
from latentkit.store.index import committed
from latentkit.store.plan import Plan, PlanSettings
from latentkit.store.statistics import measure_on_device
from latentkit.store.writer import LATENTS, NOT_FINITE, RowLabel, UnitWriter, unit_name

MAX_WRITES_WAITING = 8
NUM_COMMITS = 4
"""Units that are hashed and written side by side: one thread hashes 1 to 2 GB a second."""
FILLING_BYTES = 1 << 30
"""Of a unit's rows that wait for others of their bucket; a full batch, and as much of other
buckets, always may."""
OTHERS_SECONDS = 10.0
"""How often what other processes committed is counted, for the live line."""


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
        on_overflow: "skip", or "retry-fp32": rows that are not finite are encoded again by
            `open_float32`.
        open_float32: device to the same encoder computing in float32.
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
    on_overflow: str = "skip"
    open_float32: Callable[[str], Encoder] | None = None


@dataclass(frozen=True)
class JobResult(UnitResult):
    """What became of one unit of the job with this place among a worker's jobs."""

    job: int = 0


def make_worker(job: EncodeJob, device: str) -> Worker:
    """A worker for one device, picklable where the job is."""
    return functools.partial(_work, (job,), device)


def make_shared_worker(jobs: Sequence[EncodeJob], device: str) -> Worker:
    """A worker that prepares each sample once, by the first job's source and modality, and encodes
    it for every job that lacks its unit.

    Its units are the first job's; the jobs' plans have the same samples in the same units. It gives
    a `JobResult` per unit and job."""
    return functools.partial(_work, tuple(jobs), device)


@dataclass
class _OpenUnit:
    """A unit at work: its writer, the batches that are filling up, all their bytes and those of its
    largest row, and its times.
    """

    unit: Unit
    writer: UnitWriter
    filling: dict[str, list[Row]] = field(default_factory=dict)
    filling_bytes: int = 0
    largest_bytes: int = 0
    writes: list[Future[None]] = field(default_factory=list)
    num_slots: int = 0
    started: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0


def _work(jobs: Sequence[EncodeJob], device: str, units: Iterator[Unit]) -> Iterator[UnitResult]:
    make_current(device)  # before anything is pinned, which else opens the first device too
    first, pool, clock = jobs[0], BufferPool(pinned=pins_memory(device)), WaitClock(device)
    compiled, batch_size = any(job.settings.compile for job in jobs), max(
        job.settings.batch_size for job in jobs
    )
    with ExitStack() as opened:
        for context in (
            fixed_numerics(first.settings.threads, device),
            many_graphs(compiled),
            frozen_garbage(),
        ):
            opened.enter_context(context)
        claims = [opened.enter_context(_beating(job.folder)) for job in jobs]
        preparer = Preparer(first.source, first.modality, first.views)
        takers: dict[Unit, list[_Loop]] = {}
        loops = [
            opened.enter_context(_Loop(job, place, device, claims[place], pool, clock))
            for place, job in enumerate(jobs)
        ]
        claimed = (
            (unit, list_tasks(first.source, first.plan, first.places, unit))
            for unit in _claimed(loops, units, takers)
        )
        ahead = opened.enter_context(LookAhead(preparer, claimed, batch_size, pool))
        # A run that ends by an error doesn't wait for a folder that can't be reached.
        opened.push(functools.partial(_stop_waiting, jobs))
        yield from _encode_all(loops, ahead, takers, clock)


def _stop_waiting(jobs: Sequence[EncodeJob], kind: type[BaseException] | None, *_: object) -> None:
    for job in jobs if kind else ():
        job.folder.stop_waiting()


@contextmanager
def _beating(folder: Folder) -> Iterator[Claims]:
    claims = Claims(folder)
    with claims.heartbeat():
        yield claims


def _claimed(
    loops: Sequence[_Loop], units: Iterator[Unit], takers: dict[Unit, list[_Loop]]
) -> Iterator[Unit]:
    """The units that some of the jobs lack and nobody else is at work on; `takers` says which jobs.
    """
    for unit in units:
        wanting = [loop for loop in loops if loop.claim(unit)]
        if wanting:
            takers[unit] = wanting
            yield unit


def _encode_all(
    loops: Sequence[_Loop],
    ahead: Iterable[tuple[Unit, list[PreparedSample] | None]],
    takers: dict[Unit, list[_Loop]],
    clock: WaitClock,
) -> Iterator[UnitResult]:
    """Results of all units, as they are committed."""
    lead, groups = max(loops, key=lambda loop: loop.others.num_left), iter(ahead)
    is_stream = lead.job.plan.settings.stream
    with Progress(
        lead.others.num_left, "shards" if is_stream else "samples", lead.job.show_progress
    ) as progress:
        while True:
            begun = time.monotonic()
            unit, outcomes = next(groups, (None, None))
            if unit is None:
                break
            waited = time.monotonic() - begun
            for loop in takers[unit]:
                loop.take(unit, outcomes, waited)
            waited = clock.newly_waited(waited)
            if is_stream:
                progress.update(unit.stop - unit.start if outcomes is None else 0, waited)
            else:
                progress.update(len(outcomes or ()), waited)
            lead.look(progress)
            for loop in loops:
                yield from loop.results(NUM_COMMITS)
        for loop in loops:
            yield from loop.results(0)


class _Loop:
    """What a worker does for one job: batches to the encoder, latents to the writing thread, units
    to the committing thread.
    """

    def __init__(
        self,
        job: EncodeJob,
        place: int,
        device: str,
        claims: Claims,
        pool: BufferPool,
        clock: WaitClock,
    ) -> None:
        self.job, self.device, self.claims = job, device, claims
        float32 = (
            functools.partial(job.open_float32, device)
            if job.on_overflow == "retry-fp32" and job.open_float32
            else None
        )
        open_encoder = functools.partial(job.open_encoder, device)
        self._compiles = job.settings.compile and can_compile(device)
        if job.settings.compile and not self._compiles:
            say_once(f"{device}: torch can't compile for it; encoding without compile: true")
        self._encoder = BatchEncoder(open_encoder, job.settings.batch_size, self._compiles, float32)
        self._place, self._pool, self._transfer = place, pool, Transfer(device)
        self._writing, self._committing = ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(
            NUM_COMMITS, "commit"
        )
        self._clock = clock
        self._begun: dict[Unit, _OpenUnit] = {}
        self._writes: deque[Future[None]] = deque()
        self._commits: deque[Future[JobResult]] = deque()
        self.others = _Others(job)

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        """Units whose last batch was encoded are committed, the others are dropped."""
        for thread in (self._writing, self._committing):
            thread.shutdown(wait=True)
        for at_work in self._begun.values():
            at_work.writer.close()

    def claim(self, unit: Unit) -> bool:
        """Whether the unit of this number is now ours to do."""
        name = self._own(unit).name
        if self.job.folder.exists(unit_name(name)) or not self.claims.take(name):
            return False
        if self.job.folder.exists(unit_name(name)):
            self.claims.drop(name)
            return False
        return True

    def take(self, unit: Unit, outcomes: Sequence[PreparedSample] | None, waited: float) -> None:
        """Samples of the unit; None at its end. `waited` are seconds."""
        own = self._own(unit)
        at_work = self._begun.get(own) or self._begin(own)
        at_work.waited_seconds += 0.0 if self._clock.has_events else waited
        for outcome in outcomes or ():
            self._take(at_work, outcome)
        if outcomes is None:
            self._finish(at_work)

    def results(self, most_waiting: int) -> Iterator[JobResult]:
        """Those of finished commits; waits while more than so many are under way."""
        while self._commits and (len(self._commits) > most_waiting or self._commits[0].done()):
            result = self._commits.popleft().result()
            del self._begun[result.unit]
            self.others.own.add(result.unit.name)
            yield result

    def look(self, progress: Progress) -> None:
        """Have what others committed counted for the live line, now and then, on another thread."""
        self.others.look(progress, self._writing)

    def _own(self, unit: Unit) -> Unit:
        """The unit of the same samples in this job's plan."""
        return replace(unit, plan=self.job.plan.number)

    def _begin(self, unit: Unit) -> _OpenUnit:
        quantize = {"quantize": True} if self.job.dtype == "int8" else {}
        at_work = self._begun[unit] = _OpenUnit(
            unit, UnitWriter(unit, self.job.plan.settings.stream, **quantize)
        )
        return at_work

    # ------------------------------------------------------------ batches

    def _take(self, at_work: _OpenUnit, outcome: PreparedSample) -> None:
        if outcome.skipped:
            first = outcome.skipped[0]
            if self.job.on_bad_sample == "fail" and outcome.reason != GONE:
                said = f"sample {key_of(self.job, first)!r}: {outcome.reason}"
                raise SourceError(
                    f"{said}; with on_bad_sample: skip it would be recorded and left out"
                )
            for label in outcome.skipped:
                self._write(at_work, at_work.writer.skip, label, outcome.reason)
        for row in outcome.rows:
            filling = at_work.filling.setdefault(row.view.bucket, [])
            filling.append(row)
            at_work.filling_bytes += row.num_bytes
            at_work.largest_bytes = max(at_work.largest_bytes, row.num_bytes)
            if len(filling) == self.job.settings.batch_size:
                self._encode(at_work, row.view.bucket)
            # Decided by the order of the rows alone, as all batches are.
            while at_work.filling_bytes > max(
                FILLING_BYTES, 2 * self.job.settings.batch_size * at_work.largest_bytes
            ):
                self._encode(
                    at_work,
                    max(
                        at_work.filling,
                        key=lambda bucket: sum(row.num_bytes for row in at_work.filling[bucket]),
                    ),
                )

    def _finish(self, at_work: _OpenUnit) -> None:
        for bucket in sorted(at_work.filling):
            self._encode(at_work, bucket)
        self._commits.append(self._committing.submit(self._commit, at_work))

    def _encode(self, at_work: _OpenUnit, bucket: str) -> None:
        rows = at_work.filling.pop(bucket)
        at_work.filling_bytes -= sum(row.num_bytes for row in rows)
        labels = [row.label for row in rows]
        batch = gather(rows, self._pool)
        copied = self._transfer.to_device(batch)
        draws = (
            [draw_seed(self.job, label) for label in labels] if self.job.store == "sample" else None
        )
        dtype = torch.float32 if self.job.dtype == "int8" else getattr(torch, self.job.dtype)
        with self._clock.computing() as idle_seconds:
            latents = self._encoder.encode(copied, bucket, key_of(self.job, labels[0]))
            layout = self._encoder.layout
            ragged_axis = axis_of(layout, layout.ragged_axis) if layout.ragged_axis else None
            stored = stored_tensors(latents, self.job.store, dtype, draws, ragged_axis)
            measured = self._measure(stored)
            tensors, wait = self._transfer.to_host({**stored, **measured})
        found = {name: tensors.pop(name) for name in measured}
        at_work.num_slots += self.job.settings.batch_size
        # A batch that is copied to a GPU goes along: its memory must not be filled again before the
        # copy is done.
        add = functools.partial(
            at_work.writer.add, bucket, labels, tensors, ragged_axis, found or None
        )
        self._write(
            at_work,
            self._add,
            at_work,
            add,
            wait,
            idle_seconds,
            batch if self._transfer.runs_beside else None,
        )

    def _measure(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return statistics of plain rows, taken on the device where there is one with float64;
        else none, and the writer takes them.
        """
        names = [name for name in LATENTS if name in stored and stored[name].device.type != "cpu"]
        if not names or MASK in stored or self.job.dtype == "int8" or not has_float64(self.device):
            return {}
        return measure_on_device(stored, names[0])

    def _write(self, at_work: _OpenUnit, function: Callable[..., None], *args: Any) -> None:
        write = self._writing.submit(function, *args)
        at_work.writes.append(write)
        self._writes.append(write)
        while self._writes and (len(self._writes) > MAX_WRITES_WAITING or self._writes[0].done()):
            self._writes.popleft().result()

    # ------------------------------------------------------------ on the other threads

    def _add(
        self,
        at_work: _OpenUnit,
        add: Callable[[], None],
        wait: Callable[[], None],
        idle_seconds: Callable[[], float],
        _: Any,
    ) -> None:
        wait()
        at_work.waited_seconds += idle_seconds()
        writer, num_skipped = at_work.writer, at_work.writer.num_skipped
        add()
        if self.job.on_bad_sample == "fail" and writer.num_skipped > num_skipped:
            raise SourceError(
                f"{NOT_FINITE}; with on_bad_sample: skip those samples would be recorded and"
                " left out"
            )

    def _commit(self, at_work: _OpenUnit) -> JobResult:
        """After all of the unit's rows; meanwhile those of the next one are written."""
        for write in at_work.writes:
            write.result()
        settings = self.job.settings
        recorded = {
            "batch_size": settings.batch_size,
            "threads": settings.threads,
            "compile": self._compiles,
        }
        writer = at_work.writer
        writer.commit(self.job.folder, recorded, self.job.plan.settings.fingerprint)
        self.claims.drop(at_work.unit.name)
        seconds = time.monotonic() - at_work.started
        waited, place = at_work.waited_seconds, self._place
        return JobResult(
            at_work.unit,
            writer.num_ok,
            writer.num_skipped,
            seconds,
            waited,
            at_work.num_slots,
            job=place,
        )


class _Others:
    """What other processes have committed since this one began; nobody looks where no line is
    printed.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._folder = job.folder
        units = job.plan.units() if job.show_progress else []
        done = committed(job.folder) if units else set()
        self._sizes = {unit.name: unit.stop - unit.start for unit in units if unit.name not in done}
        self.num_left = sum(self._sizes.values())
        self.own: set[str] = set()
        self._looked = time.monotonic()

    def look(self, progress: Progress, thread: ThreadPoolExecutor) -> None:
        """Have it counted for the live line, now and then, on another thread."""
        if progress.shown and time.monotonic() - self._looked > OTHERS_SECONDS:
            self._looked = time.monotonic()
            thread.submit(self._count, progress)

    def _count(self, progress: Progress) -> None:
        progress.others = sum(
            self._sizes.get(name, 0) for name in committed(self._folder) - self.own
        )


def key_of(job: EncodeJob, label: RowLabel) -> str:
    """Return the key of a row's sample."""
    return label.key or job.plan.keys(label.position, label.position + 1)[0]


def draw_seed(job: EncodeJob, label: RowLabel) -> int:
    """Seed of one row's draw: the same whatever batch the row is in."""
    digest = hashlib.blake2b(
        f"{job.seed}\0{key_of(job, label)}\0{label.view}".encode(), digest_size=8
    ).digest()
    return int.from_bytes(digest, "little") >> 1
