"""First stage: claims units that are not encoded yet and that no other process encodes."""

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
    """A unit of the first job's plan, and the indices of the jobs that claimed the same samples."""

    unit: Unit
    takers: tuple[int, ...]


class ClaimStage:
    """Claims units for each of the jobs, whose plans have the same samples in the same units. Use
    it as a context manager, which keeps the claims alive.

    Args:
        jobs: jobs of one worker.
        units: units of the first job, taken one at a time.
    """

    def __init__(self, jobs: Sequence[EncodeJob], units: Iterator[Unit]) -> None:
        self._jobs, self._units = jobs, units
        self.claims = [Claims(job.folder) for job in jobs]
        """One for each job."""

    def __enter__(self) -> Self:
        with ExitStack() as beating:
            for claims in self.claims:
                beating.enter_context(claims.heartbeat())
            self._beating = beating.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._beating.close()

    def claim_units(self) -> Iterator[tuple[ClaimedUnit, Iterator[Task]]]:
        """Yield claimed units with their samples. A unit is claimed when it is requested.

        Raises:
            SourceError: a shard is missing or can't be reached.
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
