"""Rows of a dataset that the library `datasets` opened: by position, or as a stream of shards."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import errors as hub_errors

from latentkit.contracts import Entry, Remark, Sample, Shard
from latentkit.errors import SourceError
from latentkit.sources.columns import KEY_COLUMN, Columns

# What the library raises about unknown names and files that it can't parse.
CONTENT_ERRORS = (
    *(ValueError, TypeError, LookupError, RuntimeError, tarfile.TarError),
    *(pa.ArrowException, datasets.exceptions.DatasetsError),
)

# Errors that the hub or a file can't be reached. The hub's client has changed the base class of its
# errors over the years, but not this name.
UNREACHABLE_ERRORS = (OSError, hub_errors.HTTPError)  # type: ignore[attr-defined]

ROWS_PER_READ = 1000


class DatasetsSource:
    """The rows of a dataset, by position.

    Keys are the key column, `__key__` of webdataset tars, or positions such as "00000012". A stamp
    is the fingerprint of the dataset and the position. It is the same in every process and run as
    long as the files keep their names and times. If a file changes, all stamps change, and contents
    tell which samples changed. Media is `bytes`, or a `Path` if the rows contain paths.

    Args:
        dataset: rows in a fixed order.
        columns: purpose of each column.
        fingerprint: text that changes when the rows do.
        remarks: remarks on unused files.

    Raises:
        SourceError: there are no rows, or a key is missing or occurs twice.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        columns: Columns,
        fingerprint: str,
        remarks: Sequence[Remark] = (),
    ) -> None:
        self._remarks = remarks
        if len(dataset) == 0:
            raise SourceError("source datasets: the dataset has no rows")
        if columns.key is not None:
            _check_keys(
                dataset.with_format("arrow").select_columns([columns.key])[:][columns.key],
                columns.key,
            )
        self._rows = dataset.select_columns(columns.names()).with_format("arrow")
        self._columns = columns
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position; negative positions count from the end.

        Raises:
            OSError: its media is in a remote file that can't be reached.
        """
        index = range(len(self))[index]
        [row] = self._rows[index].to_pylist()
        return Sample(
            self._key(row, index),
            self._columns.media_of(row),
            self._columns.attributes_of(row),
            self._stamp(index),
        )

    def remarks(self) -> Iterable[Remark]:
        """Return remarks on what is not used."""
        return list(self._remarks)

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per row, in order. The media column is not read."""
        slim = (
            self._rows.select_columns(self._columns.names_but_media())
            if self._columns.names_but_media()
            else None
        )
        for start in range(0, len(self), ROWS_PER_READ):
            stop = min(start + ROWS_PER_READ, len(self))
            rows = slim[start:stop].to_pylist() if slim is not None else [{}] * (stop - start)
            for index, row in enumerate(rows, start):
                yield Entry(
                    self._key(row, index), self._stamp(index), self._columns.attributes_of(row)
                )

    def _key(self, row: dict[str, Any], index: int) -> str:
        return f"{index:08d}" if self._columns.key is None else str(row[self._columns.key])

    def _stamp(self, index: int) -> str:
        return f"{self._fingerprint}-{index}"


class DatasetsStream:
    """The rows of a dataset that is read shard by shard, usually one shard per file.

    Keys are the key column, which must be unique across shards. Without one they are the shard's
    name with `__key__` of webdataset tars or with the position in the shard:
    "train-000.parquet/00000012". Stamps are the shard's stamp with the position.

    Args:
        stream: the rows, whose own shards are `shards` in the same order.
        columns: purpose of each column.
        shards: names and stamps.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        columns: Columns,
        shards: list[Shard],
        remarks: Sequence[Remark] = (),
    ) -> None:
        self._stream = stream
        self._remarks = remarks
        self._columns = columns
        self._shards = shards

    def shards(self) -> list[Shard]:
        """Return all shards in the dataset's order. A stamp is the size and modification time in
        ns, or the revision on the hub.
        """
        return list(self._shards)

    def remarks(self) -> Iterable[Remark]:
        """Return remarks on what is not used."""
        return list(self._remarks)

    def read(self, shard: Shard) -> Iterator[Sample]:
        """Yield the samples of one shard, in order.

        Raises:
            SourceError: the shard can't be parsed, or a key is missing or occurs twice.
            OSError: the shard can't be reached.
            ValueError: not one of `shards`.
        """
        rows = self._stream.shard(num_shards=len(self._shards), index=self._shards.index(shard))
        seen: set[str] = set()
        for position, row in enumerate(_read_rows(rows, shard.name)):
            key = self._key(row, shard, position)
            if key in seen:
                raise SourceError(
                    f"source datasets: shard {shard.name}: the key {key!r} occurs twice. Name"
                    " another column as key"
                )
            seen.add(key)
            yield Sample(
                key,
                self._columns.media_of(row),
                self._columns.attributes_of(row),
                f"{shard.stamp}-{position}",
            )

    def _key(self, row: dict[str, Any], shard: Shard, position: int) -> str:
        if self._columns.key is None:
            return f"{shard.name}/{position:08d}"
        value = row[self._columns.key]
        if value is None:
            raise SourceError(
                f"source datasets: shard {shard.name}: the column {self._columns.key!r} has no key"
                f" in row {position}"
            )
        return f"{shard.name}/{value}" if self._columns.key == KEY_COLUMN else str(value)


def _read_rows(rows: datasets.IterableDataset, shard: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard. Damaged content raises `SourceError`; a shard that can't be
    reached raises `OSError`.
    """
    try:
        yield from rows
    except UNREACHABLE_ERRORS:  # some of these are ValueErrors
        raise
    except CONTENT_ERRORS as err:
        raise SourceError(
            f"source datasets: shard {shard} can't be read: {root_cause(err)}"
        ) from err


def _check_keys(keys: pa.ChunkedArray, column: str) -> None:
    """Check that a column contains unique keys."""
    if not (
        pa.types.is_string(keys.type)
        or pa.types.is_large_string(keys.type)
        or pa.types.is_integer(keys.type)
    ):
        raise SourceError(
            f"source datasets: the key column {column!r} must contain texts or whole numbers, not"
            f" {keys.type}"
        )
    if keys.null_count:
        raise SourceError(
            f"source datasets: the key column {column!r} is empty in {keys.null_count} rows"
        )
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        advice = (
            "set streaming: true, which prefixes keys with the tar's name"
            if column == KEY_COLUMN
            else "name another column as key"
        )
        key, times = str(repeated[0]["values"]), repeated[0]["counts"]
        raise SourceError(
            f"source datasets: the key {key!r} occurs {times} times in column {column!r}; {advice}"
        )


def root_cause(err: BaseException) -> str:
    """Return the message of the error that caused the others."""
    while err.__cause__ is not None:
        err = err.__cause__
    return str(err) or type(err).__name__
