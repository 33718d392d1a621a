"""Tables that say something of files: captions and other columns, by the files' paths."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from latentkit.errors import SourceError
from latentkit.sources.files import Files

TABLE_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def read_tables(files: Files, tables: Sequence[str], taken: Collection[str], others: Collection[str]) -> dict[str, dict[str, Any]]:
    """The columns of every file that a table names, by relative path; tables further down win over those above them.

    Args:
        tables: relative paths.
        taken: paths of the files that are samples.
        others: paths of other files, which tables may name too.

    Raises:
        SourceError: a table can't be read, or names a file that isn't there.
    """
    columns: dict[str, dict[str, Any]] = {}
    for table in sorted(tables, key=lambda path: (path.count("/"), path)):
        lines: dict[str, int] = {}
        for line, row in _rows(files, table):
            where = f"{files.name(table)}, line {line}"
            name = row.pop(FILE_COLUMN, None)
            if not isinstance(name, str) or not name:
                raise SourceError(f"{where}: expected a text in {FILE_COLUMN!r}, got {name!r}")
            path = os.path.normpath(os.path.join(os.path.dirname(table), name)).replace(os.sep, "/")
            if lines.setdefault(path, line) != line:
                raise SourceError(f"{where}: {name!r} was already named in line {lines[path]}")
            if path in taken:
                columns.setdefault(path, {}).update({column: _plain(value) for column, value in row.items()})
            elif path not in others:
                raise SourceError(f"{where}: there is no file {name!r} in the source; names are relative to the folder of the table")
    return columns


def _rows(files: Files, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row of a .jsonl or .csv table."""
    name = files.name(path)
    try:
        text = io.StringIO(files.read(path).decode("utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as err:
        raise SourceError(f"source folder: {name} can't be read as UTF-8 text: {err}") from err
    yield from _csv_rows(name, text) if path.lower().endswith(".csv") else _json_rows(name, text)


def _json_rows(path: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as err:
            raise SourceError(f"{path}, line {line}: not JSON: {err}; expected one object a line") from err
        if not isinstance(row, dict):
            raise SourceError(f"{path}, line {line}: expected a JSON object with {FILE_COLUMN!r}, got {type(row).__name__}")
        yield line, row


def _csv_rows(path: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader: csv.DictReader[Any] = csv.DictReader(file, strict=True)
    try:
        names = list(reader.fieldnames or [])
        if FILE_COLUMN not in names or len(set(names)) < len(names):
            raise SourceError(
                f"{path}, line 1: expected column names, each once, {FILE_COLUMN!r} among them; got {', '.join(names) or 'none'}"
            )
        for row in reader:
            if None in row or None in row.values():
                raise SourceError(f"{path}, line {reader.line_num}: expected {len(names)} columns, as in line 1")
            row.pop("", None)  # the column of row numbers that pandas writes
            yield reader.line_num, row
    except csv.Error as err:
        raise SourceError(f"{path}, line {reader.reader.line_num}: not CSV: {err}") from err


def _plain(value: Any) -> Any:
    """A scalar or a list of scalars as it is; anything deeper as JSON text."""
    if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)):
        return json.dumps(value, ensure_ascii=False)
    return value
