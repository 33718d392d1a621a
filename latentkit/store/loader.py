"""`Batches`: one rank's batches of an epoch, loaded ahead by a thread, with a state of constant size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from latentkit.buffers import BufferPool
from latentkit.store.order import Rows, Shuffle, Tail, epoch_batches


class Batchable(Protocol):
    """What `Batches` needs of a dataset; see `LatentDataset` for each."""

    seed: int
    epoch: int
    epochs_set: int
    index_hash: str

    def __len__(self) -> int: ...
    def groups(self, items: Rows, epoch: int) -> tuple[Any, Any]: ...
    def load(self, items: Rows, epoch: int, number: int, pool: BufferPool) -> dict[str, Any]: ...


class Batches:
    """An iterable over batches; see `LatentDataset.batches`."""

    def __init__(
        self,
        dataset: Batchable,
        batch_size: int,
        shuffle: Shuffle,
        tail: Tail,
        rank: int | None,
        world_size: int | None,
        prefetch: int,
    ) -> None:
        if batch_size < 1 or prefetch < 1:
            raise ValueError(f"batch_size and prefetch must be at least 1, got {batch_size} and {prefetch}")
        if shuffle not in (True, False, "units") or tail not in ("short", "drop"):
            raise ValueError(f"shuffle must be True, False or 'units' and tail 'short' or 'drop', got {shuffle!r} and {tail!r}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle: Shuffle = shuffle
        self.tail: Tail = tail
        self.rank, self.world_size = _place(rank, world_size)
        self.prefetch = prefetch
        self._pool = BufferPool(pinned=torch.cuda.is_available())
        self._epoch = dataset.epoch
        self._epochs_set = dataset.epochs_set
        self._handed_out = 0
        self._start_at = 0
        self._order: tuple[int, list[Rows]] | None = None

    def __len__(self) -> int:
        """Batches of this epoch, the same on every rank."""
        return len(self._batches(self._current_epoch()))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self._current_epoch()
        batches = self._batches(epoch)
        self._handed_out, self._start_at = self._start_at, 0
        loaded: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(1, "latents") as executor:
            try:
                for number in range(self._handed_out, len(batches)):
                    loaded.append(executor.submit(self._load, epoch, number, batches[number]))
                    if len(loaded) > self.prefetch:
                        yield self._hand_out(loaded)
                while loaded:
                    yield self._hand_out(loaded)
            finally:
                executor.shutdown(wait=False, cancel_futures=True)
        self._epoch, self._handed_out = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this iteration stands, a few numbers however large the dataset."""
        return {
            "seed": self.dataset.seed,
            "epoch": self._current_epoch(),
            "batches": self._handed_out,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "tail": self.tail,
            "rows": len(self.dataset),
            "index": self.dataset.index_hash,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next batch is the one that would have come.

        Raises:
            ValueError: the state is of another dataset or other settings; names each.
        """
        own = self.state_dict()
        different = [name for name in own if name not in ("epoch", "batches") and state.get(name) != own[name]]
        if different:
            pairs = ", ".join(f"{name} {state.get(name)!r} (here {own[name]!r})" for name in different)
            raise ValueError(f"the state doesn't belong to these batches: {pairs}")
        self._epoch, self._epochs_set = int(state["epoch"]), self.dataset.epochs_set
        self._handed_out = self._start_at = int(state["batches"])

    def _current_epoch(self) -> int:
        """This loader's own epoch, unless `set_epoch` was called on the dataset since."""
        if self.dataset.epochs_set != self._epochs_set:
            self._epochs_set = self.dataset.epochs_set
            self._epoch, self._handed_out, self._start_at = self.dataset.epoch, 0, 0
        return self._epoch

    def _batches(self, epoch: int) -> list[Rows]:
        """This rank's batches, as positions in the dataset."""
        if self._order is None or self._order[0] != epoch:
            buckets, units = self.dataset.groups(np.arange(len(self.dataset)), epoch)
            batches = epoch_batches(
                buckets,
                units,
                self.batch_size,
                shuffle=self.shuffle,
                seed=self.dataset.seed,
                epoch=epoch,
                world_size=self.world_size,
                tail=self.tail,
            )
            # Rows of a shuffled batch are read in the order in which they lie on disk.
            own = batches[self.rank :: self.world_size]
            self._order = epoch, [np.sort(batch) if self.shuffle else batch for batch in own]
        return self._order[1]

    def _load(self, epoch: int, number: int, items: Rows) -> dict[str, Any]:
        return self.dataset.load(items, epoch, number * self.world_size + self.rank, self._pool)

    def _hand_out(self, loaded: deque[Future[dict[str, Any]]]) -> dict[str, Any]:
        batch = loaded.popleft().result()
        self._handed_out += 1
        return batch


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size together")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
    return rank, world_size
