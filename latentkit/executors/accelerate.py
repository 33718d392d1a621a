"""Executor `accelerate`: every process of an `accelerate launch` does its share of the units."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from latentkit.contracts import Unit, UnitResult, Worker


class AccelerateExecutor:
    """Runs this process's share of the units first, then the other shares, last unit first.

    Rank and world size come from the launcher's environment and no process group is made: no
    process waits for another at a rendezvous, and one that dies costs only its units in flight.

    Args:
        device: device of this process, such as "cuda:1".
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = device

    def run(
        self, units: Sequence[Unit], make_worker: Callable[[str], Worker]
    ) -> Iterable[UnitResult]:
        """Yield the results of the units that this process encoded."""
        own = [unit for unit in units if unit.number % self.world_size == self.rank]
        others = [unit for unit in reversed(units) if unit.number % self.world_size != self.rank]
        yield from make_worker(self.device)(iter([*own, *others]))
