"""Tables that describe files: finds the column that names files, the file that a name means, and
the attributes in its row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

from latentkit.contracts import Remark
from latentkit.errors import SourceError
from latentkit.sources.captions import CAPTION_COLUMNS, add_caption, normalize_accents
from latentkit.sources.encodings import UTF8
from latentkit.sources.files import Files
from latentkit.sources.table_rows import COLUMN_NAMES, Table, read_table

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.tsv")
"""Tables that must match files. Other tables are used only if they do."""
MAX_TABLES = 64
"""Most tables with other names that are read. If there are more, they probably are notes on single
files.
"""
MAX_TABLE_BYTES = 1 << 28
"""Most bytes of a table with another name. COCO's object annotations are larger and contain no
captions.
"""
MAX_LISTED = 6
PROBED_ROWS = 1000
"""Rows whose cells are tried in columns with unusual names."""

FILE_COLUMNS = (
    *("file_name", "filename", "file_path", "filepath", "file", "path", "relative_path"),
    *("rel_path", "local_path", "image", "image_path", "image_file", "image_name"),
    *("image_filename", "img", "img_path", "img_file", "img_name", "picture", "photo", "video"),
    *("video_path", "video_file", "video_name", "clip", "clip_path", "audio", "audio_path"),
    *("audio_file", "audio_filepath", "sound", "wav", "wav_path", "media", "media_path", "volume"),
    *("volume_path", "name", "key", "id", "image_id", "video_id", "url"),
)
"""Usual names, in any case, of the column that names a file, in the order in which they are
tried.
"""

FILE_ENDING = re.compile(r"\.[A-Za-z0-9]{2,5}$")


class FileFinder(Protocol):
    """Finds the files that a name in a table of `folder` may mean; several if that is ambiguous."""

    def find(self, name: str, folder: str) -> list[str]: ...

    def find_elsewhere(self, name: str, folder: str) -> list[str]: ...


class FileNames:
    """Finds the file that a table means.

    A name is a path with "/" or Windows' backslashes, from the table's folder or the source's, or
    absolute. Accents may be written in either Unicode form. The case or the ending may differ if
    only one file matches.

    Args:
        stems: path of each file that is a sample, to the path without its ending.
        others: paths of all other files.
        root: full path of the folder that paths start from.
    """

    def __init__(self, stems: Mapping[str, str], others: Iterable[str], root: str) -> None:
        self._stems = stems
        self._others = set(others)
        self._roots = {
            one.replace(os.sep, "/").rstrip("/") + "/" for one in (root, os.path.realpath(root))
        }
        # Paths of files: by path without accents or case, by path without its ending, and, for each
        # folder, by every last part of the path. They are filled when first needed.
        self._by_folded_case: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._by_path_end: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, folder: str) -> list[str]:
        """Return the paths of the files that a name in a table of `folder` may mean; several if
        that is ambiguous.
        """
        spellings = dict.fromkeys(
            self._relative(one, folder) for one in (name, name.replace("\\", "/"))
        )
        paths = [path for pair in spellings for path in pair]
        for path in paths:
            if path in self._stems or path in self._others:
                return [path]
        if not self._by_folded_case:
            self._fold()
        for forms in (normalize_accents, _fold_case):
            for path in paths:
                if found := self._by_folded_case.get(forms(path)):
                    exact = [
                        one for one in found if normalize_accents(one) == normalize_accents(path)
                    ]
                    return exact or found
        return next(
            (found for path in paths if (found := self._by_stem.get(normalize_accents(path)))), []
        )

    def find_elsewhere(self, name: str, folder: str) -> list[str]:
        """Return paths below `folder` that end like the name: a file name in another folder, or a
        path from another machine.
        """
        if folder not in self._by_path_end:
            self._by_path_end[folder] = self._list_tails(f"{folder}/" if folder else "")
        tails = self._by_path_end[folder]
        path = os.path.normpath(name.strip().replace("\\", "/")).replace(os.sep, "/")
        parts = normalize_accents(path).split("/")
        whole = len(parts) > 1  # `find` looks for it
        ends = ("/".join(parts[number:]) for number in range(whole, len(parts)))
        return next((tails[end] for end in ends if end in tails), [])

    def are_below(self, folder: str) -> bool:
        """Return whether any file that is a sample lies below a folder."""
        start = f"{folder}/" if folder else ""
        return any(path.startswith(start) for path in self._stems)

    def _list_tails(self, start: str) -> dict[str, list[str]]:
        """Return the paths that start with `start`, by each of their endings, such as "b/c.png",
        "c.png" and "c".
        """
        tails: dict[str, list[str]] = {}
        for path, stem in self._stems.items():
            if not path.startswith(start):
                continue
            for form in dict.fromkeys((normalize_accents(path), normalize_accents(stem))):
                parts = form.split("/")
                for number in range(len(parts)):
                    tails.setdefault("/".join(parts[number:]), []).append(path)
        return tails

    def _relative(self, name: str, folder: str) -> tuple[str, ...]:
        """Return the paths below the root that a name may mean."""
        name = path_of_url(name.strip())
        for root in self._roots:
            if name.startswith(root):
                return (os.path.normpath(name[len(root) :]).replace(os.sep, "/"),)
        joined = (os.path.join(base, name) for base in (folder, ""))
        return tuple(os.path.normpath(path).replace(os.sep, "/") for path in joined)

    def _fold(self) -> None:
        """Index all paths in one case and one form of accents, with and without their ending."""
        for path, stem in self._stems.items():
            for form in {normalize_accents(path), _fold_case(path)}:
                self._by_folded_case.setdefault(form, []).append(path)
            self._by_stem.setdefault(normalize_accents(stem), []).append(path)


@dataclass
class TableColumns:
    """The attributes that the tables of a folder give to its files.

    Args:
        columns: attributes by the file's relative path.
        remarks: remarks on what is not used.
    """

    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)


def read_tables(
    files: Files, tables: Sequence[str], names: FileNames, must_fit: Sequence[str] = TABLE_NAMES
) -> TableColumns:
    """Read the attributes of files from tables. Tables in subfolders take precedence over those
    above them, and tables in `must_fit` over others in the same folder.

    Args:
        tables: relative paths.
        must_fit: names of tables that must not be skipped.

    Raises:
        SourceError: a table in `must_fit` can't be read or names no file of the source.
    """

    def must(path: str) -> bool:
        return path in must_fit or os.path.basename(path) in must_fit

    merged = TableColumns()
    otherwise: list[str] = []
    for path in sorted(tables, key=lambda path: (path.count("/"), must(path), path)):
        found = _read_one(files, path, names, must(path))
        merged.remarks += found.remarks
        for name, values in found.columns.items():
            before = merged.columns.setdefault(name, {})
            if any(before.get(column, value) != value for column, value in values.items()):
                otherwise.append(name)
            before.update(values)
    if otherwise:
        wins = "the one in the deeper folder or later by name is used"
        text = f"files of which two tables say different things; {wins}"
        merged.remarks.append(Remark(text, len(otherwise), otherwise[0]))
    return merged


def _read_one(files: Files, path: str, names: FileNames, must_fit: bool) -> TableColumns:
    """Read one table. A table that can't be used gives a remark, or an error if it is in
    `must_fit`.
    """
    try:
        if not must_fit and _size(files, path) > MAX_TABLE_BYTES:
            text = "large tables, not read unless source.with.metadata names one"
            return TableColumns(remarks=[Remark(text, 1, path)])
        table, folder = read_table(files, path), os.path.dirname(path)
        try:
            return _match(table, folder, names)
        except SourceError:
            if must_fit or names.are_below(folder):
                raise
            return _match(table, "", names)  # in a folder of notes, such as COCO's annotations
    except SourceError as err:
        if must_fit:
            raise
        text = "table not used: it can't be read, or names no file here"
        return TableColumns(remarks=[Remark(text, 1, " ".join(str(err).split()))])


@dataclass(frozen=True)
class FileColumn:
    """The column of a table that names files.

    Args:
        table: the table, with its first line as a row if that isn't names.
        name: name of the column.
        files: for each row, the files that it may mean.
        is_elsewhere: whether files were found by the end of their path, in other folders below the
            table's.
    """

    table: Table
    name: str
    files: list[list[str]]
    is_elsewhere: bool = False

    @property
    def num_found(self) -> int:
        """Return how many rows name a file; if it is elsewhere, exactly one file."""
        return sum(len(paths) == 1 if self.is_elsewhere else bool(paths) for paths in self.files)

    def remarks(self) -> list[Remark]:
        """Return remarks on how the table was read, if that may surprise."""
        text = "rows of tables whose file was found in another folder than the row names"
        elsewhere = Remark(text, self.num_found, self.table.name)
        encoding = encoding_remark(self.table.encoding, 1, self.table.name)
        bad = [
            Remark("lines of tables that can't be read, not used", len(self.table.bad_lines), why)
            for why in self.table.bad_lines[:1]
        ]
        return bad + [elsewhere] * self.is_elsewhere + [encoding] * (self.table.encoding != UTF8)


def choose_file_column(
    table: Table, folder: str, names: FileFinder, wanted: str | None = None
) -> FileColumn:
    """Choose the column that names files, and find the files of its rows.

    The first column with a usual name in which at least half of the cells name a file is chosen.
    Otherwise it is the one with the most such cells, or one with another name. If no column names a
    file, files may be in other folders than the rows name. The first line may be a row instead of
    names.

    Raises:
        SourceError: no cell names a file; the message lists the columns that were tried.
    """
    for is_elsewhere, find in ((False, names.find), (True, names.find_elsewhere)):
        read = _with_first_line(table, folder, find)
        best = FileColumn(read, "", [], is_elsewhere)
        for group in _groups(read, wanted):
            for column in group:
                is_probed = wanted is None and normalize_column_name(column) not in FILE_COLUMNS
                if is_probed and not any(
                    _find(row.get(column), folder, find) for _, row in read.rows[:PROBED_ROWS]
                ):
                    continue
                found = FileColumn(
                    read,
                    column,
                    [_find(row.get(column), folder, find) for _, row in read.rows],
                    is_elsewhere,
                )
                best = max(best, found, key=lambda one: one.num_found)
                if 2 * best.num_found >= len(read.rows) > 0:
                    return best
            if best.num_found:
                return best
    raise SourceError(_no_file_message(table, next(iter(_groups(table, wanted)), [])))


def _size(files: Files, path: str) -> int:
    """Return a file's size in bytes."""
    try:
        with files.open(path) as file:
            return file.seek(0, os.SEEK_END)
    except OSError as err:
        raise SourceError(f"{files.name(path)} can't be read: {err}") from err


