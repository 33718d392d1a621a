"""The index as arrays: the position and the name of each row. All promises of the index are checked
here, once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.errors import DamagedError, StoreError
from latentkit.reading.draws import Draw
from latentkit.reading.selecting import hash_rows
from latentkit.runtime.paths import in_shell
from latentkit.store.columns import Rows
from latentkit.store.dataset_json import read_index
from latentkit.store.folder import Folder

Views = Literal["all", "random"] | Sequence[str]
Codes = npt.NDArray[np.int32]

RESERVED_NAMES = (
    "key",
    "view",
    *(name + end for name in ("latent", "moments", "indices") for end in ("", "_mask")),
)
"""Names in items and batches that aren't columns."""

TEXT = pa.large_string()
"""Arrow's other string types are limited to 2 GiB per column."""

MAX_PYTHON_ROWS = 1 << 20
"""Most rows whose keys and columns are kept as Python objects, about 100 bytes each. With more rows
they stay in Arrow's memory.
"""

ROWS_PER_CHUNK = 1 << 16
PER_ROW = (
    "unit_of_row",
    "bucket_of_row",
    "row_in_unit",
    "group_of_row",
    "_view_of_row",
    "_place_in_index",
)

NEEDED = pa.schema(
    {"key": TEXT, "view": TEXT, "status": TEXT, "unit": TEXT, "bucket": TEXT, "row": pa.int64()}
)
"""Columns of the index that are read in addition to attributes."""


@dataclass(frozen=True)
class Group:
    """The rows of one bucket in one unit; `last_row` is the highest that the index contains."""

    unit: str
    bucket: str
    last_row: int


