"""Executor `local`: this process, one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from latentkit.contracts import Unit, UnitResult, Worker


class LocalExecutor:
    """Runs every unit here.

    Args:
        device: torch device, or "auto" for the first GPU, else the CPU.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = default_device() if device == "auto" else device

    def run(self, units: Sequence[Unit], make_worker: Callable[[str], Worker]) -> Iterable[UnitResult]:
        """Results as they come."""
        yield from make_worker(self.device)(iter(units))


def default_device() -> str:
    """The first GPU, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"
