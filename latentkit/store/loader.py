"""`Batches`: one rank's batches of an epoch, loaded ahead by threads, with a state of constant size; and what has such batches."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.buffers import BufferPool
from latentkit.numerics import num_cores
from latentkit.store.order import Rows, Shuffle, Tail, epoch_batches
from latentkit.store.readahead import ReadAhead

ITEM_DRAW = 1 << 40
"""Added to a row's number where it seeds the draw of a single item, so that no batch shares its noise."""


class BatchedRows(ABC):
    """Rows by position, one by one or in batches: what `LatentDataset` and `JoinedDataset` have in common.

    Attributes:
        seed: of all draws and shuffles.
        epoch: that single items, and the next batches, are drawn for.
        index_hash: changes with the rows or their order.
        is_cold: whether rows come from disk rather than from memory, as far as reading has shown.
    """

    def __init__(self, seed: int, index_hash: str) -> None:
        self.seed = seed
        self.index_hash = index_hash
        self.epoch = self.epochs_set = 0
        self.is_cold = True
        self._pool = BufferPool(False)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def groups(self, epoch: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Bucket number and unit number of the row at each position."""

    @abstractmethod
    def load(self, items: Rows, epoch: int, number: int, pool: BufferPool) -> dict[str, Any]:
        """The rows at some positions as one batch; (seed, epoch, number) decides the draw.

        Raises:
            ValueError: they are of several buckets, and of several shapes.
            StoreError: a unit is missing or damaged.
        """

    @abstractmethod
    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will ask for these rows."""

    def set_epoch(self, epoch: int) -> None:
        """Draws and shuffles from now on are this epoch's."""
        self.epoch = epoch
        self.epochs_set += 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row: {"latent": (C, h, w) float32, "key", "view", and the columns asked for}; with posterior="moments", "moments".

        Of joined datasets: the tensor of each by its name, "key", "view", and the columns of each.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a latent dataset of {len(self)}")
        item = np.array([index % len(self)])
        batch = self.load(item, self.epoch, ITEM_DRAW + int(item[0]), BufferPool(False))
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> LoadedRows:
        """A whole batch at once, which torch's `DataLoader` asks for; in the order of `indices`.

        Raises:
            ValueError: the rows are of several buckets, and of several shapes.
        """
        items = np.asarray(indices, np.int64)
        return LoadedRows(self.load(items, self.epoch, ITEM_DRAW + int(items[0]), self._pool))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        tail: Tail = "short",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 3,
    ) -> Batches:
        """Batches of one bucket each, this rank's share: {"latent": (N, C, h, w) float32, "key": [...], "view": [...], columns: [...]}.

        Every row comes once per epoch over all ranks, in equally many batches on each. Iterating again is the next epoch, unless
        `set_epoch` says another.

        Args:
            batch_size: rows of a batch, at most.
            shuffle: True; False; "units" shuffles units and the rows of each, which reads a dataset larger than memory from front to back.
            tail: "short" splits batches until every rank has equally many; "drop" leaves the rest out.
            rank, world_size: None takes them from torch.distributed, or 0 of 1.
            prefetch: batches loaded ahead, each by a thread of its own as far as there are cores.
        """
        return Batches(self, batch_size, shuffle, tail, rank, world_size, prefetch)


class Batches:
    """An iterable over batches; see `LatentDataset.batches`."""

    def __init__(
        self,
        dataset: BatchedRows,
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
        first = self._handed_out = self._start_at
        self._start_at = 0
        loaded: deque[Future[dict[str, Any]]] = deque()
        ahead = self._read_ahead(batches, first, epoch)

        def load(number: int) -> dict[str, Any]:
            with ahead.reading(number):
                return self.dataset.load(batches[number], epoch, number * self.world_size + self.rank, self._pool)

        executor = ThreadPoolExecutor(min(self.prefetch, num_cores()), "latents")
        is_finalizing = sys.is_finalizing  # by the interpreter's end, modules are empty
        try:
            for number in range(first, len(batches)):
                loaded.append(executor.submit(load, number))
                if len(loaded) > self.prefetch:
                    yield self._hand_out(loaded)
            while loaded:
                yield self._hand_out(loaded)
            self.dataset.is_cold = ahead.is_cold(len(batches) - 1)
        finally:
            if not is_finalizing():
                executor.shutdown(wait=True, cancel_futures=True)
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
            buckets, units = self.dataset.groups(epoch)
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

    def _read_ahead(self, batches: list[Rows], first: int, epoch: int) -> ReadAhead:
        units: Rows | None = None
        if self.shuffle == "units":
            units = self.dataset.groups(epoch)[1][[batch[0] for batch in batches]].astype(np.int64)
        return ReadAhead(batches, units, first, self.dataset.is_cold, lambda items: self.dataset.will_need(items, epoch))

    def _hand_out(self, loaded: deque[Future[dict[str, Any]]]) -> dict[str, Any]:
        batch = loaded.popleft().result()
        self._handed_out += 1
        return batch


class LoadedRows(Sequence[dict[str, Any]]):
    """A loaded batch that also looks like the list of its items, for collate functions that expect one."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["key"])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return {name: values[index] for name, values in self.batch.items()}


def collate(rows: LoadedRows | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`collate_fn` for a torch `DataLoader` over a latent dataset: whole batches pass untouched, single items are stacked.

    Items that have a mask are padded with zeros, as in a batch.
    """
    if isinstance(rows, LoadedRows):
        return rows.batch
    names = {name for name in rows[0] if f"{name}_mask" in rows[0]}
    padded = names | {f"{name}_mask" for name in names}
    batch: dict[str, Any] = {}
    for name, value in rows[0].items():
        values = [row[name] for row in rows]
        batch[name] = _pad(values) if name in padded else torch.stack(values) if isinstance(value, Tensor) else values
    return batch


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows as one tensor, each with zeros at the ends of axes in which another is longer."""
    sizes = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    out = rows[0].new_zeros((len(rows), *sizes))
    for target, row in zip(out, rows, strict=True):
        target[tuple(slice(size) for size in row.shape)] = row
    return out


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
