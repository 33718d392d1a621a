"""What rows are drawn from: an epoch or chance; and which epoch it is, also in worker processes."""

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
"""Number of draws that belong to no batch of `batches()`, with which they share no noise."""

PARTNER_DRAW = 1 << 41
"""Added to the number for the second of joined datasets, twice for the third."""


@dataclass(frozen=True)
class Draw:
    """What views and noise of some rows are drawn from, together with their dataset's seed.

    Attributes:
        epoch: the same epoch gives the same draw; None draws from torch's generator, again each
            time, as a transform of any other torch dataset would.
        number: of the batch in its epoch.
        by_row: each row has noise of its own, whatever else is in the batch.
        joined_index: place of the dataset among joined ones, which draw independently.
    """

    epoch: int | None
    number: int = ITEM_DRAW
    by_row: bool = False
    joined_index: int = 0

    def of_joined(self, place: int) -> Draw:
        """The draw of the dataset at this place among joined ones."""
        return replace(self, joined_index=place)

    def fractions(self, seed: int, count: int) -> npt.NDArray[np.float64]:
        """Return `count` uniform numbers in [0, 1), which choose views.

        In an epoch they are those of all rows of the dataset, so `count` is its length; without an
        epoch, those of a batch.
        """
        if self.epoch is not None:
            return np.random.default_rng([seed, self.epoch, 1, self.joined_index]).random(count)
        # Ranks may have seeded torch alike, but `number` differs: by the first of their rows.
        numbers = [seed, _random_seed(), 1, self.joined_index, self.number]
        return np.random.default_rng(numbers).random(count)

    def noise(self, seed: int, items: Rows, lengths: Rows | None = None) -> Noise:
        """Noise of the rows at these positions; `lengths` of ragged rows says how long each is."""
        epoch = _random_seed() if self.epoch is None else self.epoch
        number = self.number + self.joined_index * PARTNER_DRAW
        return (
            RowNoise((seed, epoch, number), items, lengths)
            if self.by_row
            else Noise(seed, epoch, number)
        )


def _random_seed() -> int:
    """A number from torch's generator, which is asked only where something is drawn.

    A worker's generator is seeded by its DataLoader from that of the main process: again for each
    epoch, and differently for each worker.
    """
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())


class Epochs:
    """Which epoch of a dataset is read: the one that was set, or each time the next.

    What was set lies in memory that a DataLoader's workers share: those that live from one epoch to
    the next have a copy of the dataset from before the first.
    """

    def __init__(self) -> None:
        self._numbers = _memory_of_forks()
        self._numbers[:] = -1, 0
        self._sent: torch.Tensor | None = None
        self._times_seen = 0
        self._following: dict[Hashable, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """With a tensor that a spawned process shares; it keeps a file open, so it is made late."""
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
            self._numbers = _memory_of_forks()
            self._numbers[:] = numbers

    @property
    def fixed(self) -> int | None:
        """The epoch that was set, or None."""
        epoch = int(self._numbers[0])
        return None if epoch < 0 else epoch

    @property
    def times_set(self) -> int:
        """How often an epoch was set."""
        return int(self._numbers[1])

    def set(self, epoch: int) -> None:
        """Let this epoch be read next."""
        if epoch < 0:
            raise ValueError(f"an epoch is a number from 0 on, got {epoch}")
        self._numbers[:] = epoch, self.times_set + 1
        if self._sent is not None:
            self._sent.numpy()[:] = self._numbers

    def next(self, reader: Hashable) -> int:
        """The epoch that is this reader's next: the one after its last, or the one set since then.

        The first is 0; in a worker it is a number that all workers that began with it share.
        """
        self._look()
        first = _first_epoch()
        return self._following.get((reader, first), first if self.fixed is None else self.fixed)

    def begin(self, reader: Hashable, epoch: int) -> None:
        """Take note that a reader begins an epoch."""
        self._look()
        self._following[reader, _first_epoch()] = epoch + 1

    def _look(self) -> None:
        """Forget what came next before an epoch was set."""
        if self._times_seen != self.times_set:
            self._times_seen = self.times_set
            self._following.clear()


def _memory_of_forks() -> npt.NDArray[np.int64]:
    """Two numbers that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, 16), np.int64)


def _first_epoch() -> int:
    """0, or in a DataLoader's worker the seed of all workers that began with it."""
    worker = get_worker_info()
    return 0 if worker is None else worker.seed - worker.id