def _with_first_line(table: Table, folder: str, find: Callable[[str, str], list[str]]) -> Table:
    """Return the table, with a CSV's first line as a row if that line isn't column names.

    It is column names if one of them is usual, or if a cell names a file but without the ending
    that the rows below have.
    """
    cells = list(table.first_line.values())
    is_usual = any(
        normalize_column_name(cell) in (*FILE_COLUMNS, *CAPTION_COLUMNS) for cell in cells
    )
    below = table.rows[0][1] if table.rows else {}
    if not is_usual and any(
        _find(cell, folder, find) and _has_ending(cell) == _has_ending(str(below[name]))
        for name, cell in table.first_line.items()
        if name in below
    ):
        return table.without_names()
    if is_usual and len(set(cells)) < len(cells):
        raise SourceError(f"{table.name}, line 1: {COLUMN_NAMES}; got {', '.join(cells)}")
    return table


def _has_ending(name: str) -> bool:
    """Return whether a name has an ending."""
    return bool(FILE_ENDING.search(name.strip()))


def _groups(table: Table, wanted: str | None) -> list[list[str]]:
    """Return groups of columns that may name files: usual names in their order, then the others."""
    columns = table.columns() if wanted is None else [wanted]
    usual = sorted(
        (one for one in columns if normalize_column_name(one) in FILE_COLUMNS),
        key=lambda one: FILE_COLUMNS.index(normalize_column_name(one)),
    )
    return [group for group in (usual, [one for one in columns if one not in usual]) if group]


