"""Last stage: commits complete units, several at a time."""

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
"""Units that are hashed and written at the same time. One thread hashes 1 to 2 GB per second."""


class CommitStage:
    """Commits the units of one job. Use it as a context manager, which waits for unfinished commits
    at its end.

    Args:
        job: the job, with index `place` among a worker's jobs.
        claims: claims on the units.
        compiles: whether its full batches run compiled; this is recorded.
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
        """Commit a unit in a thread once all its rows are written, while the next unit's rows are
        written.
        """
        self._commits.append(self._threads.submit(self._commit, unit))

    def results(self, most_waiting: int) -> Iterator[JobResult]:
        """Yield results of finished commits; wait while more than `most_waiting` are unfinished."""
        while self._commits and (len(self._commits) > most_waiting or self._commits[0].done()):
            yield self._commits.popleft().result()

    def _commit(self, unit: OpenUnit) -> JobResult:
        """Commit a unit. Runs in a committing thread."""
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
