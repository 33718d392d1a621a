"""A table whose rows name files, as a source of its own: the files that it names, in its order."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets

from latentkit.contracts import Entry, Remark, Sample
from latentkit.errors import SampleError, SourceError
from latentkit.runtime.file_endings import TABLE_ENDINGS
from latentkit.runtime.paths import is_url
from latentkit.sources.captions import TEXT_ENDINGS, name_caption
from latentkit.sources.files import Files
from latentkit.sources.table_rows import Table, holds_media, plain, read_head, read_table
from latentkit.sources.tables import (
    FILE_COLUMNS,
    PROBED_ROWS,
    FileNames,
    choose_file_column,
    path_of_url,
    plain_name,
)

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

MEDIA_PATH = re.compile(r".{1,1000}\.[A-Za-z0-9]{2,5}")
"""What a text that names a file of media looks like."""


@dataclass(frozen=True)
class Row:
    """A row's key, path, stamp and attributes, and why it can't be used, or ""."""

    key: str
    path: str
    stamp: str
    attributes: dict[str, Any]
    problem: str = ""


class PathTable:
    """Samples whose media are the files that the rows of a table name, in its order; keys are their
    paths, from the table's folder.

    A row whose file is gone is a bad sample, not the end.
    """

    def __init__(self, files: Files, rows: list[Row], remarks: list[Remark]) -> None:
        self._files, self._rows, self._remarks = files, rows, remarks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position.

        Raises:
            SampleError: its file is gone, or its name fits several.
        """
        row = self._rows[index]
        if row.problem:
            raise SampleError(row.problem)
        return Sample(row.key, self._files.media(row.path), row.attributes, row.stamp)

    def entries(self) -> Iterator[Entry]:
        """One entry per row, in order; no media is opened."""
        return (Entry(row.key, row.stamp, row.attributes) for row in self._rows)

    def remarks(self) -> Iterable[Remark]:
        """What of the table is not used."""
        return list(self._remarks)


def open_path_table(config: DatasetsConfig, files: Files, name: str) -> PathTable | None:
    """Open a table whose rows name files; None for another table, or an unreadable one.

    Raises:
        SourceError: its rows look like paths, and none is there; or the recipe doesn't fit it.
    """
    if not name.lower().endswith(TABLE_ENDINGS):
        return None
    finder = _Finder(files)
    try:
        if holds_media(files, name):
            return None
        head, is_whole = read_head(files, name, PROBED_ROWS)
        if not _may_name_files(head, finder, config.media):
            return None
        table = head if is_whole else read_table(files, name)
    except SourceError:
        if config.media is None and not name.lower().endswith(".parquet"):
            raise  # no column of a text holds media
        return None  # the library says what is wrong, or reads it all the same
    if config.media is not None and config.media not in table.columns():
        return None
    try:
        chosen = choose_file_column(table, "", finder, config.media)
    except SourceError as err:
        if column_of_paths(table, config.media):
            raise SourceError(
                f"source datasets: {err}; files on the web have to be fetched first, as img2dataset"
                " does"
            ) from err
        return None
    rows, again = _rows(chosen.table, chosen.name, chosen.files, finder, config)
    remarks = chosen.remarks()
    if again:
        remarks.append(
            Remark(
                "rows of a table that name a file which an earlier row names, not used",
                len(again),
                again[0],
            )
        )
    return PathTable(files, _part(rows, config, table.name), remarks)


def _may_name_files(table: Table, finder: _Finder, wanted: str | None) -> bool:
    """Return whether the first rows name files here, or look so; else no more are read."""
    if column_of_paths(table, wanted):
        return True
    try:
        choose_file_column(replace(table, rows=table.rows[:PROBED_ROWS]), "", finder, wanted)
    except SourceError:
        return False
    return True


def column_of_paths(table: Table, wanted: str | None) -> bool:
    """Return whether the named, or a usual, column holds what looks like paths or URLs."""
    columns = [
        one
        for one in table.columns()
        if one == wanted or (wanted is None and plain_name(one) in FILE_COLUMNS)
    ]
    cells = [row.get(column) for column in columns for _, row in table.rows[:100]]
    like = [
        isinstance(cell, str) and ("://" in cell or bool(MEDIA_PATH.fullmatch(cell)))
        for cell in cells
    ]
    return 2 * sum(like) > len(like)


