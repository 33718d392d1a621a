"""Prepared tensors of several samples as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.errors import PluginError
from latentkit.runtime.buffers import BufferPool, as_tensor


def stack(rows: Sequence[Tensor | Mapping[str, Tensor]], pool: BufferPool) -> Any:
    """Rows to one batch on the CPU; a mapping of tensors becomes a mapping of batches.

    The batch lies in memory of the pool: faulting in fresh pages costs several times the copy.

    Raises:
        PluginError: the rows differ in shape, dtype or names.
    """
    first, kinds = rows[0], {_kind(row) for row in rows}
    if len(kinds) > 1:
        raise PluginError(
            f"the modality gave rows of one bucket as {' and as '.join(sorted(kinds)[:2])}; rows of"
            " a bucket must be alike: name buckets after the shape, or pad the rows and give each"
            " a mask"
        )
    if isinstance(first, Mapping):
        return {
            name: stack([row[name] for row in rows if isinstance(row, Mapping)], pool)
            for name in first
        }
    if first.dtype == torch.bool and all(row is first for row in rows):
        return first.expand(
            len(rows), *first.shape
        )  # the mask of rows without padding, made and pooled once
    batch = pool.get((len(rows), *first.shape), first.numpy().dtype)
    # numpy's copy, not torch's: that one would wake a team of threads on cores which are busy
    # decoding.
    np.stack([row.numpy() for row in rows if isinstance(row, Tensor)], out=batch)
    return as_tensor(batch)


def _kind(row: Tensor | Mapping[str, Tensor]) -> str:
    """Shape and dtype of a row, with names where it has them."""
    if isinstance(row, Mapping):
        return ", ".join(f"{name} {_kind(row[name])}" for name in sorted(row))
    return f"{str(row.dtype).removeprefix('torch.')} {tuple(row.shape)}"


def num_bytes_of(tensor: Tensor | Mapping[str, Tensor]) -> int:
    """Return the bytes of a row or batch, of all its tensors together."""
    return (
        tensor.nbytes
        if isinstance(tensor, Tensor)
        else sum(part.nbytes for part in tensor.values())
    )
