"""Fourth stage: passes encoded batches to the writers of units, in a separate thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from latentkit.contracts import Unit
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.encode_stage import EncodedBatch
from latentkit.encoding.filling_batches import FillingBatches
from latentkit.errors import SourceError
from latentkit.preparing.sample_preparer import GONE, PreparedSample
from latentkit.runtime.bad_samples import NOT_FINITE, BadSamplePolicy
from latentkit.store.writer import UnitWriter

MAX_WRITES_WAITING = 8


@dataclass
class OpenUnit:
    """A unit that is being encoded: its writer, its partly filled batches, its unfinished writes,
    and its times.
    """

    unit: Unit
    writer: UnitWriter
    filling: FillingBatches
    writes: list[Future[None]] = field(default_factory=list)
    num_slots: int = 0
    started: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0


class WriteStage:
    """Writes the rows of one job's units, in order. At most `MAX_WRITES_WAITING` batches wait. Use
    it as a context manager, which drops uncommitted units at its end.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._job = job
        self._thread = ThreadPoolExecutor(1, "write")
        self._open: dict[Unit, OpenUnit] = {}
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        for unit in self._open.values():
            unit.writer.close()

    def open(self, unit: Unit) -> OpenUnit:
        """Return the unit, opened with the first call."""
        if unit not in self._open:
            job = self._job
            quantize = {"quantize": True} if job.dtype == "int8" else {}
            writer = UnitWriter(unit, job.plan.settings.stream, **quantize)
            filling = FillingBatches(job.settings.batch_size)
            self._open[unit] = OpenUnit(unit, writer, filling)
        return self._open[unit]

    def close_committed(self, unit: Unit) -> None:
        """Release a unit that was committed."""
        del self._open[unit]

    def skip(self, unit: OpenUnit, outcome: PreparedSample) -> None:
        """Record the views of a sample that are skipped.

        Raises:
            SourceError: on_bad_sample is "fail".
        """
        for label in outcome.skipped:
            if outcome.reason != GONE:
                policy = BadSamplePolicy(self._job.on_bad_sample)
                policy.check_one(self._job.key_of(label), outcome.reason)
            self._put(unit, unit.writer.skip, label, outcome.reason)

    def add(self, unit: OpenUnit, batch: EncodedBatch) -> None:
        """Have a batch written."""
        unit.num_slots += self._job.settings.batch_size
        self._put(unit, self._add, unit, batch)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the writing thread, after what it already has to do."""
        self._thread.submit(function, *args)

    def _put(self, unit: OpenUnit, function: Callable[..., None], *args: Any) -> None:
        """Add work to the writing thread, and wait if too much is waiting."""
        write = self._thread.submit(function, *args)
        unit.writes.append(write)
        self._waiting.append(write)
        while self._waiting and (
            len(self._waiting) > MAX_WRITES_WAITING or self._waiting[0].done()
        ):
            self._waiting.popleft().result()

    def _add(self, unit: OpenUnit, batch: EncodedBatch) -> None:
        """Write a batch. Runs in the writing thread."""
        batch.wait()
        unit.waited_seconds += batch.idle_seconds()
        writer, num_skipped = unit.writer, unit.writer.num_skipped
        writer.add(batch.bucket, batch.labels, batch.tensors, batch.ragged_axis, batch.measured)
        if self._job.on_bad_sample == "fail" and writer.num_skipped > num_skipped:
            raise SourceError(
                f"{NOT_FINITE}. With on_bad_sample: skip these samples are recorded and left out"
            )
