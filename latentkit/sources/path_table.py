"""A table whose rows name files, as a source: the named files, in the table's order."""

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
from latentkit.sources.captions import TEXT_ENDINGS, add_caption
from latentkit.sources.files import Files
from latentkit.sources.table_rows import (
    Table,
    contains_media,
    read_head,
    read_table,
    to_plain_value,
)
from latentkit.sources.tables import (
    FILE_COLUMNS,
    PROBED_ROWS,
    FileNames,
    choose_file_column,
    normalize_column_name,
    path_of_url,
)

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

MEDIA_PATH = re.compile(r".{1,1000}\.[A-Za-z0-9]{2,5}")
"""Pattern of a text that may name a media file."""


@dataclass(frozen=True)
class Row:
    """One row: its key, the path of its file, the file's stamp, its attributes, and why it can't be
    used ("" if it can).
    """

    key: str
    path: str
    stamp: str
    attributes: dict[str, Any]
    problem: str = ""


class PathTable:
    """Samples whose media are the files that a table's rows name, in its order. Keys are their
    paths from the table's folder.

    A row whose file is missing is a bad sample; it doesn't end the run.
    """

    def __init__(self, files: Files, rows: list[Row], remarks: list[Remark]) -> None:
        self._files, self._rows, self._remarks = files, rows, remarks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position.

        Raises:
            SampleError: its file is missing, or its name matches several files.
        """
        row = self._rows[index]
        if row.problem:
            raise SampleError(row.problem)
        return Sample(row.key, self._files.media(row.path), row.attributes, row.stamp)

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per row, in order. No media is opened."""
        return (Entry(row.key, row.stamp, row.attributes) for row in self._rows)

    def remarks(self) -> Iterable[Remark]:
        """Return remarks on what is not used."""
        return list(self._remarks)


def open_path_table(config: DatasetsConfig, files: Files, name: str) -> PathTable | None:
    """Return the source of a table whose rows name files; None for any other table, or one that
    can't be read here.

    Raises:
        SourceError: the rows look like paths but no file exists, or the recipe doesn't fit it.
    """
    if not name.lower().endswith(TABLE_ENDINGS):
        return None
    finder = _Finder(files)
    try:
        if contains_media(files, name):
            return None
        head, is_whole = read_head(files, name, PROBED_ROWS)
        if not _may_name_files(head, finder, config.media):
            return None
        table = head if is_whole else read_table(files, name)
    except SourceError:
        if config.media is None and not name.lower().endswith(".parquet"):
            raise  # no column of a text holds media
        return None  # the library reads it or says what is wrong
    if config.media is not None and config.media not in table.columns():
        return None
    try:
        chosen = choose_file_column(table, "", finder, config.media)
    except SourceError as err:
        if looks_like_path_column(table, config.media):
            raise SourceError(
                f"source datasets: {err}; files on the web must be downloaded first, for example"
                " with img2dataset"
            ) from err
        return None
    rows, again = _rows(chosen.table, chosen.name, chosen.files, finder, config)
    remarks = chosen.remarks()
    if again:
        remarks.append(
            Remark(
                "rows of a table not used, because an earlier row names the same file",
                len(again),
                again[0],
            )
        )
    return PathTable(files, _rows_of_split(rows, config, table.name), remarks)


def _may_name_files(table: Table, finder: _Finder, wanted: str | None) -> bool:
    """Return whether a table's first rows name existing files or look like paths. If not, the rest
    of the table isn't read.
    """
    if looks_like_path_column(table, wanted):
        return True
    try:
        choose_file_column(replace(table, rows=table.rows[:PROBED_ROWS]), "", finder, wanted)
    except SourceError:
        return False
    return True


