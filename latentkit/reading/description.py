"""The text that describes a latent dataset in Python."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentkit.errors import StoreError
from latentkit.reading.draws import Draw
from latentkit.runtime.buffers import BufferPool
from latentkit.store.contents import counted
from latentkit.store.local_folder import LocalFolder

MAX_BUCKETS_SHOWN = 8


def describe_dataset(data: Any) -> str:
    """Return a few lines on a `LatentDataset`: rows, path, posterior, views, shapes, columns.

    Nothing is downloaded for this.
    """
    chosen = "" if len(data) == data.num_whole else f" (of {data.num_whole})"
    stored = f"{data.layout.kind}, stored as {data.tensor_name} in {data.stored_dtype}"
    lines = {
        "posterior": f"{data.posterior} ({stored})",
        "views": ("one drawn of " if data.draws_views else "") + ", ".join(data.views),
        data.output_name: _shapes(data),
        "columns": _columns(data),
    }
    wide = max(map(len, lines))
    return "\n".join(
        [
            f"LatentDataset of {counted(len(data), 'row')}{chosen}: {data.folder}",
            *(f"  {name:{wide}}  {text}" for name, text in lines.items()),
        ]
    )


def _shapes(data: Any) -> str:
    """Return the shape of a row in each bucket; for units at a URL only the number of buckets."""
    buckets, firsts = np.unique(data.groups(0)[0], return_index=True)
    if isinstance(data.folder, LocalFolder):
        with suppress(StoreError):  # reading the rows reports the damage
            found = dict.fromkeys(_shape(data, int(item)) for item in firsts[:MAX_BUCKETS_SHOWN])
            more = (
                f", {len(firsts) - MAX_BUCKETS_SHOWN} more"
                if len(firsts) > MAX_BUCKETS_SHOWN
                else ""
            )
            return ", ".join(found) + more
    return f"(C {data.layout.channels}), {counted(len(buckets), 'bucket')}"


def _shape(data: Any, item: int) -> str:
    """Return the shape of one row; the ragged axis by its name."""
    row = data.load(np.array([item]), Draw(0), BufferPool(False))[data.output_name]
    sizes = zip(data.layout.axes, row.shape[1:], strict=True)
    named = [axis if axis == data.layout.ragged_axis else str(size) for axis, size in sizes]
    return f"({', '.join(named)})"


def _columns(data: Any) -> str:
    """Return the open columns, and those that could be opened."""
    others = [name for name in _column_names(data) if name not in data.columns]
    more = f" (not opened: {', '.join(others)})" if others else ""
    return (", ".join(data.columns) or "none") + more


def _column_names(data: Any) -> list[str]:
    """Return the names of all columns in the index of a local dataset."""
    if not isinstance(data.folder, LocalFolder):
        return []
    try:
        kind = pq.read_schema(data.folder.path / data.index_name).field("attributes").type
    except (pa.ArrowException, OSError, KeyError):
        return []
    return [field.name for field in kind] if pa.types.is_struct(kind) else []
