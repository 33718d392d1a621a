"""`Batches`: one rank's batches of an epoch, loaded ahead by threads, with a state of constant
size. And `BatchedRows`, the base of datasets that have such batches.
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
    """Rows by position, one at a time or in batches. The base of `LatentDataset` and
    `JoinedDataset`.

    Attributes:
        seed: seed of all draws and shuffles.
        epochs: which epoch is read next.
        index_hash: changes if the rows or their order change.
        is_cold: whether rows come from disk instead of memory, as far as reading has shown.
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
        """Return the bucket number and the unit number of the row at each position."""

    @abstractmethod
    def load(self, items: Rows, draw: Draw, pool: BufferPool) -> dict[str, Any]:
        """Return the rows at some positions as one batch.

        Raises:
            ValueError: the rows are in several buckets with different shapes.
            StoreError: a unit is missing or damaged.
        """

    @abstractmethod
    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will read these rows."""

    @property
    def epoch(self) -> int | None:
        """Return the epoch that was last set; None if `set_epoch` was never called."""
        return self.epochs.fixed

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch from which single items are drawn, and that `batches()` reads next.

        Until the next call, each row's draw and view depend only on the dataset's seed, the epoch
        and the row. A DataLoader's worker processes get the epoch too, even persistent ones.
        `accelerate` and the `Trainer` of `transformers` call this for every epoch.

        Raises:
            ValueError: the epoch is negative.
        """
        self.epochs.set(epoch)

    def __getitem__(self, index: RowIndex) -> dict[str, Any]:
        """Return one row: {"latent": (C, h, w) float32, "key", "view", and the columns asked for};
        with posterior="moments", "moments" instead of "latent".

        Each call draws again, from torch's generator and the dataset's seed, so it repeats with
        `torch.manual_seed`. After `set_epoch` it is that epoch's draw.

        Joined datasets return the tensor of each dataset by its name, "key", "view", and the
        columns of each.

        Args:
            index: a position; a key, which gives its first view; or (key, view). A slice, integers
                or one boolean per row give those rows as one batch, as `batches()` does: {"latent":
                (N, C, h, w), "key": [...], ...}. `select` makes a dataset of them.

        Raises:
            KeyError, IndexError, TypeError: the row doesn't exist; see `positions`.
            ValueError: no row is chosen, or rows have different shapes.
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
        """Return a whole batch at once, as torch's `DataLoader` asks for it. Rows are drawn like
        single items.

        Raises:
            ValueError: the rows are in several buckets with different shapes.
        """
        items = np.asarray(indices, np.int64)
        return LoadedRows(self.load(items, self.item_draw(items), self._pool))

    def item_draw(self, items: Rows) -> Draw:
        """Return the draw of rows that are read by their positions."""
        if self.epoch is not None:
            return Draw(self.epoch, by_row=True)
        return Draw(None, ITEM_DRAW + int(items[0]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _copy(self, index_hash: str) -> Self:
        """Return a copy with its own epochs, starting at the epoch that was set here, if any."""
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
        """Return this rank's batches, each with rows of one bucket: {"latent": (N, C, h, w)
        float32, "key": [...], "view": [...], columns: [...]}.

        Every row occurs once per epoch over all ranks, and every rank has equally many batches.
        Each iteration over batches with the same arguments is the next epoch, no matter whether the
        last one was complete or whether `batches()` was called again. So ranks agree on the epoch
        if all of them iterate equally often. In a worker process of a torch `DataLoader`, each
        worker returns its share of the rank's batches.

        Args:
            batch_size: most rows of a batch.
            shuffle: True; False; or "units", which shuffles units and the rows inside each, so that
                a dataset larger than memory is read sequentially.
            tail: "short" splits batches until every rank has equally many; "drop" leaves out the
                rest.
            rank, world_size: None takes them from torch.distributed, or 0 of 1.
            prefetch: batches loaded ahead, each in its own thread if there are enough cores.
            epoch: the epoch to read each time, without counting; None reads the next one, or the
                one set by `set_epoch` since the last.
            pin_memory: whether batches are in pinned memory, from which a GPU copies faster; only
                if there is a GPU and the process isn't a DataLoader's worker. None: yes.
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
        self._given_place = _given_rank(rank, world_size)
        self._pool = BufferPool(False)
        self._state: _IterationState | None = None
        self._order: tuple[tuple[int, int, int], list[Rows]] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Return rank and number of ranks. Each worker process of a DataLoader counts as a rank."""
        rank, world_size = self._given_place or _distributed_rank()
        worker = get_worker_info()
        if worker is None:
            return rank, world_size
        return rank * worker.num_workers + worker.id, world_size * worker.num_workers

    def __len__(self) -> int:
        """Return the number of batches in this epoch, the same on every rank."""
        return len(self._batches(self._current_state().epoch))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state = self._state = self._begin()
        epoch, first = state.epoch, state.batches
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
            state.batches += 1
            return batch

        executor = ThreadPoolExecutor(min(self.prefetch, share_of_cores()), "latents")
        is_finalizing = sys.is_finalizing  # modules are empty when the interpreter ends
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
        if self._state is state:
            self._state = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this iteration: a few numbers, whatever the dataset's size."""
        state = self._current_state()
        return {
            "seed": self.dataset.seed,
            "epoch": state.epoch,
            "batches": state.batches,
            "batch_size": self.batch_size,
            "world_size": self.place[1],
            "shuffle": self.shuffle,
            "tail": self.tail,
            "rows": len(self.dataset),
            "index": self.dataset.index_hash,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken. The next batch is the one that would have come
        then.

        Raises:
            ValueError: the state is from another dataset or other settings; the message names each.
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
                "; it was taken with other rows: select, filter or split the dataset as it was then"
                if "index" in different
                else ""
            )
            raise ValueError(f"the state doesn't belong to these batches: {pairs}{rows}")
        times_set = self.dataset.epochs.times_set
        self._state = _IterationState(int(state["epoch"]), int(state["batches"]), times_set)

    def _current_state(self) -> _IterationState:
        """Return the state of the current iteration, or of the next one if none was started."""
        times_set = self.dataset.epochs.times_set
        if self._state is not None and self._state.times_set == times_set:
            return self._state
        epoch = self.dataset.epochs.next(self._reader()) if self.epoch is None else self.epoch
        return _IterationState(epoch, 0, times_set)

    def _begin(self) -> _IterationState:
        """Start an iteration and return its state."""
        if self._state is not None and self._state.is_begun:
            self._state = None  # the last iteration was left early
        state = self._current_state()
        state.is_begun = True
        if self.epoch is None:
            worker = get_worker_info()
            has_ranks = worker is not None and self.place[1] > worker.num_workers
            if has_ranks and self.dataset.epoch is None:
                raise ValueError(
                    "in worker processes, ranks can't agree on the epoch by themselves. Call"
                    " set_epoch on the dataset, or give the epoch to batches()"
                )
            self.dataset.epochs.begin(self._reader(), state.epoch)
        return state

    def _reader(self) -> Hashable:
        """Return what identifies an iteration that counts its own epochs."""
        return self.batch_size, self.shuffle, self.tail, self.place

    def _memory(self) -> BufferPool:
        """Return the memory pool of batches, pinned if possible."""
        is_pinned = self.pin_memory is not False and _can_pin()
        if self._pool.is_pinned != is_pinned:
            self._pool = BufferPool(is_pinned)
        return self._pool

    def _batches(self, epoch: int) -> list[Rows]:
        """Return this rank's batches, as positions in the dataset."""
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
            # Rows of a shuffled batch are read in their order on disk.
            own = [np.sort(batch) if self.shuffle else batch for batch in batches[rank::world_size]]
            self._order = (epoch, rank, world_size), own
        return self._order[1]

    def _read_ahead(self, batches: list[Rows], first: int, epoch: int) -> ReadAhead:
        """Return what tells the kernel of the batches that come next."""
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
class _IterationState:
    """Position of an iteration: the epoch and how many of its batches were returned."""

    epoch: int
    batches: int
    times_set: int
    is_begun: bool = False


def _can_pin() -> bool:
    """Return whether batches can be in pinned memory. A forked worker can't use CUDA."""
    return get_worker_info() is None and pins_memory(choose_device())


def _given_rank(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return the given rank and number of ranks, or those of torch.distributed, or None if unknown
    yet.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size together")
    if rank is None or world_size is None:
        return _distributed_rank() if _is_distributed() else None
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
    return rank, world_size


def _distributed_rank() -> tuple[int, int]:
    """Return torch.distributed's rank and number of ranks, or 0 and 1."""
    if _is_distributed():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
