"""Reads Arrow tables from bytes, and makes columns from Python values. Attributes and geometry are
mappings with undeclared keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_ROWS_PER_BYTE = 64
"""Keys are distinct, so a valid file never comes near. A malicious one must not make the program
allocate terabytes.
"""


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in a Parquet file's bytes.

    It is read in this thread only. Arrow's own threads may still hold the bytes when the
    interpreter ends, and releasing them then aborts the process.

    Raises:
        pa.ArrowException, OSError: the file is damaged.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    except UnicodeDecodeError as error:  # in a column's name
        raise pa.ArrowInvalid(str(error)) from error
    if file.metadata.num_rows > MAX_ROWS_PER_BYTE * len(content):
        raise pa.ArrowInvalid(f"{file.metadata.num_rows} rows in {len(content)} bytes")
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def find_places(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the position of each key in another column, -1 if it is missing or null."""
    places = pc.index_in(keys, value_set=among.combine_chunks(), skip_nulls=True)
    found: npt.NDArray[np.int64] = pc.fill_null(places, -1).to_numpy().astype(np.int64)
    return found


class StructBuilder:
    """Collects mappings, row by row, into one column of structs."""

    def __init__(self) -> None:
        self._fields: dict[str, list[Any]] = {}
        self._missing: list[bool] = []

    def add(self, row: Mapping[str, Any] | None) -> None:
        """Add one row; None if it has no mapping."""
        count = len(self._missing)
        self._missing.append(row is None)
        for name, value in (row or {}).items():
            values = self._fields.setdefault(name, [])
            values += [None] * (count - len(values))
            values.append(value)

    def finish(self) -> pa.Array:
        """Return one struct per row. Its fields are the union of all keys, sorted.

        A field whose values have no common Arrow type is stored as text. If all rows are empty, the
        result is a column of nulls, because Parquet has no empty struct.
        """
        count = len(self._missing)
        if not self._fields:
            return pa.nulls(count)
        names = sorted(self._fields)
        for values in self._fields.values():
            values += [None] * (count - len(values))
        columns = [_column(self._fields[name]) for name in names]
        return pa.StructArray.from_arrays(columns, names=names, mask=pa.array(self._missing))


def struct_column(rows: Iterable[Mapping[str, Any] | None]) -> pa.Array:
    """Return one struct per row; see `StructBuilder`."""
    builder = StructBuilder()
    for row in rows:
        builder.add(row)
    return builder.finish()


def structs_of_json(texts: pa.ChunkedArray) -> pa.Array:
    """Return one struct per row of JSON texts or nulls. Each distinct text is parsed once."""
    encoded = texts.combine_chunks().dictionary_encode()
    structs = struct_column(json.loads(text) for text in encoded.dictionary.to_pylist())
    return structs.take(encoded.indices)


def concat_structs(a: pa.Array, b: pa.Array) -> pa.Array:
    """Concatenate two columns of structs, with the fields of both. A field without a common type
    becomes text.
    """
    tables = [pa.table({"": column}) for column in (a, b)]
    try:
        merged = pa.concat_tables(tables, promote_options="permissive")[""].combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        merged = struct_column([*a.to_pylist(), *b.to_pylist()])
    return merged


def _column(values: list[Any]) -> pa.Array:
    """Return values as an array; as texts if they have no common type."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])
    except UnicodeEncodeError:
        return pa.array([None if value is None else escape(str(value)) for value in values])


def escape(text: str) -> str:
    """Return text that UTF-8 can encode: lone surrogates (undecodable bytes of file names) become
    backslash escapes.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


Rows = npt.NDArray[np.int64]
