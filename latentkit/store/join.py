"""Two latent datasets side by side, by key: pictures and the embeddings of their captions, say."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from latentkit.buffers import BufferPool
from latentkit.store.loader import BatchedRows
from latentkit.store.order import Rows
from latentkit.store.reader import LatentDataset

PARTNER_DRAW = 1 << 41
"""Added to the number of the second dataset's draws, so that the two don't share their noise."""


def join_datasets(first: LatentDataset, second: LatentDataset) -> JoinedDataset:
    """Both datasets' rows for the keys that both have.

    Raises:
        ValueError: no key is in both, the second has several rows for one key, or a name would stand for two things.
    """
    return JoinedDataset(first, second)


class JoinedDataset(BatchedRows):
    """Rows, views, buckets and order of the first dataset; of each, the tensor by its `layout.name`, and its columns.

    A mask goes by the name of its tensor and "_mask".
    """

    def __init__(self, first: LatentDataset, second: LatentDataset) -> None:
        names = Counter(["key", "view", *_tensor_names(first), *_tensor_names(second), *first.columns, *second.columns])
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            here = " and ".join(f"{data.folder} has {[data.layout.name, *data.columns]}" for data in (first, second))
            raise ValueError(f"{here}, besides key and view: in a row of both, {twice[0]!r} would stand for two things")
        places = {key: place for place, key in enumerate(second.keys)}
        if len(places) < len(second):
            raise ValueError(f"{second.folder} has several rows for a key; open it with one view, or views='random'")
        super().__init__(first.seed, f"{first.index_hash}+{second.index_hash}")
        self.first, self.second = first, second
        keys = first.keys
        self._items: Rows = np.array([place for place, key in enumerate(keys) if key in places], np.int64)
        self._partners: Rows = np.array([places[keys[place]] for place in self._items], np.int64)
        if not len(self._items):
            raise ValueError(f"{first.folder} and {second.folder} have no key in common")

    def __len__(self) -> int:
        return len(self._items)

    @cached_property
    def keys(self) -> list[str]:
        """Key of every row, in order."""
        keys = self.first.keys
        return [keys[place] for place in self._items]

    def groups(self, epoch: int) -> tuple[Rows, npt.NDArray[np.integer]]:
        """A number for each pair of buckets that stand side by side, and the unit number in the first dataset."""
        buckets, units = self.first.groups(epoch)
        partners = self.second.groups(epoch)[0][self._partners]
        return buckets[self._items].astype(np.int64) * (int(partners.max()) + 1) + partners, units[self._items]

    def load(self, items: Rows, epoch: int, number: int, pool: BufferPool) -> dict[str, Any]:
        """The rows at some positions as one batch.

        Raises:
            ValueError: they are of several buckets, in either dataset.
            StoreError: a unit is missing or damaged.
        """
        left = self.first.load(self._items[items], epoch, number, pool)
        right = self.second.load(self._partners[items], epoch, PARTNER_DRAW + number, pool)
        batch = {name: right[name] for name in self.second.columns}
        for dataset, loaded in ((self.second, right), (self.first, left)):
            for end in _endings(dataset):
                batch[dataset.layout.name + end] = loaded[dataset.output_name + end]
        return batch | {name: left[name] for name in ("key", "view", *self.first.columns)}

    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will ask for these rows."""
        self.first.will_need(self._items[items], epoch)
        self.second.will_need(self._partners[items], epoch)


def _endings(dataset: LatentDataset) -> tuple[str, ...]:
    """What the names of a dataset's tensors have more than the name of its latents."""
    return ("", "_mask") if dataset.has_masks else ("",)


def _tensor_names(dataset: LatentDataset) -> list[str]:
    return [dataset.layout.name + end for end in _endings(dataset)]
