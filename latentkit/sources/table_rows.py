"""Reads the rows of a table: CSV and similar formats, JSON, JSON lines, Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentkit.errors import SourceError
from latentkit.sources.encodings import UTF8, UnknownEncodingError, decode_table
from latentkit.sources.files import Files

DELIMITERS = ",;\t|"
SNIFFED_LINES = 10
MAX_FIELD = 1 << 30
COLUMN_NAMES = "expected column names, each once, one of a file"
HEAD_BYTES = 1 << 20
PARQUET_ROWS = 1 << 16
ENTRY_PATH_COLUMN = "file_name"
"""The column for the names of entries, if a JSON object has one entry per file."""


@dataclass(frozen=True)
class Table:
    """Rows with their positions, such as "line 3". Binary columns are left out.

    Args:
        name: full path of the file, for messages.
        encoding: encoding of its text; "UTF-8" for Parquet.
        first_line: cells of a CSV's first line by column, because that line may be a row. Columns
            are named by it; a repeated name gets a number.
        bad_lines: why lines aren't rows.
    """

    name: str
    rows: Sequence[tuple[str, dict[str, Any]]]
    encoding: str = UTF8
    first_line: Mapping[str, str] = field(default_factory=dict)
    bad_lines: Sequence[str] = ()

    def columns(self) -> list[str]:
        """Return all column names, in order of appearance."""
        return list(dict.fromkeys(column for _, row in self.rows for column in row))

    def without_names(self) -> Table:
        """Return the table with its first line as a row too, as in LJSpeech. The columns are
        file_name, text, column_3 and so on.
        """
        names = self.columns()
        new = [
            ENTRY_PATH_COLUMN,
            "text",
            *(f"column_{number}" for number in range(3, len(names) + 1)),
        ]
        rows = [("line 1", dict(self.first_line)), *self.rows]
        renamed = [
            (where, {to: row.get(name) for name, to in zip(names, new, strict=False)})
            for where, row in rows
        ]
        return replace(self, rows=renamed, first_line={})


def read_table(files: Files, path: str) -> Table:
    """Read a whole table. Its ending and its first line decide the format.

    Raises:
        SourceError: the table can't be read; the message names file and line.
    """
    name, ending = files.name(path), path.lower().rpartition(".")[2]
    try:
        if ending == "parquet":
            return Table(name, _parquet_rows(files, path))
        text, encoding = decode_table(files.read(path))
    except UnknownEncodingError as err:
        raise SourceError(f"source folder: {name} can't be read as UTF-8 text: {err}") from err
    except (OSError, pa.ArrowException) as err:
        raise SourceError(f"source folder: {name} can't be read: {err}") from err
    bad_lines: list[str] = []
    names: dict[str, str] = {}
    if ending in ("jsonl", "ndjson", "json"):
        read = _json_rows if ending == "json" else _line_rows
        rows = list(read(name, text, bad_lines))
    else:
        with _long_fields():
            names, rows = _csv_rows(name, text, bad_lines)
    if len(bad_lines) > len(rows):
        raise SourceError(bad_lines[0])
    return Table(name, rows, encoding, names, bad_lines)


def read_head(files: Files, path: str, max_rows: int) -> tuple[Table, bool]:
    """Return the first rows of a Parquet or a large JSON lines file, or else the whole table, and
    whether it is known to be the whole table.

    Raises:
        SourceError: the table can't be read.
    """
    name, ending = files.name(path), path.lower().rpartition(".")[2]
    try:
        if ending == "parquet":
            return Table(name, _parquet_rows(files, path, max_rows)), False
        if ending not in ("jsonl", "ndjson"):
            return read_table(files, path), True
        head = _read_start(files, path, HEAD_BYTES + 1)
        if len(head) <= HEAD_BYTES or b"\n" not in head:
            return read_table(files, path), True
        text, encoding = decode_table(head[: head.rindex(b"\n") + 1])
    except UnknownEncodingError:  # the last letter may be cut off
        return read_table(files, path), True
    except (OSError, pa.ArrowException) as err:
        raise SourceError(f"source folder: {name} can't be read: {err}") from err
    rows = itertools.islice(_line_rows(name, text, []), max_rows)
    return Table(name, list(rows), encoding), False


def _read_start(files: Files, path: str, num_bytes: int) -> bytes:
    """Return the first bytes of a file."""
    read_range = getattr(files, "read_range", None)
    if read_range is not None:
        return bytes(read_range(path, 0, num_bytes))
    with files.open(path) as file:
        return file.read(num_bytes)


def contains_media(files: Files, path: str) -> bool:
    """Return whether a table has binary columns, such as images.

    Raises:
        SourceError: the table can't be read.
    """
    if not path.lower().endswith(".parquet"):
        return False
    try:
        with files.open(path) as opened:
            return any(_holds_bytes(column.type) for column in pq.ParquetFile(opened).schema_arrow)
    except (OSError, pa.ArrowException) as err:
        raise SourceError(f"source folder: {files.name(path)} can't be read: {err}") from err


def to_plain_value(value: Any) -> Any:
    """Return a scalar or a list of scalars unchanged, and anything deeper as JSON text."""
    if isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
    ):
        return json.dumps(value, ensure_ascii=False, default=str)
    return (
        value if value is None or isinstance(value, (str, bool, int, float, list)) else str(value)
    )


# ---------------------------------------------------------------- Parquet


def _parquet_rows(
    files: Files, path: str, most: int | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a Parquet file with their positions, at most `most`, without binary
    columns.
    """
    with files.open(path) as opened:
        file = pq.ParquetFile(opened)
        columns = [column.name for column in file.schema_arrow if not _holds_bytes(column.type)]
        batches = file.iter_batches(most or PARQUET_ROWS, columns=columns, use_threads=False)
        rows = (row for batch in batches for row in batch.to_pylist()) if columns else ()
        chosen = itertools.islice(rows, most)
        return [(f"row {number}", row) for number, row in enumerate(chosen, start=1)]


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type contains bytes."""
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


# ---------------------------------------------------------------- JSON


def _line_rows(name: str, text: str, bad_lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of JSON lines with their positions. The reason why a line isn't a row is added
    to `bad_lines`.
    """
    # Not splitlines(): a JSON text may hold other signs that end lines, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            bad_lines.append(
                f"{name}, line {number}: not JSON: {err}; expected one object per line"
            )
            continue
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            bad_lines.append(
                f"{name}, line {number}: expected a JSON object with 'file_name', got"
                f" {type(row).__name__}"
            )


