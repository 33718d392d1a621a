"""Executor `local`: this machine, a process for each of its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.executors.processes import WorkerProcesses
from latentkit.runtime.cores import shared_cores


class LocalExecutor:
    """Runs units on devices of this machine: on the first in this process, on others in one each.

    Args:
        device: first device, such as "cuda:0" or "cpu".
        others: further devices.
    """

    def __init__(self, device: str, *others: str) -> None:
        self.device = device
        self.others = others
        self.num_processes = 1 + len(others)

    def run(
        self, units: Sequence[Unit], make_worker: Callable[[str], Worker]
    ) -> Iterable[UnitResult]:
        """Yield results as they come. Processes take unit after unit until none is left, so a slow
        device encodes fewer.

        Raises:
            PluginError: `make_worker` can't be sent to other processes.
        """
        others = self.others[: max(len(units) - 1, 0)]
        if not others:
            yield from make_worker(self.device)(iter(units))
            return
        with (
            shared_cores(1 + len(others)),
            WorkerProcesses(others, make_worker, units) as processes,
        ):
            for result in make_worker(self.device)(processes.units()):
                yield result
                yield from processes.results()
            yield from processes.last_results()