class ReadableRows:
    """The usable rows of an index, with the chosen views, in the order of the source.

    Args:
        folder, document: the dataset and its dataset.json.
        views: "all" gives one position per row, "random" one per sample, a list only those views.
        columns: attributes to return in addition to key and view.

    Raises:
        StoreError: the index is missing, damaged or contradictory.
        ValueError: a view or column doesn't exist.
    """

    def __init__(
        self, folder: Folder, document: Mapping[str, Any], views: Views, columns: Sequence[str]
    ) -> None:
        self._where = f"{folder}/{document['index']['name']}"
        _check_views(views, document["views"], folder)
        table = self._read(folder, document, columns)
        self._place_in_index = self._usable_rows(table, views)
        if len(self._place_in_index) < table.num_rows:
            table = table.take(_arrow(self._place_in_index))
        if not table.num_rows:
            raise StoreError(
                f"{folder}: no latents, because every sample was skipped. `latentkit inspect"
                f" {in_shell(folder)}` shows why"
            )
        empty = [name for name in ("unit", "bucket", "row") if table[name].null_count]
        if empty:
            raise DamagedError(f"{self._where}: stored rows without {empty[0]}")
        units, self.unit_of_row = _encode_column(table["unit"].combine_chunks())
        self.buckets, self.bucket_of_row = _encode_column(table["bucket"].combine_chunks())
        unknown = [name for name in units if name not in document["units"]]
        if unknown:
            raise DamagedError(
                f"{self._where} names the unit {unknown[0]!r}, which is not in dataset.json"
            )
        self.row_in_unit = _numbers(table["row"].combine_chunks())
        if self.row_in_unit.min() < 0:
            raise DamagedError(
                f"{self._where} has the row number {self.row_in_unit.min()} in a unit, expected at"
                " least 0"
            )
        self.groups, self.group_of_row = self._group_rows(units)
        self.view_names, self._view_of_row = _encode_column(table["view"].combine_chunks())
        places = {"key": "key"} | {name: f"attributes.{name}" for name in columns}
        self._labels = {name: table[place].combine_chunks() for name, place in places.items()}
        self._starts: Rows = np.arange(table.num_rows)
        self._counts: Rows | None = None
        self._drawn: tuple[tuple[int, int, int], Rows] | None = None
        if views == "random":
            self._starts, self._counts = _find_runs(self._labels["key"])

    def __len__(self) -> int:
        return len(self._starts)

    def only(self, items: Rows) -> Self:
        """Return only the rows at these positions, in this order."""
        part = copy.copy(self)
        part.__dict__.pop("_listed", None)
        part._drawn = None
        rows, part._starts = self._starts[items], np.arange(len(items))
        if self._counts is not None:
            part._counts = counts = self._counts[items]
            part._starts = np.cumsum(counts) - counts
            rows = np.repeat(rows - part._starts, counts) + np.arange(counts.sum())
        for name in PER_ROW:
            setattr(part, name, getattr(self, name)[rows])
        views, numbers = np.unique(part._view_of_row, return_inverse=True)
        part._view_of_row = numbers.astype(np.int32)
        part.view_names = [self.view_names[view] for view in views.tolist()]
        taken = _arrow(rows)
        part._labels = {name: column.take(taken) for name, column in self._labels.items()}
        return part

    def hash(self) -> str:
        """Return a hash of the unit, bucket and row that each position reads."""
        return hash_rows(self.unit_of_row, self.bucket_of_row, self.row_in_unit, self._starts)

    def choose(self, items: Rows | slice, seed: int, draw: Draw) -> Rows:
        """Return the index row for each position; with views="random", that of the drawn view."""
        if self._counts is None:
            return self._starts[items]
        if draw.epoch is None:
            starts, counts = self._starts[items], self._counts[items]
            return starts + (draw.fractions(seed, len(starts)) * counts).astype(np.int64)
        drawn, asked = self._drawn, (seed, draw.epoch, draw.joined_index)
        if drawn is None or drawn[0] != asked:
            rows = self._starts + (draw.fractions(seed, len(self)) * self._counts).astype(np.int64)
            drawn = self._drawn = asked, rows
        return drawn[1][items]

    def matching_rows(
        self, other: ReadableRows, join_value: Callable[[str], str] | None = None
    ) -> Rows | None:
        """Return, for each row here, the row of `other` with the same key (or the same `join_value`
        of it) and view, or -1.

        Return None if `other` draws no views or lacks some of those here.
        """
        if other._counts is None or not {*self.view_names} <= {*other.view_names}:
            return None
        return _numbers(
            pc.fill_null(
                pc.index_in(self._names(join_value), value_set=other._names(join_value)), -1
            )
        )

    def lowest_per_position(self, values: Rows) -> Rows:
        """Return, for each position, the lowest value of the rows that it may choose."""
        return np.minimum.reduceat(values, self._starts)

    def _names(self, join_value: Callable[[str], str] | None) -> pa.Array:
        """Return key and view of each row as one text."""
        keys = self._labels["key"]
        if join_value is not None:
            keys = pa.array(map(join_value, keys.to_pylist()), TEXT)
        views = pa.array(self.view_names, TEXT).take(_arrow(self._view_of_row.astype(np.int64)))
        return pc.binary_join_element_wise(keys, views, pa.scalar("\0", TEXT))

    def views(self) -> list[str] | None:
        """Return the view of every position; None if it is drawn."""
        if self._counts is not None:
            return None
        return [self.view_names[view] for view in self._view_of_row.tolist()]

    def columns_in(self, index: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield key, view (unless it is drawn) and attributes of every position, from the whole
        index.
        """
        names = ["key"] if self._counts is not None else ["key", "view"]
        columns = [index[name] for name in names]
        attributes = index["attributes"] if "attributes" in index.column_names else None
        if attributes is not None and pa.types.is_struct(attributes.type):
            fields = [one.name for one in attributes.type if one.name not in ("key", "view")]
            columns += [pc.struct_field(attributes, name) for name in fields]
            names += fields
        rows = self._place_in_index[self._starts]
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            taken = _arrow(rows[start : start + ROWS_PER_CHUNK])
            for values in zip(*(column.take(taken).to_pylist() for column in columns), strict=True):
                yield dict(zip(names, values, strict=True))

    def places_in_index(self) -> Rows:
        """Return the row in the index file for every position."""
        return self._place_in_index[self._starts]

    def keys(self) -> list[str]:
        """Return the key of every position."""
        return self._labels["key"].take(_arrow(self._starts)).to_pylist()  # type: ignore[no-any-return]

    def labels(self, rows: Rows) -> dict[str, list[Any]]:
        """Return key, view and columns of some rows."""
        if len(self._starts) <= MAX_PYTHON_ROWS:
            places = rows.tolist()
            labels = {
                name: [values[place] for place in places] for name, values in self._listed.items()
            }
        else:
            taken = _arrow(rows)
            labels = {name: column.take(taken).to_pylist() for name, column in self._labels.items()}
        if len(self.view_names) == 1:
            return labels | {"view": self.view_names * len(rows)}
        views = self._view_of_row[rows].tolist()
        return labels | {"view": [self.view_names[view] for view in views]}

    @functools.cached_property
    def _listed(self) -> dict[str, list[Any]]:
        """Return labels as Python objects, created once, which makes a batch five times as fast."""
        return {name: column.to_pylist() for name, column in self._labels.items()}

    def _read(
        self, folder: Folder, document: Mapping[str, Any], columns: Sequence[str]
    ) -> pa.Table:
        """Return the needed columns, with each attribute as its own column."""
        table = read_index(
            folder, document, [*NEEDED.names, *(f"attributes.{name}" for name in columns)]
        )
        flat = table.select(NEEDED.names).cast(NEEDED)
        empty = [name for name in ("key", "view", "status") if flat[name].null_count]
        if empty:
            raise DamagedError(f"{self._where}: rows without {empty[0]}")
        for name in columns:
            if name in RESERVED_NAMES:
                raise ValueError(
                    f"column {name!r} has a name that every batch already uses. Rename it in the"
                    " source"
                )
            there = table["attributes"].type if "attributes" in table.column_names else pa.null()
            if not pa.types.is_struct(there) or there.get_field_index(name) < 0:
                raise ValueError(
                    f"column {name!r} is not in {folder}; available:"
                    f" {_attribute_names(folder, document)}"
                )
            column = pc.struct_field(table["attributes"], name)
            flat = flat.append_column(
                f"attributes.{name}",
                column.cast(TEXT) if pa.types.is_string(column.type) else column,
            )
        return flat

    def _usable_rows(self, table: pa.Table, views: Views) -> Rows:
        """Return the table's rows that are stored and have one of the chosen views."""
        statuses, status_of_row = _encode_column(table["status"].combine_chunks())
        wanted = np.isin(
            status_of_row, [code for code, name in enumerate(statuses) if name == "ok"]
        )
        if not isinstance(views, str):
            names, view_of_row = _encode_column(table["view"].combine_chunks())
            wanted &= np.isin(
                view_of_row, [code for code, name in enumerate(names) if name in views]
            )
        return np.flatnonzero(wanted)

    def _group_rows(self, units: Sequence[str]) -> tuple[list[Group], Codes]:
        """Return the groups, sorted by unit and bucket, and each row's group number."""
        pairs, group_of_row = _encode_column(
            _arrow(self.unit_of_row.astype(np.int64) * len(self.buckets) + self.bucket_of_row)
        )
        last_rows = np.zeros(len(pairs), np.int64)
        np.maximum.at(last_rows, group_of_row, self.row_in_unit)
        places = [divmod(pair, len(self.buckets)) for pair in pairs]
        groups = [
            Group(units[unit], self.buckets[bucket], last)
            for (unit, bucket), last in zip(places, last_rows.tolist(), strict=True)
        ]
        return groups, group_of_row


def _check_views(views: Views, there: Sequence[str], folder: Folder) -> None:
    """Check that the dataset has the chosen views."""
    if isinstance(views, str):
        if views not in ("all", "random"):
            raise ValueError(f"views must be 'all', 'random' or a list of views, got {views!r}")
        return
    missing = [view for view in views if view not in there]
    if missing or not views:
        raise ValueError(f"views {missing} are not in {folder}; available: {sorted(there)}")


def _attribute_names(folder: Folder, document: Mapping[str, Any]) -> list[str]:
    kind = read_index(folder, document, ["attributes"])["attributes"].type
    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def _encode_column(column: pa.Array) -> tuple[list[Any], Codes]:
    """Return the distinct values, sorted, and each row's value as its number."""
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    rank = np.argsort(np.argsort(names)).astype(np.int32)
    return sorted(names), rank[_numbers(encoded.indices)]


def _numbers(column: pa.Array) -> Rows:
    """Return a column's integers without copying. Arrow's `to_numpy` and `array` would load pandas
    first, which takes half a second.
    """
    return np.from_dlpack(column)  # type: ignore[return-value]


def _arrow(numbers: Rows) -> pa.Array:
    """Return integers as an Arrow array without copying."""
    return pa.Array.from_buffers(
        pa.int64(), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))]
    )


def _find_runs(keys: pa.Array) -> tuple[Rows, Rows]:
    """Return start and length of each run of equal keys. The views of a sample are adjacent."""
    codes = _numbers(keys.dictionary_encode().indices)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return starts, np.diff(starts, append=len(codes))