def _json_rows(name: str, text: str, bad_lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a JSON file with their positions: a list of objects, an object with one
    entry per file, an object that contains such a list, or JSON lines.
    """
    try:
        found = json.loads(text)
    except ValueError:
        yield from _line_rows(name, text, bad_lines)
        return
    if isinstance(found, dict):
        found = _find_list(found)
    if isinstance(found, dict):
        yield from ((f"entry {key!r}", _entry(key, value)) for key, value in found.items())
        return
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise SourceError(
            f"{name}: expected a list of objects, or an object with one entry per file"
        )
    yield from ((f"entry {number}", row) for number, row in enumerate(found, start=1))


def _find_list(found: dict[str, Any]) -> Any:
    """Return the rows of COCO's captions, of a list under a name such as "data", or of columns as
    pandas writes them; else the object itself.
    """
    lists = {
        key: value
        for key, value in found.items()
        if isinstance(value, list) and value and all(isinstance(x, dict) for x in value)
    }
    if {"images", "annotations"} <= set(lists):
        captions: dict[Any, list[Any]] = {}
        for note in lists["annotations"]:
            if note.get("caption") is not None:  # annotations of objects have none
                captions.setdefault(note.get("image_id"), []).append(note["caption"])
        images = lists["images"]
        return [{**row, **_name_captions(captions.get(row.get("id"), []))} for row in images]
    if len(lists) == 1 and not any(isinstance(value, dict) for value in found.values()):
        return next(iter(lists.values()))
    columns = list(found.values())
    if len(columns) > 1 and all(
        isinstance(column, dict) and list(column) == [str(n) for n in range(len(column))]
        for column in columns
    ):
        return [{key: column.get(number) for key, column in found.items()} for number in columns[0]]
    return found


def _name_captions(captions: list[Any]) -> dict[str, Any]:
    """Return the column of an image's captions: "caption" for one or none, else "captions"."""
    return {"captions": captions} if len(captions) > 1 else {"caption": next(iter(captions), None)}


def _entry(key: str, value: Any) -> dict[str, Any]:
    """Return a row for one entry of an object such as sd-scripts' {path: {"caption": ..., "tags":
    ...}}, or {path: caption}.
    """
    return {**(value if isinstance(value, dict) else {"text": value}), ENTRY_PATH_COLUMN: key}


# ---------------------------------------------------------------- CSV


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Allow fields longer than 131,072 characters, the limit of the library `csv`, because masks
    are.
    """
    before = csv.field_size_limit(MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_rows(
    name: str, text: str, bad_lines: list[str]
) -> tuple[dict[str, str], list[tuple[str, dict[str, Any]]]]:
    """Return the first line and the rows of a CSV or similar file. The reason why a line isn't a
    row is added to `bad_lines`.

    With tabs or bars between columns, quotes may be plain characters, as in `"Hello" sign`. They
    are read as such if the rows only fit the first line that way, or if a quoted cell would span
    several lines. After a comma and a space, a quote starts a cell if the rows only fit the first
    line that way.
    """
    sign = _delimiter(name, text)
    try:
        parted, problem = _split_rows(name, text, sign), None
    except SourceError as err:
        parted, problem = ({}, [], []), err
    names, rows, bad = parted
    are_plain = problem or bad or any(_contains_line_break(row, sign) for _, row in rows)
    others: list[dict[str, Any]] = []
    if are_plain and '"' in text:
        others = [{"quoting": csv.QUOTE_NONE}] if sign in "\t|" else [{"skipinitialspace": True}]
    for options in others:
        with contextlib.suppress(SourceError):
            found = _split_rows(name, text, sign, **options)
            if not found[2]:
                return found[:2]
    if problem:
        raise problem
    bad_lines += bad
    return names, rows


def _contains_line_break(row: Mapping[str, Any], sign: str) -> bool:
    """Return whether a cell that contains the separator also contains a line break."""
    return any(sign in value and "\n" in value for value in row.values())


def _split_rows(
    name: str, text: str, sign: str, **options: Any
) -> tuple[dict[str, str], list[tuple[str, dict[str, Any]]], list[str]]:
    """Return the first line, and the rows after it by the names in the first line."""
    reader: csv.DictReader[Any] = csv.DictReader(
        io.StringIO(text, newline=""), strict=True, delimiter=sign, **options
    )
    try:
        cells = list(reader.fieldnames or [])
    except csv.Error as err:
        raise SourceError(f"{name}, line {reader.reader.line_num}: not CSV: {err}") from err
    if not cells:
        raise SourceError(f"{name}, line 1: {COLUMN_NAMES}; got none")
    names = [
        f"{cell} ({number})" if cell in cells[: number - 1] else cell
        for number, cell in enumerate(cells, start=1)
    ]
    reader.fieldnames = names
    rows: list[tuple[str, dict[str, Any]]] = []
    bad: list[str] = []
    while True:
        start, why = reader.reader.line_num + 1, f"expected {len(names)} columns, as in line 1"
        try:
            row = next(reader)
        except StopIteration:
            return {one: cell for one, cell in zip(names, cells, strict=True) if one}, rows, bad
        except csv.Error as err:  # the next line is read on its own
            row, why = {None: ""}, f"not CSV: {err}"
        stop = reader.reader.line_num
        if None in row or None in row.values():
            bad += [f"{name}, line {number}: {why}" for number in range(start, stop + 1)]
            continue
        row.pop("", None)  # the column of row numbers that pandas writes
        rows.append((f"line {stop}", row))


def _delimiter(name: str, text: str) -> str:
    """Return the character that splits the first lines into equally many columns, as many as
    possible; a comma if there is only one column.
    """
    if name.lower().endswith(".tsv"):
        return "\t"
    lines = text.lstrip("\r\n").splitlines()[:SNIFFED_LINES]

    def fit(sign: str) -> tuple[bool, int, int]:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=sign) if row]
        except csv.Error:
            counts = []
        return (
            len(set(counts)) == 1 and counts[0] > 1,
            max(counts[:1], default=0),
            -DELIMITERS.index(sign),
        )

    return max(DELIMITERS, key=fit)
