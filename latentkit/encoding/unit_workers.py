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
from latentkit.encoding.others_progress import OthersProgress
from latentkit.encoding.write_stage import OpenUnit, WriteStage
from latentkit.preparing.sample_preparer import PreparedSample, Preparer, Row
from latentkit.preparing.units_ahead import UnitsAhead
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.device import make_current, pins_memory
from latentkit.runtime.numerics import fixed_numerics, frozen_garbage, many_graphs
from latentkit.runtime.progress import Progress
from latentkit.runtime.transfer import WaitClock


def make_worker(job: EncodeJob, device: str) -> Worker:
    """Return a worker for one device, picklable where the job is."""
    return functools.partial(_work, (job,), device)


def make_shared_worker(jobs: Sequence[EncodeJob], device: str) -> Worker:
    """Return a worker that prepares each sample once, by the first job's source and modality, and
    encodes it for every job that lacks its unit.

    Its units are the first job's; the jobs' plans have the same samples in the same units. It gives
    a `JobResult` per unit and job.
    """
    return functools.partial(_work, tuple(jobs), device)


def _work(jobs: Sequence[EncodeJob], device: str, units: Iterator[Unit]) -> Iterator[UnitResult]:
    """Give the results of all units, as they are committed."""
    make_current(device)  # before anything is pinned, which else opens the first device too
    clock = WaitClock(device)
    with ExitStack() as opened:
        ahead, lines = _open_stages(opened, jobs, device, units, clock)
        lead = max(lines, key=lambda line: line.others.num_left)
        counted = "shards" if lead.job.plan.settings.stream else "samples"
        progress = opened.enter_context(
            Progress(lead.others.num_left, counted, lead.job.show_progress)
        )
        for claimed, outcomes, waited in _timed(ahead):
            for line in [lines[place] for place in claimed.takers]:
                unit = line.write.open(line.job.own(claimed.unit))
                unit.waited_seconds += 0.0 if clock.has_events else waited
                for rows in line.batches(unit, outcomes):
                    line.write.add(unit, line.encode.encode(rows))
                if outcomes is None:
                    line.commit.put(unit)
            num_done = _count(claimed.unit, outcomes, counted)
            progress.update(num_done, clock.newly_waited(waited))
            lead.others.look(progress, lead.write.run)
            for line in lines:
                yield from line.results(NUM_COMMITS)
        for line in lines:
            yield from line.results(0)


def _open_stages(
    opened: ExitStack,
    jobs: Sequence[EncodeJob],
    device: str,
    units: Iterator[Unit],
    clock: WaitClock,
) -> tuple[UnitsAhead[ClaimedUnit], list[_Line]]:
    """Open what claims and prepares, and the stages of each job; closed in the opposite order."""
    first, pool = jobs[0], BufferPool(pinned=pins_memory(device))
    opened.enter_context(fixed_numerics(first.settings.threads, device))
    opened.enter_context(many_graphs(any(job.settings.compile for job in jobs)))
    opened.enter_context(frozen_garbage())
    claim = opened.enter_context(ClaimStage(jobs, units))
    lines = []
    for place, job in enumerate(jobs):
        encode = EncodeStage(job, device, pool, clock)
        write = opened.enter_context(WriteStage(job))
        commit = CommitStage(job, place, claim.claims[place], encode.compiles)
        lines.append(
            _Line(job, encode, write, opened.enter_context(commit), OthersProgress(job))
        )
    preparer = Preparer(first.source, first.modality, first.views)
    batch_size = max(job.settings.batch_size for job in jobs)
    ahead = opened.enter_context(UnitsAhead(preparer, claim.claimed(), batch_size, pool))
    # A run that ends by an error doesn't wait for a folder that can't be reached.
    opened.push(functools.partial(_stop_waiting, jobs))
    return ahead, lines


def _stop_waiting(jobs: Sequence[EncodeJob], kind: type[BaseException] | None, *_: object) -> None:
    for job in jobs if kind else ():
        job.folder.stop_waiting()


def _timed(
    ahead: UnitsAhead[ClaimedUnit],
) -> Iterator[tuple[ClaimedUnit, list[PreparedSample] | None, float]]:
    """Iterate over what was prepared, each with the seconds that it was waited for."""
    groups, begun = iter(ahead), time.monotonic()
    for claimed, outcomes in groups:
        yield claimed, outcomes, time.monotonic() - begun
        begun = time.monotonic()


def _count(unit: Unit, outcomes: Sequence[PreparedSample] | None, counted: str) -> int:
    """How many more are done: samples, or at the end of a unit its shards."""
    if counted == "shards":
        return unit.stop - unit.start if outcomes is None else 0
    return len(outcomes or ())


@dataclass(frozen=True)
class _Line:
    """The stages that each job has of its own, and what others have done of it."""

    job: EncodeJob
    encode: EncodeStage
    write: WriteStage
    commit: CommitStage
    others: OthersProgress

    def batches(
        self, unit: OpenUnit, outcomes: Sequence[PreparedSample] | None
    ) -> Iterator[list[Row]]:
        """Give the batches that these samples fill, or at the unit's end those that are left."""
        for outcome in outcomes or ():
            self.write.skip(unit, outcome)
            yield from unit.filling.add(outcome.rows)
        if outcomes is None:
            yield from unit.filling.rest()

    def results(self, most_waiting: int) -> Iterator[JobResult]:
        """Give those of finished commits; wait while more than so many are under way."""
        for result in self.commit.results(most_waiting):
            self.write.forget(result.unit)
            self.others.own.add(result.unit.name)
            yield result