def looks_like_path_column(table: Table, wanted: str | None) -> bool:
    """Return whether the column that the recipe names, or else one with a usual name, contains
    texts like media paths or URLs.
    """
    columns = [
        one
        for one in table.columns()
        if one == wanted or (wanted is None and normalize_column_name(one) in FILE_COLUMNS)
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
    """Return the rows with different keys, and the positions of those whose key is repeated."""
    rows: dict[str, Row] = {}
    again = []
    for (where, row), paths in zip(table.rows, found, strict=True):
        name = row.get(column)
        path = (
            paths[0]
            if len(paths) == 1
            else finder.key(name)
            if isinstance(name, str) and name.strip()
            else ""
        )
        key = path or where
        if config.key is not None:
            value = row.get(config.key)
            key = "" if value is None else str(value)
        if not key:
            raise SourceError(
                f"source datasets: {table.name}, {where}: no key in column {config.key!r}"
            )
        if key in rows:
            if config.key is not None:
                raise SourceError(
                    f"source datasets: {table.name}, {where}: the key {key!r} occurs twice. Name"
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
    """Return why a row can't be used. The text is the same for all rows of a kind; the key names
    the file.
    """
    if fits:
        return "the table's name for it matches several files"
    is_named = isinstance(name, str) and name.strip()
    return "the table names a file that doesn't exist" if is_named else "the table names no file"


def _attributes(
    table: Table, row: dict[str, Any], column: str, config: DatasetsConfig
) -> dict[str, Any]:
    """Return a row's attributes: those that the recipe names, or else every other column."""
    values = add_caption(
        {name: value for name, value in row.items() if name not in (column, config.key)}
    )
    if config.attributes is None:
        return values
    for name in config.attributes:
        if name not in values and name not in table.columns():
            known = ", ".join(table.columns())
            raise SourceError(
                f"source datasets: attributes: no column {name!r}; {table.name} has the columns"
                f" {known}"
            )
    return {
        name: values[name] if name in values else to_plain_value(row.get(name))
        for name in config.attributes
    }


def _rows_of_split(rows: list[Row], config: DatasetsConfig, name: str) -> list[Row]:
    """Return the rows of the split that the recipe asks for. A table only has the split "train"."""
    try:
        parts = datasets.ReadInstruction.from_spec(config.split).to_absolute({"train": len(rows)})
    except (ValueError, AssertionError) as err:
        raise SourceError(
            f"source datasets: {name}, split {config.split!r}: {err}; a table only has the split"
            " train"
        ) from err
    chosen = [row for part in parts for row in rows[part.from_ : part.to]]
    if not chosen:
        raise SourceError(f"source datasets: {name}, split {config.split!r}: it contains no rows")
    return chosen


class _Finder:
    """Finds the files that a table names. A folder is listed only if a name doesn't exist exactly
    as written.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._root = files.name("").replace(os.sep, "/").rstrip("/") + "/"
        self._folders: dict[str, FileNames | None] = {}
        self._all: FileNames | None = None
        self.stamps: dict[str, str] = {}

    def find(self, name: str, folder: str) -> list[str]:
        """Return the paths that a name may mean, from the table's folder or absolute; see
        `FileNames.find`.
        """
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
        """Find files in all folders below the table's; see `FileNames.find_elsewhere`.

        A full URL is never looked for elsewhere.
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
        """Return a path in its shortest form: relative if it is below the table's folder."""
        name = path_of_url(name.strip())
        if is_url(name) and not name.startswith(self._root):
            return name
        path = os.path.normpath(name.removeprefix(self._root)).replace(os.sep, "/")
        return path.removeprefix(self._root)

    def _is_below(self, name: str) -> bool:
        """Return whether a name may be a file below the table's folder. A URL with another root
        isn't.
        """
        return not is_url(self.key(name))

    def _is_there(self, path: str) -> bool:
        """Return whether a file exists, and remember its stamp."""
        if path not in self.stamps:
            try:
                self.stamps[path] = self._files.stamp(path)
            except (
                SourceError,
                OSError,
                ValueError,
            ):  # a text that isn't a path may be too long or contain zeros
                return False
        return True

    def _names_in(self, folder: str) -> FileNames | None:
        """Return the names of the files in a folder; None if it can't be listed."""
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
