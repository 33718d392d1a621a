"""Tables that say something of files: which column names the file, which file a name means, and
what the rows say of it.
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
from latentkit.sources.captions import CAPTION_COLUMNS, name_caption, normal_form
from latentkit.sources.encodings import UTF8
from latentkit.sources.files import Files
from latentkit.sources.table_rows import COLUMN_NAMES, Table, read_table

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.tsv")
"""Tables that must fit the files; others are read where they do."""
MAX_TABLES = 64
"""Tables of other names that are looked at; where there are more, they are rather notes on single
files.
"""
MAX_TABLE_BYTES = 1 << 28
"""Of a table of another name; COCO's annotations of objects are larger, and no captions."""
MAX_LISTED = 6
PROBED_ROWS = 1000
"""Rows whose cells are looked at in columns of other than usual names."""

FILE_COLUMNS = (
    *("file_name", "filename", "file_path", "filepath", "file", "path", "relative_path"),
    *("rel_path", "local_path", "image", "image_path", "image_file", "image_name"),
    *("image_filename", "img", "img_path", "img_file", "img_name", "picture", "photo", "video"),
    *("video_path", "video_file", "video_name", "clip", "clip_path", "audio", "audio_path"),
    *("audio_file", "audio_filepath", "sound", "wav", "wav_path", "media", "media_path", "volume"),
    *("volume_path", "name", "key", "id", "image_id", "video_id", "url"),
)
"""Usual names of the column that names a file, in any case, in the order in which they are
tried.
"""

FILE_ENDING = re.compile(r"\.[A-Za-z0-9]{2,5}$")


class FindsFiles(Protocol):
    """Finds the files that a name in a table of `folder` may mean; several where unsure."""

    def find(self, name: str, folder: str) -> list[str]: ...

    def find_elsewhere(self, name: str, folder: str) -> list[str]: ...


class FileNames:
    """Finds the file that a table means: by its path, with "/" or Windows' backslashes, from the
    table's folder or from the source's, or absolute; in either form that systems write accents in;
    in another case or without its ending where one file alone fits.

    Args:
        stems: path of each file that is a sample, to the path without its ending.
        others: paths of the other files.
        root: full path of the folder that paths are relative to.
    """

    def __init__(self, stems: Mapping[str, str], others: Iterable[str], root: str) -> None:
        self._stems = stems
        self._others = set(others)
        self._roots = {
            one.replace(os.sep, "/").rstrip("/") + "/" for one in (root, os.path.realpath(root))
        }
        self._folded: dict[str, list[str]] = {}
        self._endless: dict[str, list[str]] = {}
        self._tails: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, folder: str) -> list[str]:
        """Return paths that a name in a table in `folder` may mean; several where unsure."""
        spellings = dict.fromkeys(
            self._relative(one, folder) for one in (name, name.replace("\\", "/"))
        )
        paths = [path for pair in spellings for path in pair]
        for path in paths:
            if path in self._stems or path in self._others:
                return [path]
        if not self._folded:
            self._fold()
        for forms in (normal_form, _fold_case):
            for path in paths:
                if found := self._folded.get(forms(path)):
                    exact = [one for one in found if normal_form(one) == normal_form(path)]
                    return exact or found
        return next(
            (found for path in paths if (found := self._endless.get(normal_form(path)))), []
        )

    def find_elsewhere(self, name: str, folder: str) -> list[str]:
        """Return paths below `folder` that end as the name does."""
        if folder not in self._tails:
            self._tails[folder] = self._list_tails(f"{folder}/" if folder else "")
        tails = self._tails[folder]
        path = os.path.normpath(name.strip().replace("\\", "/")).replace(os.sep, "/")
        parts = normal_form(path).split("/")
        whole = len(parts) > 1  # which `find` looks for
        ends = ("/".join(parts[number:]) for number in range(whole, len(parts)))
        return next((tails[end] for end in ends if end in tails), [])

    def are_below(self, folder: str) -> bool:
        """Whether any file that is a sample lies below a folder."""
        start = f"{folder}/" if folder else ""
        return any(path.startswith(start) for path in self._stems)

    def _list_tails(self, start: str) -> dict[str, list[str]]:
        """The paths that begin so, by each of their ends, such as "b/c.png", "c.png" and "c"."""
        tails: dict[str, list[str]] = {}
        for path, stem in self._stems.items():
            if not path.startswith(start):
                continue
            for form in dict.fromkeys((normal_form(path), normal_form(stem))):
                parts = form.split("/")
                for number in range(len(parts)):
                    tails.setdefault("/".join(parts[number:]), []).append(path)
        return tails

    def _relative(self, name: str, folder: str) -> tuple[str, ...]:
        """The paths below the root that a name may stand for."""
        name = path_of_url(name.strip())
        for root in self._roots:
            if name.startswith(root):
                return (os.path.normpath(name[len(root) :]).replace(os.sep, "/"),)
        joined = (os.path.join(base, name) for base in (folder, ""))
        return tuple(os.path.normpath(path).replace(os.sep, "/") for path in joined)

    def _fold(self) -> None:
        for path, stem in self._stems.items():
            for form in {normal_form(path), _fold_case(path)}:
                self._folded.setdefault(form, []).append(path)
            self._endless.setdefault(normal_form(stem), []).append(path)


