"""Rows of different length: their positions are stored end to end, with offsets to where each row
begins, and padded when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.masks import MASK
from latentkit.store.columns import Rows

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RowBatch:
    """Tensors by name as they are stored. The first axis counts rows or, if there are `lengths`,
    the positions of rows end to end.

    Args:
        lengths: (rows,) number of positions in each row; None if all rows have the same shape.
    """

    tensors: Mapping[str, Tensor]
    lengths: Rows | None = None

    def are_filled(self) -> Bools:
        """Return for each row, (rows,), whether any of its positions counts."""
        if self.lengths is not None:
            return self.lengths > 0
        if MASK in self.tensors:
            filled: Bools = self.tensors[MASK].bool().flatten(1).any(1).numpy()
            return filled
        return np.ones(len(next(iter(self.tensors.values()))), np.bool_)

    def are_finite(self) -> Bools:
        """Return for each row, (rows,), whether all its values are finite."""
        finite = np.ones(len(next(iter(self.tensors.values()))), np.bool_)
        for tensor in self.tensors.values():
            if tensor.is_floating_point():  # numpy's isfinite is ten times as fast as torch's
                finite &= np.isfinite(tensor.float().numpy()).reshape(len(finite), -1).all(axis=1)
        return (
            finite
            if self.lengths is None
            else np.logical_and.reduceat(finite, starts_of(self.lengths))
        )

    def select(self, rows: Bools) -> RowBatch:
        """Return some of the rows."""
        chosen = torch.from_numpy(rows if self.lengths is None else np.repeat(rows, self.lengths))
        lengths = None if self.lengths is None else self.lengths[rows]
        return RowBatch({name: tensor[chosen] for name, tensor in self.tensors.items()}, lengths)


def pack(tensors: Mapping[str, Tensor], ragged_axis: int | None) -> RowBatch:
    """Return a batch as it is stored.

    Args:
        tensors: (N, ...) each; with a ragged axis they include "mask", (N, length), and masked
            positions are dropped.
        ragged_axis: index of the ragged axis, counting N; None for rows of the same shape.
    """
    if ragged_axis is None:
        return RowBatch(tensors)
    mask = tensors[MASK].bool()
    packed = {
        name: tensor.movedim(ragged_axis, 1)[mask]
        for name, tensor in tensors.items()
        if name != MASK
    }
    return RowBatch(packed, mask.sum(1).numpy())


def pad(positions: Array, lengths: Rows, pool: BufferPool) -> tuple[Array, Bools]:
    """Return rows (N, longest, ...) padded with zeros at their ends, and a mask (N, longest) of the
    positions that aren't padding.

    Args:
        positions: (positions, ...) of all rows, end to end.
        lengths: (N,) number of positions in each row.
    """
    longest = int(lengths.max())
    out = pool.get((len(lengths), longest, *positions.shape[1:]), positions.dtype)
    for row, start, length in zip(out, starts_of(lengths).tolist(), lengths.tolist(), strict=True):
        row[:length] = positions[start : start + length]
        row[length:] = 0
    return out, np.arange(longest) < lengths[:, None]


def starts_of(lengths: Rows) -> Rows:
    """Return where each row begins, in positions."""
    starts: Rows = np.cumsum(lengths) - lengths
    return starts


def offsets_of(lengths: Rows) -> Rows:
    """Return where each row begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def are_offsets(offsets: Rows, num_positions: int) -> bool:
    """Return whether offsets begin at 0, ascend, and end at the number of positions."""
    return bool(
        len(offsets)
        and offsets[0] == 0
        and offsets[-1] == num_positions
        and (offsets[1:] > offsets[:-1]).all()
    )


def per_position_layout(
    layout: LatentLayout, normalization: Normalization
) -> tuple[LatentLayout, Normalization]:
    """Return layout and normalization of single positions of ragged rows; those of other rows
    unchanged.

    Raises:
        ValueError: the normalization differs between positions of a row.
    """
    if layout.ragged_axis is None:
        return layout, normalization
    axis = layout.ragged_axis
    if normalization.fold.get(axis, 1) != 1:
        raise ValueError(f"the ragged axis {axis} can't be folded")
    constants = {}
    for name in ("shift", "scale"):
        value = np.asarray(getattr(normalization, name))
        if value.ndim > 1:
            place = layout.axes.index(axis)
            if value.ndim != len(layout.axes) or value.shape[place] != 1:
                raise ValueError(
                    f"{name} has the shape {list(value.shape)}, but its size along the ragged axis"
                    f" {axis} of {layout.axes} must be 1"
                )
            constants[name] = value.squeeze(place).tolist()
    return replace(layout, axes=layout.axes.replace(axis, ""), ragged_axis=None), replace(
        normalization, **constants
    )
