"""From units to committed files, in five stages:

    claim -> prepare -> encode -> write -> commit

| stage   | is            | runs on                      | hands over                           |
|---------|---------------|------------------------------|--------------------------------------|
| claim   | `ClaimStage`  | the feeding thread           | a unit at a time, when there is room |
| prepare | `UnitsAhead`  | a thread or process per core | groups of samples, bounded in bytes  |
| encode  | `EncodeStage` | the thread of the worker     | a batch; at most 8 wait              |
| write   | `WriteStage`  | one thread a job             | whole units; at most 4 wait          |
| commit  | `CommitStage` | four threads a job           | results                              |

The head of the next unit is prepared while the tail of the last one is encoded and written. The
order of rows and the batches depend on the plan alone. A worker with several jobs claims and
prepares for all of them, and has the other stages once for each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.encoding.claim_stage import ClaimedUnit, ClaimStage
from latentkit.encoding.commit_stage import NUM_COMMITS, CommitStage
from latentkit.encoding.encode_job import EncodeJob, JobResult
from latentkit.encoding.encode_stage import EncodeStage
from latentkit.encoding.other_processes import OthersProgress
from latentkit.encoding.write_stage import OpenUnit, WriteStage
from latentkit.preparing.sample_preparer import PreparedSample, Preparer, Row
from latentkit.preparing.units_ahead import UnitsAhead
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.device import make_current, pins_memory
from latentkit.runtime.numerics import allow_many_graphs, fixed_numerics, without_garbage_collection
from latentkit.runtime.progress import Progress
from latentkit.runtime.transfer import WaitClock


def make_worker(job: EncodeJob, device: str) -> Worker:
    """Return a worker for one device. It can be pickled if the job can."""
    return functools.partial(_work, (job,), device)


def make_shared_worker(jobs: Sequence[EncodeJob], device: str) -> Worker:
    """Return a worker that prepares each sample once, with the first job's source and modality, and
    encodes it for every job that lacks its unit.

    It takes units of the first job; the jobs' plans have the same samples in the same units. It
    returns a `JobResult` per unit and job.
    """
    return functools.partial(_work, tuple(jobs), device)


def _work(jobs: Sequence[EncodeJob], device: str, units: Iterator[Unit]) -> Iterator[UnitResult]:
    """Yield the results of all units, as they are committed."""
    make_current(
        device
    )  # before anything is pinned, which would otherwise use the first device too
    clock = WaitClock(device)
    with ExitStack() as opened:
        ahead, all_stages = _open_stages(opened, jobs, device, units, clock)
        slowest = max(all_stages, key=lambda stages: stages.others.num_left)
        counted = "shards" if slowest.job.plan.settings.stream else "samples"
        progress = opened.enter_context(
            Progress(slowest.others.num_left, counted, slowest.job.show_progress)
        )
        for claimed, prepared, waited in _with_wait_seconds(ahead):
            for stages in [all_stages[place] for place in claimed.takers]:
                unit = stages.write.open(stages.job.own(claimed.unit))
                unit.waited_seconds += 0.0 if clock.has_events else waited
                for rows in stages.batches(unit, prepared):
                    stages.write.add(unit, stages.encode.encode(rows))
                if prepared is None:
                    stages.commit.put(unit)
            num_done = _count(claimed.unit, prepared, counted)
            progress.update(num_done, clock.take_waited_seconds(waited))
            slowest.others.update_if_due(progress, slowest.write.run)
            for stages in all_stages:
                yield from stages.results(NUM_COMMITS)
        for stages in all_stages:
            yield from stages.results(0)


def _open_stages(
    opened: ExitStack,
    jobs: Sequence[EncodeJob],
    device: str,
    units: Iterator[Unit],
    clock: WaitClock,
) -> tuple[UnitsAhead[ClaimedUnit], list[_JobStages]]:
    """Open what claims and prepares, and the stages of each job. They are closed in the opposite
    order.
    """
    first, pool = jobs[0], BufferPool(pinned=pins_memory(device))
    opened.enter_context(fixed_numerics(first.settings.threads, device))
    opened.enter_context(allow_many_graphs(any(job.settings.compile for job in jobs)))
    opened.enter_context(without_garbage_collection())
    claim = opened.enter_context(ClaimStage(jobs, units))
    all_stages = []
    for place, job in enumerate(jobs):
        encode = EncodeStage(job, device, pool, clock)
        write = opened.enter_context(WriteStage(job))
        commit = CommitStage(job, place, claim.claims[place], encode.compiles)
        all_stages.append(
            _JobStages(job, encode, write, opened.enter_context(commit), OthersProgress(job))
        )
    preparer = Preparer(first.source, first.modality, first.views)
    batch_size = max(job.settings.batch_size for job in jobs)
    ahead = opened.enter_context(UnitsAhead(preparer, claim.claim_units(), batch_size, pool))
    # A run that ends by an error doesn't wait for a folder that can't be reached.
    opened.push(functools.partial(_stop_waiting, jobs))
    return ahead, all_stages


def _stop_waiting(jobs: Sequence[EncodeJob], kind: type[BaseException] | None, *_: object) -> None:
    for job in jobs if kind else ():
        job.folder.stop_waiting()


def _with_wait_seconds(
    ahead: UnitsAhead[ClaimedUnit],
) -> Iterator[tuple[ClaimedUnit, list[PreparedSample] | None, float]]:
    """Yield prepared samples, each with the seconds that it was waited for."""
    groups, begun = iter(ahead), time.monotonic()
    for claimed, prepared in groups:
        yield claimed, prepared, time.monotonic() - begun
        begun = time.monotonic()


def _count(unit: Unit, prepared: Sequence[PreparedSample] | None, counted: str) -> int:
    """Return how many more are done: samples, or at the end of a unit its shards."""
    if counted == "shards":
        return unit.stop - unit.start if prepared is None else 0
    return len(prepared or ())


@dataclass(frozen=True)
class _JobStages:
    """The stages of one job, and what other processes have done of it."""

    job: EncodeJob
    encode: EncodeStage
    write: WriteStage
    commit: CommitStage
    others: OthersProgress

    def batches(
        self, unit: OpenUnit, prepared: Sequence[PreparedSample] | None
    ) -> Iterator[list[Row]]:
        """Yield the batches that these samples fill, or at the unit's end those that are left."""
        for sample in prepared or ():
            self.write.skip(unit, sample)
            yield from unit.filling.add(sample.rows)
        if prepared is None:
            yield from unit.filling.rest()

    def results(self, most_waiting: int) -> Iterator[JobResult]:
        """Yield results of finished commits; wait while more than `most_waiting` are unfinished."""
        for result in self.commit.results(most_waiting):
            self.write.close_committed(result.unit)
            self.others.own.add(result.unit.name)
            yield result
