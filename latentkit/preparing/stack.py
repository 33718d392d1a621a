"""Stacks prepared tensors of several samples to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.errors import PluginError
from latentkit.runtime.buffers import BufferPool, as_tensor


def stack(rows: Sequence[Tensor | Mapping[str, Tensor]], pool: BufferPool) -> Any:
    """Stack rows to one batch on the CPU. A mapping of tensors becomes a mapping of batches.

    The batch uses memory of the pool, because new memory costs several times as much as the copy.

    Raises:
        PluginError: the rows differ in shape, dtype or names.
    """
    first, kinds = rows[0], {_kind(row) for row in rows}
    if len(kinds) > 1:
        raise PluginError(
            f"the modality returned rows of one bucket as {' and as '.join(sorted(kinds)[:2])}."
            " Rows of a bucket must have the same shape: name buckets after the shape, or pad the"
            " rows and give each a mask"
        )
    if isinstance(first, Mapping):
        return {
            name: stack([row[name] for row in rows if isinstance(row, Mapping)], pool)
            for name in first
        }
    if first.dtype == torch.bool and all(row is first for row in rows):
        return first.expand(len(rows), *first.shape)  # the mask of rows without padding, made once
    batch = pool.get((len(rows), *first.shape), first.numpy().dtype)
    # numpy's copy, because torch's would start several threads on cores that are busy
    # decoding.
    np.stack([row.numpy() for row in rows if isinstance(row, Tensor)], out=batch)
    return as_tensor(batch)


def _kind(row: Tensor | Mapping[str, Tensor]) -> str:
    """Return shape and dtype of a row, with names if it has them."""
    if isinstance(row, Mapping):
        return ", ".join(f"{name} {_kind(row[name])}" for name in sorted(row))
    return f"{str(row.dtype).removeprefix('torch.')} {tuple(row.shape)}"


def num_bytes_of(tensor: Tensor | Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors of a row or batch."""
    return (
        tensor.nbytes
        if isinstance(tensor, Tensor)
        else sum(part.nbytes for part in tensor.values())
    )
