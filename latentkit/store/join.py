"""Two latent datasets side by side, by key: pictures and the embeddings of their captions, say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from latentkit.buffers import BufferPool
from latentkit.store.loader import Batches
from latentkit.store.order import Rows, Shuffle, Tail
from latentkit.store.reader import ITEM_DRAW, LatentDataset


def join_datasets(first: LatentDataset, second: LatentDataset) -> JoinedDataset:
    """Both datasets' rows for the keys that both have.

    Raises:
        ValueError: no key is in both, the second has several rows for one key, or their layouts have one name.
    """
    return JoinedDataset(first, second)


class JoinedDataset:
    """Rows, views, buckets and order of the first dataset; of each, the tensor by its `layout.name`, and its columns."""

    def __init__(self, first: LatentDataset, second: LatentDataset) -> None:
        if first.layout.name == second.layout.name:
            raise ValueError(f"both datasets call their tensors {first.layout.name!r}; they can't stand side by side")
        places = {key: place for place, key in enumerate(second.keys)}
        if len(places) < len(second):
            raise ValueError(f"{second.folder} has several rows for a key; open it with one view, or views='random'")
        self.first, self.second = first, second
        keys = first.keys
        self._items: Rows = np.array([place for place, key in enumerate(keys) if key in places], np.int64)
        self._partners: Rows = np.array([places[keys[place]] for place in self._items], np.int64)
        if not len(self._items):
            raise ValueError(f"{first.folder} and {second.folder} have no key in common")
        self.seed, self.epoch, self.epochs_set = first.seed, 0, 0
        self.index_hash = f"{first.index_hash}+{second.index_hash}"

    def __len__(self) -> int:
        return len(self._items)

    @property
    def keys(self) -> list[str]:
        """Key of every row, in order."""
        keys = self.first.keys
        return [keys[place] for place in self._items]

    def set_epoch(self, epoch: int) -> None:
        """Draws and shuffles from now on are this epoch's, in both."""
        self.epoch = epoch
        self.epochs_set += 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row of both: tensors by `layout.name`, "key", "view", and the columns of each."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a joined dataset of {len(self)}")
        item = np.array([index % len(self)])
        batch = self.load(item, self.epoch, ITEM_DRAW + int(item[0]), BufferPool(False))
        return {name: value[0] for name, value in batch.items()}

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
        """As `LatentDataset.batches`."""
        return Batches(self, batch_size, shuffle, tail, rank, world_size, prefetch)

    def groups(self, items: Rows, epoch: int) -> tuple[Rows, Rows]:
        """A number for each pair of buckets that stand side by side, and the unit number in the first dataset."""
        buckets, units = self.first.groups(self._items[items], epoch)
        partners, _ = self.second.groups(self._partners[items], epoch)
        return buckets.astype(np.int64) * (int(partners.max()) + 1) + partners, units.astype(np.int64)

    def load(self, items: Rows, epoch: int, number: int, pool: BufferPool) -> dict[str, Any]:
        """The rows at some positions as one batch.

        Raises:
            ValueError: they are of several buckets, in either dataset.
        """
        left = self.first.load(self._items[items], epoch, number, pool)
        right = self.second.load(self._partners[items], epoch, number, pool)
        batch = {name: right[name] for name in self.second.columns}
        batch[self.second.layout.name] = right[self.second.output_name]
        batch[self.first.layout.name] = left[self.first.output_name]
        return batch | {name: left[name] for name in ("key", "view", *self.first.columns)}
