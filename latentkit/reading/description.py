"""What a latent dataset says of itself in Python."""

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

MOST_NAMED = 8


def describe_dataset(data: Any) -> str:
    """Return a few lines on a `LatentDataset`: rows, path, posterior, views, shapes, columns.

    Nothing is downloaded for it.
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
    """The shape of a row of each bucket; of units at a URL only how many buckets there are."""
    buckets, firsts = np.unique(data.groups(0)[0], return_index=True)
    if isinstance(data.folder, LocalFolder):
        with suppress(StoreError):  # which says what is damaged when it is read
            found = dict.fromkeys(_shape(data, int(item)) for item in firsts[:MOST_NAMED])
            more = f", {len(firsts) - MOST_NAMED} more" if len(firsts) > MOST_NAMED else ""
            return ", ".join(found) + more
    return f"(C {data.layout.channels}), {counted(len(buckets), 'bucket')}"


def _shape(data: Any, item: int) -> str:
    row = data.load(np.array([item]), Draw(0), BufferPool(False))[data.output_name]
    sizes = zip(data.layout.axes, row.shape[1:], strict=True)
    named = [axis if axis == data.layout.ragged_axis else str(size) for axis, size in sizes]
    return f"({', '.join(named)})"


def _columns(data: Any) -> str:
    """The columns that rows have, and those that they could have."""
    others = [name for name in _column_names(data) if name not in data.columns]
    more = f" (not opened: {', '.join(others)})" if others else ""
    return (", ".join(data.columns) or "none") + more


def _column_names(data: Any) -> list[str]:
    if not isinstance(data.folder, LocalFolder):
        return []
    try:
        kind = pq.read_schema(data.folder.path / data.index_name).field("attributes").type
    except (pa.ArrowException, OSError, KeyError):
        return []
    return [field.name for field in kind] if pa.types.is_struct(kind) else []
