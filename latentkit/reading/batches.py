"""`Batches`: one rank's batches of an epoch, loaded ahead by threads, with a state of constant
size; and what has such batches.
"""

from __future__ import annotations

import copy
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from latentkit.reading.draws import ITEM_DRAW, Draw, Epochs
from latentkit.reading.loaded_rows import LoadedRows
from latentkit.reading.order import Shuffle, Tail, epoch_batches
from latentkit.reading.readahead import ReadAhead
from latentkit.reading.selecting import RowIndex, SelectableRows
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.device import choose_device, pins_memory
from latentkit.store.columns import Rows


class BatchedRows(SelectableRows):
    """Rows by position, one by one or in batches, of `LatentDataset` and `JoinedDataset`.

    Attributes:
        seed: of all draws and shuffles.
        epochs: which of them is read next.
        index_hash: changes with the rows or their order.
        is_cold: whether rows come from disk rather than from memory, as far as reading has shown.
    """

    def __init__(self, seed: int, index_hash: str) -> None:
        self.seed = seed
        self.index_hash = index_hash
        self.epochs = Epochs()
        self.is_cold = True
        self._pool = BufferPool(False)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def groups(self, epoch: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Bucket number and unit number of the row at each position."""

    @abstractmethod
    def load(self, items: Rows, draw: Draw, pool: BufferPool) -> dict[str, Any]:
        """The rows at some positions as one batch.

        Raises:
            ValueError: they are of several buckets, and of several shapes.
            StoreError: a unit is missing or damaged.
        """

    @abstractmethod
    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will ask for these rows."""

    @property
    def epoch(self) -> int | None:
        """The epoch that was set last; None where `set_epoch` was never called."""
        return self.epochs.fixed

    def set_epoch(self, epoch: int) -> None:
        """Let single items be drawn for this epoch from now on, and `batches()` read it next.

        Each row's draw and view then depend on nothing but the dataset's seed, the epoch and the
        row, until the next call. A DataLoader's worker processes hear of it, also persistent ones.
        `accelerate` and the `Trainer` of `transformers` call it for every epoch by themselves.

        Raises:
            ValueError: a negative epoch.
        """
        self.epochs.set(epoch)

    def __getitem__(self, index: RowIndex) -> dict[str, Any]:
        """One row: {"latent": (C, h, w) float32, "key", "view", and the columns asked for}; with
        posterior="moments", "moments".

        Each call draws again, from torch's generator and the dataset's seed: it
        repeats with `torch.manual_seed`. After `set_epoch` it is that epoch's.

        Of joined datasets: the tensor of each by its name, "key", "view", and the columns of each.

        Args:
            index: a position; a key, of whose views the first is given; or (key, view). A slice,
                integers or a boolean for each row give those rows as one batch, as `batches()` has
                them: {"latent": (N, C, h, w), "key": [...], ...}; `select` makes a dataset of them.

        Raises:
            KeyError, IndexError, TypeError: there is no such row; see `positions`.
            ValueError: no row is chosen, or some of several shapes.
        """
        if not isinstance(index, int):
            found = self.positions(index)
            if not isinstance(found, int):
                return self.load(found, self.item_draw(found), BufferPool(False))
            index = found
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a latent dataset of {len(self)}")
        item = np.array([index % len(self)])
        batch = self.load(item, self.item_draw(item), BufferPool(False))
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> LoadedRows:
        """A whole batch at once, as torch's `DataLoader` asks for it; drawn as single items are.

        Raises:
            ValueError: the rows are of several buckets, and of several shapes.
        """
        items = np.asarray(indices, np.int64)
        return LoadedRows(self.load(items, self.item_draw(items), self._pool))

    def item_draw(self, items: Rows) -> Draw:
        """What rows are drawn from that are asked for by their positions."""
        if self.epoch is not None:
            return Draw(self.epoch, by_row=True)
        return Draw(None, ITEM_DRAW + int(items[0]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _copied(self, index_hash: str) -> Self:
        """A copy with epochs of its own, which begin with the one that was set here, if any was."""
        part = copy.copy(self)
        part.index_hash, part.epochs = index_hash, Epochs()
        if self.epoch is not None:
            part.set_epoch(self.epoch)
        return part

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        tail: Tail = "short",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 3,
        epoch: int | None = None,
        pin_memory: bool | None = None,
    ) -> Batches:
        """Batches of one bucket each, this rank's share: {"latent": (N, C, h, w) float32, "key":
        [...], "view": [...], columns: [...]}.

        Every row comes once per epoch over all ranks, in equally many batches on each. Each time
        that batches with the same arguments are iterated is the next epoch, whether by one
        `batches()` or by a new one, and however many batches of the last were taken. So ranks agree
        on the epoch if all of them iterate equally often. In a worker process of a torch
        `DataLoader`, each worker gives its share of the rank's batches.

        Args:
            batch_size: rows of a batch, at most.
            shuffle: True; False; "units" shuffles units and the rows of each, which reads a dataset
                larger than memory from front to back.
            tail: "short" splits batches until every rank has equally many; "drop" leaves the rest
                out.
            rank, world_size: None takes them from torch.distributed, or 0 of 1.
            prefetch: batches loaded ahead, each by a thread of its own as far as there are cores.
            epoch: to read each time, which then doesn't count; None reads the next, or what
                `set_epoch` said since the last.
            pin_memory: whether batches lie in memory from which a GPU copies faster, where there is
                a GPU and the process isn't a worker of a DataLoader; None: yes.
        """
        return Batches(
            self, batch_size, shuffle, tail, rank, world_size, prefetch, epoch, pin_memory
        )


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
        epoch: int | None,
        pin_memory: bool | None,
    ) -> None:
        if batch_size < 1 or prefetch < 1:
            raise ValueError(
                f"batch_size and prefetch must be at least 1, got {batch_size} and {prefetch}"
            )
        if shuffle not in (True, False, "units") or tail not in ("short", "drop"):
            raise ValueError(
                "shuffle must be True, False or 'units' and tail 'short' or 'drop', got"
                f" {shuffle!r} and {tail!r}"
            )
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch must be a number from 0 on, or None, got {epoch}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle: Shuffle = shuffle
        self.tail: Tail = tail
        self.prefetch = prefetch
        self.epoch = epoch
        self.pin_memory = pin_memory
        self._given_place = _place(rank, world_size)
        self._pool = BufferPool(False)
        self._stand: _Stand | None = None
        self._order: tuple[tuple[int, int, int], list[Rows]] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of ranks; each worker process of a DataLoader is one of its own."""
        rank, world_size = self._given_place or _place_now()
        worker = get_worker_info()
        if worker is None:
            return rank, world_size
        return rank * worker.num_workers + worker.id, world_size * worker.num_workers

    def __len__(self) -> int:
        """Batches of this epoch, the same on every rank."""
        return len(self._batches(self._now().epoch))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stand = self._stand = self._begin()
        epoch, first = stand.epoch, stand.batches
        rank, world_size = self.place
        batches = self._batches(epoch)
        loaded: deque[Future[dict[str, Any]]] = deque()
        ahead = self._read_ahead(batches, first, epoch)
        pool = self._memory()

        def load(number: int) -> dict[str, Any]:
            with ahead.reading(number):
                draw = Draw(epoch, number * world_size + rank)
                return self.dataset.load(batches[number], draw, pool)

        def hand_out() -> dict[str, Any]:
            batch = loaded.popleft().result()
            stand.batches += 1
            return batch

        executor = ThreadPoolExecutor(min(self.prefetch, share_of_cores()), "latents")
        is_finalizing = sys.is_finalizing  # by the interpreter's end, modules are empty
        try:
            for number in range(first, len(batches)):
                loaded.append(executor.submit(load, number))
                if len(loaded) > self.prefetch:
                    yield hand_out()
            while loaded:
                yield hand_out()
            self.dataset.is_cold = ahead.is_cold(len(batches) - 1)
        finally:
            if not is_finalizing():
                executor.shutdown(wait=True, cancel_futures=True)
        if self._stand is stand:
            self._stand = None

    def state_dict(self) -> dict[str, Any]:
        """Where this iteration stands, a few numbers however large the dataset."""
        stand = self._now()
        return {
            "seed": self.dataset.seed,
            "epoch": stand.epoch,
            "batches": stand.batches,
            "batch_size": self.batch_size,
            "world_size": self.place[1],
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
        different = [
            name
            for name in own
            if name not in ("epoch", "batches") and state.get(name) != own[name]
        ]
        if different:
            pairs = ", ".join(
                f"{name} {state.get(name)!r} (here {own[name]!r})" for name in different
            )
            rows = (
                "; it was taken of other rows: select, filter or split the dataset as then"
                if "index" in different
                else ""
            )
            raise ValueError(f"the state doesn't belong to these batches: {pairs}{rows}")
        times_set = self.dataset.epochs.times_set
        self._stand = _Stand(int(state["epoch"]), int(state["batches"]), times_set)

    def _now(self) -> _Stand:
        """Where the iteration stands that was begun last, or where the next begins."""
        times_set = self.dataset.epochs.times_set
        if self._stand is not None and self._stand.times_set == times_set:
            return self._stand
        epoch = self.dataset.epochs.next(self._reader()) if self.epoch is None else self.epoch
        return _Stand(epoch, 0, times_set)

    def _begin(self) -> _Stand:
        if self._stand is not None and self._stand.is_begun:
            self._stand = None  # it was left early
        stand = self._now()
        stand.is_begun = True
        if self.epoch is None:
            worker = get_worker_info()
            has_ranks = worker is not None and self.place[1] > worker.num_workers
            if has_ranks and self.dataset.epoch is None:
                raise ValueError(
                    "in a worker process, ranks can't agree on the epoch by themselves; "
                    "call set_epoch on the dataset, or give batches() the epoch"
                )
            self.dataset.epochs.begin(self._reader(), stand.epoch)
        return stand

    def _reader(self) -> Hashable:
        """What has a count of epochs of its own."""
        return self.batch_size, self.shuffle, self.tail, self.place

    def _memory(self) -> BufferPool:
        is_pinned = self.pin_memory is not False and _can_pin()
        if self._pool.is_pinned != is_pinned:
            self._pool = BufferPool(is_pinned)
        return self._pool

    def _batches(self, epoch: int) -> list[Rows]:
        """This rank's batches, as positions in the dataset."""
        rank, world_size = self.place
        if self._order is None or self._order[0] != (epoch, rank, world_size):
            buckets, units = self.dataset.groups(epoch)
            batches = epoch_batches(
                buckets,
                units,
                self.batch_size,
                shuffle=self.shuffle,
                seed=self.dataset.seed,
                epoch=epoch,
                world_size=world_size,
                tail=self.tail,
            )
            # Rows of a shuffled batch are read in the order in which they lie on disk.
            own = [np.sort(batch) if self.shuffle else batch for batch in batches[rank::world_size]]
            self._order = (epoch, rank, world_size), own
        return self._order[1]

    def _read_ahead(self, batches: list[Rows], first: int, epoch: int) -> ReadAhead:
        units: Rows | None = None
        if self.shuffle == "units":
            units = self.dataset.groups(epoch)[1][[batch[0] for batch in batches]].astype(np.int64)
        return ReadAhead(
            batches,
            units,
            first,
            self.dataset.is_cold,
            lambda items: self.dataset.will_need(items, epoch),
        )


@dataclass
class _Stand:
    """Batches of an epoch that were handed out, counted while no other epoch was set."""

    epoch: int
    batches: int
    times_set: int
    is_begun: bool = False


def _can_pin() -> bool:
    """Whether memory is pinned that batches lie in; in a forked worker CUDA can't be used."""
    return get_worker_info() is None and pins_memory(choose_device())


def _place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Rank and number of ranks as far as they are known by now."""
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size together")
    if rank is None or world_size is None:
        return _place_now() if _is_distributed() else None
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
    return rank, world_size


def _place_now() -> tuple[int, int]:
    if _is_distributed():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
