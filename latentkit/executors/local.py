"""Executor `local`: this process, one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from latentkit.contracts import Unit, UnitResult, Worker


class LocalExecutor:
    """Runs every unit here.

    Args:
        device: such as "cuda:0" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def run(self, units: Sequence[Unit], make_worker: Callable[[str], Worker]) -> Iterable[UnitResult]:
        """Results as they come."""
        yield from make_worker(self.device)(iter(units))
