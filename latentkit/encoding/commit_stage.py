"""Last stage: whole units become files, several side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from latentkit.encoding.encode_job import EncodeJob, JobResult
from latentkit.encoding.write_stage import OpenUnit
from latentkit.store.claims import Claims

NUM_COMMITS = 4
"""Units that are hashed and written side by side: one thread hashes 1 to 2 GB a second."""


class CommitStage:
    """Commits the units of one job; to be used as a context, whose end waits for those under way.

    Args:
        job: with this place among a worker's jobs.
        claims: that the units are held by.
        compiles: whether its full batches run compiled, which is recorded.
    """

    def __init__(self, job: EncodeJob, place: int, claims: Claims, compiles: bool) -> None:
        self._job, self._place, self._claims = job, place, claims
        self._recorded: Mapping[str, Any] = {
            "batch_size": job.settings.batch_size,
            "threads": job.settings.threads,
            "compile": compiles,
        }
        self._threads = ThreadPoolExecutor(NUM_COMMITS, "commit")
        self._commits: deque[Future[JobResult]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True)

    def put(self, unit: OpenUnit) -> None:
        """Have a unit committed once its rows are written, beside those of the next."""
        self._commits.append(self._threads.submit(self._commit, unit))

    def results(self, most_waiting: int) -> Iterator[JobResult]:
        """Give those of finished commits; wait while more than so many are under way."""
        while self._commits and (len(self._commits) > most_waiting or self._commits[0].done()):
            yield self._commits.popleft().result()

    def _commit(self, unit: OpenUnit) -> JobResult:
        """Runs on a committing thread."""
        for write in unit.writes:
            write.result()
        writer, fingerprint = unit.writer, self._job.plan.settings.fingerprint
        writer.commit(self._job.folder, self._recorded, fingerprint)
        self._claims.drop(unit.unit.name)
        return JobResult(
            unit.unit,
            writer.num_ok,
            writer.num_skipped,
            time.monotonic() - unit.started,
            unit.waited_seconds,
            unit.num_slots,
            job=self._place,
        )
