"""Random draws of rows, by epoch or truly random; and the current epoch, also in worker
processes.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from latentkit.reading.posterior import Noise, RowNoise
from latentkit.store.columns import Rows

ITEM_DRAW = 1 << 40
"""Number of draws that belong to no batch of `batches()`, so they share no noise with one."""

PARTNER_DRAW = 1 << 41
"""Added to the number for the second of several joined datasets, twice for the third."""


@dataclass(frozen=True)
class Draw:
    """Decides, with the dataset's seed, which views and noise some rows get.

    Attributes:
        epoch: the same epoch gives the same draw; None draws from torch's generator each time, like
            a transform of any other torch dataset.
        number: number of the batch in its epoch.
        by_row: whether each row's noise is independent of the other rows in the batch.
        joined_index: index of the dataset among joined ones, which draw independently.
    """

    epoch: int | None
    number: int = ITEM_DRAW
    by_row: bool = False
    joined_index: int = 0

    def of_joined(self, place: int) -> Draw:
        """Return the draw for the dataset with this index among joined ones."""
        return replace(self, joined_index=place)

    def fractions(self, seed: int, count: int) -> npt.NDArray[np.float64]:
        """Return `count` uniform numbers in [0, 1), which choose views.

        With an epoch, they are those of all rows of the dataset, so `count` is its length; without
        an epoch, those of a batch.
        """
        if self.epoch is not None:
            return np.random.default_rng([seed, self.epoch, 1, self.joined_index]).random(count)
        # Ranks may have the same torch seed, but `number`, their first row, differs.
        numbers = [seed, _random_seed(), 1, self.joined_index, self.number]
        return np.random.default_rng(numbers).random(count)

    def noise(self, seed: int, items: Rows, lengths: Rows | None = None) -> Noise:
        """Return the noise of the rows at these positions. `lengths` are the lengths of ragged
        rows.
        """
        epoch = _random_seed() if self.epoch is None else self.epoch
        number = self.number + self.joined_index * PARTNER_DRAW
        return (
            RowNoise((seed, epoch, number), items, lengths)
            if self.by_row
            else Noise(seed, epoch, number)
        )


def _random_seed() -> int:
    """Return a number from torch's generator, which is used only if something is drawn.

    A DataLoader seeds each worker's generator from that of the main process: again for each epoch,
    and differently for each worker.
    """
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())


class Epochs:
    """The epoch of a dataset that is read: the one that was set, or the next one each time.

    The epoch that was set is in memory shared with a DataLoader's workers, because persistent
    workers have a copy of the dataset from before the first epoch.
    """

    def __init__(self) -> None:
        self._numbers = _shared_numbers()
        self._numbers[:] = -1, 0
        self._sent: torch.Tensor | None = None
        self._times_seen = 0
        self._following: dict[Hashable, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with a tensor that a spawned process shares. It keeps a file open, so it
        is only created here.
        """
        if self._sent is None:
            self._sent = torch.tensor(self._numbers.tolist(), dtype=torch.int64, device="cpu")
            with contextlib.suppress(RuntimeError, OSError):  # a machine without shared memory
                self._sent.share_memory_()  # type: ignore[no-untyped-call]
        return {name: value for name, value in self.__dict__.items() if name != "_numbers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        assert self._sent is not None
        self._numbers = self._sent.numpy()
        if not self._sent.is_shared():  # type: ignore[no-untyped-call]  # pickled, not sent to a worker
            numbers, self._sent = self._numbers, None
            self._numbers = _shared_numbers()
            self._numbers[:] = numbers

    @property
    def fixed(self) -> int | None:
        """Return the epoch that was set, or None."""
        epoch = int(self._numbers[0])
        return None if epoch < 0 else epoch

    @property
    def times_set(self) -> int:
        """Return how often an epoch was set."""
        return int(self._numbers[1])

    def set(self, epoch: int) -> None:
        """Set the epoch that is read next."""
        if epoch < 0:
            raise ValueError(f"an epoch is a number from 0 upward, got {epoch}")
        self._numbers[:] = epoch, self.times_set + 1
        if self._sent is not None:
            self._sent.numpy()[:] = self._numbers

    def next(self, reader: Hashable) -> int:
        """Return this reader's next epoch: the one after its last, or the one set since then.

        The first epoch is 0. In a worker it is a number that all workers started together share.
        """
        self._forget_if_set()
        first = _first_epoch()
        return self._following.get((reader, first), first if self.fixed is None else self.fixed)

    def begin(self, reader: Hashable, epoch: int) -> None:
        """Record that a reader starts an epoch."""
        self._forget_if_set()
        self._following[reader, _first_epoch()] = epoch + 1

    def _forget_if_set(self) -> None:
        """Forget the readers' epochs if an epoch was set since."""
        if self._times_seen != self.times_set:
            self._times_seen = self.times_set
            self._following.clear()


def _shared_numbers() -> npt.NDArray[np.int64]:
    """Return two numbers that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, 16), np.int64)


def _first_epoch() -> int:
    """Return 0, or in a DataLoader's worker a seed common to all workers started together."""
    worker = get_worker_info()
    return 0 if worker is None else worker.seed - worker.id
