"""Source `sqlite`: the rows of a query, in the order of their keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from latentkit.contracts import Entry, Sample
from latentkit.errors import SampleError, SourceError


class SqliteSource:
    """Reads each row when it is asked for, over a connection of its own: that can be pickled, and
    used from threads.

    Args:
        path: of the database, which is only read.
        query: gives the columns key and media, perhaps stamp, and attributes.

    Raises:
        SourceError: there is no such database, the query fails or gives no rows, or keys or
            attributes can't be used.
    """

    def __init__(self, path: Path, query: str) -> None:
        self._path, self._query = path, query.strip().rstrip(";")
        try:
            columns = self._columns()
            if not {"key", "media"} <= set(columns):
                raise SourceError(
                    f"{path}: expected a query with the columns key and media, it gives"
                    f" {', '.join(columns)}"
                )
            # the length of a BLOB is had without reading it
            stamp = "stamp" if "stamp" in columns else "length(media)"
            attributes = [name for name in columns if name not in ("key", "media", "stamp")]
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in attributes)
            rows = self._select(
                f"SELECT key, {stamp}{', ' if quoted else ''}{quoted} FROM ({self._query}) ORDER"
                " BY key"
            )
        except sqlite3.Error as error:
            raise SourceError(f"{path}: the query fails: {error}") from error
        self._keys = [row[0] for row in rows]
        self._entries = [
            Entry(str(key), str(stamp), dict(zip(attributes, rest, strict=True)))
            for key, stamp, *rest in rows
        ]
        self._check()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position.

        Raises:
            SampleError: the row is gone, or has no media.
            OSError: the database can't be reached, or is locked; the caller tries again.
        """
        entry = self._entries[range(len(self))[index]]
        try:
            found = self._select(
                f"SELECT media FROM ({self._query}) WHERE key = ?", self._keys[index]
            )
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error
        media = found[0][0] if found else None
        if not isinstance(media, bytes | str):
            raise SampleError(
                "the row has no media" if found else "the row is no longer in the database"
            )
        return Sample(entry.key, media, entry.attributes, entry.stamp)

    def entries(self) -> Iterator[Entry]:
        """Key, stamp and attributes of each sample, in order."""
        return iter(self._entries)

    def _connect(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True))

    def _columns(self) -> list[str]:
        with self._connect() as database:
            return [
                column[0]
                for column in database.execute(f"SELECT * FROM ({self._query}) LIMIT 0").description
            ]

    def _select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connect() as database:
            rows: list[tuple[Any, ...]] = database.execute(query, values).fetchall()
            return rows

    def _check(self) -> None:
        if not self._entries:
            raise SourceError(f"{self._path}: the query gives no rows")
        if None in self._keys or "" in self._keys:
            raise SourceError(f"{self._path}: there are rows without a key")
        if len({entry.key for entry in self._entries}) < len(self._entries):
            raise SourceError(
                f"{self._path}: two rows have one key; expected a key for each row, such as the"
                " table's primary key"
            )
        blobs = {
            name
            for entry in self._entries
            for name, value in entry.attributes.items()
            if isinstance(value, bytes)
        }
        if blobs:
            raise SourceError(
                f"{self._path}: attributes can't be BLOBs: {', '.join(sorted(blobs))}; leave them"
                " out of the query"
            )
