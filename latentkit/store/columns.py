"""Arrow tables from bytes, and columns from Python values: attributes and geometry are mappings whose keys nobody declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file's bytes.

    Read in this thread alone: Arrow's own threads may still hold the bytes when the interpreter ends, and letting go of them then
    aborts the process.

    Raises:
        pa.ArrowException, OSError: the file is damaged.
    """
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def struct_column(rows: Sequence[Mapping[str, Any] | None]) -> pa.Array:
    """One struct per row, None where there is none; fields are the union of all keys, sorted.

    A field whose values have no common Arrow type is stored as text. All rows empty: a column of nulls, since Parquet has no empty struct.
    """
    names = sorted({name for row in rows if row for name in row})
    if not names:
        return pa.nulls(len(rows))
    fields = [_column([row.get(name) if row else None for row in rows]) for name in names]
    missing = pa.array([row is None for row in rows])
    return pa.StructArray.from_arrays(fields, names=names, mask=missing)


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])
    except UnicodeEncodeError:
        return pa.array([None if value is None else escape(str(value)) for value in values])


def escape(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates (undecodable bytes of file names) become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
