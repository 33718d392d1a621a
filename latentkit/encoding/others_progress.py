"""What other processes do of the same plan, for the live line."""

from __future__ import annotations

import time
from collections.abc import Callable

from latentkit.encoding.encode_job import EncodeJob
from latentkit.runtime.progress import Progress
from latentkit.store.index import committed_units

OTHERS_SECONDS = 10.0
"""How often what other processes committed is counted."""


class OthersProgress:
    """What other processes have committed since this one began; nobody looks where no line is
    printed.
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

    def look(
        self, progress: Progress, run: Callable[[Callable[[Progress], None], Progress], None]
    ) -> None:
        """Have it counted for the live line, now and then, on another thread, as `run` does."""
        if progress.shown and time.monotonic() - self._looked > OTHERS_SECONDS:
            self._looked = time.monotonic()
            run(self._count, progress)

    def _count(self, progress: Progress) -> None:
        progress.others = sum(
            self._sizes.get(name, 0) for name in committed_units(self._folder) - self.own
        )
