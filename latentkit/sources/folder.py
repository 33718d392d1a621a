"""Source `folder`: files below a folder, in the order of their relative paths, with captions from tables, sidecars and class folders."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, Entry, Sample
from latentkit.errors import SourceError

if TYPE_CHECKING:
    from latentkit.builtin import FolderConfig

TABLE_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"
LATENT_DATASET = {"plans", "units"}
"""Sub-folders by which a latent dataset is known."""
CAPTION_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class MediaFile:
    """One file: its key, its path relative to the folder, its stamp, and the path of its caption, or "" for none."""

    key: str
    path: str
    stamp: str
    caption: str


class FolderSource:
    """Samples whose key is their relative path with "/", whose media is their path and whose stamp is size and time of change in ns.

    Attributes are "label" (name of the file's folder, where that is not `path` itself), "text" (from `name.txt` beside `name.jpg`), and the
    columns of `metadata.jsonl` and `metadata.csv`, which win over both. Texts of a .csv stay texts; nested values become JSON.

    Raises:
        SourceError: no such folder, no file in it with one of the suffixes, a link to nothing, or a table that does not fit the files.
    """

    def __init__(self, config: FolderConfig, context: BuildContext) -> None:
        self._root = (context.recipe_dir / Path(config.path).expanduser()).absolute()
        scan = _Scan(self._root, config)
        self._files = scan.files
        self._columns = _read_tables(self._root, scan)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position; its media is a `Path`.

        Raises:
            SourceError: its caption is not UTF-8 text, or is gone.
        """
        file = self._files[index]
        return Sample(file.key, self._root / file.path, self._attributes(file), file.stamp)

    def entries(self) -> Iterator[Entry]:
        """One entry per file, in order; reads captions, opens no media.

        Raises:
            SourceError: a caption is not UTF-8 text, or is gone.
        """
        return (Entry(file.key, file.stamp, self._attributes(file)) for file in self._files)

    def _attributes(self, file: MediaFile) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        folder = os.path.dirname(file.path)
        if folder:
            attributes["label"] = _storable(os.path.basename(folder))
        columns = self._columns.get(file.path, {})
        if file.caption and "text" not in columns:
            attributes["text"] = _read_caption(self._root / file.caption)
        return attributes | columns


# ---------------------------------------------------------------- files


class _Scan:
    """What one pass over a folder finds: the media files by key, and the tables."""

    def __init__(self, root: Path, config: FolderConfig) -> None:
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "does not exist"
            raise SourceError(f"source folder: {root} {what}; expected a folder with files ending in {', '.join(config.suffixes)}")
        self._root = os.fspath(root)
        self._recursive = config.recursive
        self._suffixes = tuple(suffix.lower() for suffix in config.suffixes)
        self._table_names = TABLE_NAMES if config.metadata is None else (config.metadata,)
        self._found: list[tuple[str, str]] = []
        self._captions: set[str] = set()
        self._other_suffixes: Counter[str] = Counter()
        self.tables: list[str] = []
        try:
            self._visit("", frozenset())
        except OSError as err:
            raise SourceError(f"source folder: {root} can't be read: {err}") from err
        if not self._found:
            raise SourceError(self._why_empty(config))
        if config.metadata is not None and not self.tables:
            raise SourceError(f"source folder: no file named {config.metadata} in {root}, as metadata asks for")
        self.files = sorted((self._media_file(path, stamp) for path, stamp in self._found), key=lambda file: file.key)

    def _visit(self, folder: str, above: frozenset[tuple[int, int]]) -> None:
        """Note everything in one folder ("" or ending in "/"), then in the folders below it; `above` are the folders it lies in."""
        status = os.stat(os.path.join(self._root, folder))
        identity = (status.st_dev, status.st_ino)
        # A link to a folder that holds it. Some network disks give every folder the number 0.
        if status.st_ino and identity in above:
            return
        with os.scandir(os.path.join(self._root, folder)) as found:
            entries = list(found)
        if folder and {entry.name for entry in entries} >= LATENT_DATASET:  # an earlier output in here; its preview is no sample
            return
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(f"{folder}{entry.name}/")
            else:
                self._note(entry, folder + entry.name)
        if self._recursive:
            for path in below:
                self._visit(path, above | {identity})

    def _note(self, entry: os.DirEntry[str], path: str) -> None:
        name = entry.name.lower()
        if name.endswith(self._suffixes):
            if not entry.is_file():
                raise SourceError(f"source folder: {entry.path} is a link to nothing, or not a file; mend or remove it")
            status = entry.stat()
            self._found.append((path, f"{status.st_size}-{status.st_mtime_ns}"))
        elif entry.name in self._table_names:
            self.tables.append(path)
        else:
            if name.endswith(CAPTION_SUFFIX):
                self._captions.add(path)
            self._other_suffixes[os.path.splitext(name)[1] or "no suffix"] += 1

    def _media_file(self, path: str, stamp: str) -> MediaFile:
        suffix = max((suffix for suffix in self._suffixes if path.lower().endswith(suffix)), key=len)
        caption = path[: -len(suffix)] + CAPTION_SUFFIX
        return MediaFile(_storable(path), path, stamp, caption if caption in self._captions else "")

    def _why_empty(self, config: FolderConfig) -> str:
        others = ", ".join(f"{suffix} ({count})" for suffix, count in self._other_suffixes.most_common(6))
        depth = "below" if self._recursive else "directly in"
        return f"source folder: no file {depth} {self._root} ends in {', '.join(config.suffixes)}; " + (
            f"others there: {others}; name the ones to take in source.with.suffixes" if others else "there are no other files either"
        )


def _storable(path: str) -> str:
    r"""A path as text that any file can store; different for every path: a byte that is not UTF-8 becomes `\xff`, a backslash two."""
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- captions and tables


def _read_caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise SourceError(f"source folder: the caption {path} can't be read as UTF-8 text: {err}") from err


def _read_tables(root: Path, scan: _Scan) -> dict[str, dict[str, Any]]:
    """The columns of every file that a table names, by relative path; tables further down win over those above them."""
    taken = {file.path for file in scan.files}
    columns: dict[str, dict[str, Any]] = {}
    for table in sorted(scan.tables, key=lambda path: (path.count("/"), path)):
        lines: dict[str, int] = {}
        for line, row in _rows(root / table):
            where = f"{root / table}, line {line}"
            name = row.pop(FILE_COLUMN, None)
            if not isinstance(name, str) or not name:
                raise SourceError(f"{where}: expected a text in {FILE_COLUMN!r}, got {name!r}")
            path = os.path.normpath(os.path.join(os.path.dirname(table), name)).replace(os.sep, "/")
            if lines.setdefault(path, line) != line:
                raise SourceError(f"{where}: {name!r} was already named in line {lines[path]}")
            if path in taken:
                columns.setdefault(path, {}).update({column: _plain(value) for column, value in row.items()})
            elif os.path.isabs(path) or path.startswith("../") or not (root / path).is_file():
                raise SourceError(f"{where}: there is no file {name!r} in the source; names are relative to the folder of the table")
    return columns


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row of a .jsonl or .csv table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file) if path.suffix.lower() == ".csv" else _json_rows(path, file)
    except (OSError, UnicodeDecodeError) as err:
        raise SourceError(f"source folder: {path} can't be read as UTF-8 text: {err}") from err


def _json_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _csv_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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
