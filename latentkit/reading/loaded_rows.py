"""The batches that a torch `DataLoader` gets from a latent dataset, and their collate function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor


class LoadedRows(Sequence[dict[str, Any]]):
    """A loaded batch that also behaves like the list of its items, for collate functions that
    expect one.
    """

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
    """`collate_fn` for a torch `DataLoader` over a latent dataset. Whole batches are returned
    unchanged, single items are stacked.

    Items with a mask are padded with zeros, as in a batch.
    """
    if isinstance(rows, LoadedRows):
        return rows.batch
    names = {name for name in rows[0] if f"{name}_mask" in rows[0]}
    padded = names | {f"{name}_mask" for name in names}
    batch: dict[str, Any] = {}
    for name, value in rows[0].items():
        values = [row[name] for row in rows]
        batch[name] = (
            _pad(values)
            if name in padded
            else torch.stack(values)
            if isinstance(value, Tensor)
            else values
        )
    return batch


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """Return rows as one tensor, each padded with zeros to the longest size of each axis."""
    sizes = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    out = rows[0].new_zeros((len(rows), *sizes))
    for target, row in zip(out, rows, strict=True):
        target[tuple(slice(size) for size in row.shape)] = row
    return out
