"""First stage: units that are left and that nobody else encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from latentkit.contracts import Unit
from latentkit.encoding.encode_job import EncodeJob
from latentkit.preparing.sample_preparer import Task
from latentkit.preparing.unit_samples import list_tasks
from latentkit.store.claims import Claims
from latentkit.store.format import unit_name


@dataclass(frozen=True)
class ClaimedUnit:
    """A unit of the first job's plan, and the places of the jobs that claimed theirs."""

    unit: Unit
    takers: tuple[int, ...]


class ClaimStage:
    """Claims units for each of the jobs, whose plans have the same samples in the same units; to be
    used as a context, within which the claims are kept alive.

    Args:
        jobs: of one worker.
        units: of the first job, asked for one by one.
    """

    def __init__(self, jobs: Sequence[EncodeJob], units: Iterator[Unit]) -> None:
        self._jobs, self._units = jobs, units
        self.claims = [Claims(job.folder) for job in jobs]
        """Of each job."""

    def __enter__(self) -> Self:
        with ExitStack() as beating:
            for claims in self.claims:
                beating.enter_context(claims.heartbeat())
            self._beating = beating.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._beating.close()

    def claimed(self) -> Iterator[tuple[ClaimedUnit, Iterator[Task]]]:
        """Iterate over claimed units with their samples; a unit is claimed when it is asked for.

        Raises:
            SourceError: a shard is gone, or can't be reached.
        """
        first = self._jobs[0]
        for unit in self._units:
            places = range(len(self._jobs))
            takers = tuple(place for place in places if self._claim(place, unit))
            if takers:
                tasks = list_tasks(first.source, first.plan, first.places, unit)
                yield ClaimedUnit(unit, takers), tasks

    def _claim(self, place: int, unit: Unit) -> bool:
        """Try to claim the unit for the job; True on success."""
        job, claims = self._jobs[place], self.claims[place]
        name = job.own(unit).name
        if job.folder.exists(unit_name(name)) or not claims.take(name):
            return False
        if job.folder.exists(unit_name(name)):
            claims.drop(name)
            return False
        return True
