"""Counts what other processes have done of the same plan, for the progress line."""

from __future__ import annotations

import time
from collections.abc import Callable

from latentkit.encoding.encode_job import EncodeJob
from latentkit.runtime.progress import Progress
from latentkit.store.index import committed_units

OTHERS_SECONDS = 10.0
"""Interval at which other processes' commits are counted."""


class OthersProgress:
    """Counts what other processes have committed since this one started, unless no progress
    line is printed.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._folder = job.folder
        units = job.plan.units() if job.show_progress else []
        done = committed_units(job.folder) if units else set()
        self._sizes = {unit.name: unit.stop - unit.start for unit in units if unit.name not in done}
        self.num_left = sum(self._sizes.values())
        self.own: set[str] = set()
        """Names of the units that this process committed."""
        self._looked = time.monotonic()

    def update_if_due(
        self, progress: Progress, run: Callable[[Callable[[Progress], None], Progress], None]
    ) -> None:
        """If the interval is over, count again for the progress line, in another thread through
        `run`.
        """
        if progress.shown and time.monotonic() - self._looked > OTHERS_SECONDS:
            self._looked = time.monotonic()
            run(self._count, progress)

    def _count(self, progress: Progress) -> None:
        """Count the samples in units that other processes committed."""
        progress.others = sum(
            self._sizes.get(name, 0) for name in committed_units(self._folder) - self.own
        )