@dataclass
class TableColumns:
    """What the tables of a folder say.

    Args:
        columns: attributes by relative path of the file.
        remarks: what of the tables is not used.
    """

    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)


def read_tables(
    files: Files, tables: Sequence[str], names: FileNames, must_fit: Sequence[str] = TABLE_NAMES
) -> TableColumns:
    """Return what tables say; those further down win, and `must_fit` over those beside.

    Args:
        must_fit: names of tables that are not left out.

    Raises:
        SourceError: one of those can't be read, or names no file of the source.
    """

    def must(path: str) -> bool:
        return path in must_fit or os.path.basename(path) in must_fit

    merged = TableColumns()
    otherwise: list[str] = []
    for path in sorted(tables, key=lambda path: (path.count("/"), must(path), path)):
        said = _read_one(files, path, names, must(path))
        merged.remarks += said.remarks
        for name, values in said.columns.items():
            before = merged.columns.setdefault(name, {})
            if any(before.get(column, value) != value for column, value in values.items()):
                otherwise.append(name)
            before.update(values)
    if otherwise:
        wins = "the one further down or later by name wins"
        text = f"files of which two tables say different things; {wins}"
        merged.remarks.append(Remark(text, len(otherwise), otherwise[0]))
    return merged


def _read_one(files: Files, path: str, names: FileNames, must_fit: bool) -> TableColumns:
    """What one table says; of one that isn't used, a remark, unless it must fit."""
    try:
        if not must_fit and _size(files, path) > MAX_TABLE_BYTES:
            text = "large tables, not looked at unless source.with.metadata names one"
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
        table: the table; without its first line as names where that is a row too.
        files: for each row the files that it may mean.
        is_elsewhere: the files are found by the ends of their paths, below the table's folder.
    """

    table: Table
    name: str
    files: list[list[str]]
    is_elsewhere: bool = False

    @property
    def num_found(self) -> int:
        """Rows that name a file, or where it lies elsewhere, one alone."""
        return sum(len(paths) == 1 if self.is_elsewhere else bool(paths) for paths in self.files)

    def remarks(self) -> list[Remark]:
        """How the table was read, where that may surprise."""
        text = (
            "rows of tables whose file was found by its name, in another folder than the row says"
        )
        elsewhere = Remark(text, self.num_found, self.table.name)
        encoding = encoding_remark(self.table.encoding, 1, self.table.name)
        bad = [
            Remark("lines of tables that can't be read, not used", len(self.table.bad_lines), why)
            for why in self.table.bad_lines[:1]
        ]
        return bad + [elsewhere] * self.is_elsewhere + [encoding] * (self.table.encoding != UTF8)


def choose_file_column(
    table: Table, folder: str, names: FindsFiles, wanted: str | None = None
) -> FileColumn:
    """The column that names files, and the files that its rows may mean.

    The first of a usual name that names a file in half of its cells or more, else the one that does
    in most, else one of another name. Where none does, the files may lie in other folders than the
    rows say. The first line may be a row instead of names.

    Raises:
        SourceError: no cell of any names a file; lists the columns that were looked at.
    """
    for is_elsewhere, find in ((False, names.find), (True, names.find_elsewhere)):
        read = _with_first_line(table, folder, find)
        best = FileColumn(read, "", [], is_elsewhere)
        for group in _groups(read, wanted):
            for column in group:
                is_probed = wanted is None and plain_name(column) not in FILE_COLUMNS
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
    raise SourceError(_names_nothing(table, next(iter(_groups(table, wanted)), [])))


def _size(files: Files, path: str) -> int:
    try:
        with files.open(path) as file:
            return file.seek(0, os.SEEK_END)
    except OSError as err:
        raise SourceError(f"{files.name(path)} can't be read: {err}") from err


def _with_first_line(table: Table, folder: str, find: Callable[[str, str], list[str]]) -> Table:
    """The table; where the first line of a CSV is a row too, with that as a row.

    It is none where it has a usual name of a column, nor where it names a file, such as source.png,
    without the ending that the rows below write.
    """
    cells = list(table.first_line.values())
    is_usual = any(plain_name(cell) in (*FILE_COLUMNS, *CAPTION_COLUMNS) for cell in cells)
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
    return bool(FILE_ENDING.search(name.strip()))


def _groups(table: Table, wanted: str | None) -> list[list[str]]:
    """The columns that may name files: those of usual names in their order, then the others."""
    columns = table.columns() if wanted is None else [wanted]
    usual = sorted(
        (one for one in columns if plain_name(one) in FILE_COLUMNS),
        key=lambda one: FILE_COLUMNS.index(plain_name(one)),
    )
    return [group for group in (usual, [one for one in columns if one not in usual]) if group]


def _names_nothing(table: Table, looked_at: Sequence[str]) -> str:
    if not table.rows:
        return f"{table.name}: the table has no rows"
    where, row = table.rows[0]
    first = next((row[column] for column in looked_at if row.get(column)), None)
    looked = (
        f"looked at the columns {', '.join(looked_at)}"
        if looked_at
        else "there is no column that may name files"
    )
    advice = "names are relative to the folder of the table or of the source"
    gone = f"there is no file {first!r} in the source, nor one that another row names"
    return f"{table.name}, {where}: {gone}; {looked}; {advice}"


def _find(cell: Any, folder: str, find: Callable[[str, str], list[str]]) -> list[str]:
    return find(cell, folder) if isinstance(cell, str) and cell.strip() else []


def _match(table: Table, folder: str, names: FileNames) -> TableColumns:
    chosen = choose_file_column(table, folder, names)
    table, column = chosen.table, chosen.name
    said = TableColumns(remarks=chosen.remarks())
    gone: list[str] = []
    unsure: list[str] = []
    again: list[str] = []
    for (where, row), paths in zip(table.rows, chosen.files, strict=True):
        if len(paths) != 1:
            (unsure if paths else gone).append(
                f"{table.name}, {where}: {row.get(column)!r}"
                + (f" ({_list_few(paths)})" if paths else "")
            )
        elif paths[0] in said.columns:
            again.append(f"{table.name}, {where}: {row[column]!r}")
        else:
            said.columns[paths[0]] = name_caption(
                {name: value for name, value in row.items() if name != column}
            )
    kinds = {
        "rows of tables that name no file of the source": gone,
        "rows of tables whose name fits several files": unsure,
        "rows of tables that name a file which an earlier row names": again,
    }
    said.remarks += [
        Remark(f"{text}, not used", len(rows), rows[0]) for text, rows in kinds.items() if rows
    ]
    return said


def _list_few(paths: Sequence[str]) -> str:
    """A few of many paths, so that a row that fits all files stays short."""
    others = len(paths) - MAX_LISTED
    return ", ".join(paths[:MAX_LISTED]) + (f" and {others} others" if others > 0 else "")


def encoding_remark(encoding: str, count: int, example: str) -> Remark:
    """That texts were read in another encoding than UTF-8."""
    return Remark(f"read as {encoding}, not UTF-8", count, example)


def path_of_url(name: str) -> str:
    """The path in a URL such as file:///data/a%20b.png; any other name as it is."""
    return unquote(name.removeprefix("file://")) if name.startswith("file:///") else name


def plain_name(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _fold_case(path: str) -> str:
    return normal_form(normal_form(path).casefold())