def _rows(
    table: Table, column: str, found: list[list[str]], finder: _Finder, config: DatasetsConfig
) -> tuple[list[Row], list[str]]:
    """The rows of different keys, and where the others stand."""
    rows: dict[str, Row] = {}
    again = []
    for (where, row), paths in zip(table.rows, found, strict=True):
        name = row.get(column)
        path = (
            paths[0]
            if len(paths) == 1
            else finder.key(name) if isinstance(name, str) and name.strip() else ""
        )
        key = path or where
        if config.key is not None:
            value = row.get(config.key)
            key = "" if value is None else str(value)
        if not key:
            raise SourceError(
                f"source datasets: {table.name}, {where}: there is no key in column {config.key!r}"
            )
        if key in rows:
            if config.key is not None:
                raise SourceError(
                    f"source datasets: {table.name}, {where}: the key {key!r} is there twice; name"
                    " another column as key"
                )
            again.append(f"{table.name}, {where}: {name!r}")
            continue
        problem = "" if len(paths) == 1 else _problem(name, bool(paths))
        rows[key] = Row(
            key,
            path,
            problem or finder.stamps[path],
            _attributes(table, row, column, config),
            problem,
        )
    return list(rows.values()), again


def _problem(name: Any, fits: bool) -> str:
    """Why a row can't be used, in the same words for all rows of a kind; the key has the name."""
    if fits:
        return "the name that the table has fits several files"
    is_named = isinstance(name, str) and name.strip()
    return "the table names a file that is not there" if is_named else "the table names no file"


def _attributes(
    table: Table, row: dict[str, Any], column: str, config: DatasetsConfig
) -> dict[str, Any]:
    values = name_caption(
        {name: value for name, value in row.items() if name not in (column, config.key)}
    )
    if config.attributes is None:
        return values
    for name in config.attributes:
        if name not in values and name not in table.columns():
            known = ", ".join(table.columns())
            raise SourceError(
                f"source datasets: attributes: the column {name!r} is not there; {table.name} has"
                f" the columns {known}"
            )
    return {
        name: values[name] if name in values else plain(row.get(name)) for name in config.attributes
    }


def _part(rows: list[Row], config: DatasetsConfig, name: str) -> list[Row]:
    """The rows of the split that the recipe asks for; all of a table is "train"."""
    try:
        parts = datasets.ReadInstruction.from_spec(config.split).to_absolute({"train": len(rows)})
    except (ValueError, AssertionError) as err:
        raise SourceError(
            f"source datasets: {name}, split {config.split!r}: {err}; a table has the split train"
            " alone"
        ) from err
    chosen = [row for part in parts for row in rows[part.from_ : part.to]]
    if not chosen:
        raise SourceError(
            f"source datasets: {name}, split {config.split!r}: no data, no rows are in it"
        )
    return chosen


class _Finder:
    """Finds files that a table names; lists a folder only where a name isn't there as is."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._root = files.name("").replace(os.sep, "/").rstrip("/") + "/"
        self._folders: dict[str, FileNames | None] = {}
        self._all: FileNames | None = None
        self.stamps: dict[str, str] = {}

    def find(self, name: str, folder: str) -> list[str]:
        """Return paths that a name may mean; see `FileNames.find`."""
        if not self._is_below(name):
            return []
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = self.key(spelling)
            for form in dict.fromkeys(
                (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
            ):
                if self._is_there(form):
                    return [form]
        folder, base = os.path.split(self.key(name.replace("\\", "/")))
        names = self._names_in(folder)
        found = (
            [f"{folder}/{one}" if folder else one for one in names.find(base, "")]
            if names is not None
            else []
        )
        return [path for path in found if self._is_there(path)]

    def find_elsewhere(self, name: str, folder: str) -> list[str]:
        """See `FileNames.find_elsewhere`; looks into all folders below the table's.

        A full URL says where its file is.
        """
        if is_url(name.strip()):
            return []
        if self._all is None:
            files = self._files.list(recursive=True).files
            stems = {
                path: path.rsplit(".", 1)[0]
                for path in files
                if not path.lower().endswith((*TABLE_ENDINGS, *TEXT_ENDINGS))
            }
            self._all = FileNames(stems, (), self._files.name(""))
        found = self._all.find_elsewhere(name, "")
        return found if len(found) > 1 else [path for path in found if self._is_there(path)]

    def key(self, name: str) -> str:
        """A path in its shortest form; relative where it is below the table's folder."""
        name = path_of_url(name.strip())
        if is_url(name) and not name.startswith(self._root):
            return name
        path = os.path.normpath(name.removeprefix(self._root)).replace(os.sep, "/")
        return path.removeprefix(self._root)

    def _is_below(self, name: str) -> bool:
        """Whether a name may be one of a file here: a URL below another root is not."""
        return not is_url(self.key(name))

    def _is_there(self, path: str) -> bool:
        if path not in self.stamps:
            try:
                self.stamps[path] = self._files.stamp(path)
            except (
                SourceError,
                OSError,
                ValueError,
            ):  # a text that is no path at all may be too long, or hold zeros
                return False
        return True

    def _names_in(self, folder: str) -> FileNames | None:
        if folder not in self._folders:
            try:
                below = self._files.below(folder)
                there = below.list(recursive=False).files
                self._folders[folder] = FileNames(
                    {path: path.rsplit(".", 1)[0] for path in there}, (), below.name("")
                )
            except (SourceError, OSError, ValueError):
                self._folders[folder] = None
        return self._folders[folder]