def _no_file_message(table: Table, looked_at: Sequence[str]) -> str:
    """Return a message that no row names a file, with the columns that were tried."""
    if not table.rows:
        return f"{table.name}: the table has no rows"
    where, row = table.rows[0]
    first = next((row[column] for column in looked_at if row.get(column)), None)
    looked = (
        f"tried the columns {', '.join(looked_at)}" if looked_at else "no column can name files"
    )
    advice = "names are relative to the folder of the table or of the source"
    gone = f"no file {first!r} in the source, and no other row names an existing file"
    return f"{table.name}, {where}: {gone}; {looked}; {advice}"


def _find(cell: Any, folder: str, find: Callable[[str, str], list[str]]) -> list[str]:
    return find(cell, folder) if isinstance(cell, str) and cell.strip() else []


def _match(table: Table, folder: str, names: FileNames) -> TableColumns:
    """Match a table's rows to files, and return their attributes."""
    chosen = choose_file_column(table, folder, names)
    table, column = chosen.table, chosen.name
    matched = TableColumns(remarks=chosen.remarks())
    gone: list[str] = []
    unsure: list[str] = []
    again: list[str] = []
    for (where, row), paths in zip(table.rows, chosen.files, strict=True):
        if len(paths) != 1:
            (unsure if paths else gone).append(
                f"{table.name}, {where}: {row.get(column)!r}"
                + (f" ({_list_few(paths)})" if paths else "")
            )
        elif paths[0] in matched.columns:
            again.append(f"{table.name}, {where}: {row[column]!r}")
        else:
            matched.columns[paths[0]] = add_caption(
                {name: value for name, value in row.items() if name != column}
            )
    kinds = {
        "rows of tables that name no file of the source": gone,
        "rows of tables whose name matches several files": unsure,
        "rows of tables that name the same file as an earlier row": again,
    }
    matched.remarks += [
        Remark(f"{text}, not used", len(rows), rows[0]) for text, rows in kinds.items() if rows
    ]
    return matched


def _list_few(paths: Sequence[str]) -> str:
    """Return a few of many paths as a text, so that a row that matches every file stays short."""
    others = len(paths) - MAX_LISTED
    return ", ".join(paths[:MAX_LISTED]) + (f" and {others} others" if others > 0 else "")


def encoding_remark(encoding: str, count: int, example: str) -> Remark:
    """Return a remark that texts were read in another encoding than UTF-8."""
    return Remark(f"read as {encoding}, not UTF-8", count, example)


def path_of_url(name: str) -> str:
    """Return the path in a URL such as file:///data/a%20b.png; any other name unchanged."""
    return unquote(name.removeprefix("file://")) if name.startswith("file:///") else name


def normalize_column_name(column: str) -> str:
    """Return a column name in lower case with underscores."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _fold_case(path: str) -> str:
    return normalize_accents(normalize_accents(path).casefold())
